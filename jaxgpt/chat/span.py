"""A span: the tokens of a row whose probability is asked for, given all tokens before them.

Every evaluation by likelihood is made of spans: options of a multiple choice, continuations, whole texts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Span:
    """Tokens start .. end - 1 of a row.

    Attributes:
      ids: int32 [n].
      start: at least 1, for the first token of a row follows nothing. start >= end: there is nothing to score.
    """

    ids: np.ndarray
    start: int
    end: int

    def __post_init__(self) -> None:
        assert self.start >= 1 and self.end <= len(self.ids), (self.start, self.end, len(self.ids))

    def __len__(self) -> int:
        return max(self.end - self.start, 0)

    def keep_last(self, n_tokens: int) -> "Span":
        """The same span in the last `n_tokens` of its row. Scored tokens that are cut off are not scored."""
        n_cut = max(len(self.ids) - n_tokens, 0)
        return Span(self.ids[n_cut:], max(self.start - n_cut, 1), self.end - n_cut) if n_cut else self


@dataclass(frozen=True)
class SpanScore:
    """What a model says about a span.

    Attributes:
      nats: summed loss.
      n_tokens: scored.
      is_greedy: whether each token is the most likely one at its place.
    """

    nats: float
    n_tokens: int
    is_greedy: bool

    @property
    def mean_nats(self) -> float:
        """NaN where nothing was scored."""
        return self.nats / self.n_tokens if self.n_tokens else math.nan


class Scorer(Protocol):
    """A model as evaluations see it.

    Attributes:
      max_tokens: of a row.
    """

    max_tokens: int

    def __call__(self, spans: Sequence[Span], on_progress: Callable[[int], None] | None = None, /) -> list[SpanScore]:
        """Scores in the order of the spans; now and then tells how many are done."""
        ...


def score_logits(logits_TV: np.ndarray, span: Span) -> SpanScore:
    """The score of one span from the logits after each token of its row, in float64."""
    at_SV = logits_TV[span.start - 1 : span.end - 1].astype(np.float64)
    targets_S = span.ids[span.start : span.end]
    if not len(targets_S):
        return SpanScore(0.0, 0, True)
    highest_S1 = at_SV.max(axis=1, keepdims=True)
    log_sums_S = np.log(np.exp(at_SV - highest_S1).sum(axis=1)) + highest_S1[:, 0]
    nats_S = log_sums_S - at_SV[np.arange(len(targets_S)), targets_S]
    return SpanScore(float(nats_S.sum()), len(targets_S), bool((at_SV.argmax(axis=1) == targets_S).all()))
