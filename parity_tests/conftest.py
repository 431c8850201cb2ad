"""Eight simulated devices for every test, and no accelerator unless JAX_PLATFORMS names one.

Compiling is most of the suite's time. LLVM's optimisation is off: it changes speed, not what is computed.
"""

import os

import pytest

FAST_COMPILE = "--xla_backend_optimization_level=0"

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FAST_COMPILE}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")  # as make_mesh does for simulated devices
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="module")
def one_thread():
    """torch with one thread: small models lose by more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
