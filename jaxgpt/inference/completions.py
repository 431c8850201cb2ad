"""Whole completions of many requests: a fixed number of rows, each of which takes the next request when it ends."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.inference.row import Token


@dataclass(frozen=True)
class Completion:
    """What followed a prompt.

    Attributes:
      ids: the new tokens, the stop id among them.
      mask: 1 where the model chose the token, 0 where it was forced; as long as ids.
      log_probs: as long as ids, see `Token.log_prob`; empty unless the request asked for them.
      end: stop: the last id is a stop id. length: max_tokens or the context was used up.
    """

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    log_probs: tuple[float, ...]
    end: Literal["stop", "length"]

    @classmethod
    def of(cls, tokens: list[Token]) -> "Completion":
        """From the tokens of a row that has ended."""
        end = tokens[-1].end
        assert end and end != "broken", "the row has not ended"
        return cls(
            tuple(token.id for token in tokens),
            tuple(int(not token.is_forced) for token in tokens),
            tuple(token.log_prob for token in tokens if token.log_prob is not None),
            end,
        )

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The ids without the stop id."""
        return self.ids[:-1] if self.end == "stop" else self.ids


def complete(engine: Engine, requests: Iterable[Request], *, n_rows: int = 8) -> Iterator[tuple[int, Completion]]:
    """Yields the number of each request and its completion, in the order in which they end.

    Requests are read as rows become free. Samples of one prompt that start together share one prefill.

    Args:
      n_rows: completions that are generated at once, at least 1. What a request gets does not depend on it.

    Raises:
      InputError: as `Engine.rows`; a request is checked when it is read.
    """
    assert n_rows >= 1, n_rows
    waiting = iter(enumerate(requests))
    first = list(itertools.islice(waiting, n_rows))
    rows = engine.rows([request for _, request in first])
    at_work: list[tuple[int, list[Token]]] = [(number, []) for number, _ in first]
    while len(rows.free) < len(at_work):
        for row, token in enumerate(rows.step()):
            if token is None:
                continue
            number, tokens = at_work[row]
            tokens.append(token)
            if token.end:
                if following := next(waiting, None):
                    at_work[row] = (following[0], [])
                    rows.start(row, following[1])
                yield number, Completion.of(tokens)
