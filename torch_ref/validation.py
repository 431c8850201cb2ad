"""jaxgpt/validation.py in PyTorch: each process evaluates its own rows, the sums are added once at the end."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from jaxgpt.data.batches import Batches
from torch_ref.sharding import add_over_processes, own_rows, to_device
from torch_ref.step import Step


@dataclass(frozen=True)
class Evaluation:
    loss: float
    n_tokens: int
    bits_per_byte: float | None

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def metrics(self) -> dict[str, float | None]:
        return {
            "val_loss": self.loss,
            "val_perplexity": self.perplexity,
            "val_bits_per_byte": self.bits_per_byte,
        }


def evaluate_split(
    step: Step, params, batches: Batches, starts: np.ndarray, *, n_rows: int, token_bytes: np.ndarray | None = None
) -> Evaluation:
    lo, hi = own_rows(step.mesh, n_rows)
    n_bytes = 0
    results = []
    for begin in range(0, len(starts), n_rows):
        chosen = starts[begin : begin + n_rows]
        padded = np.concatenate([chosen, np.repeat(chosen[-1:], n_rows - len(chosen))])[lo:hi]
        mask = (np.arange(n_rows) < len(chosen)).astype(np.float32)[lo:hi]
        rows = batches.at(padded)
        if token_bytes is not None:
            n_bytes += int(token_bytes[rows[mask > 0, 1:]].sum(dtype=np.int64))
        results.append(step.evaluate(params, to_device(rows, step.mesh), to_device(mask, step.mesh)))
    sums = torch.tensor(
        [sum(float(loss_nats) for loss_nats, _ in results), sum(int(count) for _, count in results), n_bytes],
        dtype=torch.float64,
    )
    add_over_processes([sums])
    total_nats, n_tokens, n_bytes = sums.tolist()
    bits_per_byte = total_nats / math.log(2) / n_bytes if n_bytes else None
    return Evaluation(total_nats / n_tokens, int(n_tokens), bits_per_byte)
