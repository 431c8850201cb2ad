"""Rows of an engine at work: each has its own text, position, settings and end, and all take a token per step.

A row begins by filling its part of the cache from its prompt, alone, in chunks of CHUNK_TOKENS. The last one is padded
to the next power of two, so prompts of all lengths share a few compiled `prefill`s, and there is one `decode_step` per
number of rows. Padding leaks nowhere: it stands after the prompt, where no query of the prompt looks, and each of its
cache slots is overwritten by the token that comes there before any query sees it.

A prompt that begins as another row's text did takes the whole chunks that both share from that row's cache, also after
that row has ended. A chunk has the same bits wherever it was computed: the same program on the same tokens after the
same chunks. So a row gets the same to the bit, with reuse and without. Tokens that a row has generated were computed
one by one, by another program, and are not shared; `settle` computes them again as chunks while nothing else is to do.

Rows of a server belong to different people, and `step_apart` keeps them apart: a prompt is computed one chunk per step
while the other rows go on, and a row whose logits are not finite ends alone.

When a row's context is full, the row continues from the last half of its text: its part of the cache is filled anew
from these tokens, at positions 0, 1, ... So each token is exactly what the uncached model gives for a window of
n_positions / 2 to n_positions tokens. (nanoGPT always shows the last n_positions, which moves every token to another
position at each step, so that nothing could be kept.)

The device computes step n + 1 while the host reads step n. Only where a row begins the host reads first: a CPU would
compute both at once, and the row's first token would come later.

A tool reads each token of its row, and what it answers is forced: these ids replace the model's next choices, one a
step. Randomness belongs to a position, so forced tokens use up none of it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgpt.errors import InputError
from jaxgpt.inference.biases import Biases, bias_logits, count_token, no_biases, with_request
from jaxgpt.inference.request import MAX_LOG_PROBS, Request
from jaxgpt.inference.row import BROKEN, Row, Token, room_of
from jaxgpt.inference.row_cache import (
    decode_step,
    make_cache,
    make_state,
    padded_tokens,
    prefill,
    put_row,
    take_row,
)
from jaxgpt.inference.sampling import choose_token, draw_of, score_token
from jaxgpt.models import Model

CHUNK_TOKENS = 64
"""A prompt is computed in pieces of so many tokens, and its cache is shared in such pieces."""


class _Filling(NamedTuple):
    """A text on its way into the cache.

    Attributes:
      filled: the state of one row after the text's first `n_done` tokens; before its first chunk it has no logits.
    """

    text: tuple[int, ...]
    filled: Any
    n_done: int


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
    ):
        """As `Engine.rows`, which has checked the arguments. Computes nothing yet."""
        self._model, self._params, self._n_positions, self._n_valid = model, params, n_positions, n_valid
        self._rows = [self._make_row(request) for request in requests]
        self._draw = draw_of([row.request for row in self._rows])
        self._chunks: list[tuple[int, ...]] = [()] * len(requests)  # ids of whole chunks that a row's cache begins with
        self._started = [0] * len(requests)  # when, by the number of starts until then
        self._biases: Biases | None = None  # since a row first had any
        for i in range(len(requests)):
            self._set_biases(i)
        self.n_prefilled_tokens = 0
        self._state: Any = None  # logits after the last cached token of each row, and the cache
        self._token_B: Any = None  # chosen for the next step, forced tokens aside
        self._filling: _Filling | None = None
        self._unread_B: Any = None  # tokens of a step in which a row began: the model reads them in the next one

    @property
    def free(self) -> list[int]:
        """Rows that have ended."""
        return [i for i, row in enumerate(self._rows) if row.n_left == 0]

    def start(self, row: int, request: Request) -> None:
        """Gives a row to another request; what it had is dropped.

        Raises:
          InputError: as `Engine.rows`; the row keeps what it had.
        """
        self._rows[row] = self._make_row(request)
        self._set_biases(row)
        self._started[row] = max(self._started) + 1
        self._draw = draw_of([row.request for row in self._rows])

    def add(self, request: Request) -> int:
        """Gives a free row to a request, and returns its number; there must be one.

        It is one whose text the prompt continues, else the one that was started longest ago: so the texts of the others
        stay as beginnings for later prompts.

        Raises:
          InputError: as `start`.
        """
        prompt = tuple(request.prompt_ids)

        def rank(row: int) -> tuple[int, int]:
            chunks = self._chunks[row]
            return (len(chunks) if prompt[: len(chunks)] == chunks else 0), -self._started[row]

        row = max(self.free, key=rank)
        self.start(row, request)
        return row

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
        tokens = self._step(in_pieces=False)
        if any(token and token.end == "broken" for token in tokens):
            raise InputError(BROKEN)
        return tokens

    def step_apart(self) -> list[Token | None]:
        """As `step`, for rows that belong to different people.

        While any row gives tokens, a prompt is computed one chunk per step, one prompt at a time: its row gives None
        meanwhile. So a token waits for one chunk and one decoding step, however long the prompts beside it are. A row
        whose logits are not finite ends with a token that says so, and the others continue.
        """
        return self._step(in_pieces=True)

    def _step(self, *, in_pieces: bool) -> list[Token | None]:
        if self._unread_B is not None:
            self._decode(self._unread_B, 0)
            self._unread_B = None
        has_begun = any(row.is_waiting for row in self._rows) and self._fill(in_pieces)
        if has_begun:
            self._token_B = self._choose(0)
        is_running = [row.is_running for row in self._rows]
        if not any(is_running):
            return [None] * len(self._rows)
        is_forced = [bool(row.forced) for row in self._rows]
        token_B = self._force_tokens(self._token_B)
        scores = self._score(token_B)
        if self._is_biased():
            self._biases = count_token(self._biases, token_B, np.array(is_running))
        for row in self._rows:
            row.n_left -= row.is_running
        if has_begun:
            self._unread_B = token_B
        else:
            self._decode(token_B, 1)

        ids, read = np.asarray(token_B).tolist(), [np.asarray(part) for part in scores]
        return [
            self._take(i, ids[i], is_forced[i], read) if running else None for i, running in enumerate(is_running)
        ]  # fmt: skip

    def _take(self, i: int, token_id: int, is_forced: bool, scores: list[np.ndarray]) -> Token:
        """Adds a token to its row, and shows it to the row's tool."""
        row, n_log_probs = self._rows[i], self._rows[i].request.n_log_probs
        if token_id < 0:
            row.n_left = 0
            return Token(token_id, end="broken")
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

    def _set_biases(self, row: int) -> None:
        request = self._rows[row].request
        if self._biases is None and request.is_biased:
            self._biases = no_biases(len(self._rows), self._model.config.vocab_size)
        if self._biases is not None:
            self._biases = with_request(self._biases, row, request)

    def _is_biased(self) -> bool:
        return any(row.n_left and row.request.is_biased for row in self._rows)

    def _make_row(self, request: Request | None) -> Row:
        if request is None:
            return Row(Request((0,), 1, temperature=0), 0)
        return Row(request, room_of(request, n_positions=self._n_positions, n_valid=self._n_valid))

    def _fill(self, in_pieces: bool) -> bool:
        """Fills the cache of rows that wait; rows of one text, such as samples of one prompt, from one prefill.

        Args:
          in_pieces: computes one chunk while a row is running, and where none is, one text.

        Returns:
          Whether a row that waited has its text now.
        """
        has_filled = False
        while waiting := [i for i, row in enumerate(self._rows) if row.is_waiting]:
            texts = {i: self._text_of(self._rows[i]) for i in waiting}
            if self._filling is None or self._filling.text not in texts.values():
                self._filling = self._begin(texts[min(waiting, key=lambda i: self._started[i])])
            self._filling = text, filled, n_done = self._add_chunk(self._filling)
            if n_done == len(text):
                self._filling, has_filled = None, True
                for i in waiting:
                    if texts[i] == text:
                        self._put(i, filled, text)
                        row = self._rows[i]
                        row.n_cached, row.begin, row.is_stale = len(text), len(row.ids) - len(text), False
            if in_pieces and any(row.is_running for row in self._rows):
                break
        return has_filled

    def _text_of(self, row: Row) -> tuple[int, ...]:
        """What its part of the cache is to hold."""
        return tuple(row.ids[-(self._n_positions // 2) :] if len(row.ids) > self._n_positions else row.ids)

    def settle(self) -> bool:
        """Computes one more chunk of what a row that has ended has generated, for prompts that continue its text.

        Returns:
          Whether there was one to compute.
        """
        for i, row in enumerate(self._rows):
            text, n_done = tuple(row.ids[row.begin :]), len(self._chunks[i])
            if row.n_left == 0 and row.n_cached and n_done < self._n_whole(len(text)):
                text = text[: n_done + CHUNK_TOKENS]
                filled = take_row(self._model, self._params, self._state[1], np.int32(i), np.int32(n_done))
                self._put(i, self._add_chunk(_Filling(text, (None, filled), n_done)).filled, text)
                return True
        return False

    def _put(self, row: int, filled, text: tuple[int, ...]) -> None:
        if self._state is None:
            self._state = make_state(filled, n_rows=len(self._rows))
        self._state = put_row(self._state, filled, np.int32(row))
        self._chunks[row] = text[: self._n_whole(len(text))]

    def _begin(self, text: tuple[int, ...]) -> _Filling:
        """A text, and what of it is in the cache of a row."""
        source = max(range(len(self._rows)), key=lambda row: self._n_shared(text, row))
        n_held = self._n_shared(text, source)
        if n_held:
            cache = take_row(self._model, self._params, self._state[1], np.int32(source), np.int32(n_held))
        else:
            n_slots = -(-self._n_positions // CHUNK_TOKENS) * CHUNK_TOKENS
            cache = make_cache(self._model, self._params, n_positions=n_slots)
        return _Filling(text, (None, cache), n_held)

    def _add_chunk(self, filling: _Filling) -> _Filling:
        """Computes the next chunk."""
        text, (_, cache), n_done = filling
        piece = text[n_done : n_done + CHUNK_TOKENS]
        self.n_prefilled_tokens += len(piece)
        tokens_1T = np.zeros((1, padded_tokens(len(piece))), np.int32)
        tokens_1T[0, : len(piece)] = piece
        filled = prefill(self._model, self._params, cache, tokens_1T, np.int32(len(piece)), np.int32(n_done))
        return _Filling(text, filled, n_done + len(piece))

    def _n_whole(self, n_tokens: int) -> int:
        """How many of a text's tokens are whole chunks in the cache, without its last place, which is not kept."""
        return min(n_tokens, self._n_positions - 1) // CHUNK_TOKENS * CHUNK_TOKENS

    def _n_shared(self, text: tuple[int, ...], row: int) -> int:
        """Tokens of a text that are whole chunks in a row's cache. One at least is left, whose logits are wanted."""
        chunks, n_shared = self._chunks[row], 0
        while n_shared < self._n_whole(len(text) - 1):
            end = n_shared + CHUNK_TOKENS
            if chunks[n_shared:end] != text[n_shared:end]:
                break
            n_shared = end
        return n_shared

    def _choose(self, n_ahead: int):
        """The model's choice of the next token of each row, `n_ahead` tokens after those that the host knows."""
        length_B = np.array([len(row.ids) + n_ahead for row in self._rows], np.int32)
        logits_BV = bias_logits(self._state[0], self._biases) if self._is_biased() else self._state[0]
        way, *others = dict.fromkeys(row.way for row in self._rows if row.n_left)
        token_B = choose_token(logits_BV, length_B, self._draw, n_valid=self._n_valid, way=way)
        for way in others:
            chosen_B = choose_token(logits_BV, length_B, self._draw, n_valid=self._n_valid, way=way)
            token_B = jnp.where(np.array([row.way == way for row in self._rows]), chosen_B, token_B)
        return token_B

    def _force_tokens(self, token_B):
        forced = [row.forced.popleft() if row.forced and row.is_running else -1 for row in self._rows]
        if max(forced) < 0:
            return token_B
        forced_B = np.array(forced, np.int32)
        return jnp.where(forced_B >= 0, forced_B, token_B)

    def _decode(self, token_B, n_ahead: int) -> None:
        """Has the model read a step's tokens, in rows that go on and whose cache has room, and choose the next.

        Args:
          n_ahead: 1 while the host has not read them, else 0.
        """
        for row in self._rows:
            row.is_stale |= row.n_left == 0 or row.n_cached == self._n_positions
        if all(row.is_stale for row in self._rows):
            return
        # rows that have ended write behind their whole chunks, which stay; further on, their step would read more
        pairs = zip(self._rows, self._chunks, strict=True)
        offset_B = np.array([len(chunks) if row.is_stale else row.n_cached for row, chunks in pairs], np.int32)
        self._state = decode_step(self._model, self._params, self._state[1], token_B, offset_B)
        for row in self._rows:
            row.n_cached += not row.is_stale
        self._token_B = self._choose(n_ahead)
