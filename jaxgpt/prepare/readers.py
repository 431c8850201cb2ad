"""Documents out of files, one reader for each format.

A reader yields pieces and counts what it leaves out: documents without text (null) and empty ones. A document may be
a list of texts, which become its lines. What is damaged, or has no text where it should, is an InputError of one line
that names the place; nothing is guessed.
"""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxgpt.data.tokenizer.base import replace_surrogates
from jaxgpt.errors import InputError
from jaxgpt.files import open_regular
from jaxgpt.prepare import source
from jaxgpt.prepare.source import Piece, first_piece, split_document
from jaxgpt.prepare.streams import BLOCK_BYTES, InputStream

MAX_DOCUMENT_BYTES = 1 << 30
"""A line or a value that does not end after so many bytes is no document."""
NULLS, EMPTIES = "documents without text (null)", "empty documents"
DELIMITERS = ",\t;|"
_ROWS = 32
"""Rows of a table that are in memory at a time: a dictionary can name one long text in all of them."""
Reader = Callable[[Path, str, Counter[str]], Iterator[Piece]]


def read_text(path: Path, field: str, left_out: Counter[str]) -> Iterator[Piece]:
    """All of the file as one document. Line ends stay as they are."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with InputStream(path) as stream:
        text, n_bytes, n_read = "", stream.n_mark_bytes, 0
        while True:
            pending = len(decoder.getstate()[0])
            block = stream.file.read(BLOCK_BYTES)
            try:
                text += decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(str(path), error, n_bytes - pending) from error
            n_bytes, n_read = n_bytes + len(block), n_read + stream.n_read()
            if not block:
                break
            while len(text) > source.PIECE_CHARS:
                cut = first_piece(text)
                yield Piece(text[:cut], False, n_read)
                text, n_read = text[cut:], 0
    yield Piece(text, True, n_read)


def read_jsonl(path: Path, field: str, left_out: Counter[str]) -> Iterator[Piece]:
    """A document per line."""
    with InputStream(path) as stream:
        for number, line in enumerate(lines_of(stream, path), 1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise _not_utf8(place, error) from error
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place} is not JSON ({error}); fix or remove the line") from error
            yield from _document(_text_of(value, field, place), left_out, stream.n_read())


def read_json(path: Path, field: str, left_out: Counter[str]) -> Iterator[Piece]:
    """A document per entry of an array, or per value where values follow each other."""
    with InputStream(path) as stream:
        for number, value in enumerate(json_values(stream, path)):
            yield from _document(_text_of(value, field, f"{path}[{number}]"), left_out, stream.n_read())


def read_csv(path: Path, field: str, left_out: Counter[str]) -> Iterator[Piece]:
    """A document per row below a row of names; the delimiter is the one that makes `field` a name."""
    limit = csv.field_size_limit(MAX_DOCUMENT_BYTES)
    try:
        with InputStream(path) as stream:
            lines = io.TextIOWrapper(stream.file, encoding="utf-8", newline="")
            head = lines.readline(BLOCK_BYTES)
            parsed = {delimiter: next(csv.reader([head], delimiter=delimiter), []) for delimiter in DELIMITERS}
            names, delimiter = max(((row, one) for one, row in parsed.items()), key=lambda found: len(found[0]))
            for one, row in parsed.items():
                if field in row:
                    names, delimiter = row, one
            if names.count(field) != 1:
                there = ", ".join(names[:8])
                raise InputError(f"{path}:1 has no column {field!r} (it has: {there}); see --text-field")
            column, rows = names.index(field), csv.reader(lines, delimiter=delimiter, strict=True)
            for row in rows:
                if not row:
                    continue
                if len(row) != len(names):
                    raise InputError(
                        f"{path}:{rows.line_num + 1} has {len(row)} cells, its header {len(names)}; fix or remove it"
                    )
                yield from _document(row[column], left_out, stream.n_read())
    except UnicodeDecodeError as error:
        raise _not_utf8(str(path), error) from error
    except csv.Error as error:
        raise InputError(f"{path} is not CSV ({error}); fix it, or leave it out") from error
    finally:
        csv.field_size_limit(limit)


def read_parquet(path: Path, field: str, left_out: Counter[str]) -> Iterator[Piece]:
    """A document per row."""
    import pyarrow  # here, because importing it is slow
    import pyarrow.parquet

    try:
        open_regular(path).close()
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            _check_column(path, file.schema_arrow, field)
            per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            batches = file.iter_batches(batch_size=_ROWS, columns=[field])
            yield from _read_batches(path, field, batches, lambda n_rows: n_rows * per_row, left_out)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet ({first_line(error)}); fetch it again") from error


def read_arrow(path: Path, field: str, left_out: Counter[str]) -> Iterator[Piece]:
    """A document per row of an Arrow stream, as `datasets` saves it, or of an Arrow file."""
    import pyarrow

    try:
        open_regular(path).close()
        with pyarrow.OSFile(str(path)) as opened:
            is_file = opened.read(6) == b"ARROW1"
            opened.seek(0)
            reader = pyarrow.ipc.open_file(opened) if is_file else pyarrow.ipc.open_stream(opened)
            _check_column(path, reader.schema, field)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
            told = 0

            def advance(n_rows: int) -> float:
                nonlocal told
                told, before = opened.tell(), told
                return max(0, told - before)

            yield from _read_batches(path, field, batches, advance, left_out)
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read as Arrow ({first_line(error)}); fetch it again") from error


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


# Columns


def _check_column(path: Path, schema: Any, field: str) -> None:
    """Raises InputError unless the column holds texts, or lists of them."""
    import pyarrow

    names = schema.names
    kind = schema.field(field).type if names.count(field) == 1 else None
    inner: Any = kind
    while isinstance(inner, pyarrow.ListType | pyarrow.LargeListType | pyarrow.DictionaryType):
        inner = inner.value_type
    if str(inner) not in ("string", "large_string", "string_view", "binary", "large_binary"):
        raise InputError(
            f"{path}: column {field!r} is {'missing' if kind is None else kind} (it has: {', '.join(names[:8])}); "
            "see --text-field"
        )


def _read_batches(
    path: Path, field: str, batches: Any, advance: Callable[[int], float], left_out: Counter[str]
) -> Iterator[Piece]:
    n_rows = 0
    for batch in batches:
        values = batch.column(batch.schema.get_field_index(field))
        n_read = advance(len(values))
        for part in _decoded(values):
            try:
                texts = [_joined(value) for value in part.to_pylist()]
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{path} rows {n_rows} to {n_rows + len(part) - 1}", error) from error
            n_rows += len(part)
            for text in texts:
                yield from _document(text, left_out, n_read)
                n_read = 0


def _decoded(values: Any) -> Iterator[Any]:
    """A column in parts, without its dictionary, which may name a long text again and again."""
    parts = (values[at : at + _ROWS] for at in range(0, len(values), _ROWS))
    return (part.dictionary_decode() if hasattr(part, "dictionary") else part for part in parts)


def _joined(value: Any) -> str | None:
    """A text, or a list of texts as its lines; bytes are UTF-8."""
    if isinstance(value, list):
        parts = [_joined(part) for part in value]
        return "\n".join(part for part in parts if part is not None) if parts else ""
    return value.decode("utf-8") if isinstance(value, bytes) else value


# JSON


def lines_of(stream: InputStream, path: Path) -> Iterator[bytes]:
    number = 0
    while line := stream.file.readline(MAX_DOCUMENT_BYTES + 1):
        number += 1
        if len(line) > MAX_DOCUMENT_BYTES:
            raise InputError(f"{path}:{number} has more than {MAX_DOCUMENT_BYTES} bytes; it is no JSON lines file")
        yield line


def json_values(stream: InputStream, path: Path) -> Iterator[Any]:
    """The entries of an array, or the values that follow each other, as they come."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    text, at, n_block, is_over, n_bytes = "", 0, BLOCK_BYTES, False, 0

    def more() -> None:
        nonlocal text, at, is_over, n_bytes
        block = stream.file.read(n_block)
        try:
            text, at = text[at:] + utf8.decode(block, final=not block), 0
        except UnicodeDecodeError as error:
            raise _not_utf8(str(path), error, n_bytes) from error
        n_bytes, is_over = n_bytes + len(block), not block
        if len(text) > MAX_DOCUMENT_BYTES:
            raise InputError(f"{path} has a value of more than {MAX_DOCUMENT_BYTES} characters; leave it out")

    def next_char() -> str:
        nonlocal at
        while True:
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            if at < len(text) or is_over:
                return text[at : at + 1]
            more()

    is_array, number = next_char() == "[", 0
    at += is_array
    while (char := next_char()) and not (is_array and char == "]"):
        if is_array and number:
            if char != ",":
                raise InputError(f"{path}[{number}] is not JSON (a comma is missing before it); fix or leave it out")
            at += 1
            next_char()
        n_block = BLOCK_BYTES
        while True:
            try:
                value, end = decoder.raw_decode(text, at)
                if end < len(text) or is_over:  # else more digits may follow
                    break
            except (ValueError, RecursionError) as error:
                if is_over or isinstance(error, RecursionError):
                    reason = first_line(error)
                    raise InputError(f"{path}[{number}] is not JSON ({reason}); fix it, or leave it out") from error
            n_block *= 2  # so that what is read again is in all no more than what is there
            more()
        at, number = end, number + 1
        yield value
    at += is_array
    if is_array and (not char or next_char()):
        problem = "something follows" if char else "it is not closed"
        raise InputError(f"{path} is an array, and {problem}; it was cut short, or is not JSON: fetch it again")


def _text_of(value: Any, field: str, place: str) -> str | None:
    """A document's text: the value itself, or its field; None for null. Lone surrogates, which JSON can spell, become
    U+FFFD."""
    found = value.get(field, 0) if isinstance(value, dict) else value
    if isinstance(value, dict) and isinstance(found, list) and all(isinstance(part, str) for part in found):
        found = "\n".join(found)
    if found is None or isinstance(found, str):
        return found and replace_surrogates(found)
    there = ", ".join(list(value)[:8]) if isinstance(value, dict) else f"a {type(value).__name__}"
    raise InputError(f"{place} has no text in field {field!r} (it has: {there}); see --text-field")


def _document(text: str | None, left_out: Counter[str], n_read: float) -> Iterator[Piece]:
    """Its pieces. Nulls and empty texts are counted."""
    if text:
        yield from split_document(text, n_read)
    else:
        left_out[NULLS if text is None else EMPTIES] += 1


def _not_utf8(place: str, error: UnicodeDecodeError, before: int = 0) -> InputError:
    byte = error.object[error.start]
    return InputError(
        f"{place} is not UTF-8: byte 0x{byte:02x} at offset {before + error.start} ({error.reason}); "
        "convert it (iconv -f LATIN1 -t UTF-8, if that is what it is), or leave it out"
    )
