"""modded-nanogpt's models: their mechanisms, and the records that are presets of them.

None, a 0 or an empty string means "as in the record"; `complete` fills it in before a model is built. A stage of a run
may change the row length, the windows and `yarn`, which are no parameters.

Left out: mechanisms that only other records have; a record is added together with figures measured on its original
program, and there are such figures for these three. What is done otherwise than in the originals, and why, stands in
`models.modded`.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from jaxgpt.config.families.family import Family, ParamCount, ParamRule
from jaxgpt.config.section import show
from jaxgpt.config.softcap import Softcap
from jaxgpt.config.yarn import attention_scale
from jaxgpt.errors import require

GATE_CHANNELS = 12
"""Leading channels that every gate reads."""
VOCAB_ROUNDING = 128
HEAD_ALIGNMENT = 8
"""Channels that a head with a bias gets: one for the bias, the others 0, so that the product stays aligned."""
BIGRAM_ROWS_PER_ID = 5
FIRST_WINDOWS = {"short_window": 1, "long_window": 3}
"""Blocks to the left of a query in a record's first stage."""

_SPEEDRUN = {
    "n_layer": 11, "window_pattern": "SSSLSS-SSSL", "value_embeds": "12------012", "is_packed": True,
    "has_rounded_tables": True, "attn_scale": 0.1, "attn_gates": True, "layer_lambdas": True, "smear": True,
    "skip_from": 3, "skip_to": 6, "backout_from": 7, "bias": False, "norm_gains": False, "softcap_width": 7.5,
    "softcap": "sigmoid",
}  # fmt: skip
RECORDS: dict[str, dict[str, Any]] = {
    "62": _SPEEDRUN | {
        "paired_heads": "P-P--P---P-", "key_offset": True, "rotary": "pairs", "attn_lambdas": "weights",
        "value_gates": True, "skip_gate": True, "bigram": True, "softcap_scale": 23.0, "softcap_shift": 5.0,
    },
    "46": _SPEEDRUN | {
        "paired_heads": "-" * 11, "key_offset": False, "rotary": "halves", "attn_lambdas": "values",
        "value_gates": False, "skip_gate": False, "bigram": False, "softcap_scale": 30.0, "softcap_shift": 0.0,
    },
    "track3": {
        "n_layer": 12, "window_pattern": "L", "value_embeds": "-" * 12, "is_packed": False,
        "has_rounded_tables": False, "attn_scale": 0.12, "attn_gates": False, "layer_lambdas": False, "smear": False,
        "skip_from": -1, "skip_to": -1, "backout_from": -1, "bias": True, "norm_gains": True,
        "paired_heads": "-" * 12, "key_offset": False, "rotary": "halves", "attn_lambdas": "none",
        "value_gates": False, "skip_gate": False, "bigram": False,
        "softcap": "rsqrt", "softcap_scale": 15.0, "softcap_shift": 0.0, "softcap_width": 1.0,
    },
}  # fmt: skip
"""Value of each field that is left open, by record. Record 46's empty first block is left out, so its block i is layer
i - 1 here."""


@dataclass(frozen=True)
class ModdedConfig(Family):
    """modded-nanogpt's model: two records of the speedrun, and the benchmark model of its track 3.

    62: 11 layers (none in layer 6's attention), packed documents, windows, YaRN, paired heads, key offset, value and
    bigram embeddings, gates, skip, backout. 46: its ancestor without pairs, offset and bigrams. track3: dense causal
    attention, biases, norms with gains.
    """

    RULES: ClassVar = (
        ParamRule(r"(wte|lm_head)\.weight", ("tensor", "fsdp")),
        ParamRule(r"(value_embeds\.\d+|bigram_embed)\.weight", ("tensor", "fsdp"), is_optional=True),
        ParamRule(r"h\.\d+\.attn\.c_[qkv]\.weight", ("fsdp", "tensor"), is_transposed=True),
        ParamRule(r"h\.\d+\.attn\.c_proj\.weight", (("tensor", "fsdp"),), is_transposed=True),
        ParamRule(r"h\.\d+\.mlp\.c_fc\.weight", ("fsdp", "tensor"), is_transposed=True),
        ParamRule(r"h\.\d+\.mlp\.c_proj\.weight", (("tensor", "fsdp"),), is_transposed=True),
        ParamRule(r"(h\.\d+\.attn\.(ve_)?gate|(smear|skip)_gate)\.weight", is_transposed=True, is_optional=True),
        ParamRule(r"h\.\d+\.(attn|mlp)\.c_\w+\.bias|lm_head\.bias|(h\.\d+\.)?norm[12]\.gains", is_optional=True),
        ParamRule(r"(resid|x0|attn|bigram)_lambdas|(smear|backout|skip)_lambda", is_optional=True),
    )
    HAS_PACKED_ATTENTION: ClassVar = True

    family: Literal["modded"] = "modded"
    """Model family."""
    record: Literal["62", "46", "track3"] = "62"
    """Which of modded-nanogpt's models: it gives what is left open, and how weights start."""
    vocab_size: int = 0
    """Rows of the embedding and of the head; 0: as many as the data's tokenizer has, rounded up to 128."""
    bos_id: int = -1
    """Token that begins every document; -1: the last one of the data's tokenizer, as GPT-2's is."""
    seq_len: int = 16_384
    """Length of a training row in tokens: packed documents; in track 3 (1024) a plain piece of text."""
    n_layer: int = 0
    """Blocks; 0: as the record."""
    n_embd: int = 768
    """Width of the residual stream."""
    head_dim: int = 128
    """Width of a head. Heads are n_embd / head_dim."""
    window_pattern: str = ""
    """One letter a block, repeated: S sees short_window keys, L long_window, - has no attention."""
    short_window: int = 0
    """Keys that a query sees in an S block, itself included; 0: 128 + 1, a record's first stage."""
    long_window: int = 0
    """Keys that a query sees in an L block, itself included; 0: 384 + 1; in track 3 all of the row."""
    is_packed: bool | None = None
    """Queries see their own document alone; None: as the record."""
    paired_heads: str = ""
    """P where a block joins its heads in pairs, which attend over twice the rows; - elsewhere."""
    key_offset: bool | None = None
    """In L blocks the channels of a key that do not rotate come from the token before; None: as the record."""
    rotary: Literal["", "pairs", "halves"] = ""
    """Channels that rotate together: neighbours, or one of each half of a head; empty: as the record."""
    has_rounded_tables: bool | None = None
    """Cosines and sines are rounded to train.dtype before they are used; None: as the record."""
    yarn: tuple[tuple[int, int], ...] = ()
    """Changes of the long window so far, (from, to) in blocks: they slow the rotation and sharpen attention."""
    block_tokens: int = 128
    """Tokens of a block of `yarn`."""
    attn_scale: float = 0.0
    """What attention's scores are multiplied with before any change of `yarn`; 0: as the record."""
    attn_gates: bool | None = None
    """Each head's output goes through a gate; None: as the record."""
    attn_lambdas: Literal["", "weights", "values", "none"] = ""
    """Two learned numbers a layer: on its weights (q, k, v; output) or on its values (own; embedded)."""
    value_embeds: str = ""
    """The digit of the token table that is added to a block's values, - where there is none."""
    value_gates: bool | None = None
    """Value embeddings go through a gate; None: as the record."""
    layer_lambdas: bool | None = None
    """Each layer starts from a learned mix of the stream and the first embedding; None: as the record."""
    bigram: bool | None = None
    """An embedding of each pair of tokens, by a hash, is added before each layer; None: as the record."""
    bigram_rows: int = 0
    """Rows of its table; 0: five for each row of the vocabulary."""
    smear: bool | None = None
    """Each embedding gets a little of the one before it; None: as the record."""
    skip_from: int | None = None
    """Layer whose output is added on entry to skip_to; -1: no skip; None: as the record."""
    skip_to: int | None = None
    """Layer that gets the output of skip_from; -1: no skip; None: as the record."""
    skip_gate: bool | None = None
    """The skip goes through a gate besides its lambda; None: as the record."""
    backout_from: int | None = None
    """Layer of whose output a part is subtracted before the last norm; -1: none; None: as the record."""
    bias: bool | None = None
    """Biases in linear layers and the head; None: as the record."""
    norm_gains: bool | None = None
    """Learned gains on the norms of the residual stream; None: as the record."""
    softcap: Literal["", "sigmoid", "rsqrt", "tanh"] = ""
    """Function that bounds the logits, see `Softcap`; empty: as the record."""
    softcap_scale: float = 0.0
    """Its bound; 0: as the record."""
    softcap_shift: float | None = None
    """Added to a logit in a sigmoid; None: as the record."""
    softcap_width: float = 0.0
    """What a logit is divided by in a sigmoid; 0: as the record."""

    @property
    def more_kept_widths(self) -> float:
        """Track 3: queries and keys before norm and rotation. Records: also the gated output, the mixed residual and
        rows of the tables; of 49,152 tokens XLA keeps 5.2 for an H100 and 6.5 for an A100."""
        return 1.5 if self.record == "track3" else 5.8

    def __post_init__(self):
        super().__post_init__()
        for name in ("n_embd", "head_dim", "block_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name}={value} is below 1; choose a positive number")
        require(
            self.seq_len >= 2,
            f"model.seq_len={self.seq_len} is below 2; a token needs one before it to be predicted from",
        )
        for name in ("vocab_size", "n_layer", "short_window", "long_window", "bigram_rows", "attn_scale",
                     "softcap_scale", "softcap_width"):  # fmt: skip
            value = getattr(self, name)
            require(value >= 0, f"model.{name}={value} is negative; 0 derives it")
        require(self.bos_id >= -1, f"model.bos_id={self.bos_id} is below -1; -1 takes the tokenizer's last id")
        require(self.head_dim % 4 == 0, f"model.head_dim={self.head_dim} is not a multiple of 4; half of it rotates")
        lower = self.n_embd // self.head_dim * self.head_dim
        require(
            self.n_embd % self.head_dim == 0,
            f"model.n_embd={self.n_embd} is not a multiple of model.head_dim={self.head_dim}; "
            f"nearest widths: {lower or self.head_dim}, {lower + self.head_dim}",
        )
        require(
            self.n_embd >= GATE_CHANNELS,
            f"model.n_embd={self.n_embd} is below the {GATE_CHANNELS} channels that gates read; widen the model",
        )
        for i, change in enumerate(self.yarn):
            require(
                len(change) == 2 and min(change) >= 1,
                f"model.yarn.{i}={show(change)} is not a pair of windows in blocks; write (from, to), such as (3, 7)",
            )
        for name, allowed in (("window_pattern", "SL-"), ("paired_heads", "P-"), ("value_embeds", "0123456789-")):
            value = getattr(self, name)
            require(
                set(value) <= set(allowed),
                f"model.{name}={show(value)} has other characters than {allowed}; see --help model.{name}",
            )

    @property
    def n_head(self) -> int:
        return self.n_embd // self.head_dim

    @property
    def n_kv_head(self) -> int:
        return self.n_head

    @property
    def dropout(self) -> float:
        return 0.0

    @property
    def logit_cap(self) -> Softcap:
        assert self.softcap and self.softcap_shift is not None, "complete(n_ids) fills in the softcap"
        return Softcap(self.softcap, self.softcap_scale, self.softcap_shift, self.softcap_width)

    def complete(self, n_ids: int) -> Self:
        of_record = RECORDS[self.record]
        chosen = {name: of_record[name] for name in of_record if self._is_open(name)}
        n_layer = self.n_layer or of_record["n_layer"]
        vocab_size = self.vocab_size or math.ceil(n_ids / VOCAB_ROUNDING) * VOCAB_ROUNDING
        bos_id = (n_ids or vocab_size) - 1 if self.bos_id < 0 else self.bos_id
        require(
            not vocab_size or bos_id < vocab_size,
            f"model.bos_id={bos_id} is not below model.vocab_size={vocab_size}; choose the id that begins documents",
        )
        has_bigram = of_record["bigram"] if self.bigram is None else self.bigram
        is_packed = of_record["is_packed"] if self.is_packed is None else self.is_packed
        windows = {
            name: getattr(self, name) or (self.block_tokens * blocks + 1 if is_packed else self.seq_len)
            for name, blocks in FIRST_WINDOWS.items()
        }
        model = dataclasses.replace(
            self,
            **chosen | windows,
            vocab_size=vocab_size,
            bos_id=bos_id,
            bigram_rows=self.bigram_rows or BIGRAM_ROWS_PER_ID * vocab_size * has_bigram,
        )
        model._check_layers(n_layer)
        return model

    def _check_layers(self, n_layer: int) -> None:
        """Raises InputError unless what is said by layer fits the number of layers, and the heads to be paired."""
        for name in ("paired_heads", "value_embeds"):
            value = getattr(self, name)
            require(
                len(value) == n_layer,
                f"model.{name}={value} has {len(value)} characters, not model.n_layer={n_layer}; write one a layer",
            )
        for name in ("skip_from", "skip_to", "backout_from"):
            value = getattr(self, name)
            require(
                -1 <= value < n_layer,
                f"model.{name}={value} is outside [-1, model.n_layer={n_layer}); choose a layer, or -1",
            )
        require(
            (self.skip_from == -1) == (self.skip_to == -1) and (self.skip_from or 0) <= (self.skip_to or 0),
            f"model.skip_from={self.skip_from} is not before model.skip_to={self.skip_to}; choose an earlier layer",
        )
        require(
            self.n_head % 2 == 0 or "P" not in self.paired_heads,
            f"model.paired_heads={self.paired_heads} joins pairs of an odd number of heads, {self.n_head}; "
            "choose another width",
        )

    @property
    def n_value_tables(self) -> int:
        """Tables of value embeddings."""
        return 1 + max((int(digit) for digit in self.value_embeds if digit != "-"), default=-1)

    @property
    def scale(self) -> float:
        """What attention's scores are multiplied with, after all changes of the window."""
        return attention_scale(self.attn_scale, self.yarn)

    @property
    def n_head_channels(self) -> int:
        """Width of the last hidden state: with a bias in the head, a constant 1 and zeros follow the stream."""
        return self.n_embd + HEAD_ALIGNMENT * bool(self.bias)

    def has_attention(self, layer: int) -> bool:
        return self._letter(layer) != "-"

    def is_paired(self, layer: int) -> bool:
        return self.paired_heads[layer] == "P"

    def has_key_offset(self, layer: int) -> bool:
        return bool(self.key_offset) and self._letter(layer) == "L"

    def value_table(self, layer: int) -> int | None:
        """Number of the table whose rows are added to the layer's values; None: none."""
        digit = self.value_embeds[layer]
        return None if digit == "-" else int(digit)

    def row_window(self, layer: int) -> int:
        """Keys that a query of the layer sees, itself included; of paired heads, which have two rows a token, too."""
        return {"S": self.short_window, "L": self.long_window, "-": 0}[self._letter(layer)]

    def window(self, layer: int) -> int:
        return min(self.row_window(layer), self.seq_len)

    def _letter(self, layer: int) -> str:
        return self.window_pattern[layer % len(self.window_pattern)]

    def count_params(self) -> ParamCount:
        n_embd, n_layer, bias = self.n_embd, self.n_layer, int(bool(self.bias))
        n_attention = sum(self.has_attention(layer) for layer in range(n_layer))
        n_value = sum(self.value_table(layer) is not None for layer in range(n_layer))
        gates = GATE_CHANNELS * self.n_head * (n_attention * bool(self.attn_gates) + n_value * bool(self.value_gates))
        gates += GATE_CHANNELS * (bool(self.smear) + bool(self.skip_gate))
        table = self.vocab_size * n_embd
        linear = n_embd**2 * (4 * n_attention + 8 * n_layer) + gates + table
        biases = bias * (n_embd * (4 * n_attention + 5 * n_layer) + self.vocab_size)
        gains = 2 * n_embd * (n_layer + 1) * bool(self.norm_gains)
        lambdas = n_layer * (2 * bool(self.layer_lambdas) + 2 * (self.attn_lambdas != "none") + bool(self.bigram))
        lambdas += bool(self.smear) + (self.skip_to != -1) + (self.backout_from != -1)
        tables = table * (1 + self.n_value_tables) + self.bigram_rows * n_embd * bool(self.bigram)
        total = linear + biases + gains + lambdas + tables
        return ParamCount(total=total, wpe=0, linear=linear, scaling=total)

    def at_stage(self, changes: Sequence[dict[str, int]]) -> Self:
        """Each change of the long window is one of YaRN's."""
        sizes = [self.long_window or self.block_tokens * FIRST_WINDOWS["long_window"] + 1]
        sizes += [change["long_window"] for change in changes if "long_window" in change]
        blocks = [(size - 1) // self.block_tokens for size in sizes]
        grown = tuple((old, new) for old, new in itertools.pairwise(blocks) if old != new)
        return dataclasses.replace(super().at_stage(changes), yarn=self.yarn + grown)

    def shrink_sizes(self, sizes: dict[str, int], seq_len: int) -> dict[str, int]:
        """Windows keep their number of blocks, which are shorter in the model that `shrink` gives."""
        block = self.shrink(seq_len).block_tokens
        windows = {name: size for name, size in sizes.items() if name.endswith("_window")}
        rest = {name: size for name, size in sizes.items() if name not in windows}
        return super().shrink_sizes(rest, seq_len) | {
            name: (size - 1) // self.block_tokens * block + 1 for name, size in windows.items()
        }

    def shrink(self, seq_len: int) -> Self:
        """The layers of a record are part of its mechanisms; track 3 gets two."""
        fewer = {"n_layer": 2, "paired_heads": "--", "value_embeds": "--"} if self.record == "track3" else {}
        return dataclasses.replace(
            self, n_embd=32, head_dim=16, vocab_size=0, bos_id=-1, bigram_rows=0, seq_len=seq_len,
            block_tokens=max(1, seq_len // 16), short_window=0, long_window=0, **fewer,
        )  # fmt: skip

    def _is_open(self, name: str) -> bool:
        """Whether a field still has its default, which stands for the record's value."""
        return getattr(self, name) == getattr(type(self), name)
