"""Rows of an engine at work: each has its own text, position, settings and end, and all take a token per step.

A row begins by filling its part of the cache from its prompt, alone. The prompt is padded to the next power of two,
so prompts of all lengths share a few compiled `prefill`s, and there is one `decode_step` per number of rows. Padding
leaks nowhere: it stands after the prompt, where no query of the prompt looks, and each of its cache slots is
overwritten by the token that comes there before any query sees it.

When a row's context is full, the row continues from the last half of its text: its part of the cache is filled anew
from these tokens, at positions 0, 1, ... So each token is exactly what the uncached model gives for a window of
n_positions / 2 to n_positions tokens. (nanoGPT always shows the last n_positions, which moves every token to another
position at each step, so that nothing could be kept.)

The device computes step n + 1 while the host reads step n.

A tool reads each token of its row, and what it answers is forced: these ids replace the model's next choices, one a
step. Randomness belongs to a position, so forced tokens use up none of it.
"""

import collections
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgpt.errors import InputError
from jaxgpt.inference.request import MAX_LOG_PROBS, Request
from jaxgpt.inference.row_cache import decode_step, make_cache, make_state, prefill, put_row, take_row
from jaxgpt.inference.sampling import choose_token, draw_of, score_token, way_of
from jaxgpt.models import Model

MIN_PREFILL_TOKENS = 16
"""Shorter prompts are padded to this."""


class Token(NamedTuple):
    """What a row gives in a step.

    Attributes:
      is_forced: whether it was forced; otherwise the model chose it.
      log_prob: natural logarithm of the model's own probability of it, before temperature, top_k and top_p; None
        unless the request asks for it.
      likeliest: ids and log-probabilities of the most likely tokens, as many as the request asks for.
      end: stop: it is one of the request's stop ids. length: it is the last of max_tokens, or of the context. "": the
        row goes on.
    """

    id: int
    is_forced: bool = False
    log_prob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()
    end: Literal["", "stop", "length"] = ""


class _Row:
    """One row on the host.

    Attributes:
      ids: prompt and what came after it.
      n_left: tokens that it may still give; 0 once it has ended.
      n_cached: tokens in its part of the cache.
      begin: where in ids the cached tokens begin.
      before: ids that its part of the cache held before it was first filled.
      is_stale: its part of the cache has to be filled anew before its next token.
      forced: ids that come next, whatever the model says.
    """

    def __init__(self, request: Request, n_left: int, before: list[int]):
        self.request, self.way = request, way_of(request)
        self.tool = request.tool() if request.tool else None
        self.ids, self.n_left = list(request.prompt_ids), n_left
        self.n_cached, self.begin, self.before, self.is_stale = 0, 0, before, True
        self.forced: collections.deque[int] = collections.deque()

    @property
    def cached_ids(self) -> list[int]:
        """What its part of the cache holds, between two steps."""
        return self.ids[self.begin : self.begin + self.n_cached] if self.n_cached else self.before


class Rows:
    """An iterator over steps: the next id of each row, None for rows that have ended. It stops when all have.

    Between two steps the caller may act, as a tool loop or a server does:

        rows = engine.rows([Request(...), Request(...)])
        for ids in rows:
            ...
            rows.force(0, tool_output)     # the next ids of row 0, one a step
            rows.start(1, Request(...))    # row 1 from the next step on, whether or not it had ended
            rows.stop(2)                   # None from the next step on

    What a row gets does not depend on the others. `step` gives more about each token than its id.

    Attributes:
      n_prefilled_tokens: tokens of prompts that were computed so far; those reused from another row are not counted.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        requests: Sequence[Request | None],
        *,
        n_positions: int,
        n_valid: int,
        reuses_prefixes: bool = False,
    ):
        """As `Engine.rows`, which has checked the arguments. Computes nothing yet."""
        self._reuses_prefixes = reuses_prefixes
        self._model, self._params, self._n_positions, self._n_valid = model, params, n_positions, n_valid
        self._rows = [self._make_row(request, []) for request in requests]
        self._draw = draw_of([row.request for row in self._rows])
        self.n_prefilled_tokens = 0
        self._state: Any = None  # logits after the last cached token of each row, and the cache
        self._token_B: Any = None  # chosen for the next step, forced tokens aside

    @property
    def free(self) -> list[int]:
        """Rows that have ended."""
        return [i for i, row in enumerate(self._rows) if row.n_left == 0]

    def start(self, row: int, request: Request) -> None:
        """Gives a row to another request; what it had is dropped.

        Raises:
          InputError: as `Engine.rows`; the row keeps what it had.
        """
        self._rows[row] = self._make_row(request, self._rows[row].cached_ids)
        self._draw = draw_of([row.request for row in self._rows])

    def stop(self, row: int) -> None:
        """Ends a row. Nothing is computed for it from the next step on, until it is started again."""
        self._rows[row].n_left = 0

    def force(self, row: int, ids: Sequence[int]) -> None:
        """Puts ids at the end of a row's queue: as long as it holds any, they are the row's next tokens.

        They count as tokens of the row in every way: the model reads them, they are yielded, a stop id ends the row.
        """
        bad_id = next((i for i in ids if not 0 <= i < self._model.config.vocab_size), None)
        if bad_id is not None:
            raise InputError(f"forced token {bad_id} is outside the vocabulary of {self._model.config.vocab_size}")
        self._rows[row].forced.extend(map(int, ids))

    def __iter__(self) -> "Rows":
        return self

    def __next__(self) -> list[int | None]:
        tokens = self.step()
        if not any(tokens):
            raise StopIteration
        return [token and token.id for token in tokens]

    def step(self) -> list[Token | None]:
        """The next token of each row, None for rows that have ended.

        Raises:
          InputError: logits are not finite.
        """
        is_going = [row.n_left > 0 for row in self._rows]
        if not any(is_going):
            return [None] * len(self._rows)
        if any(row.n_left and row.is_stale for row in self._rows):
            self._fill()
            self._token_B = self._choose(0)
        is_forced = [bool(row.forced) for row in self._rows]
        token_B = self._force_tokens(self._token_B)
        scores = self._score(token_B)
        for row in self._rows:
            row.n_left = max(row.n_left - 1, 0)
        self._decode_ahead(token_B)

        ids, read = np.asarray(token_B).tolist(), [np.asarray(part) for part in scores]
        return [
            self._take(i, ids[i], is_forced[i], read) if going else None for i, going in enumerate(is_going)
        ]  # fmt: skip

    def _take(self, i: int, token_id: int, is_forced: bool, scores: list[np.ndarray]) -> Token:
        """Adds a token to its row, and shows it to the row's tool."""
        row, n_log_probs = self._rows[i], self._rows[i].request.n_log_probs
        if token_id < 0:
            raise InputError("the model's logits are not finite: its weights are broken; take another checkpoint")
        row.ids.append(token_id)
        has_stopped = token_id in row.request.stop_ids
        row.n_left = 0 if has_stopped else row.n_left
        if row.tool and row.n_left:
            self.force(i, row.tool.feed(token_id))
        end = "stop" if has_stopped else "" if row.n_left else "length"
        if n_log_probs is None:
            return Token(token_id, is_forced, end=end)
        chosen_B, ids_BK, values_BK = scores
        likeliest = zip(ids_BK[i, :n_log_probs].tolist(), values_BK[i, :n_log_probs].tolist(), strict=True)
        return Token(token_id, is_forced, float(chosen_B[i]), tuple(likeliest), end)

    def _score(self, token_B) -> tuple[Any, ...]:
        """What `score_token` returns, where a row that has not ended asks for it."""
        wanted = [row.request.n_log_probs for row in self._rows if row.n_left]
        counts = [n for n in wanted if n is not None]
        if not counts:
            return ()
        n_likeliest = MAX_LOG_PROBS if any(counts) else 0
        return score_token(self._state[0], token_B, n_valid=self._n_valid, n_likeliest=n_likeliest)

    def _make_row(self, request: Request | None, before: list[int]) -> _Row:
        if request is None:
            return _Row(Request((0,), 1, temperature=0), 0, before)
        return _Row(request, room_of(request, n_positions=self._n_positions, n_valid=self._n_valid), before)

    def _fill(self) -> None:
        """Fills the cache of stale rows; rows of one text, such as samples of one prompt, from one prefill."""
        texts: dict[tuple[int, ...], list[int]] = {}
        held = [row.cached_ids if self._reuses_prefixes else [] for row in self._rows]
        for i, row in enumerate(self._rows):
            if row.n_left and row.is_stale:
                is_long = len(row.ids) > self._n_positions
                text = tuple(row.ids[-(self._n_positions // 2) :] if is_long else row.ids)
                texts.setdefault(text, []).append(i)
                row.n_cached, row.begin, row.is_stale = len(text), len(row.ids) - len(text), False
        for text, rows in texts.items():
            filled = self._prefill(text, held)
            if self._state is None:
                self._state = make_state(filled, n_rows=len(self._rows))
            for row in rows:
                self._state = put_row(self._state, filled, np.int32(row))
                held[row] = list(text) if self._reuses_prefixes else []

    def _prefill(self, text: Sequence[int], held: list[list[int]]):
        """The state of one row after a text, computed from the longest beginning that a row's cache holds of it."""
        source = max(range(len(held)), key=lambda row: n_shared(text, held[row]))
        n_held = n_shared(text, held[source])
        n_held = self._fit_prefix(min(n_held, len(text) - 1), len(text))
        if n_held:
            cache = take_row(self._state[1], np.int32(source))
        else:
            cache = make_cache(self._model, self._params, n_positions=self._n_positions)
        rest = text[n_held:]
        tokens_1T = np.zeros((1, self._pad(len(rest))), np.int32)
        tokens_1T[0, : len(rest)] = rest
        self.n_prefilled_tokens += len(rest)
        return prefill(self._model, self._params, cache, tokens_1T, np.int32(len(rest)), np.int32(n_held))

    def _pad(self, n_tokens: int) -> int:
        return min(padded_tokens(n_tokens), self._n_positions)

    def _fit_prefix(self, n_held: int, n_text: int) -> int:
        """As much of a prefix as leaves room for the padded rest; 0 where it would save less than it costs."""
        while n_held > 0 and n_held + self._pad(n_text - n_held) > self._n_positions:
            n_held = self._n_positions - self._pad(n_text - n_held)
        return n_held if n_held >= MIN_PREFILL_TOKENS else 0

    def _choose(self, n_ahead: int):
        """The model's choice of the next token of each row, `n_ahead` tokens after those that the host knows."""
        length_B = np.array([len(row.ids) + n_ahead for row in self._rows], np.int32)
        way, *others = dict.fromkeys(row.way for row in self._rows if row.n_left)
        token_B = choose_token(self._state[0], length_B, self._draw, n_valid=self._n_valid, way=way)
        for way in others:
            chosen_B = choose_token(self._state[0], length_B, self._draw, n_valid=self._n_valid, way=way)
            token_B = jnp.where(np.array([row.way == way for row in self._rows]), chosen_B, token_B)
        return token_B

    def _force_tokens(self, token_B):
        if not any(row.forced for row in self._rows):
            return token_B
        forced_B = np.array([row.forced.popleft() if row.forced else -1 for row in self._rows], np.int32)
        return jnp.where(forced_B >= 0, forced_B, token_B)

    def _decode_ahead(self, token_B) -> None:
        """Starts the step after this one, for rows that go on and whose cache has room."""
        for row in self._rows:
            row.is_stale = row.n_left == 0 or row.n_cached == self._n_positions
        if all(row.is_stale for row in self._rows):
            return
        last = self._n_positions - 1  # where rows that have ended write, so that the rest of their cache stays
        offset_B = np.array([last if row.is_stale else row.n_cached for row in self._rows], np.int32)
        self._state = decode_step(self._model, self._params, self._state[1], token_B, offset_B)
        for row in self._rows:
            row.n_cached += not row.is_stale
        self._token_B = self._choose(1)


def padded_tokens(n_tokens: int) -> int:
    """How long a prompt is where it is computed, so that prompts of all lengths share a few programs."""
    return max(MIN_PREFILL_TOKENS, 1 << (n_tokens - 1).bit_length())


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
    if request.top_k > n_valid:
        raise InputError(f"top_k={request.top_k} is above the vocabulary of {n_valid}; 0 keeps all tokens")
    n_room = n_positions - n_prompt + 1  # the last token is not cached
    return request.max_tokens if request.slides else min(request.max_tokens, n_room)


def n_shared(text: Sequence[int], ids: Sequence[int]) -> int:
    """Ids that both begin with."""
    return next((n for n, (a, b) in enumerate(zip(text, ids, strict=False)) if a != b), min(len(text), len(ids)))
