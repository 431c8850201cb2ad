"""Where text comes from: corpora with a name, and files that a user has.

Text arrives in pieces, so that no document has to fit in memory as tokens: a document of up to 8 MiB characters is one
piece, a longer one is cut at line ends. (For BPE the cut changes the tokens beside it, so short ones stay whole.)

nanoGPT splits openwebtext by a permutation of all documents, for which it needs them all at once; here documents
stream by, and a hash of a document's index says which split it belongs to. The sizes agree, the documents differ.
"""

import codecs
import glob
import hashlib
import http.client
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from jaxgpt.data.download import download
from jaxgpt.errors import InputError
from jaxgpt.prepare.pydocs import python_docs

PIECE_CHARS = 8 << 20
HUB = "https://huggingface.co"
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_BYTES = 1_115_394
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
OPENWEBTEXT = "Skylion007/openwebtext"
OPENWEBTEXT_DOCUMENTS = 8_013_769
FINEWEB = "kjj0/fineweb10B-gpt2"
FINEWEB_REVISION = "889765ea1f903759787add96995d81171b632d0c"
FINEWEB_TRAIN_SHARDS = 103


@dataclass(frozen=True)
class Corpus:
    """A row of the table of corpora."""

    about: str
    kind: Literal["text", "documents", "shards"]
    """text: one text, split by position. documents: split by a hash of the index. shards: published as tokens."""
    tokenizer: str
    val_fraction: float


CORPORA = {
    "pydocs": Corpus("Python's own documentation, from this interpreter; no network", "documents", "char", 0.1),
    "shakespeare_char": Corpus("tiny Shakespeare, 1.1 MB, by characters", "text", "char", 0.1),
    "shakespeare": Corpus("tiny Shakespeare, 1.1 MB, GPT-2 tokens", "text", "gpt2", 0.1),
    "openwebtext": Corpus("OpenWebText, 8 M documents, 9 G tokens; needs jaxgpt[hf]", "documents", "gpt2", 0.0005),
    "fineweb10B": Corpus("FineWeb, published as GPT-2 tokens, up to 103 shards of 200 MB", "shards", "gpt2", 0.01),
}


class Piece(NamedTuple):
    """A part of a document, or all of it."""

    text: str
    ends_document: bool
    n_read: float
    """How much of the source was read for it, in the unit of `Source.total`."""


@dataclass(frozen=True)
class Source:
    """Documents that can be read again and again, in one order."""

    pieces: Callable[[], Iterator[Piece]]
    total: float
    """Sum of all n_read, for a progress bar."""
    unit: Literal["bytes", "documents"]
    is_one_text: bool
    """One text, to be split by position; else documents."""


def is_val(index: int, val_fraction: float) -> bool:
    """Whether document `index` is for validation: a hash decides. Each split gets one of the first two for sure."""
    if index < 2:
        return index == 1
    digest = hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < val_fraction * 2**64


def open_corpus(name: str, scratch: Path, progress: Callable[[int, int | None], None]) -> Source:
    """The text of a corpus that is not published as tokens.

    Args:
      scratch: a directory for downloads; partial ones are resumed.
      progress: called with the bytes on disk, and the total if it is known.

    Raises:
      InputError: no network, a package is missing, or a download is not the expected file.
    """
    if name == "pydocs":
        documents = python_docs(Path(sysconfig.get_path("stdlib")))
        pieces = [Piece(text, True, 1) for text in documents]
        return Source(lambda: iter(pieces), len(pieces), "documents", False)
    if name == "openwebtext":
        return Source(lambda: _openwebtext(), OPENWEBTEXT_DOCUMENTS, "documents", False)
    path = scratch / "input.txt"
    download(SHAKESPEARE_URL, path, sha256=SHAKESPEARE_SHA256, size=SHAKESPEARE_BYTES, progress=progress)
    return open_files([path], "text")


# Text that is in files


def find_inputs(
    patterns: Iterable[str], suffixes: tuple[str, ...] = (".txt", ".md", ".jsonl", ".parquet")
) -> list[Path]:
    """The files that paths, directories and globs name, each once, in the order given, directories sorted.

    Raises:
      InputError: one of them names nothing.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            paths = sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())
            if not paths:
                raise InputError(f"--input {pattern} has no {', '.join(suffixes)} files; name files or '{path}/*.py'")
        elif path.is_file():
            paths = [path]
        else:
            paths = [Path(p) for p in sorted(glob.glob(pattern, recursive=True)) if Path(p).is_file()]
            if not paths:
                raise InputError(f"--input {pattern} matches no file; check the path (here is {Path.cwd()})")
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def open_files(paths: list[Path], text_field: str) -> Source:
    """Text files (each one document; a single one is one text), .jsonl and .parquet (a document per line or row)."""
    for path in paths:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty; leave it out, or give a file with text")

    def pieces() -> Iterator[Piece]:
        for path in paths:
            if path.suffix == ".jsonl":
                yield from _read_jsonl(path, text_field)
            elif path.suffix == ".parquet":
                yield from _read_parquet(path, text_field)
            else:
                yield from _read_text(path)

    is_one_text = len(paths) == 1 and paths[0].suffix not in (".jsonl", ".parquet")
    return Source(pieces, sum(path.stat().st_size for path in paths), "bytes", is_one_text)


def _first_piece(text: str) -> int:
    """Where to cut a text that is longer than a piece: after a line end, else before a blank, else anywhere."""
    return text.rfind("\n", 0, PIECE_CHARS) + 1 or max(text.rfind(" ", 1, PIECE_CHARS), 0) or PIECE_CHARS


def _split_document(text: str, n_read: float) -> Iterator[Piece]:
    while len(text) > PIECE_CHARS:
        cut = _first_piece(text)
        yield Piece(text[:cut], False, 0)
        text = text[cut:]
    yield Piece(text, True, n_read)


def _read_text(path: Path) -> Iterator[Piece]:
    """One document. Line ends stay as they are; a byte order mark at the front is dropped."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, n_bytes, n_read = "", 0, 0
    with open(path, "rb") as file:
        while True:
            pending = len(decoder.getstate()[0])
            block = file.read(1 << 20)
            try:
                added = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(str(path), error, n_bytes - pending) from error
            text += added.removeprefix("\ufeff") if n_bytes == 0 else added
            n_bytes, n_read = n_bytes + len(block), n_read + len(block)
            if not block:
                break
            while len(text) > PIECE_CHARS:
                cut = _first_piece(text)
                yield Piece(text[:cut], False, n_read)
                text, n_read = text[cut:], 0
    yield Piece(text, True, n_read)


def _not_utf8(place: str, error: UnicodeDecodeError, before: int = 0) -> InputError:
    byte = error.object[error.start]
    return InputError(
        f"{place} is not UTF-8: byte 0x{byte:02x} at offset {before + error.start} ({error.reason}); "
        "convert it (iconv -f LATIN1 -t UTF-8, if that is what it is), or leave it out"
    )


def _read_jsonl(path: Path, field: str) -> Iterator[Piece]:
    """A document per line; lone surrogates, which JSON can spell, become U+FFFD. Empty documents are left out."""
    n_documents = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8").removeprefix("\ufeff"))
            except UnicodeDecodeError as error:
                raise _not_utf8(place, error) from error
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place} is not JSON ({error}); fix or remove the line") from error
            text = value.get(field) if isinstance(value, dict) else None
            if not isinstance(text, str):
                there = ", ".join(list(value)[:8]) if isinstance(value, dict) else f"a {type(value).__name__}"
                raise InputError(f"{place} has no text in field {field!r} (it has: {there}); see --text-field")
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            if text:
                n_documents += 1
                yield from _split_document(text, len(line))
    if not n_documents:
        raise InputError(f"{path} has no documents; leave it out, or check --text-field")


def _read_parquet(path: Path, field: str) -> Iterator[Piece]:
    """A document per row; nulls and empty strings are left out."""
    import pyarrow  # here, because importing it is slow
    import pyarrow.parquet

    n_documents = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            kind = str(file.schema_arrow.field(field).type) if field in names else "missing"
            if kind not in ("string", "large_string", "string_view"):
                raise InputError(f"{path}: column {field!r} is {kind} (it has: {', '.join(names)}); see --text-field")
            per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                for text in batch.column(0).to_pylist():
                    if text:
                        n_documents += 1
                        yield from _split_document(text, per_row)
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{path} row {n_documents}", error) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]}); fetch it again") from error
    if not n_documents:
        raise InputError(f"{path} has no documents; leave it out, or check --text-field")


# Text that comes over the network


def _openwebtext() -> Iterator[Piece]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "openwebtext comes through the package datasets; pip install 'jaxgpt[hf]', "
            "or give local files: --input DIRECTORY_OF_PARQUET"
        ) from error
    reason, n_rows = "", 0
    for revision in (None, "refs/convert/parquet"):  # the second serves where the first is a script: datasets 4 and on
        try:
            stream = datasets.load_dataset(OPENWEBTEXT, split="train", streaming=True, revision=revision)
            for row in stream:
                n_rows += 1
                yield from _split_document(row["text"], 1)
            return
        except (OSError, ValueError, RuntimeError, http.client.HTTPException) as error:
            reason = reason or f"{type(error).__name__}: {error}".splitlines()[0]
            if n_rows:
                break
    raise InputError(
        f"{OPENWEBTEXT} cannot be read after {n_rows} documents ({reason}); "
        "try again, or download its parquet files and give them by --input"
    )


def fineweb_names(n_train: int) -> list[str]:
    """The validation shard and the first `n_train` training shards."""
    return ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06d}.bin" for i in range(1, n_train + 1))]


def fineweb_url(name: str) -> str:
    """Where a shard is. The revision is fixed, so a download may be resumed another day; HF_ENDPOINT names a mirror."""
    hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    return f"{hub}/datasets/{FINEWEB}/resolve/{FINEWEB_REVISION}/{name}"
