"""Tokens in files: our shards, and the formats of nanoGPT and llm.c, read through one interface.

A shard is a header of 256 little-endian int32 (magic, version, the count's low and high 32 bits, bytes per token)
and then the tokens, little-endian; a manifest beside the shards names them. Directories without a manifest are
recognized by names and headers: nanoGPT's train.bin and val.bin are bare uint16, with a character vocabulary in
meta.pkl or none; llm.c's and modded-nanogpt's *_train_000001.bin have a header like ours with another magic.

Nothing here is trusted: counts are checked against file sizes before anything is allocated, and nothing is executed
(see `nanogpt_meta` for the pickle). Every complaint is an `InputError` of one line.
"""

import functools
import hashlib
import os
import re
import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.data.digests import hash_files, require_digest
from jaxgpt.data.manifest import MANIFEST, Entry, read_manifest
from jaxgpt.data.nanogpt_meta import META, read_meta
from jaxgpt.data.tokenizer import GPT2Tokenizer, Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.files import open_regular

HEADER_BYTES = 1024
MAGIC = int.from_bytes(b"JGPT", "little")
LLMC_MAGIC = 20240520
VERSION = 1
DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
BLOCK_BYTES = 8 << 20
CORPUS_NAMES = ("pydocs", "shakespeare_char", "shakespeare", "openwebtext", "fineweb10B")
"""Corpora that `jaxgpt.prepare` makes without --input; listed here for messages, defined in `corpora`."""


class _OpenFile:
    """A file descriptor that is closed with the last reference to it."""

    def __init__(self, path: Path):
        with open_regular(path) as file:
            self.fd = os.dup(file.fileno())

    def __del__(self):
        if hasattr(self, "fd"):
            os.close(self.fd)


@dataclass(frozen=True)
class ShardFile:
    """One file of tokens, as its header or its size describes it."""

    path: Path
    n_tokens: int
    dtype: np.dtype
    start_byte: int
    """Where the tokens begin."""
    size_bytes: int
    format: str
    """jaxgpt, llmc or nanogpt."""
    sha256: str = ""
    """From the manifest; empty in foreign directories."""


@dataclass(frozen=True)
class Split:
    """The tokens of one split, as if its files were one."""

    name: str
    directory: Path
    files: tuple[ShardFile, ...]

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """Position after the last token of each file."""
        return tuple(accumulate(file.n_tokens for file in self.files))

    @property
    def n_tokens(self) -> int:
        return self.ends[-1]

    @property
    def dtype(self) -> np.dtype:
        return self.files[0].dtype

    @functools.cached_property
    def _open(self) -> Callable[[Path], _OpenFile]:
        return functools.lru_cache(maxsize=128)(_OpenFile)  # below the usual limit of 1024 open files

    def read(self, start: int, n: int) -> np.ndarray:
        """`n` tokens from position `start` on, in the split's dtype, read-only. Threads may share a split.

        Plain reads, not a memory map: a file that shrinks or a disk that fails is then an error and no SIGBUS.

        Raises:
          InputError: the file cannot be read, or has become shorter.
        """
        if start < 0 or n < 0 or start + n > self.n_tokens:
            raise IndexError(f"tokens [{start}, {start + n}) of a split of {self.n_tokens}")
        parts = []
        index = bisect_right(self.ends, start)
        while n > 0:
            file = self.files[index]
            offset = start - (self.ends[index] - file.n_tokens)
            count = min(n, file.n_tokens - offset)
            parts.append(self._read_file(file, offset, count))
            start, n, index = start + count, n - count, index + 1
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])

    def _read_file(self, file: ShardFile, offset: int, count: int) -> np.ndarray:
        at, left = file.start_byte + offset * file.dtype.itemsize, count * file.dtype.itemsize
        data = b""
        while left:  # one read gives 2 GiB at most
            try:
                block = os.pread(self._open(file.path).fd, left, at)
            except OSError as error:
                message = f"{file.path} cannot be read at byte {at}: {error.strerror}; check the disk"
                raise InputError(message) from error
            if not block:
                raise InputError(
                    f"shard {file.path} ends at byte {at}, {left} bytes early; it was cut short after the run opened "
                    "it: restore it, or prepare it again"
                )
            data, at, left = data + block if data else block, at + len(block), left - len(block)
        return np.frombuffer(data, file.dtype)

    def locate(self, position: int) -> tuple[str, int]:
        """The name of the file that holds a position, and the token's offset in it."""
        index = bisect_right(self.ends, position)
        return self.files[index].path.name, position - (self.ends[index] - self.files[index].n_tokens)


@dataclass(frozen=True)
class Dataset:
    """A directory of tokens, checked and open."""

    directory: Path
    train: Split
    val: Split
    vocab_size: int | None
    """None where the format does not say."""
    tokenizer_json: dict[str, Any] | None
    """See `tokenizer_from_json`. GPT-2's is assumed for llm.c files; characters where nanoGPT's meta.pkl lists them;
    None where the format does not say."""
    digest: str
    """SHA-256 (hex) of what the manifest says. Without a manifest: of names, sizes and both ends of each file. `verify`
    looks at the rest."""

    @property
    def has_manifest(self) -> bool:
        """Whether a manifest names the SHA-256 of each file."""
        return all(file.sha256 for file in self.train.files + self.val.files)


def pick_dtype(n_ids: int) -> np.dtype:
    """The narrowest dtype for ids in [0, n_ids)."""
    return DTYPES[2] if n_ids <= 1 << 16 else DTYPES[4]


# Opening


def inspect_shard(path: Path, *, wants: str = "") -> ShardFile:
    """Reads a file's header and checks it against the file's size.

    Args:
      path: the file.
      wants: jaxgpt or llmc, where only that format will do; empty accepts either, and bare uint16 if the name is
        nanoGPT's.

    Raises:
      InputError: names the file, what it says, what it holds and the fix.
    """
    try:
        with open_regular(path) as file:
            head = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise InputError(f"shard {path} is missing; restore it, or prepare the data again") from None
    except OSError as error:
        raise InputError(f"shard {path} cannot be read: {error.strerror}; check its permissions") from error
    if size == 0:
        raise InputError(f"shard {path} has 0 bytes; restore it, or prepare the data again")
    magic = int.from_bytes(head[:4], "little")
    is_bare = not wants and magic not in (MAGIC, LLMC_MAGIC) and path.name in ("train.bin", "val.bin")
    if size % 2:
        raise InputError(f"shard {path} has {size} bytes, an odd number; tokens have 2 or 4: it was cut short")
    if is_bare:
        _refuse_wide_ids(path, head)
        return ShardFile(path, size // 2, DTYPES[2], 0, size, "nanogpt")
    if len(head) < HEADER_BYTES:
        raise InputError(f"shard {path} has {size} bytes, a header alone has {HEADER_BYTES}; the file was cut short")
    known = {MAGIC: "jaxgpt", LLMC_MAGIC: "llmc"}
    if known.get(magic) not in ([wants] if wants else known.values()):
        found = f"a file of format {known[magic]}" if magic in known else "not a token shard, or another byte order"
        wanted = " or ".join(str(number) for number, name in known.items() if not wants or name == wants)
        raise InputError(f"shard {path} has magic {magic}, not {wanted}: {found}; restore it, or prepare again")
    words = np.frombuffer(head, "<i4").astype(int).tolist()
    if words[1] != VERSION:
        raise InputError(f"shard {path} has version {words[1]}, this code reads {VERSION}; prepare the data again")
    if magic == LLMC_MAGIC:
        n_tokens, dtype = words[2], DTYPES[2]
    else:
        n_tokens, dtype = (words[2] & 0xFFFFFFFF) + (words[3] << 32), DTYPES.get(words[4])
    if dtype is None:
        raise InputError(f"shard {path} has dtype code {words[4]}, this code reads 2 and 4; prepare the data again")
    n_in_file, odd = divmod(size - HEADER_BYTES, dtype.itemsize)
    if n_tokens < 0:
        raise InputError(f"shard {path}: header says {n_tokens} tokens; it is damaged, prepare the data again")
    if n_tokens > n_in_file:
        raise InputError(f"shard {path}: header says {n_tokens} tokens, file holds {n_in_file}; the file was cut short")
    if n_tokens < n_in_file or odd:
        extra = size - HEADER_BYTES - n_tokens * dtype.itemsize
        raise InputError(
            f"shard {path}: header says {n_tokens} tokens, file holds {n_in_file} ({extra} bytes more); "
            "something was appended, or the header is damaged: prepare the data again"
        )
    return ShardFile(path, n_tokens, dtype, HEADER_BYTES, size, known[magic])


def _refuse_wide_ids(path: Path, head: bytes) -> None:
    """A bare file has no dtype; uint32 ids below 65536 show as uint16 of which every second is 0."""
    ids = np.frombuffer(head[: len(head) // 2 * 2], "<u2")
    if len(ids) >= 64 and not ids[1::2].any() and ids[::2].any():
        raise InputError(f"shard {path} looks like uint32 ids (every second uint16 is 0); save it as uint16")


def open_dataset(directory: str | Path) -> Dataset:
    """Opens a directory of tokens and checks headers, sizes, names and counts; reads no tokens.

    Raises:
      InputError: what is wrong, in which file, and the fix.
    """
    directory = Path(directory)
    try:
        if not directory.is_dir():
            raise InputError(f"data.dir={directory} does not exist; run {prepare_command(directory)}")
        data = _open_prepared(directory) if (directory / MANIFEST).exists() else _open_foreign(directory)
    except OSError as error:
        message = f"data.dir={directory} cannot be read: {error.strerror}; check its permissions"
        raise InputError(message) from error
    for split in (data.train, data.val):
        if split.n_tokens == 0:
            raise InputError(f"{directory} {split.name} has no tokens; give more text, or a larger --val-fraction")
    if data.train.dtype != data.val.dtype:
        raise InputError(f"{directory}: train is {data.train.dtype}, val {data.val.dtype}; prepare both alike")
    return data


def prepare_command(directory: Path) -> str:
    """What to run for a directory that is not there, in backquotes."""
    name = directory.name or "NAME"
    out = "" if directory == Path("data", name) else f" --out {shlex.quote(str(directory))}"
    return f"`jaxgpt prepare {shlex.quote(name)}{'' if name in CORPUS_NAMES else ' --input FILE'}{out}`"


def _open_prepared(directory: Path) -> Dataset:
    manifest = read_manifest(directory)
    splits = {}
    for name, entries in manifest.splits.items():
        splits[name] = Split(name, directory, tuple(_open_entry(directory, entry) for entry in entries))
        for file in splits[name].files:
            if file.dtype.name != manifest.dtype:
                raise InputError(
                    f"shard {file.path} holds {file.dtype.name}, {manifest.path} says {manifest.dtype}; prepare again"
                )
    train, val = splits["train"], splits["val"]
    sources = {file.sha256: file.path.name for file in train.files}
    _refuse_overlap(directory, [(sources.get(file.sha256), file.path.name) for file in val.files])
    return Dataset(directory, train, val, manifest.vocab_size, manifest.tokenizer_json, manifest.digest)


def _open_entry(directory: Path, entry: Entry) -> ShardFile:
    file = inspect_shard(directory / entry.name, wants=entry.format)
    for field in ("size_bytes", "n_tokens"):
        found, wanted = getattr(file, field), getattr(entry, field)
        if found != wanted:
            raise InputError(
                f"shard {file.path} has {field}={found}, {MANIFEST} says {wanted}; "
                "it changed since it was prepared: restore it, or prepare again"
            )
    return replace(file, sha256=entry.sha256)


_FOREIGN = re.compile(r"(?:(?P<set>.+)_)?(?P<split>train|val)(?:_(?P<number>\d+))?\.bin")


def _open_foreign(directory: Path) -> Dataset:
    found: dict[str, list[tuple[int, Path]]] = {"train": [], "val": []}
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    matches = [match for match in map(_FOREIGN.fullmatch, names) if match]
    sets = sorted({match["set"] or "" for match in matches})
    if len(sets) > 1:
        raise InputError(f"{directory} holds several data sets ({', '.join(map(repr, sets))}); give each a directory")
    for match in matches:
        found[match["split"]].append((int(match["number"] or -1), directory / match[0]))
    for name, numbered in found.items():
        if not numbered:
            there = ", ".join(names[:5]) or "nothing"
            raise InputError(
                f"{directory} has no {name} shards (found: {there}); run {prepare_command(directory)}, or add "
                f"{MANIFEST}, train.bin and val.bin, or *_train_000001.bin and *_val_000000.bin"
            )
        _refuse_gaps(directory, sorted(numbered))
    return dataset_of(directory, {name: [path for _, path in sorted(numbered)] for name, numbered in found.items()})


def dataset_of(directory: Path, paths: dict[str, list[Path]]) -> Dataset:
    """The data set of these files, train and val, which no manifest describes.

    Raises:
      InputError: a file is not a shard, or is one of ours, or the splits share one.
    """
    splits = {name: Split(name, directory, tuple(map(inspect_shard, files))) for name, files in paths.items()}
    files = splits["train"].files + splits["val"].files
    if any(file.format == "jaxgpt" for file in files):
        raise InputError(f"{directory} has shards but no {MANIFEST}; copy it too, or run {prepare_command(directory)}")
    prints = {file.path: _fingerprint(file.path, file.size_bytes) for file in files}
    sources = {prints[file.path]: file.path.name for file in splits["train"].files}
    _refuse_overlap(directory, [(sources.get(prints[file.path]), file.path.name) for file in splits["val"].files])
    digest = hashlib.sha256(repr([(path.name, prints[path]) for path in prints]).encode("utf-8")).hexdigest()
    tokenizer = _foreign_tokenizer(directory, {file.format for file in files})
    vocab_size = tokenizer.vocab_size if tokenizer else None
    return Dataset(
        directory, splits["train"], splits["val"], vocab_size, tokenizer.to_json() if tokenizer else None, digest
    )


def _foreign_tokenizer(directory: Path, formats: set[str]) -> Tokenizer | None:
    if formats == {"llmc"}:
        return GPT2Tokenizer()
    if formats == {"nanogpt"} and (directory / META).exists():
        return read_meta(directory / META)
    return None


def _refuse_gaps(directory: Path, numbered: list[tuple[int, Path]]) -> None:
    numbers = [number for number, _ in numbered]
    first = 0 if numbers[0] == 0 else 1
    wanted = range(first, first + len(numbers))
    if numbers == [-1] or numbers == list(wanted):
        return
    missing = next((number for number in wanted if number not in numbers), None)
    if missing is None or -1 in numbers or len(set(numbers)) < len(numbers):
        listed = ", ".join(path.name for _, path in numbered[:5])
        raise InputError(f"{directory}: {listed} do not number one sequence; keep one file per number")
    last = numbered[-1][1].name
    name = re.sub(r"\d+(?=\.bin$)", lambda match: f"{missing:0{len(match[0])}d}", last)
    raise InputError(f"{directory}: {name} is missing, {last} exists; fetch it, or renumber the others")


def _fingerprint(path: Path, size: int) -> tuple[int, str]:
    with open_regular(path) as file:
        digest = hashlib.sha256(file.read(1 << 16))
        file.seek(max(0, size - (1 << 16)))
        digest.update(file.read(1 << 16))
    return size, digest.hexdigest()


def _refuse_overlap(directory: Path, pairs: list[tuple[str | None, str]]) -> None:
    for train, val in pairs:
        if train:
            raise InputError(
                f"{directory}: val's {val} has the same content as train's {train}; a val loss on it means nothing"
            )


# Checking what is inside


def split_blocks(split: Split) -> Iterator[tuple[int, np.ndarray]]:
    size = BLOCK_BYTES // split.dtype.itemsize
    for start in range(0, split.n_tokens, size):
        yield start, split.read(start, min(size, split.n_tokens - start))


def check_ids(split: Split, n_ids: int) -> None:
    """Reads a whole split and checks every id against the vocabulary.

    Raises:
      InputError: the first id that is not in [0, n_ids).
    """
    if n_ids > np.iinfo(split.dtype).max:
        return
    for start, tokens in split_blocks(split):
        if int(tokens.max()) >= n_ids:
            raise_bad_id(split, start + int(np.argmax(tokens >= n_ids)), n_ids)


def raise_bad_id(split: Split, position: int, n_ids: int) -> None:
    """Raises the InputError for the id at this position of the split."""
    name, offset = split.locate(position)
    raise InputError(
        f"shard {split.directory / name}: token {offset} is id {split.read(position, 1)[0]}, "
        f"outside the vocabulary of {n_ids}; choose the model.vocab_size and tokenizer of this data"
    )


def verify(data: Dataset, *, again: bool = False) -> dict[str, str]:
    """Checks every file's SHA-256 against the manifest.

    Args:
      again: reads all of them; else files that did not change since they were read last are not read again.

    Returns:
      name -> SHA-256 of each file; what a foreign directory holds, which has no manifest to compare with.

    Raises:
      InputError: the first file that differs, or cannot be read.
    """
    files = data.train.files + data.val.files
    found = hash_files([file.path for file in files], again=again)
    for file in files:
        if file.sha256:
            require_digest(file.path, found[file.path], file.sha256, MANIFEST)
    return {path.name: digest for path, digest in found.items()}
