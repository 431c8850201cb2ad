"""Writing shards of tokens, which `shards` reads: a file has its name only when it is complete and on the disk."""

import os
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from jaxgpt.data.digests import sha256_of
from jaxgpt.data.shards import DTYPES, HEADER_BYTES, LLMC_MAGIC, MAGIC, VERSION
from jaxgpt.files import put_in_place

Format = Literal["jaxgpt", "llmc"]
"""llmc: the header of llm.c and modded-nanogpt, for uint16 and fewer than 2**31 tokens."""


def _header(n_tokens: int, dtype: np.dtype, file_format: Format = "jaxgpt") -> bytes:
    words = np.zeros(HEADER_BYTES // 4, "<u4")
    if file_format == "llmc":
        words[:3] = LLMC_MAGIC, VERSION, n_tokens
    else:
        words[:5] = MAGIC, VERSION, n_tokens & 0xFFFFFFFF, n_tokens >> 32, dtype.itemsize
    return words.tobytes()


def _complete(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Moves a complete temporary file into place, and returns its entry for the manifest."""
    size = file.tell()
    put_in_place(file, path)
    return {"name": path.name, "sha256": sha256_of(path), "size_bytes": size}


def write_shard(path: Path, tokens: np.ndarray, file_format: Format = "jaxgpt") -> dict[str, Any]:
    """Writes uint16 or uint32 tokens [n] as one shard; the name appears when the file is complete.

    Returns:
      The shard's entry in a manifest: name, n_tokens, sha256, size_bytes.
    """
    assert path.suffix == ".bin", path
    writer = ShardWriter(path.parent, path.stem, tokens.dtype, max(len(tokens), 1), file_format, numbered=False)
    try:
        writer.write(tokens)
        return writer.close()[0]
    finally:
        writer.abandon()


class ShardWriter:
    """Writes one split as a stream: <split>_000000.bin and on, a new file every `shard_tokens`."""

    def __init__(
        self,
        directory: Path,
        split: str,
        dtype: np.dtype,
        shard_tokens: int,
        file_format: Format = "jaxgpt",
        *,
        numbered: bool = True,
    ):
        assert np.dtype(dtype).itemsize in DTYPES and np.dtype(dtype).kind == "u", dtype
        assert shard_tokens >= 1, shard_tokens
        assert file_format == "jaxgpt" or (np.dtype(dtype).itemsize == 2 and shard_tokens < 2**31), (
            dtype,
            shard_tokens,
        )
        self._format: Format = file_format
        self._directory, self._split, self._numbered = Path(directory), split, numbered
        self._dtype, self._shard_tokens = np.dtype(dtype).newbyteorder("<"), shard_tokens
        self._entries: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._n_in_file = 0
        self.n_tokens = 0

    def write(self, tokens: np.ndarray) -> None:
        """Appends ids, which the dtype must hold."""
        assert not len(tokens) or int(tokens.max()) <= np.iinfo(self._dtype).max, "ids do not fit the dtype"
        while len(tokens):
            file = self._file or self._begin()
            part = tokens[: self._shard_tokens - self._n_in_file]
            file.write(part.astype(self._dtype, copy=False).tobytes())
            self._n_in_file += len(part)
            self.n_tokens += len(part)
            tokens = tokens[len(part) :]
            if self._n_in_file == self._shard_tokens:
                self._finish()

    def close(self) -> list[dict[str, Any]]:
        """Completes the last file and returns the manifest's entries."""
        if self._file or not self._entries:
            self._file = self._file or self._begin()
            self._finish()
        return self._entries

    def abandon(self) -> None:
        """Removes the file that is not complete, if there is one."""
        if self._file:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)
            self._file = None

    def _path(self) -> Path:
        number = f"_{len(self._entries):06d}" if self._numbered else ""
        return self._directory / f"{self._split}{number}.bin"

    def _begin(self) -> BinaryIO:
        self._file = open(f"{self._path()}.tmp", "wb")  # noqa: SIM115 - closed by _complete or abandon
        self._file.write(bytes(HEADER_BYTES))
        self._n_in_file = 0
        return self._file

    def _finish(self) -> None:
        file, path = self._file, self._path()
        assert file is not None
        file.seek(0)
        file.write(_header(self._n_in_file, self._dtype, self._format))
        file.seek(0, os.SEEK_END)
        entry = {"n_tokens": self._n_in_file, **_complete(file, path)}
        self._entries.append(entry if self._format == "jaxgpt" else {**entry, "format": self._format})
        self._file = None
