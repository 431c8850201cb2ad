"""Several processes, one run: how they find each other."""

import os
import sys

import jax
from jax._src.clusters import GceTpuCluster

from jaxgpt.config import HostsConfig
from jaxgpt.errors import InputError

JOIN_TIMEOUT_S = 300
"""How long a process waits for the others to start."""


def start_hosts(config: HostsConfig, platform: str) -> None:
    """Joins the processes of a run, by `hosts.*`, by JAX's variables, or as SLURM and Open MPI say.

    A process that has joined already stays as it is. In an allocation of SLURM that srun did not start, this machine
    runs alone, and a line says so.

    Raises:
      InputError: only some of the three settings are given, a variable is no number, or the others did not join.
    """
    if platform:
        jax.config.update("jax_platforms", {"gpu": "cuda,cpu"}.get(platform, platform))
    if jax.distributed.is_initialized():
        return
    address = config.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    count = config.count or _read_count("JAX_NUM_PROCESSES", 0)
    index = config.index if config.index >= 0 else _read_count("JAX_PROCESS_ID", -1)
    if not address:
        if count > 1 or index > 0:
            given = f"hosts.count={count}" if count > 1 else f"hosts.index={index}"
            raise InputError(
                f"{given} needs hosts.coordinator=HOST:PORT of process 0; set it or JAX_COORDINATOR_ADDRESS"
            )
        if not _has_launcher():
            return
    if address and (count < 1 or not 0 <= index < count):
        raise InputError(
            f"hosts.coordinator={address} needs hosts.count and hosts.index below it; they are {count} and {index}"
        )
    # JAX's own watch for preemption would take SIGTERM away from `signals`, and the run would never save.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address or None,
            count or None,
            index if index >= 0 else None,
            initialization_timeout=JOIN_TIMEOUT_S,
            heartbeat_timeout_seconds=2 * config.timeout_s + 10,
        )
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"hosts.coordinator={address or 'from the launcher'}: {first_line}") from error


def _read_count(name: str, default: int) -> int:
    """A number of the environment."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise InputError(f"{name}={text!r} in the environment is not a number; unset it or give a whole number")
    return int(text)


def _has_launcher() -> bool:
    """Whether a launcher that JAX knows started several processes."""
    n_tasks = _read_count("SLURM_STEP_NUM_TASKS", 0) or _read_count("SLURM_NTASKS", 1)
    if n_tasks > 1 and "SLURM_STEP_NODELIST" not in os.environ:
        print(
            f"SLURM allocated {n_tasks} tasks, but srun did not start this process: it runs on this machine alone; "
            "to use all of them, start it with srun",
            file=sys.stderr,
        )
        n_tasks = 1
    is_pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or _is_gce_pod()
    return n_tasks > 1 or _read_count("OMPI_COMM_WORLD_SIZE", 1) > 1 or is_pod


def _is_gce_pod() -> bool:
    """Whether this is one of several hosts of a Cloud TPU, of which only the metadata server of Google Cloud knows.

    It is asked on a machine with a TPU only, and not where JAX is to use the CPU. On Kubernetes the variable tells.
    """
    if jax.config.values["jax_platforms"] == "cpu":
        return False
    try:
        return GceTpuCluster.is_env_present() and GceTpuCluster.get_process_count() > 1
    except (OSError, ValueError) as error:  # the errors of requests are OSErrors
        raise InputError(
            f"the metadata server does not say how many hosts this TPU has ({error}); give hosts.coordinator, "
            "hosts.count and hosts.index, or set TPU_SKIP_MDS_QUERY=1 to use this host alone"
        ) from error
