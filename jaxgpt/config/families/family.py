"""The interface of a model family. A class that leaves out a method cannot be instantiated."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from jaxgpt.config.section import Section, field_types
from jaxgpt.config.softcap import Softcap
from jaxgpt.errors import require

Axes = tuple[str | tuple[str, ...] | None, ...]
"""The mesh axis, or axes, that split each axis of a parameter; None, or a missing entry: it is not split."""


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
    HAS_PACKED_ATTENTION: ClassVar[bool] = False
    """Attention goes through `models.packed`: within documents, with a scale of the family's."""

    family: str
    vocab_size: int
    seq_len: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    head_dim: int
    dropout: float

    @property
    def more_kept_widths(self) -> float:
        """Numbers per token and layer, in widths of the residual stream, that a block keeps for its backward pass,
        besides those that every family keeps."""
        return 0.0

    @property
    def logit_cap(self) -> Softcap | None:
        """What keeps the logits within bounds; None: nothing."""
        return None

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

    @abstractmethod
    def shrink(self, seq_len: int) -> Self:
        """A model in miniature with the same mechanisms, for --smoke."""

    def at_stage(self, changes: Sequence[dict[str, int]]) -> Self:
        """The model as a later stage of a run trains it: the same parameters, other sizes.

        Args:
          changes: the sizes that each stage up to this one changes, by field; a later change replaces an earlier one.

        Raises:
          InputError: the family has no such field.
        """
        sizes: dict[str, int] = {}
        for change in changes:
            sizes |= change
        return self.resize(sizes, "train.stages: ")

    def resize(self, sizes: dict[str, int], prefix: str) -> Self:
        """The model with other values of these fields.

        Args:
          prefix: where they come from, for messages, such as "eval.".

        Raises:
          InputError: the family has no such field.
        """
        fields = field_types(type(self))
        for name, value in sizes.items():
            require(
                name in fields,
                f"{prefix}{name}={value} has no model.{name} to change in model.family={self.family}; leave it out",
            )
        return dataclasses.replace(self, **sizes)  # pyright: ignore[reportArgumentType], every family is a dataclass

    def shrink_sizes(self, sizes: dict[str, int], seq_len: int) -> dict[str, int]:
        """What a stage changes in the model that `shrink(seq_len)` gives: the same parts of a row, 2 tokens at least.

        Args:
          sizes: by field, of this model.
        """
        return {name: max(2, value * seq_len // self.seq_len) for name, value in sizes.items()}

    def longest_row(self) -> int | None:
        """Tokens of the longest row that the parameters serve; None: of any length."""
        return None

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
