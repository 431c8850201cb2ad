"""A family for the test: each token sees itself and the one before it, through a gate of numbers and an MLP."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from jaxgpt.config.families.family import Family, ParamCount, ParamRule


@dataclass(frozen=True)
class ToyConfig(Family):
    """Embeddings, one look at the token before, MLPs, an untied head."""

    RULES: ClassVar = (
        ParamRule(r"(wte|lm_head)\.weight", ("tensor", "fsdp")),
        ParamRule(r"look_back"),
        ParamRule(r"h\.\d+\.c_fc\.weight", ("fsdp", "tensor"), is_transposed=True),
        ParamRule(r"h\.\d+\.c_proj\.weight", (("tensor", "fsdp"),), is_transposed=True),
    )

    family: Literal["toy"] = "toy"
    """Model family."""
    vocab_size: int = 0
    """Rows of the embedding; 0: the tokenizer's."""
    seq_len: int = 64
    """Context length in tokens."""
    n_layer: int = 3
    """MLPs."""
    n_embd: int = 48
    """Width of the residual stream."""

    n_head: ClassVar = 1
    n_kv_head: ClassVar = 1
    dropout: ClassVar = 0.0

    @property
    def head_dim(self) -> int:
        return self.n_embd

    def complete(self, n_ids: int) -> Self:
        return dataclasses.replace(self, vocab_size=self.vocab_size or n_ids)

    def count_params(self) -> ParamCount:
        blocks, table = self.n_layer * 4 * self.n_embd**2, self.vocab_size * self.n_embd
        total = blocks + 2 * table + self.n_embd
        return ParamCount(total=total, wpe=0, linear=blocks + table, scaling=total)

    def window(self, layer: int) -> int:
        return 2

    def shrink(self, seq_len: int) -> Self:
        return dataclasses.replace(self, n_layer=2, n_embd=32, vocab_size=0, seq_len=seq_len)
