"""Documents to rows of seq_len + 1 tokens, in two ways, with an exact place to go on from.

stream (nanochat 2025): documents, each behind its delimiter, are one endless run of tokens; row i is the seq_len + 1
tokens from i * seq_len on, so neighbours share one. (The original takes B * T + 1 tokens for a batch and begins the
next one behind them: its rows depend on the batch size.)

best_fit (nanochat 2026): every row begins with a document. Of a buffer of 1000 documents and more the longest that
still fits goes in, again and again; when none fits, the shortest is cut to what is left, and its rest is lost. Rows
are full, and no token is read without the beginning of its document. (Where an epoch has fewer than 1000 documents
the buffer is an epoch; the original reads the text over and over until there are 1000, before the first row.)

Row groups are dealt to `n_lanes` lanes, each with a packer of its own, and the rows of a step to lanes in equal parts:
row g of n_all belongs to lane g * n_lanes // n_all. So what a step reads depends on the data and on n_lanes, not on
how many hosts share it; a host runs the lanes that it reads from.

A lane's cursor is JSON: where reading goes on, and the places of the documents in the buffer, which are tokenized
again when the run goes on. Of a document no more than a row can be used, so no more is kept.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxgpt.data.documents import REFILL_ROWS, Chunk, Document, Encoder, Lane, Position, TextData
from jaxgpt.errors import InputError

Packing = Literal["stream", "best_fit"]
BUFFER_DOCUMENTS = 1000
FORMAT = 1
_BLOCK_ROWS = 64


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
                    f"data cursor: token {self._at} is behind the end of its document; the checkpoint is damaged, "
                    "resume from another"
                )
        arrays = [document.tokens for document in self._documents]
        self._tokens = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        self._ends = np.cumsum([document.n_tokens for document in self._documents])
        return True

    def position(self) -> tuple[Position, int]:
        """Place of the next row's first token: its document, and how many tokens stand before it there."""
        if not self._documents:
            return self._start, self._at
        index = int(np.searchsorted(self._ends, self._at, side="right"))
        document = self._documents[index]
        begin = int(self._ends[index]) - document.n_tokens
        return Position(self._epoch, document.group, document.row), self._at - begin

    def buffered(self) -> list[Document]:
        """A stream holds nothing back: `position` says it all."""
        return []


class BestFit:
    """Packs the longest document that fits.

    `buffer`: what waited at the cursor, oldest first. `n_buffer`: with fewer documents waiting, more are taken in.
    """

    def __init__(
        self, chunks: Iterator[Chunk], start: Position, buffer: Iterable[Document] = (), n_buffer: int | None = None
    ):
        self._chunks, self._after = chunks, start
        self._n_buffer = BUFFER_DOCUMENTS if n_buffer is None else n_buffer
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
        """What waits, oldest first."""
        return list(self._documents.values())


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
        vocab_size: int | None = None,
        n_threads: int = 4,
        cursors: Any = None,
    ):
        """
        Args:
          seq_len: tokens of context per row; a row has one more.
          n_lanes: independent packers; a host runs those whose rows it reads.
          vocab_size: rows of the embedding, which the tokenizer's ids must not exceed; None accepts all.
          n_threads: for tokenizing. The rows do not depend on it.
          cursors: of every lane, as `cursors` gave them, JSON that nobody vouches for; None begins at the beginning.

        Raises:
          InputError: too few row groups for the lanes, too small a vocabulary, or cursors that are damaged or of
            another run.
        """
        n_groups = data.train.n_groups
        if not 1 <= n_lanes <= n_groups:
            raise InputError(
                f"data.lanes={n_lanes} is not in [1, {n_groups}], the row groups that train has in {data.directory}; "
                f"set --data.lanes={min(max(n_lanes, 1), n_groups)}, or fetch more files"
            )
        _require_vocab(data, vocab_size)
        self._data, self._seq_len, self._packing, self._n_lanes = data, seq_len, packing, n_lanes
        self._starts = [_Start(Position(0, lane, 0)) for lane in range(n_lanes)]
        if cursors is not None:
            self._starts = _check_cursors(cursors, self._cursor_head(), data)
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
        n_buffer = min(BUFFER_DOCUMENTS, self._data.train.count_rows(lane, self._n_lanes))
        return BestFit(chunks, start.position, buffer, n_buffer)

    @property
    def discarded_fraction(self) -> float:
        """Of the tokens that were taken since the start or the resume, the part cut off; of the lanes run here."""
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
        """What must not change."""
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
        runs: list[list[Any]] = []
        for document in packer.buffered():
            place = list(self._data.train.place_of(document.group))
            if not runs or runs[-1][:2] != place:
                runs.append([*place, []])
            runs[-1][2].append(document.row)
        following = {"epoch": epoch, "file": file, "row_group": row_group, "row": row, "token": token}
        return {**self._cursor_head(), "lane": lane, "next": following, "buffer": runs}


# Cursors


@dataclass(frozen=True)
class _Start:
    """A cursor that has been checked."""

    position: Position
    token: int = 0
    places: tuple[tuple[int, int], ...] = ()
    """(group, row) of each document in the buffer."""


_SETTINGS = {"packing": "data.packing", "seq_len": "model.seq_len", "n_lanes": "data.lanes"}


def _check_cursors(cursors: Any, head: dict[str, Any], data: TextData) -> list[_Start]:
    if not isinstance(cursors, dict) or not cursors or not all(isinstance(c, dict) for c in cursors.values()):
        raise _damaged("it is no JSON object of cursors")
    for cursor in cursors.values():
        if type(cursor.get("format")) is not int or cursor["format"] != FORMAT:
            raise InputError(
                f"data cursor: format={_show(cursor.get('format'))}, this code reads {FORMAT}; "
                "resume with the version that wrote the checkpoint"
            )
        for name, setting in _SETTINGS.items():
            if type(cursor.get(name)) is not type(head[name]):
                raise _damaged(f"{name}={_show(cursor.get(name))}")
            if cursor[name] != head[name]:
                raise InputError(
                    f"{setting}={head[name]}, the checkpoint was written with {_show(cursor[name])}; "
                    f"set --{setting}={_show(cursor[name])}, or start a new run"
                )
        if cursor.get("data") != head["data"]:
            raise InputError(
                f"the text or the tokenizer in data.dir={data.directory} changed since the checkpoint was written; "
                "bring the old files back, or start a new run with train.init_from"
            )
    lanes = [str(lane) for lane in range(head["n_lanes"])]
    if set(cursors) != set(lanes):
        wrong = _show(sorted(set(map(str, cursors)) ^ set(lanes)))
        raise _damaged(f"{head['n_lanes']} lanes have one cursor each; missing, or too many: {wrong}")
    return [_check_cursor(cursors[str(lane)], lane, head, data) for lane in range(head["n_lanes"])]


def _check_cursor(cursor: dict[str, Any], lane: int, head: dict[str, Any], data: TextData) -> _Start:
    def bad(what: str) -> InputError:
        return _damaged(f"lane {lane}: {what}")

    def count(value: Any, name: str, limit: int = 1 << 53) -> int:
        if type(value) is not int or not 0 <= value < limit:
            raise bad(f"{name}={_show(value)} is not in [0, {limit})")
        return value

    def find(file: Any, row_group: Any) -> int:
        group = data.train.find_group(count(file, "file"), count(row_group, "row_group"))
        if group is None or group % head["n_lanes"] != lane:
            raise bad(f"file {file} row group {row_group} is not one of the lane's")
        return group

    if set(cursor) != {*head, "lane", "next", "buffer"}:
        raise bad(f"its fields are {_show(sorted(map(str, cursor)))}")
    if count(cursor["lane"], "lane") != lane:
        raise bad(f"it is of lane {cursor['lane']}")
    following, buffer = cursor["next"], cursor["buffer"]
    if not isinstance(following, dict) or set(following) != {"epoch", "file", "row_group", "row", "token"}:
        raise bad(f"next={_show(following)}")
    group = find(following["file"], following["row_group"])
    row = count(following["row"], "row", data.train.rows_of(group))
    position = Position(count(following["epoch"], "epoch"), group, row)
    token = count(following["token"], "token")
    is_best_fit = head["packing"] == "best_fit"
    if is_best_fit and (row % REFILL_ROWS or token):
        raise bad(f"row {row} token {token} does not begin a refill of {REFILL_ROWS} rows")
    n_most = BUFFER_DOCUMENTS + REFILL_ROWS - 1 if is_best_fit else 0
    if not isinstance(buffer, list) or len(buffer) > n_most:
        raise bad(f"buffer={_show(buffer)} is no list of up to {n_most}")
    places: list[tuple[int, int]] = []
    for run in buffer:
        if not isinstance(run, list) or len(run) != 3 or not isinstance(run[2], list) or len(run[2]) > n_most:
            raise bad(f"buffer holds {_show(run)}, not [file, row group, [rows]]")
        group = find(run[0], run[1])
        places += [(group, count(row, "row", data.train.rows_of(group))) for row in run[2]]
    if len(places) > n_most:
        raise bad(f"buffer has {len(places)} documents, {n_most} at most fit")
    return _Start(position, token, tuple(places))


def _damaged(what: str) -> InputError:
    return InputError(f"data cursor: {what}; the checkpoint is damaged, resume from another")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _require_vocab(data: TextData, vocab_size: int | None) -> None:
    if vocab_size is not None and data.tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"model.vocab_size={vocab_size} is below the {data.tokenizer.vocab_size} ids of {data.directory}'s "
            f"tokenizer; set --model.vocab_size={data.tokenizer.vocab_size} or more"
        )


# Validation


@dataclass(frozen=True)
class PackedRows:
    """Rows that are read again and again."""

    tokens: np.ndarray
    """[n, seq_len + 1], uint16 or uint32."""

    @property
    def indices(self) -> np.ndarray:
        """Of all rows, int64 [n]."""
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
    vocab_size: int | None = None,
    n_threads: int = 4,
) -> PackedRows:
    """The first rows of one pass over the validation file, packed like the training rows but in one lane.

    The pass ends where a row cannot be filled; best_fit then has used up its buffer.

    Args:
      n_tokens: targets to evaluate, cut to whole rows (one at least). 0, or more than there are: the whole pass.

    Raises:
      InputError: not one row can be filled, too small a vocabulary, or a file or document cannot be read.
    """
    _require_vocab(data, vocab_size)
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
