"""Rendered conversations to rows of seq_len + 1 tokens, in three ways.

stream (nanochat 2025, midtraining): conversations are one endless run of tokens; a row begins anywhere.
rows (nanochat 2025, SFT): a conversation per row, padded behind it with <|assistant_end|>.
best_fit (nanochat 2026): every row begins with a conversation. From a buffer of 100 the longest that fits is taken,
the oldest among equals, until none fits; the rest of the row is padding, <|bos|>. No token is discarded.

Padding is never trained. A packer takes conversations from a `Feed`, and counts what it did in the feed's `counts`.
"""

import dataclasses
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Protocol

import numpy as np

from jaxgpt.data.conversations import Rendered, cut
from jaxgpt.errors import InputError

ChatPacking = Literal["stream", "rows", "best_fit"]
N_BUFFER = 100
"""Conversations that best_fit chooses from."""


@dataclasses.dataclass
class Counts:
    """What was done so far. All are sums, so those of several feeds add."""

    n_placed: int = 0
    """Conversations in rows; in a stream, those that began."""
    n_truncated: int = 0
    """Conversations that were longer than the limit, among those read."""
    n_untrained: int = 0
    """Conversations without a trained token, among those read; truncation often is why."""
    n_rows: int = 0
    n_untrained_rows: int = 0
    """Rows without a trained token."""
    n_padding: int = 0
    """Tokens."""
    n_trained: int = 0
    """Targets that count."""

    def __add__(self, other: "Counts") -> "Counts":
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Counts(*(a + b for a, b in zip(ours, theirs, strict=True)))


class Item(NamedTuple):
    """A conversation on its way into a row. `index` counts through the epochs: epoch * n_conversations + i."""

    index: int
    ids: np.ndarray
    mask: np.ndarray


class Feed:
    """The conversations of one lane, in order, epoch after epoch: lane, lane + n_lanes, ... modulo their number."""

    def __init__(
        self,
        render_one: Callable[[int], Rendered],
        n_conversations: int,
        max_tokens: int | None,
        *,
        lane: int = 0,
        n_lanes: int = 1,
        n_epochs: int | None = None,
        n_taken: int = 0,
    ):
        """
        Args:
          render_one: the whole of the conversation with this number, in [0, n_conversations).
          max_tokens: that are kept of each; None: all.
          n_epochs: after so many there are no more; None: endless.
          n_taken: by this lane before, from a cursor.
        """
        self._render, self._n, self._max_tokens = render_one, n_conversations, max_tokens
        self._lane, self._n_lanes = lane, n_lanes
        self._n_most = None if n_epochs is None else n_epochs * n_conversations
        self.n_taken, self.counts = n_taken, Counts()

    def epoch_of(self, index: int) -> int:
        return index // self._n

    @property
    def next_index(self) -> int | None:
        """Of the item that `take` gives next; None at the end."""
        index = self._lane + self.n_taken * self._n_lanes
        return index if self._n_most is None or index < self._n_most else None

    def take(self) -> Item | None:
        """The next conversation; None at the end."""
        index = self.next_index
        if index is None:
            return None
        item, is_truncated = self._make(index)
        self.counts.n_truncated += is_truncated
        self.counts.n_untrained += not item.mask[1:].any()
        self.n_taken += 1
        return item

    def fetch(self, index: int) -> Item:
        """One that was taken before, again; it is not counted."""
        return self._make(index)[0]

    def _make(self, index: int) -> tuple[Item, bool]:
        whole = self._render(index % self._n)
        item = Item(index, *cut(whole, self._max_tokens))
        return item, len(item.ids) < len(whole.ids)


class Packer(Protocol):
    """Fills rows from a feed."""

    def fill(self, ids: np.ndarray, mask: np.ndarray) -> bool:
        """Writes rows [n, seq_len + 1] of one microbatch and the mask of their tokens; False where none was left.

        Rows behind the end are padding.
        """
        ...

    def held(self) -> tuple[list[int], int]:
        """For a cursor: indices of the items that were taken and are needed again, and the place in the first."""
        ...


def _end_row(counts: Counts, mask: np.ndarray, n_padding: int) -> None:
    n_trained = int(mask[1:].sum())
    counts.n_rows += 1
    counts.n_padding += n_padding
    counts.n_trained += n_trained
    counts.n_untrained_rows += not n_trained


class Stream:
    """One run of tokens. Neighbouring rows share a token, the last target of one and the first input of the next."""

    def __init__(self, feed: Feed, padding: int, held: tuple[list[int], int], *, is_shared: bool, has_begun: bool):
        """
        Args:
          is_shared: the rows of a microbatch share a token with those of the one before too. nanochat drops it there,
            so that its rows depend on the size of the microbatch.
          has_begun: there was a microbatch before, from a cursor.
        """
        self._feed, self._padding, self._is_shared, self._has_begun = feed, padding, is_shared, has_begun
        indices, self._at = held
        self._item = feed.fetch(indices[0]) if indices else None

    def fill(self, ids: np.ndarray, mask: np.ndarray) -> bool:
        if self._has_begun and not self._is_shared:
            self._at += 1
        n_full = 0
        for ids_row, mask_row in zip(ids, mask, strict=True):
            n_full += self._fill_row(ids_row, mask_row)
        self._has_begun = True
        return n_full > 0

    def _fill_row(self, ids: np.ndarray, mask: np.ndarray) -> bool:
        n = 0
        while n < len(ids):
            if self._item is None or self._at >= len(self._item.ids):
                following = self._feed.take()
                if following is None:
                    break
                self._at = 0
                self._item = following
                self._feed.counts.n_placed += 1
            taken = slice(self._at, self._at + len(ids) - n)
            n_more = len(self._item.ids[taken])
            ids[n : n + n_more], mask[n : n + n_more] = self._item.ids[taken], self._item.mask[taken]
            n, self._at = n + n_more, self._at + n_more
        ids[n:], mask[n:] = self._padding, 0
        if n < 2:  # no more than the token that the last row has as well
            return False
        self._at -= 1
        _end_row(self._feed.counts, mask, len(ids) - n)
        return True

    def held(self) -> tuple[list[int], int]:
        return ([self._item.index], self._at) if self._item else ([], 0)


class OnePerRow:
    """A conversation per row."""

    def __init__(self, feed: Feed, padding: int):
        self._feed, self._padding = feed, padding

    def fill(self, ids: np.ndarray, mask: np.ndarray) -> bool:
        ids[:], mask[:] = self._padding, 0
        for i in range(len(ids)):
            item = self._feed.take()
            if item is None:
                return i > 0
            n = len(item.ids)
            ids[i, :n], mask[i, :n] = item.ids, item.mask
            self._feed.counts.n_placed += 1
            _end_row(self._feed.counts, mask[i], ids.shape[1] - n)
        return True

    def held(self) -> tuple[list[int], int]:
        return [], 0


class BestFit:
    """The longest conversation that fits, again and again."""

    def __init__(self, feed: Feed, padding: int, held: list[int], *, spans_epochs: bool):
        """
        Args:
          spans_epochs: the buffer is refilled from the next epoch before it is empty, as nanochat does: when as many
            were placed as an epoch has, up to a hundred of it were not, and as many of the next were. Else a row holds
            conversations of one epoch, and each is placed once in it.
        """
        self._feed, self._padding, self._spans_epochs = feed, padding, spans_epochs
        self._items: dict[int, Item] = {}
        """By index, the oldest first."""
        self._lengths: list[tuple[int, int]] = []
        """Length and minus the index of each item, sorted: among equals the oldest comes last."""
        for index in held:
            self._add(feed.fetch(index))

    def _add(self, item: Item) -> None:
        self._items[item.index] = item
        insort(self._lengths, (len(item.ids), -item.index))

    def fill(self, ids: np.ndarray, mask: np.ndarray) -> bool:
        n_full = 0
        for ids_row, mask_row in zip(ids, mask, strict=True):
            n_full += self._fill_row(ids_row, mask_row)
        return n_full > 0

    def _fill_row(self, ids: np.ndarray, mask: np.ndarray) -> bool:
        n = 0
        while n < len(ids) and (item := self._take(len(ids) - n, is_first=not n)):
            end = n + len(item.ids)
            ids[n:end], mask[n:end] = item.ids, item.mask
            n = end
            self._feed.counts.n_placed += 1
        ids[n:], mask[n:] = self._padding, 0
        if not n:
            return False
        _end_row(self._feed.counts, mask, len(ids) - n)
        return True

    def _take(self, room: int, *, is_first: bool) -> Item | None:
        """The oldest among the longest of at most `room` tokens."""
        if self._items or is_first or self._spans_epochs:
            self._refill()
        n_fitting = bisect_right(self._lengths, (room, 0))
        if n_fitting:
            _, index = self._lengths.pop(n_fitting - 1)
            return self._items.pop(-index)
        if is_first and self._items:
            raise InputError(
                f"max_tokens is above seq_len + 1 = {room}, and none of the {len(self._items)} buffered "
                f"conversations fits a row; set max_tokens={room}, which cuts them"
            )
        return None

    def _refill(self) -> None:
        while len(self._items) < N_BUFFER and not self._is_over():
            item = self._feed.take()
            if item is None:
                return
            self._add(item)

    def _is_over(self) -> bool:
        """Whether the next conversation must wait until the buffer, of the epoch before, is empty."""
        index = self._feed.next_index
        if self._spans_epochs or index is None or not self._items:
            return False
        return self._feed.epoch_of(index) != self._feed.epoch_of(next(iter(self._items)))

    def held(self) -> tuple[list[int], int]:
        return list(self._items), 0


def all_rows(packer: Packer, seq_len: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row and mask of its tokens, int32 and uint8 [seq_len + 1], until the feed of the packer ends."""
    while True:
        ids, mask = np.empty((1, seq_len + 1), np.int32), np.empty((1, seq_len + 1), np.uint8)
        if not packer.fill(ids, mask):
            return
        yield ids[0], mask[0]
