"""jaxgpt/parallel/texts.py in PyTorch."""

import torch
import torch.distributed as dist

from torch_ref.parallel.hosts import process_count


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
