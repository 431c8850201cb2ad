"""What an evaluation counts and concludes: loss in nats per token, perplexity, bits per byte. For both frameworks."""

import math
from dataclasses import dataclass

import numpy as np


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


def make_masks(
    targets_BT: np.ndarray, n_counted: int, token_bytes: np.ndarray | None, mask_BT: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Which tokens count for the loss and which for bits per byte, bool [B, T, 2]; and the bytes of the latter.

    Args:
      n_counted: leading rows that count; the others only fill the batch up.
      token_bytes: UTF-8 bytes of each id, [V]. Special tokens have 0: bits per byte leave out their loss, as
        nanochat's do. None: no bytes.
      mask_BT: which targets count, of conversations the assistant's; None: all.
    """
    is_counted_BT = np.broadcast_to(np.arange(len(targets_BT))[:, None] < n_counted, targets_BT.shape)
    if mask_BT is not None:
        is_counted_BT = is_counted_BT & (mask_BT > 0)
    bytes_BT = np.zeros_like(targets_BT) if token_bytes is None else token_bytes[targets_BT] * is_counted_BT
    return np.stack([is_counted_BT, bytes_BT > 0], axis=-1), int(bytes_BT.sum(dtype=np.int64))


def conclude(nats: float, text_nats: float, n_tokens: int, n_bytes: int) -> Evaluation:
    """From sums over all rows: of the loss, of the loss of tokens that have bytes, of tokens, of bytes.

    Where no token counts the loss is 0.
    """
    return Evaluation(nats / max(n_tokens, 1), n_tokens, text_nats / math.log(2) / n_bytes if n_bytes else None)
