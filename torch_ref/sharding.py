"""jaxgpt/sharding.py in PyTorch: batches are split, parameters are not. One process per device, started by torchrun.

Each process holds the whole model and reads its own rows. What jaxgpt's compiler derives is here one all-reduce of
sums per optimizer step, so the result is that of one process but for the order of additions.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from jaxgpt.config import HostsConfig, MeshConfig
from jaxgpt.errors import InputError


@dataclass(frozen=True)
class Mesh:
    """This process's device; its number; how many there are."""

    device: torch.device
    index: int
    size: int

    @property
    def device_kind(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def start_hosts(config: HostsConfig, platform: str) -> None:
    """Joins the processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    Raises:
      InputError: hosts.* is set, which is jaxgpt's way.
    """
    if config.coordinator or config.count > 1:
        raise InputError(
            f"hosts.coordinator={config.coordinator} hosts.count={config.count} are for jaxgpt; drop them "
            "and start torch_ref with torchrun"
        )
    if "RANK" in os.environ and not dist.is_initialized():
        is_cuda = _pick_device(platform).type == "cuda"
        dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")


def stop_hosts() -> None:
    """Leaves the group again."""
    if dist.is_initialized():
        dist.destroy_process_group()


def process_index() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def process_count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _pick_device(platform: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if platform == "tpu" or (platform == "gpu" and not has_cuda):
        raise InputError(f"mesh.platform={platform} is not here; torch sees {'cuda' if has_cuda else 'cpu'}")
    if platform == "cpu" or not has_cuda:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def make_mesh(config: MeshConfig) -> Mesh:
    """This process's place.

    Raises:
      InputError: the platform is not there, parameters are to be split, or torchrun started another number of
        processes than mesh.data says.
    """
    device, size = _pick_device(config.platform), process_count()
    for name in ("fsdp", "tensor"):
        value = getattr(config, name)
        if value > 1:
            raise InputError(f"mesh.{name}={value}: torch_ref splits no parameters; set --mesh.{name}=1")
    if config.data not in (0, size):
        raise InputError(
            f"mesh.data={config.data}, but there are {size} process(es); start them with "
            f"torchrun --nproc_per_node={config.data}, or set --mesh.data=0"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Mesh(device, process_index(), size)


def count_batch_devices(mesh: Mesh) -> int:
    return mesh.size


def own_rows(mesh: Mesh, n_rows: int) -> tuple[int, int]:
    """Which of a batch's rows this process reads: lo, hi."""
    n_own = n_rows // mesh.size
    return mesh.index * n_own, (mesh.index + 1) * n_own


def to_device(rows: np.ndarray, mesh: Mesh) -> torch.Tensor:
    """A numpy array on the device, without waiting for it."""
    tensor = torch.from_numpy(rows)
    if mesh.device.type != "cuda":
        return tensor
    with torch.cuda.device(mesh.device):  # the current device is a thread's own, and batches come from another
        return tensor.pin_memory().to(mesh.device, non_blocking=True)


def add_over_processes(tensors: Iterable[torch.Tensor]) -> None:
    """Replaces each by its sum over the processes, which then all have the same bits."""
    if process_count() == 1:
        return
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
        assert work is not None
        work.wait()


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, in their order. All must call it."""
    if process_count() == 1:
        return [text]
    data = torch.tensor(list(text.encode()), dtype=torch.uint8)
    sizes = [torch.zeros((), dtype=torch.int64) for _ in range(process_count())]
    dist.all_gather(sizes, torch.tensor(len(data)))
    padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
    padded[: len(data)] = data
    rows = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(rows, padded)
    return [bytes(row[:size].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]
