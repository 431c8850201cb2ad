"""A directory of text: parquet files of documents, and the tokenizer that reads them while the run trains.

    shard_00000.parquet ... shard_06542.parquet    a column `text`, a document per row
    tokenizer.json

The last file is for validation, the others are for training; which numbers there are does not matter. A document has
a place, (file, row group, row), and the places have an order: files by number, row groups, rows.
Nulls and empty texts are no documents (the original makes each empty one a lone delimiter, from which nothing is
learned).

Tokenizing runs ahead of its reader in threads, in that order however many threads there are. What waits is bounded in
bytes of text, and no document is ever cut before it is tokenized.
"""

import functools
import hashlib
import json
import os
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.data.shards import pick_dtype, sha256_of
from jaxgpt.errors import InputError
from jaxgpt.tokenizer import Tokenizer, tokenizer_from_json

TOKENIZER = "tokenizer.json"
COLUMN = "text"
_SHARD = re.compile(r"shard_(\d+)\.parquet", re.ASCII)
REFILL_ROWS = 128
"""Rows of a row group that a packer takes in together."""
_CHUNK_ROWS = 32
_CHUNK_BYTES = 1 << 20
"""A chunk is what one thread tokenizes in one go: so many rows or bytes of text, one row at least."""
_AHEAD_BYTES = 32 << 20
_OPEN_THREADS = 8
_HEAD_BYTES = 4096
_TOKENIZER_LIMIT_BYTES = 256 << 20


@dataclass(frozen=True)
class TextFile:
    """One parquet file, as its footer describes it."""

    path: Path
    group_rows: tuple[int, ...]
    """Rows of each row group."""
    size_bytes: int
    sha256_of_ends: str
    """Of the first kilobytes, where the first page has its checksum, and of the footer."""


@dataclass(frozen=True)
class TextSplit:
    """The documents of one split. Its row groups that have rows are numbered through, from 0."""

    name: str
    directory: Path
    files: tuple[TextFile, ...]

    @functools.cached_property
    def _groups(self) -> np.ndarray:
        """File, row group and rows of each row group that has rows, int32 [n_groups, 3]; in rising order."""
        groups = [(f, g, n) for f, file in enumerate(self.files) for g, n in enumerate(file.group_rows) if n]
        return np.array(groups, np.int32).reshape(-1, 3)

    @property
    def n_groups(self) -> int:
        return len(self._groups)

    @property
    def n_rows(self) -> int:
        """Documents, nulls and empty ones included."""
        return self.count_rows()

    def count_rows(self, lane: int = 0, n_lanes: int = 1) -> int:
        """Documents in the row groups lane, lane + n_lanes, ..., nulls and empty ones included."""
        return int(self._groups[lane::n_lanes, 2].sum(dtype=np.int64))

    def rows_of(self, group: int) -> int:
        return int(self._groups[group, 2])

    def place_of(self, group: int) -> tuple[int, int]:
        """File index and row group in the file."""
        file, row_group, _ = self._groups[group].tolist()
        return file, row_group

    def find_group(self, file: int, row_group: int) -> int | None:
        """The inverse of `place_of`; None where no such row group has rows."""
        first, last = np.searchsorted(self._groups[:, 0], (file, file + 1))
        group = int(first + np.searchsorted(self._groups[first:last, 1], row_group))
        return group if group < last and self._groups[group, 1] == row_group else None

    def describe(self, group: int, row: int | None = None) -> str:
        """A place in words, for messages."""
        file, row_group = self.place_of(group)
        return f"{self.files[file].path} row group {row_group}" + ("" if row is None else f" row {row}")

    def read_group(self, group: int) -> Any:
        """The texts of a row group, a pyarrow.ChunkedArray of strings, which may be null.

        Raises:
          InputError: the file cannot be read, or is no longer what it was when it was opened.
        """
        import pyarrow  # here, because importing it is slow
        from pyarrow import parquet

        file, row_group = self.place_of(group)
        try:
            with parquet.ParquetFile(self.files[file].path, page_checksum_verification=True) as source:
                column = source.read_row_group(row_group, columns=[COLUMN], use_threads=False).column(0)
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            raise InputError(f"{self.describe(group)} cannot be read ({_first_line(error)}); fetch it again") from error
        if len(column) != self.rows_of(group):
            raise InputError(
                f"{self.describe(group)} has {len(column)} rows, {self.rows_of(group)} when the run opened it; "
                "bring the old file back"
            )
        return column.cast(pyarrow.large_string()) if str(column.type) == "string_view" else column


@dataclass(frozen=True)
class TextData:
    """A directory of text, checked and open."""

    directory: Path
    train: TextSplit
    val: TextSplit
    tokenizer: Tokenizer
    tokenizer_json: dict[str, Any]
    digest: str
    """SHA-256 (hex) of the tokenizer and of each file's name, size and ends; the footer says where all text lies."""

    @property
    def delimiter(self) -> int:
        """The id in front of every document: begin_of_text, else end_of_text."""
        begin, end = self.tokenizer.begin_of_text, self.tokenizer.end_of_text
        delimiter = end if begin is None else begin
        assert delimiter is not None  # open_text refuses a tokenizer without
        return delimiter


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# Opening


def open_text(directory: str | Path, tokenizer_path: str | Path = "") -> TextData:
    """Opens a directory of text and checks footers and tokenizer; reads no text.

    Args:
      tokenizer_path: the tokenizer's file; empty: tokenizer.json in the directory.

    Raises:
      InputError: what is wrong, in which file, and a way out.
    """
    directory = Path(directory)
    train, val = open_splits(directory)
    path = Path(tokenizer_path) if str(tokenizer_path) else directory / TOKENIZER
    tokenizer, tokenizer_json = _read_tokenizer(path, directory)
    files = [(file.path.name, file.size_bytes, file.sha256_of_ends) for file in train.files + val.files]
    content = json.dumps({"tokenizer": tokenizer.digest(), "files": files}, separators=(",", ":"))
    digest = hashlib.sha256(content.encode("ascii")).hexdigest()
    return TextData(directory, train, val, tokenizer, tokenizer_json, digest)


def open_splits(directory: Path) -> tuple[TextSplit, TextSplit]:
    """The documents for training and for validation, which need no tokenizer. Raises as `open_text` does."""
    out = "" if directory == Path("data/climbmix") else f" --out {directory}"
    prepare = f"`python -m jaxgpt.prepare climbmix --shards 8{out}`"
    try:
        if not directory.is_dir():
            own = f"`python -m jaxgpt.prepare NAME --input FILES --format text --out {directory}`"
            raise InputError(f"data.dir={directory} does not exist; {prepare} fetches text, {own} takes yours")
        names = [path.name for path in directory.iterdir() if path.is_file()]
    except OSError as error:
        message = f"data.dir={directory} cannot be read: {error.strerror}; check its permissions"
        raise InputError(message) from error
    numbered = sorted((int(match[1]), match[0]) for match in map(_SHARD.fullmatch, names) if match)
    if len(numbered) < 2:
        there = f"only {numbered[0][1]}" if numbered else "no shard_00000.parquet and so on"
        raise InputError(
            f"data.dir={directory} has {there}; the last file is for validation, so it takes two: "
            f"{prepare} fetches more"
        )
    with ThreadPoolExecutor(_OPEN_THREADS) as pool:
        files = tuple(pool.map(_inspect, (directory / name for _, name in numbered)))
    train, val = TextSplit("train", directory, files[:-1]), TextSplit("val", directory, files[-1:])
    for split in (train, val):
        if not split.n_groups:
            raise InputError(
                f"data.dir={directory}: {', '.join(file.path.name for file in split.files[:4])} "
                f"({split.name}) has no rows; fetch it again, or remove it so that another file takes its place"
            )
    _refuse_copy(train, val.files[0])
    return train, val


def _inspect(path: Path) -> TextFile:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as source:
            schema, metadata = source.schema_arrow, source.metadata
            group_rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(-8, os.SEEK_END)
            file.seek(-8 - int.from_bytes(file.read(4), "little"), os.SEEK_END)
            sha256_of_ends = hashlib.sha256(head + file.read()).hexdigest()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        message = f"{path} is no parquet file, or was cut short ({_first_line(error)}); fetch it again"
        raise InputError(message) from error
    kinds = [str(field.type) for field in schema if field.name == COLUMN]
    if len(kinds) != 1 or kinds[0] not in ("string", "large_string", "string_view"):
        found = f"column {COLUMN!r} is {' and '.join(kinds)}, not string" if kinds else f"no column {COLUMN!r}"
        raise InputError(
            f"{path}: {found} (it has: {', '.join(schema.names[:8])}); "
            "rename the column that holds the text, or leave the file out"
        )
    return TextFile(path, group_rows, size, sha256_of_ends)


def _refuse_copy(train: TextSplit, val: TextFile) -> None:
    for file in train.files:
        is_alike = (file.size_bytes, file.sha256_of_ends) == (val.size_bytes, val.sha256_of_ends)
        if is_alike and sha256_of(file.path) == sha256_of(val.path):
            raise InputError(
                f"{train.directory}: {val.path.name}, which is for validation, has the same content as "
                f"{file.path.name}; a val loss on it means nothing: remove one of them"
            )


def _read_tokenizer(path: Path, directory: Path) -> tuple[Tokenizer, dict[str, Any]]:
    train_it = f"`python -m jaxgpt.train_tokenizer --data {directory}`"
    try:
        with open(path, "rb") as file:
            content = file.read(_TOKENIZER_LIMIT_BYTES + 1)
        if len(content) > _TOKENIZER_LIMIT_BYTES:
            raise InputError(f"it has more than {_TOKENIZER_LIMIT_BYTES} bytes")
        value = json.loads(content.decode("utf-8"))
        tokenizer = tokenizer_from_json(value)
    except FileNotFoundError:
        raise InputError(f"the tokenizer {path} is missing; {train_it} makes one") from None
    except OSError as error:
        raise InputError(f"the tokenizer {path} cannot be read: {error.strerror}; check its permissions") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the tokenizer {path} is no JSON ({_first_line(error)}); {train_it} makes one") from error
    if tokenizer.begin_of_text is None and tokenizer.end_of_text is None:
        raise InputError(
            f"the {tokenizer.name} tokenizer in {path} has no token that parts documents; "
            f"take one that has, such as {train_it} makes"
        )
    return tokenizer, value


# Reading


class Position(NamedTuple):
    """Where reading goes on."""

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
    """Documents next to each other, and where reading goes on behind them."""

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
        """Drops what waits, and returns when no thread is left."""
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
          InputError: as `encode` and `read_group` do; or no document is there.
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
                raise InputError(f"{split.describe(group, row)} holds no text; the checkpoint is of other data")
        return [found[place] for place in places]


def _not_utf8(split: TextSplit, group: int, rows: Sequence[int], column: Any) -> InputError:
    for row, text in zip(rows, column, strict=True):
        try:
            text.as_py()
        except UnicodeDecodeError as error:
            return InputError(
                f"{split.describe(group, row)} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
                f"{error.start} ({error.reason}); fetch the file again, or mend the text"
            )
    raise AssertionError(column)


class Lane:
    """The row groups lane, lane + n_lanes, ... of a split, again and again, as chunks of documents, tokenized ahead.

    An iterator. What fails while it works ahead is raised when its turn comes, and then each time.
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
