"""Rows for training and for validation, packed from documents, with an exact place to resume from.

Row groups are dealt to `n_lanes` lanes, each with its own packer, and the rows of a step to lanes in equal parts:
row g of n_all belongs to lane g * n_lanes // n_all. So what a step reads depends on the data and on n_lanes, not on
how many hosts share it; a host runs the lanes that it reads from.

best_fit can use no more than a row of each document, so no more is kept.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from jaxgpt.data.cursors import FORMAT, Start, check_cursors
from jaxgpt.data.documents import Encoder, Lane, Position
from jaxgpt.data.packing import BestFit, Packing, Stream
from jaxgpt.data.text_data import TextData
from jaxgpt.errors import InputError

_BLOCK_ROWS = 64


# Training


def require_lanes(n_lanes: int, n_all: int) -> None:
    """Raises InputError unless the lanes divide the rows of a step."""
    if n_all % n_lanes:
        fitting = [n for n in range(1, n_all + 1) if n_all % n == 0]
        near = [max(n for n in fitting if n < n_lanes), *[n for n in fitting if n > n_lanes][:1]]
        raise InputError(
            f"data.lanes={n_lanes} does not divide the {n_all} rows of a step (train.batch_tokens / model.seq_len); "
            f"nearest: {', '.join(map(str, near))}"
        )


class TextBatches:
    """The training rows, step by step. One thread at a time may use it."""

    def __init__(
        self,
        data: TextData,
        seq_len: int,
        packing: Packing,
        *,
        n_lanes: int = 1,
        n_threads: int = 4,
        cursors: Any = None,
    ):
        """
        Args:
          seq_len: tokens of context per row; a row has one more.
          n_lanes: independent packers; a host runs those whose rows it reads.
          n_threads: for tokenizing. The rows do not depend on it.
          cursors: of every lane, as `cursors` returned them, untrusted JSON; None starts at the beginning.

        Raises:
          InputError: too few row groups for the lanes, or cursors that are damaged or of another run.
        """
        n_groups = data.train.n_groups
        if not 1 <= n_lanes <= n_groups:
            raise InputError(
                f"data.lanes={n_lanes} is not in [1, {n_groups}], the row groups that train has in {data.directory}; "
                f"set --data.lanes={min(max(n_lanes, 1), n_groups)}, or fetch more files"
            )
        self._data, self._seq_len, self._packing, self._n_lanes = data, seq_len, packing, n_lanes
        self._starts = [Start(Position(0, lane, 0)) for lane in range(n_lanes)]
        if cursors is not None:
            self._starts = check_cursors(cursors, self._cursor_head(), data)
        self._encoder = Encoder(data, n_threads, None if packing == "stream" else seq_len + 1)
        self._packers: dict[int, Stream | BestFit] | None = None
        self._n_rows = 0

    def __enter__(self) -> "TextBatches":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stops tokenizing ahead; no thread is left behind."""
        self._encoder.close()

    def rows(self, n_all: int, lo: int, hi: int) -> np.ndarray:
        """Rows lo..hi of the next step, int32 [hi - lo, seq_len + 1]. Call it once per step, in order.

        The first call decides which lanes are run; later ones must ask for rows of the same lanes.

        Args:
          n_all: rows of this step, over all hosts and microbatches.
          lo, hi: which of them to read, 0 <= lo <= hi <= n_all.

        Raises:
          InputError: the lanes do not divide n_all, or a file or document cannot be read.
        """
        assert 0 <= lo <= hi <= n_all and n_all, (lo, hi, n_all)
        require_lanes(self._n_lanes, n_all)
        n_each = n_all // self._n_lanes
        lanes = range(lo // n_each, -(-hi // n_each)) if lo < hi else range(0)
        if self._packers is None:
            self._packers = {lane: self._make_packer(lane) for lane in lanes}
        assert list(self._packers) == list(lanes), f"lanes {lanes}, but lanes {list(self._packers)} are run"
        rows = np.empty((len(lanes) * n_each, self._seq_len + 1), np.int32)
        for i, packer in enumerate(self._packers.values()):
            for row in rows[i * n_each : (i + 1) * n_each]:
                is_full = packer.fill(row)
                assert is_full  # a lane never ends
        self._n_rows += n_each
        return rows[lo - lanes.start * n_each : hi - lanes.start * n_each]

    def _make_packer(self, lane: int) -> Stream | BestFit:
        start = self._starts[lane]
        chunks = Lane(self._data.train, self._encoder, lane, self._n_lanes, start.position)
        if self._packing == "stream":
            return Stream(chunks, start.position, start.token)
        buffer = self._encoder.fetch(self._data.train, start.places)
        n_buffer = min(BestFit.N_BUFFER, self._data.train.count_rows(lane, self._n_lanes))
        return BestFit(chunks, start.position, buffer, n_buffer)

    @property
    def discarded_fraction(self) -> float:
        """Fraction of tokens discarded since the start or the resume, over the lanes run here."""
        packers = list((self._packers or {}).values())
        n_used = self._n_rows * len(packers) * (self._seq_len + 1)
        n_discarded = sum(packer.n_discarded for packer in packers)
        return n_discarded / (n_used + n_discarded) if n_used else 0.0

    def cursors(self) -> dict[str, dict[str, Any]]:
        """Where the lanes run here stand after the last call of `rows`, as JSON by lane.

        A checkpoint needs those of all hosts, in one dict.
        """
        return {str(lane): self._cursor(lane, packer) for lane, packer in (self._packers or {}).items()}

    def _cursor_head(self) -> dict[str, Any]:
        """What must not change on resume."""
        return {
            "format": FORMAT,
            "data": self._data.digest,
            "packing": self._packing,
            "seq_len": self._seq_len,
            "n_lanes": self._n_lanes,
        }

    def _cursor(self, lane: int, packer: Stream | BestFit) -> dict[str, Any]:
        (epoch, group, row), token = packer.position()
        file, row_group = self._data.train.place_of(group)
        runs = [
            [*self._data.train.place_of(group), [document.row for document in documents]]
            for group, documents in itertools.groupby(packer.buffered(), key=attrgetter("group"))
        ]
        following = {"epoch": epoch, "file": file, "row_group": row_group, "row": row, "token": token}
        return {**self._cursor_head(), "lane": lane, "next": following, "buffer": runs}


# Validation


@dataclass(frozen=True)
class PackedRows:
    """Rows that are read again and again."""

    tokens: np.ndarray
    """[n, seq_len + 1], uint16 or uint32."""

    @property
    def indices(self) -> np.ndarray:
        """Indices of all rows, int64 [n]."""
        return np.arange(len(self.tokens))

    def at(self, indices: Iterable[int]) -> np.ndarray:
        """The rows with these indices, int32 [n, seq_len + 1]."""
        return self.tokens[np.asarray(list(indices), np.int64)].astype(np.int32)


def val_rows(
    data: TextData,
    seq_len: int,
    packing: Packing,
    n_tokens: int,
    *,
    n_threads: int = 4,
) -> PackedRows:
    """The first rows of one pass over the validation file, packed like the training rows but in one lane.

    The pass ends where a row cannot be filled; best_fit then has used up its buffer.

    Args:
      n_tokens: targets to evaluate, cut to whole rows (one at least). 0, or more than there are: the whole pass.

    Raises:
      InputError: not one row can be filled, or a file or document cannot be read.
    """
    n_wanted = max(1, n_tokens // seq_len) if n_tokens else None
    encoder = Encoder(data, n_threads, None if packing == "stream" else seq_len + 1)
    try:
        chunks = Lane(data.val, encoder, n_epochs=1)
        packer = (Stream if packing == "stream" else BestFit)(chunks, chunks.start)
        blocks: list[np.ndarray] = []
        dtype, n_there, is_full = encoder.dtype, 0, True
        while is_full and (n_wanted is None or n_there < n_wanted):
            block = np.empty((min(_BLOCK_ROWS, (n_wanted or n_there + _BLOCK_ROWS) - n_there), seq_len + 1), dtype)
            n_filled = 0
            while is_full and n_filled < len(block):
                is_full = packer.fill(block[n_filled])
                n_filled += is_full
            blocks.append(block[:n_filled])
            n_there += n_filled
    finally:
        encoder.close()
    if not n_there:
        raise InputError(
            f"{data.directory} val ({data.val.files[0].path.name}) has fewer than {seq_len + 1} tokens, "
            f"model.seq_len={seq_len} needs as many; choose a lower model.seq_len, or a larger last file"
        )
    return PackedRows(np.concatenate(blocks))
