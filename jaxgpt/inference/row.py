"""One row of an engine on the host: its text, what it may still get, and the tokens that it gives.

rows.py has many of them take a token per step; speculative.py has one take several.
"""

import collections
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxgpt.errors import InputError
from jaxgpt.inference.request import Request
from jaxgpt.inference.sampling import way_of

BROKEN = "the model's logits are not finite: its weights are broken; take another checkpoint"


class Token(NamedTuple):
    """What a row gives in a step.

    Attributes:
      is_forced: whether it was forced; otherwise the model chose it.
      log_prob: natural logarithm of the model's own probability of it, before temperature, top_k and top_p; None
        unless the request asks for it.
      likeliest: ids and log-probabilities of the most likely tokens, as many as the request asks for.
      end: stop: it is one of the request's stop ids. length: it is the last of max_tokens, or of the context. broken:
        the logits are not finite, and the id is -1; only `step_apart` gives it. "": the row continues.
    """

    id: int
    is_forced: bool = False
    log_prob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()
    end: Literal["", "stop", "length", "broken"] = ""


class Row:
    """A request and how far it is.

    Attributes:
      ids: prompt and what came after it.
      n_left: tokens that it may still give; 0 once it has ended.
      n_cached: tokens in its part of the cache.
      begin: where in ids the cached tokens begin.
      is_stale: its part of the cache has to be filled anew before its next token.
      forced: ids that come next, whatever the model says.
    """

    def __init__(self, request: Request, n_left: int):
        self.request, self.way = request, way_of(request)
        self.tool = request.tool() if request.tool else None
        self.ids, self.n_left = list(request.prompt_ids), n_left
        self.n_cached, self.begin, self.is_stale = 0, 0, True
        self.forced: collections.deque[int] = collections.deque()

    @property
    def is_waiting(self) -> bool:
        """For its text to be computed."""
        return self.n_left > 0 and self.is_stale

    @property
    def is_running(self) -> bool:
        """It gives a token in this step."""
        return self.n_left > 0 and not self.is_stale


def room_of(request: Request, *, n_positions: int, n_valid: int) -> int:
    """How many tokens a request may get from a model of this context, with ids below `n_valid`.

    Raises:
      InputError: the model cannot serve it.
    """
    n_prompt = len(request.prompt_ids)
    bad_id = next((i for i in request.prompt_ids if not 0 <= i < n_valid), None)
    if n_prompt > n_positions:
        raise InputError(f"the prompt has {n_prompt} tokens, more than model.seq_len={n_positions}; shorten it")
    if bad_id is not None:
        raise InputError(f"the prompt holds token {bad_id}, outside the vocabulary of {n_valid}")
    bad_id = next((i for i, _ in request.logit_bias if not 0 <= i < n_valid), None)
    if bad_id is not None:
        raise InputError(f"logit_bias has token {bad_id}, outside the vocabulary of {n_valid}")
    if request.top_k > n_valid:
        raise InputError(f"top_k={request.top_k} is above the vocabulary of {n_valid}; 0 keeps all tokens")
    n_room = n_positions - n_prompt + 1  # the last token is not cached
    return request.max_tokens if request.slides else min(request.max_tokens, n_room)


def n_shared(text: Sequence[int], ids: Sequence[int]) -> int:
    """Ids that both begin with."""
    return next((n for n, (a, b) in enumerate(zip(text, ids, strict=False)) if a != b), min(len(text), len(ids)))
