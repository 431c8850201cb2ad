"""A directory of text: parquet files of documents, and the tokenizer that reads them while the run trains.

    shard_00000.parquet ... shard_06542.parquet    a column `text`, a document per row
    tokenizer.json

The last file is for validation, the others are for training; gaps in the numbers do not matter. A document has
a place, (file, row group, row), and the places have an order: files by number, row groups, rows.
"""

import functools
import hashlib
import json
import os
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.data.digests import hash_files, require_digest, sha256_of
from jaxgpt.data.shards import CORPUS_NAMES
from jaxgpt.data.text_manifest import TEXT_MANIFEST, read_text_manifest
from jaxgpt.data.tokenizer import Tokenizer, tokenizer_from_json
from jaxgpt.errors import InputError
from jaxgpt.files import open_regular, read_bounded

TEXT_CORPUS_NAMES = ("climbmix", "fineweb-edu")
"""Corpora that `jaxgpt prepare` fetches as text; listed here for messages, defined in `corpora`."""
TOKENIZER = "tokenizer.json"
COLUMN = "text"
_SHARD = re.compile(r"shard_(\d+)\.parquet", re.ASCII)
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
    """SHA-256 of the first kilobytes, where the first page has its checksum, and of the footer."""


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
                "restore the old file"
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
      InputError: what is wrong, in which file, and the fix.
    """
    directory = Path(directory)
    train, val = open_splits(directory)
    path = Path(tokenizer_path) if str(tokenizer_path) else directory / TOKENIZER
    tokenizer, tokenizer_json = read_tokenizer(path, directory)
    files = [(file.path.name, file.size_bytes, file.sha256_of_ends) for file in train.files + val.files]
    content = json.dumps({"tokenizer": tokenizer.digest(), "files": files}, separators=(",", ":"))
    digest = hashlib.sha256(content.encode("ascii")).hexdigest()
    return TextData(directory, train, val, tokenizer, tokenizer_json, digest)


def open_splits(directory: Path) -> tuple[TextSplit, TextSplit]:
    """The documents for training and for validation, which need no tokenizer. Raises as `open_text` does."""
    prepare = _prepare_command(directory)
    try:
        if not directory.is_dir():
            own = f"`jaxgpt prepare NAME --input FILES --format text --out {shlex.quote(str(directory))}`"
            raise InputError(f"data.dir={directory} does not exist; {prepare} fetches text, {own} uses yours")
        names = [path.name for path in directory.iterdir() if path.is_file()]
    except OSError as error:
        message = f"data.dir={directory} cannot be read: {error.strerror}; check its permissions"
        raise InputError(message) from error
    numbered = sorted((int(match[1]), match[0]) for match in map(_SHARD.fullmatch, names) if match)
    if len(numbered) < 2:
        there = f"only {numbered[0][1]}" if numbered else "no shard_00000.parquet and so on"
        raise InputError(
            f"data.dir={directory} has {there}; the last file is for validation, so it needs two; {prepare} gets more"
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


def verify_text(train: TextSplit, val: TextSplit, *, again: bool = False) -> dict[str, str]:
    """Checks the SHA-256 of the files that text.json names.

    Args:
      again: reads all of them; else files that did not change since they were read last are not read again.

    Returns:
      name -> SHA-256 of each file, also of those that text.json does not name.

    Raises:
      InputError: the first file that is missing or differs, or cannot be read; or text.json is damaged.
    """
    has_manifest = (train.directory / TEXT_MANIFEST).exists()
    entries = read_text_manifest(train.directory)["files"] if has_manifest else []
    missing = [entry["name"] for entry in entries if not (train.directory / entry["name"]).is_file()]
    if missing:  # without it another file would be the one for validation, or other rows would be read
        raise InputError(
            f"shard {train.directory / missing[0]} is missing, and {TEXT_MANIFEST} names it; restore it, or prepare "
            "the text again"
        )
    wanted = {entry["name"]: entry["sha256"] for entry in entries if entry.get("sha256")}
    found = hash_files([file.path for file in train.files + val.files], again=again)
    for path, digest in found.items():
        require_digest(path, digest, wanted.get(path.name, digest), TEXT_MANIFEST)
    return {path.name: digest for path, digest in found.items()}


def _prepare_command(directory: Path) -> str:
    name = directory.name.removesuffix("_text")
    if name in CORPUS_NAMES:
        default, what = f"{name}_text", f"{name} --format text"
    else:
        default = name if name in TEXT_CORPUS_NAMES else "climbmix"
        what = f"{default} --shards 8"
    out = "" if directory == Path("data", default) else f" --out {shlex.quote(str(directory))}"
    return f"`jaxgpt prepare {what}{out}`"


def _inspect(path: Path) -> TextFile:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as source:
            schema, metadata = source.schema_arrow, source.metadata
            group_rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(-8, os.SEEK_END)
            file.seek(-8 - int.from_bytes(file.read(4), "little"), os.SEEK_END)
            sha256_of_ends = hashlib.sha256(head + file.read()).hexdigest()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        message = f"{path} is not a parquet file, or was cut short ({_first_line(error)}); fetch it again"
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


def read_tokenizer(path: Path, directory: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer in a JSON file, and that JSON.

    Args:
      directory: the text to train one on, for messages.

    Raises:
      InputError: the file is missing or damaged, or its tokenizer has no token that separates documents.
    """
    train_it = f"`jaxgpt train_tokenizer --data {shlex.quote(str(directory))}`"
    try:
        value = json.loads(read_bounded(path, _TOKENIZER_LIMIT_BYTES).decode("utf-8"))
        tokenizer = tokenizer_from_json(value)
    except FileNotFoundError:
        raise InputError(f"the tokenizer {path} is missing; {train_it} creates one") from None
    except OSError as error:
        raise InputError(f"the tokenizer {path} cannot be read: {error.strerror}; check its permissions") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the tokenizer {path} is not JSON ({_first_line(error)}); {train_it} creates one") from error
    if tokenizer.begin_of_text is None and tokenizer.end_of_text is None:
        raise InputError(
            f"the {tokenizer.name} tokenizer in {path} has no token that separates documents; "
            f"use one that has, such as {train_it} creates"
        )
    return tokenizer, value
