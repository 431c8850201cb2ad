"""Text in files that a user has: which files, of which format, and their documents.

Names may be files, directories and globs. A format is decided by a file's name and its first bytes; where they
disagree, by the bytes. What looks like something else is not learned as plain text, and what is left out is counted.
Directories of Hugging Face's `datasets` are recognized, whether saved (Arrow files beside state.json) or cloned from
the hub (parquet files of several splits).
"""

import glob
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded
from jaxgpt.prepare.readers import Reader, read_arrow, read_csv, read_json, read_jsonl, read_parquet, read_text
from jaxgpt.prepare.source import Piece, Source
from jaxgpt.prepare.streams import MAX_RATIO, RATIO_FROM_BYTES, InputStream

READERS: dict[str, Reader] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
}
"""Format -> its reader. text is one document, the others hold many."""
FORMAT_OF_SUFFIX = {
    ".txt": "text", ".text": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
"""What is read from a directory, in upper case too and also with a suffix of `COMPRESSED`."""
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
ABOUT_DATA = ("README.md", "dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "LICENSE.txt")
"""Files that describe the data beside them."""
HEAD_BYTES = 1 << 16
_JSON_LIMIT_BYTES = 64 << 20
_SPLIT_FILE = re.compile(r"(?P<split>[A-Za-z0-9_]+)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.(parquet|arrow)")
_BINARY = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    b"\x04\x22\x4d\x18": "compressed with lz4; decompress it",
    b"\x1f\x9d": "compressed; decompress it",
    b"%PDF": "a PDF; extract its text",
    b"{\\rtf": "rich text (RTF); save it as plain text",
    b"\xd0\xcf\x11\xe0": "a document of an old Office; save it as plain text",
    b"SQLite format 3": "a SQLite database; export its text as .jsonl",
    b"\x80\x04": "a pickle, which is not read; save it as .jsonl",
    b"\x89HDF": "HDF5; save its text as .jsonl",
    b"\x93NUMPY": "a numpy array; save its text as .jsonl",
    b"JGPT": "a token shard; give the text",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"\x7fELF": "a program",
}
"""First bytes of files that are no text, and what to do."""


# Which files


def find_inputs(
    patterns: Iterable[str], suffixes: tuple[str, ...] = (), left_out: Counter[str] | None = None
) -> list[Path]:
    """The files that paths, directories and globs name, each once, in the order given, directories sorted.

    Args:
      suffixes: of files in a directory; empty: those of `FORMAT_OF_SUFFIX`.
      left_out: counts the files of directories that are not read, in words.

    Raises:
      InputError: one of them names nothing, or something that is no file.
    """
    found: dict[Path, Path] = {}
    left_out = Counter() if left_out is None else left_out
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            paths = _find_in_directory(path, suffixes, left_out)
            if not paths:
                known = ", ".join(suffixes or FORMAT_OF_SUFFIX)
                raise InputError(f"--input {pattern} has no {known} files; name files or '{path}/*.py'")
        elif path.exists():
            _require_file(path)
            paths = [path]
        else:
            paths = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
            if not paths:
                raise InputError(f"--input {pattern} matches no file; check the path (here is {Path.cwd()})")
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _require_file(path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a pipe, which can be read only once" if stat.S_ISFIFO(mode) else "no regular file"
        raise InputError(f"--input {path} is {kind}; write the text to a file")


def _find_in_directory(directory: Path, suffixes: tuple[str, ...], left_out: Counter[str]) -> list[Path]:
    """Files of known suffixes in it and below. Linked directories are followed, each once; hidden ones are not."""
    if suffixes:
        return [path for path in _walk(directory) if path.suffix in suffixes]
    saved = _find_saved(directory, left_out)
    if saved is not None:
        return saved
    paths = []
    for path in _walk(directory):
        suffix = suffix_of(path)
        if suffix in FORMAT_OF_SUFFIX:
            paths.append(path)
        else:
            left_out[f"files of other kinds ({suffix or 'no suffix'})"] += 1
    data = [path for path in paths if path.name not in ABOUT_DATA]
    if any(FORMAT_OF_SUFFIX[suffix_of(path)] != "text" for path in data):
        left_out["files about the data (README.md and so on)"] += len(paths) - len(data)
        paths = data
    splits = {match["split"]: 0 for path in paths if (match := _SPLIT_FILE.fullmatch(path.name))}
    if "train" in splits and len(splits) > 1:
        others = [path for path in paths if (m := _SPLIT_FILE.fullmatch(path.name)) and m["split"] != "train"]
        left_out[f"files of other splits ({', '.join(sorted(splits.keys() - {'train'}))})"] += len(others)
        paths = [path for path in paths if path not in set(others)]
    return paths


def _walk(directory: Path) -> Iterator[Path]:
    """Files in it and below, sorted."""
    seen = set()
    for here, names, files in os.walk(directory, followlinks=True):
        found = os.stat(here)
        if (found.st_dev, found.st_ino) in seen:
            names.clear()  # a link that leads back
            continue
        seen.add((found.st_dev, found.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and (path := Path(here, name)).is_file():
                yield path


def _find_saved(directory: Path, left_out: Counter[str]) -> list[Path] | None:
    """The Arrow files of a directory that `datasets` saved; None if it is none."""
    if (directory / "dataset_dict.json").is_file():
        splits = _read_json(directory / "dataset_dict.json").get("splits")
        names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        if "train" not in names:
            there = ", ".join(names[:8]) or "no splits"
            raise InputError(f"--input {directory} has {there} and no train; name one of its directories")
        left_out[f"splits ({', '.join(names)} without train)"] += len(names) - 1
        return _find_saved(directory / "train", left_out)
    if not (directory / "state.json").is_file():
        return None
    files = _read_json(directory / "state.json").get("_data_files")
    names = (
        [entry.get("filename") if isinstance(entry, dict) else None for entry in files] if type(files) is list else []
    )
    paths = [directory / name for name in names if isinstance(name, str) and name == Path(name).name]
    if not paths or len(paths) < len(names):
        raise InputError(f"{directory / 'state.json'} names no Arrow files beside it; save the data set again")
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is missing, but state.json names it; copy it too, or save the data set again")
    return paths


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_bounded(path, _JSON_LIMIT_BYTES))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON; save the data set again") from error
    return values if isinstance(values, dict) else {}


def suffix_of(path: Path) -> str:
    """Its suffix in lower case, without that of a compression."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


# Of which format


def detect_format(path: Path) -> str:
    """A key of `READERS`; empty where the file is.

    Raises:
      InputError: it is no text, or cannot be read.
    """
    with InputStream(path) as stream:
        head = stream.file.read(HEAD_BYTES)
    by_name = FORMAT_OF_SUFFIX.get(suffix_of(path), "")
    if not head:
        return ""
    if head[:4] == b"PAR1" or head[:6] == b"ARROW1" or (head[:4] == b"\xff" * 4 and by_name in ("arrow", "")):
        if stream.compression:
            raise InputError(f"{path} is compressed with {stream.compression} as a whole; decompress it")
        return "parquet" if head[:4] == b"PAR1" else "arrow"
    if by_name in ("parquet", "arrow"):
        return by_name  # its reader says what is wrong
    for magic, advice in _BINARY.items():
        if head.startswith(magic):
            raise InputError(f"{path} is {advice}{', or' if ';' in advice else ';'} leave it out")
    if head[257:262] == b"ustar":
        raise InputError(f"{path} is a tar archive; unpack it and give the directory, or leave it out")
    if b"\0" in head:
        raise InputError(f"{path} {_describe_nulls(head)}, or leave it out")
    return (by_name if by_name not in ("", "text") else _detect_json(head)) or "text"


def _describe_nulls(head: bytes) -> str:
    """What a file with zero bytes may be: UTF-16 has them at every second place."""
    n_even, n_odd = head[::2].count(0), head[1::2].count(0)
    if min(n_even, n_odd) <= 0.02 * max(n_even, n_odd):
        name = "UTF-16LE" if n_odd > n_even else "UTF-16BE"
        return f"looks like {name} without a byte order mark; convert it (iconv -f {name} -t UTF-8)"
    return "is binary (it has zero bytes); extract its text"


_JSON_START = re.compile(r'\[?\s*\{\s*"(?:[^"\\]|\\.)*"\s*:|\[\s*"')


def _detect_json(head: bytes) -> str:
    """json or jsonl where a text begins as such; else nothing."""
    text = head.decode("utf-8", "ignore").strip()
    if not _JSON_START.match(text):
        return ""
    begin = text[0] == "["  # of an array its first entry
    try:
        _, end = json.JSONDecoder().raw_decode(text, len(text) - len(text[begin:].lstrip()))
    except (ValueError, RecursionError):
        return "json" if len(head) == HEAD_BYTES else ""  # its first value may be longer than the head
    return "json" if begin or "\n" in text[:end] else "jsonl"


# Their documents


def open_files(paths: list[Path], text_field: str, input_format: str = "") -> Source:
    """Documents of files: text files (each one document; a single one is one text), and files that hold many.

    Args:
      text_field: where the text is in formats that have fields or columns.
      input_format: a key of `READERS` for all files; empty: each file's own.

    Raises:
      InputError: a file is no text; or all are empty.
    """
    formats = {path: input_format or detect_format(path) for path in paths}
    empty = [path for path in paths if not formats[path] or path.stat().st_size == 0]
    used = [path for path in paths if path not in set(empty)]
    if not used:
        what = f"{empty[0]} is empty" if len(empty) == 1 else f"{empty[0]} and {len(empty) - 1} more files are empty"
        raise InputError(f"{what}; give a file with text")
    left_out: Counter[str] = Counter()

    def pieces() -> Iterator[Piece]:
        left_out.clear()
        left_out["empty files"] += len(empty)
        has_documents = False
        for path in used:
            is_empty, n_chars, most = True, 0, max(RATIO_FROM_BYTES, MAX_RATIO * path.stat().st_size)
            for piece in READERS[formats[path]](path, text_field, left_out):
                is_empty = False
                n_chars += len(piece.text)
                if n_chars > most:
                    raise InputError(
                        f"{path} holds more than {MAX_RATIO} times as much text as its size; it repeats itself or was "
                        "made to harm: leave it out"
                    )
                yield piece
            left_out["files without documents"] += is_empty
            has_documents |= not is_empty
        if not has_documents:
            raise InputError(f"{used[0]} has no documents; leave it out, or check --text-field")

    is_one_text = len(used) == 1 and formats[used[0]] == "text"
    guessed = Counter(formats[path] for path in used if FORMAT_OF_SUFFIX.get(suffix_of(path)) != formats[path])
    words = ", ".join(f"{n} file{'s' * (n > 1)} as {name}" for name, n in guessed.items())
    note = f"reading {words}; --input-format chooses another format" if words and not input_format else ""
    return Source(pieces, sum(path.stat().st_size for path in used), "bytes", is_one_text, note, left_out)
