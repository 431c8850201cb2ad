"""Speculative decoding: one row that gets several tokens from one forward of its model, with the same distribution.

A draft proposes K tokens: a smaller model of the same tokenizer, or the text itself (prompt lookup: what followed the
last few tokens where they stood before). The model reads them all at once, and keeps those that the rule of
acceptance.py accepts. Greedy text is that of plain decoding; sampled text has its distribution, not its draws.

References: arXiv:2211.17192; prompt lookup: github.com/apoorvumang/prompt-lookup-decoding.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgpt.errors import InputError
from jaxgpt.inference.acceptance import check_tokens, draft_tokens
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.inference.row import BROKEN, Token, n_shared, room_of
from jaxgpt.inference.row_cache import MIN_PREFILL_TOKENS, make_cache, padded_tokens, prefill
from jaxgpt.inference.sampling import draw_of, way_of
from jaxgpt.inference.trained import Trained, open_trained

LOOKUP = "lookup"
N_GRAM = 3
"""Tokens that prompt lookup searches for at first; then fewer."""
MAX_DRAFT = 16


class _Cached:
    """One model with a cache of one row. What the cache holds from the caller's offset on is not looked at."""

    def __init__(self, engine: Engine, n_slots: int):
        self.model, self.params = engine.model, engine.params
        self.cache: Any = make_cache(self.model, self.params, n_positions=n_slots)
        self._n_slots = n_slots

    def read(self, ids: Sequence[int], offset: int) -> None:
        """Caches ids, the first of them at `offset`."""
        tokens_1T = np.zeros((1, min(padded_tokens(len(ids)), self._n_slots - offset)), np.int32)
        tokens_1T[0, : len(ids)] = ids
        _, self.cache = prefill(
            self.model, self.params, self.cache, tokens_1T, np.int32(len(ids)), np.int32(offset)
        )  # fmt: skip


class SpeculativeRow:
    """Called like `Rows` of one row: iterated for ids, or by `start`, `step` and `stop`.

    Attributes:
      n_rounds: forwards of the model after prompts.
      n_drafted: tokens that were proposed.
      n_accepted: tokens of them that were accepted.
      n_prefilled_tokens: tokens of prompts that were computed; those that the cache still held are not counted.
    """

    def __init__(self, engine: Engine, draft: Engine | None, *, n_draft: int):
        """
        Args:
          draft: of the same tokenizer; None: prompt lookup.
          n_draft: tokens that are proposed at a time.

        Raises:
          InputError: the draft has another vocabulary or a shorter context.
        """
        if not 1 <= n_draft <= MAX_DRAFT:
            raise InputError(f"n_draft={n_draft} is outside [1, {MAX_DRAFT}]; choose one inside")
        if draft and draft.n_valid != engine.n_valid:
            raise InputError(
                f"the draft has {draft.n_valid} ids, the model {engine.n_valid}; give a draft of the same tokenizer"
            )
        if draft and draft.n_positions < engine.n_positions:
            raise InputError(
                f"the draft's context of {draft.n_positions} tokens is shorter than the model's of "
                f"{engine.n_positions}; give a draft of at least that"
            )
        self._n_positions, self._n_valid, self._n_draft = engine.n_positions, engine.n_valid, n_draft
        n_slots = engine.n_positions + max(n_draft + 1, MIN_PREFILL_TOKENS)  # of a round beyond the end
        self._target = _Cached(engine, n_slots)
        self._draft = _Cached(draft, n_slots) if draft else None
        self._ids, self._begin, self._cached_ids = list[int](), 0, list[int]()
        self._ready: collections.deque[Token] = collections.deque()
        self._n_left = 0
        self.n_rounds = self.n_drafted = self.n_accepted = self.n_prefilled_tokens = 0

    def start(self, row: int, request: Request) -> None:
        """Gives the row to a request. The beginning that its prompt shares with the text before is not computed again.

        Raises:
          InputError: as `Engine.rows`; or it asks for log-probabilities.
        """
        assert row == 0, row
        if request.n_log_probs is not None:
            raise InputError(f"n_log_probs={request.n_log_probs} is not for speculative decoding; leave out the draft")
        n_left = room_of(request, n_positions=self._n_positions, n_valid=self._n_valid)
        self._request, self._n_left = request, n_left
        self._tool = request.tool() if request.tool else None
        self._way, self._draw = way_of(request), draw_of([request])
        self._ids, self._begin = list(request.prompt_ids), 0
        self._ready.clear()

    def stop(self, row: int) -> None:
        """Ends the row."""
        assert row == 0, row
        self._n_left = 0
        self._ready.clear()

    def settle(self) -> bool:
        """As `Rows.settle`; here nothing is left to compute, since any beginning of a text is used again."""
        return False

    def summary(self) -> str:
        """How well it drafted, in words."""
        if not self.n_drafted:
            return f"{self.n_rounds} forwards, nothing drafted"
        share = self.n_accepted / self.n_drafted
        return f"{self.n_accepted} of {self.n_drafted} drafted tokens accepted ({share:.0%}), {self.n_rounds} forwards"

    def __iter__(self) -> "SpeculativeRow":
        return self

    def __next__(self) -> list[int | None]:
        (token,) = self.step()
        if token is None:
            raise StopIteration
        return [token.id]

    def step(self) -> list[Token | None]:
        """The next token, None where the row has ended.

        Raises:
          InputError: logits are not finite.
        """
        if not self._ready and self._n_left:
            self._go_round()
        return [self._ready.popleft() if self._ready else None]

    def _go_round(self) -> None:
        """Drafts, tests, and keeps what was accepted, up to a stop id, a forced token, or the end of the context."""
        n_cached = self._read_pending()
        last_1, length = np.array(self._ids[-1:], np.int32), len(self._ids)
        draft_K, q_KV = self._propose(last_1, n_cached)
        checked, self._target.cache = check_tokens(
            self._target.model, self._target.params, self._target.cache, last_1, draft_K, q_KV, np.int32(n_cached),
            np.int32(length), self._draw, n_valid=self._n_valid, way=self._way,
        )  # fmt: skip
        n_accepted, *drafted, following = np.asarray(checked).tolist()
        found = [*drafted[:n_accepted], following]
        self.n_rounds, self.n_drafted = self.n_rounds + 1, self.n_drafted + len(drafted)
        self.n_accepted += n_accepted
        n_before = len(self._ids)
        for token_id in found[: self._n_positions - n_cached]:
            if token_id < 0:
                raise InputError(BROKEN)
            has_forced = self._take(token_id)
            if has_forced or self._n_left == 0:
                break
        n_kept = min(len(self._ids) - n_before, n_accepted)
        n_valid = 1 + next((n for n in range(n_kept) if self._ids[n_before + n] != drafted[n]), n_kept)
        self._cached_ids = self._ids[self._begin : self._begin + n_cached + n_valid]

    def _take(self, token_id: int) -> bool:
        """Adds a token to the text, and what the tool answers to it. Returns whether anything was forced."""
        waiting, has_forced = collections.deque([token_id]), False
        while waiting and self._n_left:
            token_id = waiting.popleft()
            self._ids.append(token_id)
            self._n_left -= 1
            has_stopped = token_id in self._request.stop_ids
            self._n_left = 0 if has_stopped else self._n_left
            end = "stop" if has_stopped else "" if self._n_left else "length"
            self._ready.append(Token(token_id, has_forced, end=end))
            if self._tool and self._n_left:
                waiting.extend(self._tool.feed(token_id))
            has_forced = has_forced or bool(waiting)
        return has_forced

    def _read_pending(self) -> int:
        """Caches all of the text but its last token, sliding where it is too long. Returns how many those are."""
        while len(self._ids) - self._begin > self._n_positions:  # several forced tokens may have come at once
            self._begin += self._n_positions + 1 - self._n_positions // 2
        window = self._ids[self._begin : -1]
        n_held = n_shared(window, self._cached_ids)
        if pending := window[n_held:]:
            for part in filter(None, (self._target, self._draft)):
                part.read(pending, n_held)
            self.n_prefilled_tokens += len(pending)
        return len(window)

    def _propose(self, last_1: np.ndarray, n_cached: int) -> tuple[Any, Any]:
        """Drafted ids [K], and what they were drawn from, as `check_tokens` takes them."""
        if self._draft is not None:
            draft_K, q_KV, self._draft.cache = draft_tokens(
                self._draft.model, self._draft.params, self._draft.cache, last_1, np.int32(n_cached),
                np.int32(len(self._ids)), self._draw, n_draft=self._n_draft, n_valid=self._n_valid, way=self._way,
            )  # fmt: skip
            return draft_K, q_KV
        return np.array(look_up(self._ids[self._begin :], self._n_draft), np.int32), None


def open_drafted(trained: Trained, source: str, *, n_draft: int, platform: str = "") -> SpeculativeRow:
    """A row of a trained model, with the draft that the command line names.

    Args:
      source: of the draft, as `open_trained` takes it, or LOOKUP.

    Raises:
      InputError: the draft cannot be opened, or is none for this model.
    """
    try:
        if source == LOOKUP:
            return SpeculativeRow(trained.engine(), None, n_draft=n_draft)
        draft = open_trained(source, platform=platform)
        digests = [model.tokenizer.digest() for model in (trained, draft) if model.tokenizer]
        if len(digests) < 2 or digests[0] != digests[1]:
            raise InputError(f"{draft.origin} has another tokenizer than {trained.origin}; give one of the same")
        return SpeculativeRow(trained.engine(), draft.engine(), n_draft=n_draft)
    except InputError as error:
        raise InputError(f"--draft={source}: {str(error).replace('n_draft=', '--draft-tokens=')}") from error


def look_up(ids: Sequence[int], n_draft: int) -> list[int]:
    """What followed the last tokens of a text where they stood before: n_draft ids, or none.

    The longest match of up to N_GRAM tokens counts, and of equal ones the latest that n_draft ids follow.
    """
    text = np.asarray(ids)
    for n_gram in range(N_GRAM, 0, -1):
        n_starts = len(text) - n_gram - n_draft + 1
        if n_starts <= 0:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(text, n_gram)[:n_starts]
        found = np.flatnonzero((windows == text[-n_gram:]).all(axis=1))
        if len(found):
            begin = int(found[-1]) + n_gram
            return text[begin : begin + n_draft].tolist()
    return []
