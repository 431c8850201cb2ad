"""nanochat's model: its mechanisms, the two eras that are presets of them, and what follows from its one dial.

A 0, an empty string or None means "as the depth and the era say"; `complete` fills it in before a model is built.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from jaxgpt.config.families.family import Family, ParamCount, ParamRule
from jaxgpt.config.section import show
from jaxgpt.config.softcap import Softcap
from jaxgpt.errors import InputError, require

GATE_CHANNELS = {"smear": 24, "value_embed": 12}
"""Leading channels of the residual stream that nanochat's gates read."""
REFERENCE_DEPTH = 12
"""Model at which nanochat's batch, learning rates and weight decay were tuned."""
TOKENS_PER_PARAM = {"2025": 20.0, "2026": 12.0}
WINDOW_ROUNDING = 128
VOCAB_ROUNDING = 64
"""2026 gives its tables a multiple of this many rows."""
ERAS = {
    "2025": {
        "window_pattern": "L", "rope_base": 10_000.0, "qk_scale": 1.0, "init": "normal",
        "value_embeds": False, "layer_lambdas": False, "smear": False, "backout": False,
    },
    "2026": {
        "window_pattern": "SSSL", "rope_base": 100_000.0, "qk_scale": 1.2, "init": "uniform",
        "value_embeds": True, "layer_lambdas": True, "smear": True, "backout": True,
    },
}  # fmt: skip
"""Value of each field that is left open, by era."""


@dataclass(frozen=True)
class NanochatConfig(Family):
    """nanochat's model, in two eras. One dial, `depth`; the rest follows unless it is set.

    2025 (November): rotary positions, parameterless RMSNorm, QK norm, relu^2, untied head, logits capped at 15.
    2026 (July): also value embeddings with gates, short windows, smear, backout, residual and x0 lambdas.
    """

    RULES: ClassVar = (
        ParamRule(r"(wte|lm_head)\.weight", ("tensor", "fsdp")),
        ParamRule(r"value_embeds\.\d+\.weight", ("tensor", "fsdp"), is_optional=True),
        ParamRule(r"h\.\d+\.attn\.c_[qkv]\.weight", ("fsdp", "tensor"), is_transposed=True),
        ParamRule(r"h\.\d+\.attn\.c_proj\.weight", (("tensor", "fsdp"),), is_transposed=True),
        ParamRule(r"h\.\d+\.mlp\.c_fc\.weight", ("fsdp", "tensor"), is_transposed=True),
        ParamRule(r"h\.\d+\.mlp\.c_proj\.weight", (("tensor", "fsdp"),), is_transposed=True),
        ParamRule(r"h\.\d+\.attn\.ve_gate\.weight|smear_gate\.weight", is_transposed=True, is_optional=True),
        ParamRule(r"(resid|x0)_lambdas|(smear|backout)_lambda", is_optional=True),
    )
    DIAL: ClassVar = "depth"

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
    value_embeds: bool | None = None
    """An embedding of the token added to the values of every other layer, through a gate; None: as the era."""
    layer_lambdas: bool | None = None
    """Each layer starts from a learned mix of the stream and the first embedding; None: as the era."""
    smear: bool | None = None
    """Each embedding gets a little of the one before it; None: as the era."""
    backout: bool | None = None
    """A part of the middle layer's output is subtracted before the last norm; None: as the era."""
    init: Literal["", "normal", "uniform"] = ""
    """How weights start: normal (2025), uniform (2026); empty: as the era."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("depth", "aspect_ratio", "head_dim"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name}={value} is below 1; choose a positive number")
        require(
            self.seq_len >= 2,
            f"model.seq_len={self.seq_len} is below 2; a token needs one before it to be predicted from",
        )
        for name in ("vocab_size", "n_embd", "n_kv_head", "short_window", "rope_base", "qk_scale"):
            value = getattr(self, name)
            require(value >= 0, f"model.{name}={value} is negative; 0 derives it")
        require(self.softcap > 0, f"model.softcap={self.softcap} is not above 0; 15 is nanochat's")
        require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} is odd; rotary positions rotate pairs")
        require(
            set(self.window_pattern.upper()) <= set("SL"),
            f"model.window_pattern={show(self.window_pattern)} has other letters than S and L; SSSL is nanochat's",
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
    def more_kept_widths(self) -> float:
        return 1.5  # queries and keys once more, before rotation and norm

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
    def logit_cap(self) -> Softcap:
        return Softcap("tanh", self.softcap)

    def complete(self, n_ids: int) -> Self:
        chosen = {
            name: of_era if _is_open(getattr(self, name)) else getattr(self, name)
            for name, of_era in ERAS[self.era].items()
        }
        rounding = VOCAB_ROUNDING if self.era == "2026" else 1
        short_window = math.ceil(self.seq_len / 4 / WINDOW_ROUNDING) * WINDOW_ROUNDING + 1
        n_embd, head_dim = (self.n_embd, self.head_dim) if self.n_embd else self._choose_width()
        for name, gate in (("smear", "smear"), ("value_embeds", "value_embed")):
            require(
                not chosen[name] or n_embd >= GATE_CHANNELS[gate],
                f"model.n_embd={n_embd} is below the {GATE_CHANNELS[gate]} channels that model.{name} reads; "
                f"set --model.{name}=false, or widen the model",
            )
        return dataclasses.replace(
            self,
            **chosen | {"window_pattern": str(chosen["window_pattern"]).upper()},
            vocab_size=self.vocab_size or math.ceil(n_ids / rounding) * rounding,
            n_embd=n_embd,
            head_dim=head_dim,
            n_kv_head=self.n_kv_head or n_embd // head_dim,
            short_window=self.short_window or min(short_window, self.seq_len),
        )

    def _choose_width(self) -> tuple[int, int]:
        """n_embd and head_dim: 2026 rounds the width up to whole heads; 2025 keeps it and narrows the heads."""
        width = self.depth * self.aspect_ratio
        n_head = math.ceil(width / self.head_dim)
        if self.era == "2026":
            return n_head * self.head_dim, self.head_dim
        head_dim = width // n_head
        if width % n_head or head_dim % 2:
            raise InputError(
                f"model.depth={self.depth} x model.aspect_ratio={self.aspect_ratio} = {width} does not split into "
                f"{n_head} heads of at most model.head_dim={self.head_dim}; set model.n_embd, or choose another depth"
            )
        return width, head_dim

    def count_params(self) -> ParamCount:
        n_embd, kv_dim = self.n_embd, self.n_kv_head * self.head_dim
        n_value_embeds = sum(self.has_value_embed(layer) for layer in range(self.depth))
        gates = n_value_embeds * GATE_CHANNELS["value_embed"] * self.n_kv_head
        blocks = self.depth * (2 * n_embd**2 + 2 * n_embd * kv_dim + 8 * n_embd**2) + gates
        head = self.vocab_size * n_embd
        smear_gate = GATE_CHANNELS["smear"] if self.smear else 0
        lambdas = 2 * self.depth * bool(self.layer_lambdas) + bool(self.smear) + bool(self.backout)
        total = blocks + 2 * head + n_value_embeds * self.vocab_size * kv_dim + smear_gate + lambdas
        scaling = total if self.era == "2025" else blocks + head
        return ParamCount(total=total, wpe=0, linear=blocks + head + smear_gate, scaling=scaling)

    def window(self, layer: int) -> int:
        letter = self.window_pattern[layer % len(self.window_pattern)]
        is_long = letter in "Ll" or layer == self.depth - 1
        return self.seq_len if is_long else min(self.short_window, self.seq_len)

    def counted_keys(self, layer: int) -> int:
        """nanochat counts the keys to the left of a query, without its own; of a long layer all seq_len."""
        window = self.window(layer)
        return window - 1 if window < self.seq_len else self.seq_len

    def has_value_embed(self, layer: int) -> bool:
        """Every other layer has one, the last among them."""
        return bool(self.value_embeds) and layer % 2 == (self.depth - 1) % 2

    def shrink(self, seq_len: int) -> Self:
        return dataclasses.replace(
            self, depth=4, aspect_ratio=16, n_embd=0, head_dim=16, n_kv_head=0, vocab_size=0, seq_len=seq_len,
            short_window=seq_len // 4 + 1,
        )  # fmt: skip

    def reference(self) -> Self:
        return dataclasses.replace(self, depth=REFERENCE_DEPTH, n_embd=0, n_kv_head=0).complete(0)

    def batch_follows_horizon(self) -> bool:
        return self.era == "2026"

    def tokens_per_param(self) -> float:
        return TOKENS_PER_PARAM[self.era]


def _is_open(value: object) -> bool:
    return value is not False and not value
