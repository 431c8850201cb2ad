"""The mesh of devices, and one table from parameter path to how it is split.

Three axes: `data` and `fsdp` split the rows of a batch, `fsdp` and `tensor` split parameters. The compiler
derives every collective from these specs ("pjit" is `jax.jit` with NamedShardings today). A parameter that no
rule matches, a rule that no parameter matches, and an axis that does not divide are errors that name the path.

References: GSPMD, arXiv:2105.04663; ZeRO, arXiv:1910.02054; Megatron-LM, arXiv:1909.08053.
"""

import os
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.config import HostsConfig, MeshConfig
from jaxgpt.errors import InputError
from jaxgpt.malloc import keep_freed_memory

BATCH = ("data", "fsdp")
"""Mesh axes over which the rows of a batch are split."""

RULES = {
    "gpt2": (
        (r"wte\.weight", P("tensor", "fsdp")),
        (r"wpe\.weight", P(None, "fsdp")),
        (r"h\.\d+\.attn\.c_attn\.weight", P("fsdp", "tensor")),
        (r"h\.\d+\.attn\.c_proj\.weight", P("tensor", "fsdp")),
        (r"h\.\d+\.mlp\.c_fc\.weight", P("fsdp", "tensor")),
        (r"h\.\d+\.mlp\.c_proj\.weight", P("tensor", "fsdp")),
        (r"h\.\d+\.(attn|mlp)\.c_\w+\.bias", P()),
        (r"(h\.\d+\.ln_[12]|ln_f)\.(weight|bias)", P()),
    ),
    "nanochat": (
        (r"(wte|lm_head)\.weight", P("tensor", "fsdp")),
        (r"value_embeds\.\d+\.weight", P("tensor", "fsdp")),
        (r"h\.\d+\.attn\.c_[qkv]\.weight", P("fsdp", "tensor")),
        (r"h\.\d+\.attn\.c_proj\.weight", P("tensor", "fsdp")),
        (r"h\.\d+\.mlp\.c_fc\.weight", P("fsdp", "tensor")),
        (r"h\.\d+\.mlp\.c_proj\.weight", P("tensor", "fsdp")),
        (r"h\.\d+\.attn\.ve_gate\.weight|smear_gate\.weight", P()),
        (r"(resid|x0)_lambdas|(smear|backout)_lambda", P()),
    ),
}
"""family -> (regular expression for the whole path, spec over the parameter's axes)."""

OPTIONAL = (
    r"h\.\d+\.(attn|mlp)\.c_\w+\.bias",
    r"value_embeds\.\d+\.weight",
    r"h\.\d+\.attn\.ve_gate\.weight|smear_gate\.weight",
    r"(resid|x0)_lambdas|(smear|backout)_lambda",
)
"""Rules that may match nothing: models without biases, and nanochat of 2025."""


def start_hosts(config: HostsConfig, platform: str) -> None:
    """Joins the processes of a run, by `hosts.*`, by JAX's variables, or as SLURM and Open MPI say.

    Raises:
      InputError: only a part of the three settings is there, or the other processes did not come.
    """
    if platform:
        jax.config.update("jax_platforms", {"gpu": "cuda,cpu"}.get(platform, platform))
    address = config.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    count = config.count or int(os.environ.get("JAX_NUM_PROCESSES", "0"))
    index = config.index if config.index >= 0 else int(os.environ.get("JAX_PROCESS_ID", "-1"))
    n_tasks = max(int(os.environ.get(name, "1")) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    is_pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if not address and n_tasks == 1 and not is_pod:
        if count > 1:
            raise InputError(f"hosts.count={count} needs hosts.coordinator=HOST:PORT of process 0")
        return
    if address and (count < 1 or not 0 <= index < count):
        raise InputError(
            f"hosts.coordinator={address} needs hosts.count and hosts.index below it; they are {count} and {index}"
        )
    try:
        jax.distributed.initialize(address or None, count or None, index if index >= 0 else None)
    except RuntimeError as error:
        raise InputError(f"hosts.coordinator={address}: {str(error).splitlines()[0]}") from error


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """The mesh data x fsdp x tensor over the devices of the platform asked for.

    Without `devices` it also sets this process up for them: see below what a CPU needs.

    Raises:
      InputError: the platform is not there, or the devices do not multiply to the mesh.
    """
    if devices is None:
        # On a CPU programs run in this thread: of simulated devices, which share a few threads, programs in flight at
        # once can wait for each other for ever; and glibc keeps large blocks for the main thread alone.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        try:
            devices = jax.devices(config.platform or None)
        except RuntimeError as error:
            raise InputError(
                f"mesh.platform={config.platform} is not here; this jax sees {jax.default_backend()}; "
                "install the extra jaxgpt[cuda] or jaxgpt[tpu], or drop the setting"
            ) from error
        if devices[0].platform == "cpu":
            keep_freed_memory()
    inner = config.fsdp * config.tensor
    data = config.data or max(len(devices) // inner, 1)
    wanted = data * inner
    shape = f"mesh.data={data} x mesh.fsdp={config.fsdp} x mesh.tensor={config.tensor} = {wanted} devices"
    if wanted > len(devices):
        raise InputError(f"{shape}, but there are {len(devices)} ({devices[0].device_kind}); lower one of them")
    if wanted < len(devices) and (not config.data or jax.process_count() > 1):
        raise InputError(f"{shape} of the {len(devices)} that are there; choose axes that multiply to {len(devices)}")
    grid = np.array(devices[:wanted]).reshape(data, config.fsdp, config.tensor)
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def count_batch_devices(mesh: Mesh) -> int:
    """Devices that split the rows of a batch between them."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shard_params(shapes: dict[str, tuple[int, ...]], family: str, mesh: Mesh) -> dict[str, NamedSharding]:
    """Path -> sharding for the parameters of a model family.

    Raises:
      InputError: an axis does not divide; names path, axis and sizes.
      KeyError: a path without a rule, or a rule without a path: the table has a hole.
    """
    rules = RULES[family]
    unused = {pattern for pattern, _ in rules if pattern not in OPTIONAL}
    shardings = {}
    for path, shape in shapes.items():
        found = [(pattern, spec) for pattern, spec in rules if re.fullmatch(pattern, path)]
        if not found:
            raise KeyError(f"no sharding rule matches the parameter {path} {shape}")
        pattern, spec = found[0]
        unused.discard(pattern)
        for size, axis in zip(shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"mesh.{axis}={mesh.shape[axis]} does not divide {path}'s axis of {size}; choose a divisor"
                )
        shardings[path] = NamedSharding(mesh, spec)
    if unused:
        raise KeyError(f"sharding rules that match no parameter: {sorted(unused)}")
    return shardings


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, n_leading: int = 0) -> NamedSharding:
    """Rows split over the batch axes, after `n_leading` axes that are not (microbatches)."""
    return NamedSharding(mesh, P(*[None] * n_leading, BATCH))


def put_rows(read, shape: tuple[int, ...], sharding: NamedSharding, axis: int = 0) -> jax.Array:
    """A global array of which each process reads only the rows that its devices hold.

    Args:
      read: (lo, hi) -> numpy array with the rows lo .. hi along `axis`; called once.
      shape: of the whole array.
    """
    held = sharding.addressable_devices_indices_map(shape).values()
    spans = [index[axis].indices(shape[axis]) for index in held if index is not None]
    first, last = min(lo for lo, _, _ in spans), max(hi for _, hi, _ in spans)
    rows = read(first, last)

    def piece(index):
        lo, hi, _ = index[axis].indices(shape[axis])
        return rows[(slice(None),) * axis + (slice(lo - first, hi - first),)]

    return jax.make_array_from_callback(shape, sharding, piece)


def shard_batch(x):
    """Pins the rows of an activation to the batch axes; the identity outside a mesh.

    Left to itself the partitioner may split heads instead, which flash attention cannot follow.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH, *[None] * (x.ndim - 1)))


def shard_stack(x):
    """Splits a stack of matrices over fsdp by its first axis, each matrix whole; the identity outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P("fsdp", *[None] * (x.ndim - 1)))
