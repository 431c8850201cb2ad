"""manifest.json, which describes a prepared directory.

    {"format": 1, "corpus": ..., "tokenizer": {...}, "tokenizer_sha256": ..., "vocab_size": ..., "dtype": ...,
     "splits": {"train": {"files": [{"name", "n_tokens", "size_bytes", "sha256"}], "n_tokens", "n_bytes"}, "val": ...}}

It is written last and in one step: a directory has one only if it is complete. `n_bytes` counts UTF-8 bytes of
text. A file's entry may say "format": "llmc" for shards that were published in that format; fields that are not
listed here are for `jaxgpt.prepare` and not read. A manifest is input like any other: its fields are checked, and
its names cannot leave the directory. `shards` checks the files against it.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.data.tokenizer import tokenizer_from_json
from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded, write_atomically

MANIFEST = "manifest.json"
FORMAT = 1
LIMIT_BYTES = 64 << 20


@dataclass(frozen=True)
class Entry:
    """One file, as the manifest describes it."""

    name: str
    n_tokens: int
    size_bytes: int
    sha256: str
    format: str
    """jaxgpt or llmc."""


@dataclass(frozen=True)
class Manifest:
    """A manifest whose fields have been checked."""

    path: Path
    values: dict[str, Any]
    """All of it, as parsed."""
    tokenizer_json: dict[str, Any]
    vocab_size: int
    dtype: str
    """uint16 or uint32."""
    splits: dict[str, tuple[Entry, ...]]
    """train and val; neither is empty."""
    digest: str
    """SHA-256 (hex) of what decides the tokens: tokenizer, dtype, and each split's files."""


def write_manifest(directory: Path, values: dict[str, Any]) -> None:
    """Writes manifest.json in one step; until then the directory is not a data set."""
    write_atomically(directory / MANIFEST, json.dumps(values, indent=1))


def read_manifest(directory: Path) -> Manifest:
    """Reads and checks manifest.json.

    Raises:
      InputError: it is missing, damaged, of another format, or names something outside the directory.
    """
    path = directory / MANIFEST
    values = _parse(path)
    try:
        tokenizer = tokenizer_from_json(_take(path, values, "tokenizer", dict))
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    vocab_size = _take(path, values, "vocab_size", int)
    if tokenizer.digest() != _take(path, values, "tokenizer_sha256", str) or tokenizer.vocab_size != vocab_size:
        raise InputError(f"{path}: its tokenizer is not the one that made the shards (SHA-256 differs); prepare again")
    dtype = _take(path, values, "dtype", str)
    splits = {}
    for name in ("train", "val"):
        split = _take(path, _take(path, values, "splits", dict), name, dict)
        entries = tuple(_entry(path, item) for item in _take(path, split, "files", list))
        if not entries:
            raise InputError(f"{path}: {name} has no shards; prepare the data again")
        n_tokens = sum(entry.n_tokens for entry in entries)
        if n_tokens != _take(path, split, "n_tokens", int):
            raise InputError(f"{path}: {name} has n_tokens={split['n_tokens']}, its files {n_tokens}; prepare again")
        splits[name] = entries
    content = {name: values[name] for name in ("tokenizer_sha256", "vocab_size", "dtype")}
    content |= {name: [vars(entry) for entry in entries] for name, entries in splits.items()}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(canonical.encode("ascii")).hexdigest()
    return Manifest(path, values, values["tokenizer"], vocab_size, dtype, splits, digest)


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = read_bounded(path, LIMIT_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; prepare the data, or check permissions") from error
    try:
        values = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; it is damaged, prepare the data again") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); it is damaged, prepare the data again") from error
    found = values.get("format") if isinstance(values, dict) else values
    if not isinstance(values, dict) or type(found) is not int or found != FORMAT:
        raise InputError(f"{path}: format={str(found)[:40]}, this code reads {FORMAT}; prepare the data again")
    return values


def _take(path: Path, values: Any, name: str, kind: type) -> Any:
    """A field of exactly this type; counts are not negative."""
    value = values.get(name) if isinstance(values, dict) else None
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise InputError(f"{path}: {name}={str(value)[:40]} is not a valid {kind.__name__}; prepare again")
    return value


def _entry(path: Path, item: Any) -> Entry:
    name = _take(path, item, "name", str)
    if not name or name in (".", "..") or re.search(r"[/\\:\0]", name):
        raise InputError(f"{path}: shard name {name!r} leaves the directory; only plain file names are read")
    sha256 = _take(path, item, "sha256", str)
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise InputError(f"{path}: sha256 of {name} is not 64 hex digits; prepare the data again")
    file_format = item.get("format", "jaxgpt")
    if file_format not in ("jaxgpt", "llmc"):
        raise InputError(f"{path}: {name} has format={str(file_format)[:40]}; this code reads jaxgpt and llmc")
    n_tokens, size_bytes = _take(path, item, "n_tokens", int), _take(path, item, "size_bytes", int)
    return Entry(name, n_tokens, size_bytes, sha256, file_format)
