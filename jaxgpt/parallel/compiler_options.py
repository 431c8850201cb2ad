"""Options for XLA that a run's settings ask for, by platform.

They travel with each program (`jax.jit(compiler_options=...)`); in XLA_FLAGS an unknown one ends the process.

References: openxla/xla issue 49143 (scatters summed up in a loop, TPU) and its fix, pull request 49182; jax issue 39103
(a product fused with its reduction, CPU), which jaxlib 0.10.2 reproduces.
"""

import re
from importlib.metadata import version

from jax.sharding import Mesh

from jaxgpt.config import TrainConfig
from jaxgpt.errors import InputError

Options = dict[str, str | bool]

GUARDS: dict[str, Options] = {
    # YNNPACK for single products, as before, and XLA's own loops for what it would fuse around reductions.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"},
    "tpu": {"xla_disable_hlo_passes": "while-loop-all-reduce-code-motion"},
}
"""Platform -> what leaves out the passes that `train.guard_miscompiles` names. A TPU needs it only beside others."""

DETERMINISTIC: dict[str, Options] = {
    # Without the second a process measures kernels, and the next may choose others.
    "gpu": {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": "0"},
}
"""Platform -> what `train.deterministic` asks for. CPUs and TPUs run the same sums in the same order anyway."""

SPLIT_WEIGHTS: dict[str, Options] = {
    # XLA joins gathers up to 30 MiB, which then wait for each other in memory: d32 on 64 H100 takes 14.8 GiB for 7.5.
    "gpu": {
        "xla_gpu_all_gather_combine_threshold_bytes": str(8 * 2**20),
        "xla_gpu_reduce_scatter_combine_threshold_bytes": str(8 * 2**20),
    },
    # Else a product with a split weight becomes a chain of permutes: for GPT-2 of two layers on v5e-8 1,408 in a step,
    # and 3.38 GiB of temporaries for 2.46.
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}
"""Platform -> how weights that fsdp splits are gathered: about one at a time, and whole."""


def compiler_options(train: TrainConfig, mesh: Mesh) -> Options:
    """What XLA is asked for in each program of a run on a mesh."""
    platform = mesh.devices.flat[0].platform
    options: Options = {}
    if train.guard_miscompiles and (platform != "tpu" or mesh.size > 1):
        options |= GUARDS.get(platform, {})
    if mesh.shape["fsdp"] > 1:
        options |= SPLIT_WEIGHTS.get(platform, {})
    if train.deterministic:
        options |= DETERMINISTIC.get(platform, {})
    return options


def explain_option(error: Exception) -> InputError | None:
    """A compiler's refusal of one of these options in the user's terms; None: it complained about something else."""
    named = re.search(r"(?:No such compile option: |While setting option )'?(\w+)", str(error))
    causes = (
        ("train.guard_miscompiles=True", "--train.guard_miscompiles=False", GUARDS),
        ("train.deterministic=True", "--train.deterministic=False", DETERMINISTIC),
        ("mesh.fsdp above 1", "--mesh.fsdp=1", SPLIT_WEIGHTS),
    )
    for cause, instead, by_platform in causes:
        if named and any(named[1] in options for options in by_platform.values()):
            return InputError(
                f"{cause} sets {named[1]}, which the XLA of jaxlib {version('jaxlib')} refuses; "
                f"install jax 0.10 or 0.11, or pass {instead}"
            )
    return None
