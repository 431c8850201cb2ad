"""jaxgpt/sharding.py in PyTorch: batches are split, parameters are not. One process per device, started by torchrun.

Each process holds the whole model and reads its own rows. What jaxgpt's compiler derives is here one all-reduce of
sums per optimizer step, so the result is that of one process but for the order of additions.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist

from torch_ref.parallel.hosts import process_count
from torch_ref.parallel.mesh import Mesh


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
