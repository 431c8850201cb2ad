"""Ways to generate that `bench decode --batch` times in turns, and what one of them wrote in a turn. Imports no JAX."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

STORED = "as stored"
"""Weights in the dtype that training keeps them in."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one way wrote in one turn, and its times in seconds.

    Attributes:
      ids: generated, of each row.
      first_s: prompts of all rows, and their first token.
      step_s: each later token, of all rows.
    """

    ids: list[list[int]]
    first_s: float
    step_s: list[float]


class Writer(Protocol):
    """A way to generate.

    Attributes:
      name: for the table.
      weights: what their numbers are stored in.
    """

    name: str
    weights: str

    def write(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> Turn:
        """Continues prompts of one length by the likeliest tokens, at least two each."""
        ...
