"""The environment in which tests run JAX, here and in the processes that they start. Imports no framework."""

import os
from pathlib import Path

REPO = Path(__file__).parents[2]
FAST_COMPILE = "--xla_backend_optimization_level=0"
"""No optimisation by LLVM: it changes speed, not what is computed."""


def environment(n_devices: int = 1) -> dict[str, str]:
    """For a process with so many simulated devices; without this one's PJRT_NPROC: a run chooses its threads."""
    flags = f"--xla_force_host_platform_device_count={n_devices} {FAST_COMPILE}"
    inherited = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    return inherited | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
