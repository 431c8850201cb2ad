"""A device's memory, seen from training: what the compiled step needs, and what to change when it is too little.

The figure is the compiler's, of the step that has just been compiled. The advice is an estimate, because asking the
compiler again takes minutes: the largest setting whose activations are, by count, clearly fewer than what failed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from jaxgpt.config import Config, rows_that_divide
from jaxgpt.config.activations import activations_bytes
from jaxgpt.config.auto import REMATS, rows_overrides
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.config.hardware import GIB
from jaxgpt.errors import InputError
from jaxgpt.parallel.mesh import count_batch_devices
from jaxgpt.training.step import Step, device_bytes

CLEARLY_LESS = 0.85
"""Advised settings stay below this fraction of the failed one's estimate, which may be off (docs/memory.md)."""


class OutOfMemory(InputError):
    """The step does not fit the device.

    Attributes:
      smaller: overrides with which it should; empty: there are none.
    """

    def __init__(self, message: str, smaller: dict[str, str]):
        super().__init__(message)
        self.smaller = smaller


def gib(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.2f} GiB" if abs(n_bytes) >= 0.1 * GIB else f"{n_bytes / 2**20:.1f} MiB"


def describe_memory(compiled: Any, mesh: Mesh) -> str:
    """What a compiled step needs of each device, its arguments included; "unknown" where the compiler does not say."""
    memory = compiled.memory_analysis()
    if memory is None:
        return "unknown"
    inputs = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = inputs + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    usable = usable_bytes(mesh)
    limit = f" of {gib(usable)} usable" if usable else ""
    return f"{gib(total)}{limit} on each device, {gib(inputs)} of it state and batch"


def usable_bytes(mesh: Mesh) -> int:
    """What the runtime lets a program have of a device; 0 where it does not say (CPU)."""
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit", 0)


@contextmanager
def advice_on_memory(config: Config, step: Step) -> Iterator[None]:
    """Turns an out-of-memory error, at compile or at run time, into one line that names a fix.

    Raises:
      OutOfMemory: in place of XLA's RESOURCE_EXHAUSTED.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = next(line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line)
        kind = step.mesh.devices.flat[0].device_kind
        setting = f"train.micro_batch_size={config.train.micro_batch_size} train.remat={config.train.remat}"
        smaller = smaller_setting(config, step, usable_bytes(step.mesh))
        raise OutOfMemory(
            f"{setting} does not fit into {kind} ({said[:200].strip()}); {advise(smaller)}", smaller
        ) from error


def smaller_setting(config: Config, step: Step, usable_bytes: int) -> dict[str, str]:
    """Overrides for the setting to try after one that failed, the cheapest in time first; empty: there is none.

    Args:
      config: derived; what failed.
      usable_bytes: of one device; 0: unknown.
    """
    config = replace(config, mesh=replace(config.mesh, data=step.mesh.shape["data"]))
    params_bytes, state_bytes = (
        sum(map(device_bytes, jax.tree.leaves(tree))) for tree in (step.state_shapes.params, step.state_shapes)
    )

    def total_bytes(candidate: Config) -> float:
        temporaries = activations_bytes(candidate.largest_stage(), step.attention[0], params_bytes)
        return state_bytes + params_bytes + temporaries  # gradients are as large as the parameters

    limit = CLEARLY_LESS * total_bytes(config)
    limit = min(limit, usable_bytes) if usable_bytes else limit
    for remat in REMATS:
        fitting: dict[str, str] = {}
        for rows in rows_that_divide(config, count_batch_devices(step.mesh)):
            setting = rows_overrides(config, [rows] * len(config.stage_rows())) | {"train.remat": remat}
            if total_bytes(apply_overrides(config, setting)) <= limit:
                fitting = setting
        if fitting:
            return fitting
    return {}


def advise(smaller: dict[str, str]) -> str:
    """What `smaller_setting` found, in words."""
    if smaller:
        setting = " ".join(f"--{name}={value}" for name, value in smaller.items())
        return f"{setting} should fit, by an estimate; jaxgpt plan --fit checks it with the compiler"
    return (
        "no smaller setting should fit; split the model over more devices (mesh.fsdp), shorten the rows "
        "(model.seq_len, train.stages), or choose a smaller model"
    )
