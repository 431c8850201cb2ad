"""Documents out of a directory of text, as tokens, one after another.

Nulls and empty texts are no documents (the original makes each empty one a lone delimiter, from which nothing is
learned). Tokenizing runs ahead of its reader in threads, in the order of the places however many threads there are.
The queue is bounded in bytes of text, and no document is ever cut before it is tokenized.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.data.shards import pick_dtype
from jaxgpt.data.text_data import TextData, TextSplit
from jaxgpt.errors import InputError

REFILL_ROWS = 128
"""Rows of a row group that a packer takes in together."""
_CHUNK_ROWS = 32
_CHUNK_BYTES = 1 << 20
"""A chunk is what one thread tokenizes at once: up to this many rows or bytes of text, at least one row."""
_AHEAD_BYTES = 32 << 20


class Position(NamedTuple):
    """Where reading resumes."""

    epoch: int
    group: int
    row: int


class Document(NamedTuple):
    """A document as tokens."""

    group: int
    row: int
    tokens: np.ndarray
    """The delimiter, then the text; cut to what a reader asked for. uint16 or uint32."""
    n_tokens: int
    """Before it was cut."""


class Chunk(NamedTuple):
    """Adjacent documents, and where reading resumes after them."""

    epoch: int
    documents: list[Document]
    after: Position


class Encoder:
    """Texts to documents in threads. `max_tokens` bounds what is kept of a document; None keeps all."""

    def __init__(self, data: TextData, n_threads: int, max_tokens: int | None = None):
        self._tokenizer, self._delimiter, self._max_tokens = data.tokenizer, data.delimiter, max_tokens
        self.dtype = pick_dtype(data.tokenizer.vocab_size)
        self.n_threads = n_threads
        self.pool = ThreadPoolExecutor(n_threads, thread_name_prefix="tokenize")

    def close(self) -> None:
        """Discards the queue, and returns when no thread is left."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def encode(self, split: TextSplit, group: int, rows: Sequence[int], column: Any) -> list[Document]:
        """Tokenizes in the thread that calls.

        Args:
          column: the texts of `rows`, a pyarrow array of strings.

        Raises:
          InputError: a text that is not UTF-8, or one that the tokenizer refuses.
        """
        try:
            texts = column.to_pylist()
        except UnicodeDecodeError:
            raise _not_utf8(split, group, rows, column) from None
        there = [(row, text) for row, text in zip(rows, texts, strict=True) if text]
        try:
            encoded = self._tokenizer.encode_batch([text for _, text in there])
        except InputError as error:
            raise InputError(f"{split.describe(group)} rows {rows[0]} to {rows[-1]}: {error}") from error
        return [self._document(group, row, ids) for (row, _), ids in zip(there, encoded, strict=True)]

    def _document(self, group: int, row: int, ids: np.ndarray) -> Document:
        n_tokens = len(ids) + 1
        n_kept = n_tokens if self._max_tokens is None else min(n_tokens, self._max_tokens)
        tokens = np.empty(n_kept, self.dtype)
        tokens[0] = self._delimiter
        tokens[1:] = ids[: n_kept - 1]
        return Document(group, row, tokens, n_tokens)

    def fetch(self, split: TextSplit, places: Sequence[tuple[int, int]]) -> list[Document]:
        """The documents at these places (group, row), in this order; a place may occur more than once.

        Raises:
          InputError: as `encode` and `read_group` do; or a place has no document.
        """
        rows_of: dict[int, set[int]] = {}
        for group, row in places:
            rows_of.setdefault(group, set()).add(row)

        def fetch_group(group: int) -> list[Document]:
            rows = sorted(rows_of[group])
            column, parts = split.read_group(group), []
            for row in rows:  # one by one: a group's largest documents may be too many to hold together
                parts += self.encode(split, group, [row], column.slice(row, 1))
            return parts

        found = {(d.group, d.row): d for part in self.pool.map(fetch_group, rows_of) for d in part}
        for group, row in places:
            if (group, row) not in found:
                raise InputError(f"{split.describe(group, row)} has no text; the checkpoint is of other data")
        return [found[place] for place in places]


def _not_utf8(split: TextSplit, group: int, rows: Sequence[int], column: Any) -> InputError:
    for row, text in zip(rows, column, strict=True):
        try:
            text.as_py()
        except UnicodeDecodeError as error:
            return InputError(
                f"{split.describe(group, row)} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
                f"{error.start} ({error.reason}); fetch the file again, or fix the text"
            )
    raise AssertionError(column)


class Lane:
    """The row groups lane, lane + n_lanes, ... of a split, again and again, as chunks of documents, tokenized ahead.

    An iterator. An error while working ahead is raised when its chunk is due, and on each later call.
    """

    def __init__(
        self,
        split: TextSplit,
        encoder: Encoder,
        lane: int = 0,
        n_lanes: int = 1,
        start: Position | None = None,
        n_epochs: int | None = None,
    ):
        """
        Args:
          start: where to begin; None: with the first epoch.
          n_epochs: end before this epoch; None: never.
        """
        assert 0 <= lane < n_lanes <= split.n_groups, (lane, n_lanes, split.n_groups)
        self._split, self._encoder, self._lane, self._n_lanes = split, encoder, lane, n_lanes
        self.start = start or Position(0, lane, 0)
        self._n_epochs = n_epochs
        self._slices = self._read_slices()
        self._waiting: deque[tuple[int, Future[Chunk]]] = deque()
        self._n_bytes = 0
        self._is_read = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._work_ahead()
        if not self._waiting:
            raise StopIteration
        n_bytes, future = self._waiting[0]
        chunk = future.result()
        self._waiting.popleft()
        self._n_bytes -= n_bytes
        return chunk

    def _work_ahead(self) -> None:
        """Submits chunks until enough of them wait: two for each thread, and never less than a refill."""
        most = max(2 * self._encoder.n_threads, REFILL_ROWS // _CHUNK_ROWS)
        while not self._is_read and len(self._waiting) < most and self._n_bytes < _AHEAD_BYTES:
            n_bytes = 0
            try:
                n_bytes, job = next(self._slices)
                future = self._encoder.pool.submit(self._encode, *job)
            except StopIteration:
                self._is_read = True
                return
            except Exception as error:
                future, self._is_read = Future(), True
                future.set_exception(error)
            self._waiting.append((n_bytes, future))
            self._n_bytes += n_bytes

    def _encode(self, epoch: int, group: int, rows: range, column: Any, after: Position) -> Chunk:
        return Chunk(epoch, self._encoder.encode(self._split, group, rows, column), after)

    def _read_slices(self) -> Iterator[tuple[int, tuple[int, int, range, Any, Position]]]:
        """Bytes and place of each chunk, and its texts."""
        from pyarrow import compute

        position, n_bytes_since_start, has_wrapped = self.start, 0, False
        while self._n_epochs is None or position.epoch < self._n_epochs:
            epoch, group, row = position
            column = self._split.read_group(group)
            ends = list(accumulate(compute.call_function("binary_length", [column]).fill_null(0).to_pylist()))
            while row < len(ends):
                before = ends[row - 1] if row else 0
                end = min(row + _CHUNK_ROWS - row % _CHUNK_ROWS, bisect_right(ends, before + _CHUNK_BYTES))
                end = min(max(end, row + 1), len(ends))
                position = self._after(epoch, group, end)
                n_bytes = ends[end - 1] - before
                n_bytes_since_start += n_bytes
                yield n_bytes, (epoch, group, range(row, end), column.slice(row, end - row), position)
                row = end
            if position.epoch > epoch:
                if has_wrapped and not n_bytes_since_start:
                    raise InputError(
                        f"{self._split.directory} {self._split.name}: the row groups of lane {self._lane} of "
                        f"data.lanes={self._n_lanes} hold no text, only nulls; fetch the files again"
                    )
                has_wrapped = True

    def _after(self, epoch: int, group: int, row: int) -> Position:
        if row < self._split.rows_of(group):
            return Position(epoch, group, row)
        if group + self._n_lanes < self._split.n_groups:
            return Position(epoch, group + self._n_lanes, 0)
        return Position(epoch + 1, self._lane, 0)
