"""Documents to rows of seq_len + 1 tokens, in two ways.

stream (nanochat 2025): documents, each after its delimiter, are one endless run of tokens; row i is the seq_len + 1
tokens from i * seq_len on, so neighbours share one. (The original takes B * T + 1 tokens for a batch and begins the
next one after them: its rows depend on the batch size.)

best_fit (nanochat 2026): every row begins with a document. From a buffer of at least 1000 documents the longest
that still fits is taken, again and again; when none fits, the shortest is cut to fit, and its rest discarded. Rows
are full, and no token is read without the beginning of its document. (Where an epoch has fewer than 1000 documents
the buffer is an epoch; the original reads the text over and over until there are 1000, before the first row.)
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from jaxgpt.data.documents import REFILL_ROWS, Chunk, Document, Position
from jaxgpt.errors import InputError

Packing = Literal["stream", "best_fit"]


class Stream:
    """Packs chunks as one run of tokens. `token`: where to begin in the first document, from a cursor."""

    def __init__(self, chunks: Iterator[Chunk], start: Position, token: int = 0):
        self._chunks, self._start, self._at = chunks, start, token
        self._epoch, self._documents = 0, []
        self._ends, self._tokens = np.empty(0, np.int64), np.empty(0, np.uint16)
        self.n_discarded = 0

    def fill(self, row: np.ndarray) -> bool:
        """Writes the next row [seq_len + 1]; False where the documents end before it is full."""
        n_filled = 0
        while n_filled < len(row):
            if self._at >= len(self._tokens) and not self._advance():
                return False
            taken = self._tokens[self._at : self._at + len(row) - n_filled]
            row[n_filled : n_filled + len(taken)] = taken
            n_filled, self._at = n_filled + len(taken), self._at + len(taken)
        self._at -= 1  # the last target is the next row's first input
        return True

    def _advance(self) -> bool:
        is_first = not self._documents
        for chunk in self._chunks:
            if chunk.documents:
                break
        else:
            return False
        self._epoch, self._documents = chunk.epoch, chunk.documents
        if not is_first:
            self._at = 0
        elif self._at:
            first = self._documents[0]
            if (first.group, first.row) != self._start[1:] or self._at >= first.n_tokens:
                raise InputError(
                    f"data cursor: token {self._at} is after the end of its document; the checkpoint is damaged, "
                    "resume from another"
                )
        arrays = [document.tokens for document in self._documents]
        self._tokens = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        self._ends = np.cumsum([document.n_tokens for document in self._documents])
        return True

    def position(self) -> tuple[Position, int]:
        """Place of the next row's first token: its document, and how many tokens precede it there."""
        if not self._documents:
            return self._start, self._at
        index = int(np.searchsorted(self._ends, self._at, side="right"))
        document = self._documents[index]
        begin = int(self._ends[index]) - document.n_tokens
        return Position(self._epoch, document.group, document.row), self._at - begin

    def buffered(self) -> list[Document]:
        """Empty: a stream buffers no documents."""
        return []


class BestFit:
    """Packs the longest document that fits.

    `buffer`: the documents in it at the cursor, oldest first. `n_buffer`: with fewer in it, more are read.
    """

    N_BUFFER = 1000

    def __init__(
        self, chunks: Iterator[Chunk], start: Position, buffer: Iterable[Document] = (), n_buffer: int | None = None
    ):
        self._chunks, self._after = chunks, start
        self._n_buffer = self.N_BUFFER if n_buffer is None else n_buffer
        self._documents: dict[int, Document] = {}
        self._lengths: list[tuple[int, int]] = []
        """Length and minus the serial number of each document, sorted: among equals the oldest comes last."""
        self._n_taken = 0
        self._is_over = False
        self.n_discarded = 0
        for document in buffer:
            self._add(document)

    def _add(self, document: Document) -> None:
        self._documents[self._n_taken] = document
        insort(self._lengths, (document.n_tokens, -self._n_taken))
        self._n_taken += 1

    def _refill(self) -> None:
        for chunk in self._chunks:
            for document in chunk.documents:
                self._add(document)
            self._after = chunk.after
            if chunk.after.row % REFILL_ROWS == 0:
                return
        self._is_over = True

    def fill(self, row: np.ndarray) -> bool:
        """Writes the next row [seq_len + 1]; False where the buffer runs empty before it is full."""
        n_filled = 0
        while n_filled < len(row):
            while len(self._documents) < self._n_buffer and not self._is_over:
                self._refill()
            if not self._documents:
                return False
            room = len(row) - n_filled
            index = self._last_of(room)
            if index < 0:
                index = self._last_of(self._lengths[0][0])
            n_tokens, serial = self._lengths.pop(index)
            n_used = min(n_tokens, room)
            row[n_filled : n_filled + n_used] = self._documents.pop(-serial).tokens[:n_used]
            n_filled += n_used
            self.n_discarded += n_tokens - n_used
        return True

    def _last_of(self, n_tokens: int) -> int:
        """Index of the oldest among the longest documents of up to `n_tokens`; -1 where there is none."""
        return bisect_right(self._lengths, (n_tokens, 0)) - 1

    def position(self) -> tuple[Position, int]:
        """Where the next refill begins."""
        return self._after, 0

    def buffered(self) -> list[Document]:
        """The documents in the buffer, oldest first."""
        return list(self._documents.values())
