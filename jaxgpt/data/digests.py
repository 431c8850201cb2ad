"""SHA-256 of files, remembered, so that large data are hashed once.

A digest is kept in ~/.cache/jaxgpt/digests.json (XDG_CACHE_HOME counts), with the file's size, times and inode, and
holds as long as these stay the same. Where that file cannot be read or written, files are hashed each time. What a disk
changes by itself changes no time: `again` reads everything.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from jaxgpt.errors import InputError
from jaxgpt.files import open_regular, read_bounded, write_atomically

BLOCK_BYTES = 8 << 20
PROGRESS_S = 10.0
"""What takes longer says so on stderr, at this interval."""
_RACY_NS = 2_000_000_000
"""A file changed less than this before it was hashed may change again within one tick of its clock: not remembered."""
_MEMORY_LIMIT_BYTES = 64 << 20
_MEMORY_FILES = 100_000
_THREADS = 8


def sha256_of(path: Path, progress: Callable[[int], None] = lambda n_bytes: None) -> str:
    """SHA-256 (hex) of a file. `progress` is called with the bytes of each block; its exceptions end the reading."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def hash_files(paths: Sequence[Path], *, again: bool = False) -> dict[Path, str]:
    """SHA-256 (hex) of each file, from memory where it did not change since it was hashed.

    Args:
      again: reads all of them.

    Raises:
      InputError: a file cannot be read.
    """
    memory = {} if again else _recall()
    known, states = {}, {}
    for path in paths:
        states[path] = _state(path)
        entry = memory.get(os.path.realpath(path))
        if isinstance(entry, list) and entry[:-1] == states[path] and isinstance(entry[-1], str):
            known[path] = entry[-1]
    left = [path for path in paths if path not in known]
    began_ns = time.time_ns()
    known |= _hash_together(left)
    _remember(
        {
            os.path.realpath(path): [*states[path], known[path]]
            for path in left
            if max(states[path][1:3]) < began_ns - _RACY_NS and _state(path) == states[path]
        }
    )
    return {path: known[path] for path in paths}


def require_digest(path: Path, found: str, wanted: str, manifest: str) -> None:
    """Raises InputError unless a file has the SHA-256 that its manifest says."""
    if found != wanted:
        raise InputError(
            f"shard {path} has SHA-256 {found[:16]}..., {manifest} says {wanted[:16]}...; "
            "it changed since it was prepared: restore it, or prepare again"
        )


def _state(path: Path) -> list[int]:
    """What differs when a file is another one: size, times of its content and of its entry, inode."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read: {error.strerror or error}; restore it, or check its permissions")


class _Stopped(Exception):
    """The reader is no longer wanted."""


def _hash_together(paths: list[Path]) -> dict[Path, str]:
    n_total, n_read, stopped = sum(_state(path)[0] for path in paths), 0, threading.Event()
    lock = threading.Lock()

    def advance(n_bytes: int) -> None:
        nonlocal n_read
        if stopped.is_set():
            raise _Stopped
        with lock:
            n_read += n_bytes

    def read(path: Path) -> str:
        try:
            return sha256_of(path, advance)
        except OSError as error:
            raise _unreadable(path, error) from error

    if not paths:
        return {}
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1, len(paths))) as pool:
        futures = [pool.submit(read, path) for path in paths]
        try:
            while wait(futures, PROGRESS_S).not_done:
                line = f"checking {n_total / 1e9:,.1f} GB in {paths[0].parent}: {n_read / max(n_total, 1):.0%}"
                with contextlib.suppress(OSError, ValueError):  # nobody may be reading it
                    print(line, file=sys.stderr, flush=True)
            return {path: future.result() for path, future in zip(paths, futures, strict=True)}
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _memory_path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jaxgpt", "digests.json")


def _recall() -> dict[str, Any]:
    """real path -> [*_state, SHA-256]; empty where nothing can be read."""
    try:
        values = json.loads(read_bounded(_memory_path(), _MEMORY_LIMIT_BYTES))
    except (OSError, ValueError, RuntimeError, RecursionError):  # RuntimeError: there is no home directory
        return {}
    return values if isinstance(values, dict) else {}


def _remember(new: dict[str, list[Any]]) -> None:
    """Keeps the digests that were hashed last. Several processes may do so; what one of them loses is hashed again."""
    if not new:
        return
    kept = {path: entry for path, entry in _recall().items() if path not in new} | new
    with contextlib.suppress(OSError, RuntimeError, UnicodeError):
        _memory_path().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_memory_path(), json.dumps(dict(list(kept.items())[-_MEMORY_FILES:]), indent=0))
