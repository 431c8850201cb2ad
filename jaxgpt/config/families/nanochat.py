"""nanochat's model, in two eras: its shape, and what follows from its one dial.

A 0 or an empty string means "as the depth and the era say"; `jaxgpt.config.derive` fills it in before a model is built.
"""

from dataclasses import dataclass
from typing import Literal

from jaxgpt.errors import require

GATE_CHANNELS = {"smear": 24, "value_embed": 12}
"""Leading channels of the residual stream that nanochat's gates look at."""


@dataclass(frozen=True)
class NanochatConfig:
    """nanochat's model, in two eras. One dial, `depth`; the rest follows unless it is set.

    2025 (November): rotary positions, parameterless RMSNorm, QK norm, relu^2, untied head, logits capped at 15.
    2026 (July): also value embeddings with gates, short windows, smear, backout, residual and x0 lambdas.
    """

    family: Literal["nanochat"] = "nanochat"
    """Model family."""
    era: Literal["2025", "2026"] = "2026"
    """Which nanochat: that of November 2025 or that of July 2026."""
    depth: int = 20
    """Blocks, and the dial that width, heads, batch, horizon and weight decay follow."""
    vocab_size: int = 0
    """Rows of the embedding and of the head; 0: as many as the data's tokenizer has."""
    seq_len: int = 2048
    """Context length in tokens: positions the model has, and the length of a training row."""
    aspect_ratio: int = 64
    """Width per block: n_embd is depth x aspect_ratio, in 2026 rounded up to a multiple of head_dim."""
    n_embd: int = 0
    """Width of the residual stream; 0: from depth and aspect_ratio."""
    head_dim: int = 128
    """Width of a head. Heads are n_embd / head_dim."""
    n_kv_head: int = 0
    """Heads of keys and values, a divisor of the query heads; 0: as many."""
    window_pattern: str = ""
    """One letter a block, repeated: S sees short_window keys, L all; the last is L. Empty: L (2025), SSSL (2026)."""
    short_window: int = 0
    """Keys that a query sees in an S block, itself included; 0: a quarter of seq_len rounded up to 128, plus one."""
    rope_base: float = 0.0
    """Base of the rotary frequencies; 0: 10,000 in 2025, 100,000 in 2026."""
    qk_scale: float = 0.0
    """Factor on queries and on keys after their norm; 0: 1 in 2025, 1.2 in 2026."""
    softcap: float = 15.0
    """Logits are softcap x tanh(logits / softcap)."""

    def __post_init__(self):
        for name in ("seq_len", "depth", "aspect_ratio", "head_dim"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name}={value} is below 1; choose a positive number")
        for name in ("vocab_size", "n_embd", "n_kv_head", "short_window", "rope_base", "qk_scale"):
            value = getattr(self, name)
            require(value >= 0, f"model.{name}={value} is negative; 0 derives it")
        require(self.softcap > 0, f"model.softcap={self.softcap} is not above 0; 15 is nanochat's")
        require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} is odd; rotary positions turn pairs")
        require(
            set(self.window_pattern.upper()) <= set("SL"),
            f"model.window_pattern={self.window_pattern} has other letters than S and L; SSSL is nanochat's",
        )
        lower = self.n_embd // self.head_dim * self.head_dim
        require(
            self.n_embd % self.head_dim == 0,
            f"model.n_embd={self.n_embd} is not a multiple of model.head_dim={self.head_dim}; "
            f"nearest widths: {lower or self.head_dim}, {lower + self.head_dim}",
        )
        if self.n_embd and self.n_kv_head:
            require(
                self.n_head % self.n_kv_head == 0,
                f"model.n_kv_head={self.n_kv_head} does not divide the {self.n_head} heads of model.n_embd="
                f"{self.n_embd} / model.head_dim={self.head_dim}; choose a divisor, or 0",
            )

    @property
    def n_layer(self) -> int:
        return self.depth

    @property
    def n_head(self) -> int:
        return self.n_embd // self.head_dim

    @property
    def dropout(self) -> float:
        return 0.0

    @property
    def is_2026(self) -> bool:
        return self.era == "2026"

    def window(self, layer: int) -> int:
        """Keys that a query of this layer sees, itself included; seq_len: all before it."""
        letter = self.window_pattern[layer % len(self.window_pattern)]
        is_long = letter in "Ll" or layer == self.depth - 1
        return self.seq_len if is_long else min(self.short_window, self.seq_len)

    def has_value_embed(self, layer: int) -> bool:
        """2026: every other layer, the last among them."""
        return self.is_2026 and layer % 2 == (self.depth - 1) % 2
