"""Several processes, one run: how they find each other."""

import os

import jax

from jaxgpt.config import HostsConfig
from jaxgpt.errors import InputError


def start_hosts(config: HostsConfig, platform: str) -> None:
    """Joins the processes of a run, by `hosts.*`, by JAX's variables, or as SLURM and Open MPI say.

    Raises:
      InputError: only some of the three settings are given, or the other processes did not join.
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
