"""A directory of text as `data.documents` reads it: written from any source, or fetched where it is published.

    shard_00000.parquet ... shard_00004.parquet    a column `text`, a document per row, zstd
    text.json                                      what was asked for, and what the files are

The last file in the order of names is for validation, so it is the first to be put in place: a directory whose work
was interrupted has fewer documents to train on, and never a training file where the validation file should be.

A text without documents (one book) is cut into pages, each a document: of a document that is longer than its row a
packer uses the front and discards the rest. Documents of more than `source.PIECE_CHARS` are cut at a line end.
"""

import contextlib
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from jaxgpt.data import hub
from jaxgpt.data.digests import hash_files, sha256_of
from jaxgpt.data.hub_repository import Repository
from jaxgpt.data.text_data import COLUMN, TOKENIZER, open_splits
from jaxgpt.data.text_manifest import TEXT_SHARD, read_text_manifest, write_text_manifest
from jaxgpt.errors import InputError
from jaxgpt.files import flush_to_disk
from jaxgpt.prepare.corpora import SHARD_LIMIT_BYTES, TextCorpus
from jaxgpt.prepare.source import Source, is_val

PAGE_CHARS = 2048
"""One text is cut into documents of at most this length."""
_GROUP_CHARS = 64 << 20
"""A row group ends here too: what the writer and a reader hold at a time."""
_SCHEMA = pyarrow.schema([(COLUMN, pyarrow.string())])


def shard_name(number: int) -> str:
    return f"shard_{number:05d}.parquet"


# Writing


def write_text_shards(
    source: Source,
    directory: Path,
    *,
    val_fraction: float,
    shard_chars: int,
    group_documents: int,
    progress: Callable[[str], Callable[[float], None]],
) -> dict[str, Any]:
    """Writes the shards of both splits, in the order of the source.

    One text is split after the first 1 - val_fraction of its characters; documents go where `is_val` says.

    Args:
      shard_chars: a training file ends with the document that reaches so many characters. There is one file for
        validation, of any size.
      group_documents: rows of a row group; fewer, if they are long.
      progress: given the name of a pass over the source, returns a function that is called with each n_read of it.

    Returns:
      The manifest's field on files, in the order of names.

    Raises:
      InputError: the source cannot be read, or is too small for two splits.
    """
    documents = cut_pages(source, val_fraction, progress) if source.is_one_text else _assign(source, val_fraction)
    writers = {
        "train": _Writer(directory, "train", shard_chars, group_documents),
        "val": _Writer(directory, "val", None, group_documents),
    }
    advance = progress("writing text")
    try:
        for split, text, n_read in documents:
            if text:
                writers[split].write(text)
            advance(n_read)
        written = {split: writer.close() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abandon()
    for split, files in written.items():
        if not files:
            advice = "give more text" if source.is_one_text else "give two documents or more, or one text file"
            raise InputError(f"nothing is left for {split} (val_fraction={val_fraction}); {advice}")
    entries = []
    for number, (path, entry) in enumerate(written["train"] + written["val"]):
        os.replace(path, directory / shard_name(number))
        entries.append({"name": shard_name(number), **entry})
    return {"files": entries}


def _assign(source: Source, val_fraction: float) -> Iterator[tuple[str, str, float]]:
    """Split, text, n_read of each document."""
    index = 0
    for piece in source.pieces():
        yield "val" if is_val(index, val_fraction) else "train", piece.text, piece.n_read
        index += piece.ends_document


def cut_pages(
    source: Source, val_fraction: float, progress: Callable[[str], Callable[[float], None]]
) -> Iterator[tuple[str, str, float]]:
    """Split, text, n_read of each page of one text. All pages together are the text."""
    n_chars, advance = 0, progress("surveying")
    for piece in source.pieces():
        n_chars += len(piece.text)
        advance(piece.n_read)
    n_left = int(n_chars * (1 - val_fraction))
    for piece in source.pieces():
        start = 0
        while start < len(piece.text):
            split = "train" if n_left else "val"
            end = min(start + PAGE_CHARS, len(piece.text))
            if split == "train" and end - start >= n_left:
                end = start + n_left
            elif end < len(piece.text):
                end = _page_end(piece.text, start, end)
            n_left -= end - start if n_left else 0
            yield split, piece.text[start:end], 0
            start = end
        yield "train", "", piece.n_read


def _page_end(text: str, start: int, end: int) -> int:
    """Where a page ends that may reach to `end`: after an empty line, else a line, else a blank, if half full."""
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, start + (end - start) // 2, end)
        if found >= 0:
            return found + len(mark)
    return end


class _Writer:
    """Documents to the files of one split."""

    def __init__(self, directory: Path, split: str, shard_chars: int | None, group_documents: int):
        self._directory, self._split = directory, split
        self._shard_chars, self._group_documents = shard_chars, group_documents
        self._closed: list[tuple[Path, dict[str, Any]]] = []
        self._file: BinaryIO | None = None
        self._parquet: Any = None
        self._rows: list[str] = []
        self._n_waiting_chars = self._n_documents = self._n_chars = 0

    def write(self, text: str) -> None:
        if self._file is None:
            self._file = open(self._directory / f"{self._split}_{len(self._closed)}.tmp", "wb")  # noqa: SIM115
            self._parquet = pyarrow.parquet.ParquetWriter(
                self._file,
                _SCHEMA,
                compression="zstd",
                use_dictionary=False,  # no two documents are alike
                write_statistics=False,  # they would hold the first and the last document once more
                write_page_checksum=True,
            )
            self._n_documents = self._n_chars = 0
        self._rows.append(text)
        self._n_waiting_chars += len(text)
        self._n_documents += 1
        self._n_chars += len(text)
        if len(self._rows) >= self._group_documents or self._n_waiting_chars >= _GROUP_CHARS:
            self._end_group()
        if self._shard_chars is not None and self._n_chars >= self._shard_chars:
            self._end_file()

    def close(self) -> list[tuple[Path, dict[str, Any]]]:
        """The files, and what the manifest says of each."""
        if self._file is not None:
            self._end_file()
        return self._closed

    def abandon(self) -> None:
        """Lets go of a file that is not complete, if there is one."""
        if self._file is not None:
            with contextlib.suppress(pyarrow.ArrowException, OSError):
                self._parquet.close()
            self._file.close()
            self._file = None

    def _end_group(self) -> None:
        if self._rows:
            self._parquet.write_table(pyarrow.table([self._rows], schema=_SCHEMA))
        self._rows, self._n_waiting_chars = [], 0

    def _end_file(self) -> None:
        self._end_group()
        self._parquet.close()
        file, self._file = self._file, None
        assert file is not None
        with file:
            flush_to_disk(file)
            size_bytes = file.tell()
        entry = {"n_documents": self._n_documents, "n_chars": self._n_chars, "size_bytes": size_bytes}
        self._closed.append((Path(file.name), entry | {"sha256": sha256_of(Path(file.name))}))


# Fetching


class _Stopped(Exception):
    """This download is cancelled because another failed, or by the user."""


def fetch_text_shards(
    corpus: TextCorpus,
    n_train: int,
    directory: Path,
    scratch: Path,
    *,
    manifest: dict[str, Any],
    n_threads: int,
    progress: Callable[[str], Callable[[int, int | None], None]],
) -> int:
    """Fetches the validation file and the first `n_train` others into `directory`. Existing complete files are kept.

    A file is read whole before it gets its place, and the validation file is the first to get it.

    Args:
      scratch: where downloads are until then; one that was interrupted is resumed.
      manifest: contents of text.json, which is written before the first file and names each file's SHA-256.
      progress: given a file's name, returns a function that is called with the bytes on disk, and the total.

    Returns:
      How many files were missing.

    Raises:
      InputError: a download fails, or is not text. It ends the other downloads, which resume when tried again.
    """
    stopped, writing = threading.Event(), threading.Lock()
    entries = {entry["name"]: entry for entry in manifest.get("files", [])}
    request = dict(manifest["request"])

    def note(name: str, path: Path, sha256: str, commit: str = "") -> None:
        """Writes a file's SHA-256 into text.json, and the commit that it came from."""
        entry = {"name": name, "size_bytes": path.stat().st_size, "sha256": sha256}
        with writing:
            entries[name] = entry
            if commit:
                request.setdefault("revision", commit)
            write_text_manifest(directory, {**manifest, "request": request, "files": list(entries.values())})

    def fetch(name: str) -> None:
        show = progress(name)

        def watch(n_bytes: int, total: int | None) -> None:
            if stopped.is_set():
                raise _Stopped
            show(n_bytes, total)

        repository = Repository(corpus.repository, request.get("revision", corpus.revision), "dataset")
        origin = hub.fetch_to(repository, name, scratch / name, limit_bytes=SHARD_LIMIT_BYTES, progress=watch)
        try:
            check_text_shard(scratch / name)
        except InputError as error:
            (scratch / name).unlink()
            raise InputError(f"{name} of {repository} is damaged, or not the expected file: {error}") from error
        note(name, scratch / name, origin.sha256 or sha256_of(scratch / name), origin.commit)
        os.replace(scratch / name, directory / name)

    def fetch_or_stop(name: str) -> None:
        try:
            if not stopped.is_set():
                fetch(name)
        except _Stopped:
            return  # what stopped it is raised elsewhere
        except BaseException:
            stopped.set()  # before this thread takes the next file
            raise

    names = [shard_name(corpus.n_train), *map(shard_name, range(n_train))]
    there = sorted(path.name for path in directory.iterdir() if TEXT_SHARD.fullmatch(path.name))
    missing = [name for name in dict.fromkeys(names + there) if not _is_whole(directory / name)]
    whole = [directory / name for name in there if name not in missing]
    for path, digest in hash_files(whole).items():
        if path.name not in entries:
            note(path.name, path, digest)  # fetched by a version that kept none
        elif entries[path.name].get("sha256", digest) != digest:
            print(f"{path} changed since it was fetched; fetching it again")
            missing.append(path.name)
    if names[0] in missing:
        fetch(names[0])
    with ThreadPoolExecutor(n_threads) as pool:
        futures = [pool.submit(fetch_or_stop, name) for name in missing if name != names[0]]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(missing)


def _is_whole(path: Path) -> bool:
    """Whether the file is complete to its end, where parquet has its footer."""
    try:
        pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError):
        return False
    return True


def check_text_shard(path: Path) -> None:
    """Reads all text of a file.

    Raises:
      InputError: it is damaged, or has no column of text, or no rows.
    """
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            kinds = {field.name: str(field.type) for field in file.schema_arrow}
            if kinds.get(COLUMN) not in ("string", "large_string", "string_view"):
                raise InputError(f"column {COLUMN!r} is {kinds.get(COLUMN, 'missing')}, not text")
            n_rows = sum(len(batch) for batch in file.iter_batches(columns=[COLUMN], use_threads=False))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{(str(error).splitlines() or [''])[0]}; fetch it again") from error
    if not n_rows:
        raise InputError("it has no rows")


# What the user sees


def describe_text(out: Path) -> tuple[list[tuple[str, ...]], str]:
    """The rows of a table, and the command that makes the tokenizer if there is none."""
    files = read_text_manifest(out)["files"]
    chars = {entry["name"]: entry["n_chars"] for entry in files if "n_chars" in entry}
    rows: list[tuple[str, ...]] = [("split", "documents", "characters", "MB on disk", "files")]
    for split in open_splits(out):
        names = [file.path.name for file in split.files]
        n_chars = f"{sum(chars[name] for name in names):,}" if set(names) <= set(chars) else "?"
        n_mb = sum(file.size_bytes for file in split.files) / 1e6
        rows.append((split.name, f"{split.count_rows():,}", n_chars, f"{n_mb:,.1f}", str(len(names))))
    if (out / TOKENIZER).exists():
        return rows, ""
    size = " --vocab-size 4096" if chars and sum(chars.values()) < 50_000_000 else ""
    return rows, f"jaxgpt train_tokenizer --data {shlex.quote(str(out))}{size}"
