"""jaxgpt/parallel/hosts.py in PyTorch: processes are started by torchrun."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from jaxgpt.config import HostsConfig
from jaxgpt.errors import InputError

COLLECTIVE_TIMEOUT_S = 600
"""How long a process waits in a collective: others wait there while process 0 saves or evaluates."""


def start_hosts(config: HostsConfig, platform: str) -> None:
    """Joins the processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    Raises:
      InputError: hosts.* is set, which is jaxgpt's way; torchrun's variables are not complete, or nobody answers.
    """
    if config.coordinator or config.count > 1:
        raise InputError(
            f"hosts.coordinator={config.coordinator} hosts.count={config.count} are for jaxgpt; drop them "
            "and start torch_ref with torchrun"
        )
    if "RANK" in os.environ and not dist.is_initialized():
        is_cuda = pick_device(platform).type == "cuda"
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if is_cuda else "gloo", timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S)
            )
        except (ValueError, RuntimeError) as error:
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"RANK={os.environ['RANK']}: the processes did not join: {first_line}; start them with torchrun"
            ) from error


def stop_hosts() -> None:
    """Leaves the group again."""
    if dist.is_initialized():
        dist.destroy_process_group()


def process_index() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def process_count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def pick_device(platform: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if platform == "tpu" or (platform == "gpu" and not has_cuda):
        raise InputError(f"mesh.platform={platform} is not available; torch sees {'cuda' if has_cuda else 'cpu'}")
    if platform == "cpu" or not has_cuda:
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK", "0")
    if not rank.isdigit() or int(rank) >= torch.cuda.device_count():
        raise InputError(
            f"LOCAL_RANK={rank} is not one of the {torch.cuda.device_count()} GPUs here; start fewer processes per host"
        )
    return torch.device("cuda", int(rank))
