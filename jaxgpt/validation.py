"""Loss on held-out rows: nats per token, perplexity, bits per byte. The same rows each time, each counted once."""

import math
from dataclasses import dataclass

import numpy as np

from jaxgpt.data.batches import Batches
from jaxgpt.sharding import batch_sharding, put_rows
from jaxgpt.step import Step


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over `n_tokens`. Bits per byte is None where no tokenizer says how long a token is."""

    loss: float
    n_tokens: int
    bits_per_byte: float | None

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def metrics(self) -> dict[str, float | None]:
        """As metrics.jsonl names them."""
        return {
            "val_loss": self.loss,
            "val_perplexity": self.perplexity,
            "val_bits_per_byte": self.bits_per_byte,
        }


def evaluate_split(
    step: Step, params, batches: Batches, starts: np.ndarray, *, n_rows: int, token_bytes: np.ndarray | None = None
) -> Evaluation:
    """Evaluates the rows that begin at `starts`.

    Args:
      params: sharded as the step wants them.
      starts: positions in the split; see `eval_rows`.
      n_rows: rows per forward pass over all devices; the last pass is filled up with rows that do not count.
      token_bytes: UTF-8 bytes of each id, [V]; 0 for special tokens, which then count no bytes.
    """
    sharding = batch_sharding(step.mesh)
    n_bytes = 0
    results = []
    for begin in range(0, len(starts), n_rows):
        chosen = starts[begin : begin + n_rows]
        padded = np.concatenate([chosen, np.repeat(chosen[-1:], n_rows - len(chosen))])
        mask = (np.arange(n_rows) < len(chosen)).astype(np.float32)
        rows = batches.at(padded)
        if token_bytes is not None:
            n_bytes += int(token_bytes[rows[: len(chosen), 1:]].sum(dtype=np.int64))
        batch = put_rows(lambda lo, hi, rows=rows: rows[lo:hi], rows.shape, sharding)
        weights = put_rows(lambda lo, hi, mask=mask: mask[lo:hi], mask.shape, sharding)
        results.append(step.evaluate(params, batch, weights))
    total_nats = sum(float(loss_nats) for loss_nats, _ in results)
    n_tokens = sum(int(count) for _, count in results)
    bits_per_byte = total_nats / math.log(2) / n_bytes if n_bytes else None
    return Evaluation(total_nats / n_tokens, n_tokens, bits_per_byte)
