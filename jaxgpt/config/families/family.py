"""The interface of a model family. A class that leaves out a method cannot be instantiated."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from jaxgpt.config.section import Section

Axes = tuple[str | None, ...]
"""The mesh axis that splits each axis of a parameter; None, or a missing entry: it is not split."""


@dataclass(frozen=True)
class ParamRule:
    """Facts about the parameters whose whole path matches.

    Attributes:
      pattern: regular expression for the whole path.
      axes: how the parameter, as jaxgpt stores it ([in, out]), is split.
      is_transposed: torch_ref stores it the other way round ([out, in], as torch.nn.Linear does).
      is_optional: some models of the family have no such parameter.
    """

    pattern: str
    axes: Axes = ()
    is_transposed: bool = False
    is_optional: bool = False


@dataclass(frozen=True)
class ParamCount:
    """Numbers of parameters.

    Attributes:
      total: all of them; a tied head counts once.
      wpe: learned positions. nanoGPT reports `total - wpe`.
      linear: those that a token is multiplied with, the head included.
      scaling: those that nanochat measures horizons in: all in 2025; blocks and head in 2026.
    """

    total: int
    wpe: int
    linear: int
    scaling: int


class Family(Section, ABC):
    """The base of every family's dataclass, which has these fields or properties.

    A config in which something is left open (a 0, an empty string, None) is filled in by `complete`; everything else
    here asks for a complete one.
    """

    PATH: ClassVar = "model."
    RULES: ClassVar[tuple[ParamRule, ...]]
    """Facts about each parameter; the first match counts."""
    DIAL: ClassVar[str] = ""
    """Field that sets the model's size and everything derived from it; empty: none."""
    MORE_KEPT_WIDTHS: ClassVar[float] = 0.0
    """Numbers per token and layer, in widths of the residual stream, that a block keeps for its backward pass besides
    those that every family keeps."""

    family: str
    vocab_size: int
    seq_len: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    head_dim: int
    softcap: float
    dropout: float

    @abstractmethod
    def complete(self, n_ids: int) -> Self:
        """The model with nothing left open. A complete one is returned unchanged.

        Args:
          n_ids: of the tokenizer, for vocab_size=0.

        Raises:
          InputError: a value is open that no rule gives, or the values do not fit together.
        """

    @abstractmethod
    def count_params(self) -> ParamCount:
        """Numbers of parameters."""

    @abstractmethod
    def window(self, layer: int) -> int:
        """Keys that a query of this layer sees, itself included; seq_len: all before it."""

    def counted_keys(self, layer: int) -> int:
        """Keys that the original counts for a query of this layer when it states FLOPs."""
        return min(self.window(layer), self.seq_len)

    @property
    def is_packed(self) -> bool:
        """Whether rows are packed documents, each beginning with BOS, that do not see one another."""
        return False

    @abstractmethod
    def shrink(self, seq_len: int) -> Self:
        """A model in miniature with the same mechanisms, for --smoke."""

    def without_dropout(self) -> Self:
        """The same model, as it is evaluated."""
        return self

    def reference(self) -> Self | None:
        """The model at which batch, learning rates and weight decay were tuned; None: the family has no rule."""
        return None

    def batch_follows_horizon(self) -> bool:
        """Whether train.batch_tokens=0 grows with the horizon, or is the reference's."""
        return False

    def tokens_per_param(self) -> float | None:
        """Tokens to train on for each of `count_params().scaling`; None: there is no rule."""
        return None
