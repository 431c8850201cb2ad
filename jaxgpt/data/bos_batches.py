"""Rows that begin with a document, as modded-nanogpt's records 46 and 62 read their shards, with a cursor.

A shard's documents each begin with a BOS token. A row of T + 1 tokens takes documents in order, each cut to
`max_document_tokens`, and the last one also to the room that is left. What is cut off is not read later: the next row
begins with the next document. A row that the shard cannot fill is dropped, and the next shard starts at its first
BOS; text before that is never used.

The rows are one stream: row k of a step is its k-th row, however many devices, hosts and microbatches share them.
That is what the original reads on one GPU. On W GPUs it drops up to W - 1 full rows at the end of each shard.

Rows may change their length from one call to the next; the position is kept. The original searches only the first
4,000,000 tokens of its first shard for the first five batches, which changes nothing as long as these hold five
batches; here a shard is always searched to its end. Where its files run out, its loader thread dies and the run hangs;
here the reader counts the steps before the run starts.

Source: modded-nanogpt, `distributed_data_generator` with `align_to_bos=True`.
"""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.data.cursor_checks import damaged, require_format
from jaxgpt.data.shards import Split, raise_bad_id
from jaxgpt.errors import InputError, require

FORMAT = 1
_BLOCK_TOKENS = 1 << 22


class Place(NamedTuple):
    """Where the next row begins."""

    epoch: int = 0
    shard: int = 0
    """Index of the file in the split."""
    document: int = 0
    """Index among the file's BOS tokens."""


class EndOfData(InputError):
    """The shards have been read as often as data.epochs says."""


class BosBatches:
    """One stream of rows. One thread at a time may use it."""

    def __init__(
        self,
        split: Split,
        bos_id: int,
        max_document_tokens: int,
        *,
        n_epochs: int = 1,
        id_limit: int | None = None,
        cursors: Any = None,
    ):
        """
        Args:
          split: where the tokens are.
          bos_id: the id that begins a document.
          max_document_tokens: a document is cut to so many tokens, its BOS included.
          n_epochs: how often the shards are read; 0: without end.
          id_limit: ids at or above it are rejected; None accepts all.
          cursors: as `cursors` returned them, untrusted JSON; None starts at the beginning.

        Raises:
          InputError: cursors that are damaged, or of a run with other settings.
        """
        assert max_document_tokens >= 1 and n_epochs >= 0, (max_document_tokens, n_epochs)
        self.split, self.bos_id, self.max_document_tokens = split, bos_id, max_document_tokens
        self._n_epochs, self._id_limit = n_epochs, id_limit or 1 << 31
        self._starts_of: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self.n_used = self.n_cut = self.n_headless = 0
        """Tokens of rows; after a document's cut, or in a dropped row; before the first BOS of a shard."""
        self.place = Place() if cursors is None else self._check(cursors)

    def spans(self, seq_len: int) -> list[tuple[int, int]]:
        """Takes the next row: [start, end) of each of its documents in the split; seq_len + 1 tokens in all.

        Raises:
          EndOfData: there is none.
          InputError: no shard can fill a row, or a file cannot be read.
        """
        for _ in range(len(self.split.files) + 1):  # the shard that it is in comes first and, from its start, last
            epoch, shard, document = self.place
            if self._n_epochs and epoch >= self._n_epochs:
                break
            starts = self._starts(shard)
            if document == 0:
                self.n_headless += int(starts[0]) - self._first(shard)
            row, after = self._fill(starts, document, seq_len)
            if row:
                self.place = Place(epoch, shard, after)
                self.n_used += seq_len + 1
                self.n_cut += int(starts[after] - starts[document]) - seq_len - 1
                return row
            self.n_cut += int(starts[-1] - starts[document])
            is_last = shard + 1 == len(self.split.files)
            self.place = Place(epoch + is_last, 0 if is_last else shard + 1, 0)
        else:
            raise InputError(
                f"{self.split.directory} {self.split.name}: no shard has a row of {seq_len + 1} tokens in documents "
                f"that begin with data.bos_id={self.bos_id}; lower model.seq_len, or prepare with --format modded"
            )
        raise EndOfData(
            f"data.epochs={self._n_epochs}: {self.split.directory} {self.split.name} has no further row of "
            f"{seq_len + 1} tokens; add shards, or set --data.epochs=0 to read them again and again"
        )

    def rows(self, n_rows: int, seq_len: int, wanted: Collection[int]) -> np.ndarray:
        """Takes the next `n_rows` rows and reads those of these indices, int32 [len(wanted), seq_len + 1].

        Raises:
          EndOfData, InputError: as `spans`; or an id is outside the vocabulary.
        """
        taken = [self.spans(seq_len) for _ in range(n_rows)]
        read = [self._read(taken[index]) for index in wanted]
        return np.stack(read) if read else np.empty((0, seq_len + 1), np.int32)

    def count_steps(self, steps: Iterable[tuple[int, int]]) -> int:
        """How many of these steps (n_rows, seq_len) can be taken, from here on. Takes them."""
        n_steps = 0
        for n_rows, seq_len in steps:
            try:
                for _ in range(n_rows):
                    self.spans(seq_len)
            except EndOfData:
                break
            n_steps += 1
        return n_steps

    def cursors(self) -> dict[str, dict[str, Any]]:
        """Where the next row begins, as JSON. The same in every process."""
        return {"0": {"format": FORMAT, **self._settings(), **self.place._asdict()}}

    def summary(self) -> str:
        """What was not used since the start or the resume, in words."""
        n_all = self.n_used + self.n_cut + self.n_headless
        if n_all == self.n_used:
            return ""
        words = f"bos_aligned rows left out {self.n_cut / n_all:.1%} of tokens, the ends of long documents and of rows"
        return words + (f", and {self.n_headless:,} before the first BOS of shards" if self.n_headless else "")

    def _settings(self) -> dict[str, int]:
        return {"bos_id": self.bos_id, "max_document_tokens": self.max_document_tokens}

    def _fill(self, starts: np.ndarray, document: int, seq_len: int) -> tuple[list[tuple[int, int]], int]:
        """The next row, and the document after it; no row where the shard ends before it is full.

        Args:
          starts: of the shard's documents, and where the last one ends, int64 [n + 1].
        """
        row, room = [], seq_len + 1
        while room:
            if document + 1 >= len(starts):
                return [], document
            start, end = int(starts[document]), int(starts[document + 1])
            n_tokens = min(end - start, self.max_document_tokens, room)
            row.append((start, start + n_tokens))
            room, document = room - n_tokens, document + 1
        return row, document

    def _first(self, shard: int) -> int:
        return self.split.ends[shard] - self.split.files[shard].n_tokens

    def _starts(self, shard: int) -> np.ndarray:
        """Positions of a shard's BOS tokens in the split, and of its end, int64 [n + 1]."""
        if self._starts_of[0] != shard:
            first, end = self._first(shard), self.split.ends[shard]
            found = [
                at + np.flatnonzero(self.split.read(at, min(_BLOCK_TOKENS, end - at)) == self.bos_id)
                for at in range(first, end, _BLOCK_TOKENS)
            ]
            self._starts_of = shard, np.concatenate([*found, [end]]).astype(np.int64)
        return self._starts_of[1]

    def _read(self, spans: list[tuple[int, int]]) -> np.ndarray:
        row = np.concatenate([self.split.read(start, end - start) for start, end in spans])
        if int(row.max()) >= self._id_limit:
            positions = np.concatenate([np.arange(start, end) for start, end in spans])
            raise_bad_id(self.split, int(positions[np.argmax(row >= self._id_limit)]), self._id_limit)
        return row.astype(np.int32)

    def _check(self, cursors: Any) -> Place:
        cursor = cursors.get("0") if isinstance(cursors, dict) and set(cursors) == {"0"} else None
        if not isinstance(cursor, dict):
            raise damaged("it is not the one cursor of bos_aligned rows")
        require_format(cursor, FORMAT)
        numbers = [*self._settings(), *Place._fields]
        if set(cursor) != {"format", *numbers} or any(type(cursor[name]) is not int for name in numbers):
            raise damaged(f"its fields are {str(sorted(map(str, cursor)))[:80]}")
        for name, value in self._settings().items():
            require(
                cursor[name] == value,
                f"data.{name}={value}, the checkpoint was saved with data.{name}={cursor[name]}; "
                f"pass --data.{name}={cursor[name]} to resume",
            )
        place = Place(*(cursor[name] for name in Place._fields))
        is_shard = place.epoch >= 0 and 0 <= place.shard < len(self.split.files)
        if not is_shard or not 0 <= place.document < len(self._starts(place.shard)):
            raise damaged(f"epoch {place.epoch} shard {place.shard} document {place.document} is not in the data")
        return place
