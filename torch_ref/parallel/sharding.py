"""jaxgpt/sharding.py in PyTorch: batches are split, parameters are not. One process per device, started by torchrun.

Each process holds the whole model and reads its own rows. What jaxgpt's compiler derives is here one all-reduce of
sums per optimizer step, so the result is that of one process but for the order of additions.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from torch_ref.parallel.hosts import process_count
from torch_ref.parallel.mesh import Mesh


def own_rows(mesh: Mesh, n_rows: int) -> tuple[int, int]:
    """Which of a batch's rows this process reads: lo, hi."""
    n_own = n_rows // mesh.size
    return mesh.index * n_own, (mesh.index + 1) * n_own


def put_rows(tree: Any, mesh: Mesh) -> Any:
    """Numpy arrays with this process's rows on its device, without waiting for it; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, tuple):
        return type(tree)(*(put_rows(part, mesh) for part in tree))
    tensor = torch.from_numpy(tree)
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
