"""Simulated devices on a small machine: however many programs are under way, none waits for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt.parallel.cpu_threads import enough_threads

REPO = Path(__file__).parents[1]
LAUNCH_MANY = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxgpt.config import MeshConfig
from jaxgpt.parallel.mesh import make_mesh

mesh = make_mesh(MeshConfig(platform="cpu"))
x = jax.device_put(jnp.ones((mesh.size, 8)), NamedSharding(mesh, P("data")))
add_up = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))
total = add_up(x)
for _ in range(2000):
    total = add_up(x)
print(mesh.size, float(total))
"""


@pytest.mark.parametrize("n_devices", [2, 8])
def test_a_launch_takes_no_thread_from_a_collective(n_devices):
    """As on a machine with one core, where XLA has a thread for each device and no more."""
    flags = (
        f"--xla_force_host_platform_device_count={n_devices} --xla_cpu_collective_call_warn_stuck_timeout_seconds=10 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=20"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    ended = subprocess.run(
        [sys.executable, "-c", LAUNCH_MANY], cwd=REPO, timeout=120, capture_output=True, text=True,
        env=environment | {"NPROC": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{n_devices} {n_devices * 8.0}\n"


@pytest.mark.parametrize(
    ("flags", "given", "expected"),
    [
        ("--xla_force_host_platform_device_count=8", {"PJRT_NPROC": "3"}, "16"),
        ("--xla_force_host_platform_device_count=8", {"PJRT_NPROC": "40"}, "40"),
        ("--xla_force_host_platform_device_count=8", {"NPROC": "1"}, "16"),
        ("--a --xla_force_host_platform_device_count=8 --xla_force_host_platform_device_count=2", {"NPROC": "1"}, "4"),
        ("", {}, None),
        ("", {"PJRT_NPROC": "1"}, "1"),
    ],
)
def test_the_threads_asked_for_last_as_long_as_the_block(monkeypatch, flags, given, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with enough_threads():
        assert os.environ.get("PJRT_NPROC") == expected
    assert os.environ.get("PJRT_NPROC") == given.get("PJRT_NPROC")


COUNT = """
import jax
from jaxgpt.parallel.cpu_threads import count_simulated_devices
print(count_simulated_devices(), len(jax.devices()))
"""


@pytest.mark.parametrize(("asked", "expected"), [("3", "3 3\n"), ("-1", "5 5\n")])
def test_devices_are_counted_as_jax_counts_them(asked, expected):
    """`jax_num_cpu_devices` goes before XLA's flag."""
    settings = {"JAX_NUM_CPU_DEVICES": asked, "XLA_FLAGS": "--xla_force_host_platform_device_count=5"}
    ended = subprocess.run(
        [sys.executable, "-c", COUNT], cwd=REPO, timeout=120, capture_output=True, text=True, check=True,
        env=os.environ | settings | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert ended.stdout == expected
