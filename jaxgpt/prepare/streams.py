"""The bytes of a text file: decompressed, in UTF-8, without a byte order mark.

What a file is compressed with (gzip, bzip2, xz, zstd) and its encoding (UTF-8; UTF-16 and UTF-32 if they begin with a
byte order mark) are read off its first bytes, whatever its name says. Everything streams. A file that grows without
measure when it is decompressed is refused before it fills anything.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from jaxgpt.errors import InputError
from jaxgpt.files import open_regular

MAX_RATIO = 200
"""Text shrinks to a third, logs to a hundredth; more is no text."""
RATIO_FROM_BYTES = 256 << 20
"""Decompressed size from which on the ratio is looked at."""
BLOCK_BYTES = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which begins it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def _open_zstd(file: BinaryIO) -> Any:
    import pyarrow  # here, because importing it is slow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


_COMPRESSIONS: tuple[tuple[bytes, str, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", "gzip", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", "bzip2", bz2.BZ2File),
    (b"\xfd7zXZ\0", "xz", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", "zstd", _open_zstd),
)


class _Reader(io.RawIOBase):
    """Bytes from a function that returns at most so many as it is asked for, and none at the end."""

    def __init__(self, read: Callable[[int], bytes]):
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class InputStream:
    """A file's text as UTF-8 bytes. A context manager that closes the file.

    Attributes:
      file: the bytes, buffered; reading raises InputError where the file is damaged.
      compression: gzip, bzip2, xz, zstd or nothing.
      encoding: utf-8, utf-16 or utf-32.
      n_mark_bytes: of a byte order mark in front of UTF-8, which is dropped.
    """

    def __init__(self, path: Path):
        """Raises InputError if the file cannot be opened, is no file, or its beginning is damaged."""
        self._path, self._n_out, self._n_told = path, 0, 0
        try:
            self._raw = open_regular(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; check it, or leave it out") from error
        try:
            self._look()
        except BaseException:
            self._raw.close()
            raise

    def _look(self) -> None:
        """Finds out what the file is, and places `file` at its first character."""
        head = self._raw.peek(16)[:16]
        is_bz2 = head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")
        found = [row for row in _COMPRESSIONS if head.startswith(row[0]) and (row[1] != "bzip2" or is_bz2)]
        self.compression = found[0][1] if found else ""
        self._source: Any = found[0][2](self._raw) if found else self._raw
        self.file = self._buffered(self._read)
        head = self.file.peek(4)[:4]
        mark, self.encoding = next(((mark, name) for mark, name in _BOMS if head.startswith(mark)), (b"", "utf-8"))
        self.n_mark_bytes = len(mark) if self.encoding == "utf-8" else 0
        if self.encoding != "utf-8":
            self.file = self._buffered(_Transcoder(self._path, self.file, self.encoding).read)
        self.file.read(self.n_mark_bytes)

    def __enter__(self) -> "InputStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def n_read(self) -> int:
        """Bytes of the file on disk that were read since the last call."""
        n_before, self._n_told = self._n_told, self._raw.tell()
        return self._n_told - n_before

    def _buffered(self, read: Callable[[int], bytes]) -> io.BufferedReader:
        return io.BufferedReader(_Reader(read), BLOCK_BYTES)

    def _read(self, n: int) -> bytes:
        try:
            data = self._source.read(n)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            what = f"decompressed ({self.compression})" if self.compression else "read"
            detail = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{self._path} cannot be {what}: {detail}; fetch it again, or leave it out") from error
        self._n_out += len(data)
        if self.compression and self._n_out > RATIO_FROM_BYTES and self._n_out > MAX_RATIO * self._raw.tell():
            raise InputError(
                f"{self._path} grows more than {MAX_RATIO} times when it is decompressed ({self.compression}); that is "
                "no text: leave it out, or decompress it yourself"
            )
        return data


class _Transcoder:
    """UTF-16 or UTF-32 with its byte order mark, as UTF-8."""

    def __init__(self, path: Path, file: BinaryIO, encoding: str):
        self._path, self._file, self._encoding = path, file, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left, self._n_before = b"", 0

    def read(self, n: int) -> bytes:
        while not self._left:
            block = self._file.read(BLOCK_BYTES)
            n_pending = len(self._decoder.getstate()[0])
            try:
                self._left = self._decoder.decode(block, final=not block).encode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self._path} begins as {self._encoding.upper()} and is not at offset "
                    f"{self._n_before - n_pending + error.start} ({error.reason}); convert it to UTF-8, or leave it out"
                ) from error
            self._n_before += len(block)
            if not block:
                break
        data, self._left = self._left[:n], self._left[n:]
        return data
