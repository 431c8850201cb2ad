"""metrics.jsonl: one JSON object per logged step, floats at full precision, flushed at once.

It is a record, not a part of the state: whatever happens to the file, training continues. A number that JSON does not
know (NaN, Infinity) is null, and `non_finite` names it with its value. `read_metrics` gives it back.
"""

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxgpt.files import write_atomically

MAX_WAITING = 10_000
"""Lines that are kept in memory while the file cannot be written."""


class MetricsFile:
    """metrics.jsonl of a run directory, truncated to `first_step` when a run resumes from there, and emptied where it
    begins at 0: RL logs that step too.

    A line that cannot be written is reported once, kept in memory, and written when that becomes possible. A file that
    is deleted meanwhile is written again. What is no regular file (a link, a pipe, a directory) is renamed to
    metrics.jsonl.bad, and lines of an old file that are damaged go there.

    Args:
      warn: called with one line.
    """

    def __init__(self, path: Path, first_step: int, warn: Callable[[str], None]):
        self._path, self._first_step, self._warn = path, first_step, warn
        self._fd: int | None = None
        self._waiting: list[bytes] = []
        self._n_lost, self._has_failed, self._has_moved_bad = 0, False, False
        self._flush()

    def write(self, record: dict[str, Any]) -> None:
        self._waiting.append((dump(record) + "\n").encode())
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[0]
            self._n_lost += 1
        self._flush()

    def close(self) -> None:
        self._flush()
        if self._waiting:
            self._warn(f"{self._path} lacks the last {len(self._waiting) + self._n_lost} records")
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _flush(self) -> None:
        try:
            if self._fd is None:
                self._begin()
            elif not self._is_in_place():
                self._restore()
            while self._waiting:
                self._append(self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            if not self._has_failed:
                self._warn(f"{self._path} cannot be written ({error.strerror}); training continues, records wait")
            self._has_failed = True
        else:
            if self._has_failed:
                self._warn(
                    f"{self._path} can be written again" + (f"; {self._n_lost} records are lost" * bool(self._n_lost))
                )
            self._has_failed, self._n_lost = False, 0

    def _begin(self) -> None:
        """Opens the file with the good lines up to the first step."""
        kept = b""
        self._set_aside_what_is_no_file()
        if os.path.lexists(self._path):
            lines, bad = read_lines(self._path)
            if bad and not self._has_moved_bad:
                aside = _free_name(self._path)
                write_atomically(aside, b"".join(line + b"\n" for line in bad.values()))
                self._has_moved_bad = True
                self._warn(f"{describe_bad(self._path, bad)}, moved to {aside.name}")
            last = self._first_step or -1
            kept = b"".join(line + b"\n" for line, record in lines if record["step"] <= last)
        write_atomically(self._path, kept)
        self._fd = _open(self._path)

    def _set_aside_what_is_no_file(self) -> None:
        if os.path.lexists(self._path) and not _is_regular(self._path):
            aside = _free_name(self._path)
            os.rename(self._path, aside)
            self._warn(f"{self._path} is not a regular file; renamed to {aside.name}")

    def _is_in_place(self) -> bool:
        assert self._fd is not None
        try:
            named, opened = os.lstat(self._path), os.fstat(self._fd)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)

    def _restore(self) -> None:
        """The name is gone, or another file has it: writes the lines again, or continues in the other file."""
        assert self._fd is not None
        self._set_aside_what_is_no_file()
        if not os.path.lexists(self._path):
            content = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
            write_atomically(self._path, content)
            self._warn(f"{self._path} was deleted or renamed; written again")
        fd = _open(self._path)
        os.close(self._fd)
        self._fd = fd

    def _append(self, line: bytes) -> None:
        """Writes all of a line or nothing."""
        assert self._fd is not None
        size = os.fstat(self._fd).st_size
        n_written = 0
        try:
            while n_written < len(line):
                n_written += os.write(self._fd, line[n_written:])
        except OSError:
            if n_written:
                os.ftruncate(self._fd, size)
            raise


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode)


def _open(path: Path) -> int:
    """Opens a regular file to append to; waits for nothing and follows no link."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is not a regular file")
    return fd


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.bad{number or ''}") for number in range(10**6))
    return next(name for name in names if not os.path.lexists(name))


def dump(record: dict[str, Any]) -> str:
    """A record as strict JSON."""
    odd = {name: str(value) for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
    strict = {name: None if name in odd else value for name, value in record.items()}
    return json.dumps(strict | ({"non_finite": odd} if odd else {}), allow_nan=False)


def load(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it is none. Lines of older versions, with NaN in them, are read too."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    odd = record.pop("non_finite", {})
    if not isinstance(odd, dict) or any(value not in ("nan", "inf", "-inf") for value in odd.values()):
        return None
    return record | {name: float(value) for name, value in odd.items()}


def read_lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], dict[int, bytes]]:
    """The good lines with their records, and the bad ones by number, from 1.

    Raises:
      OSError: the file cannot be read, or is not a regular file.
    """
    fd = _open_to_read(path)
    with os.fdopen(fd, "rb") as file:
        content = file.read()
    good, bad = [], {}
    lines = content.split(b"\n")
    for number, line in enumerate(lines if lines[-1] else lines[:-1], 1):
        record = load(line)
        if record is None:
            bad[number] = line
        else:
            good.append((line, record))
    return good, bad


def _open_to_read(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is not a regular file", str(path))
    return fd


def describe_bad(path: Path, bad: dict[int, bytes]) -> str:
    """Which lines of a file are damaged, in words."""
    numbers = ", ".join(map(str, list(bad)[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    return f"{path}: line{'s' * (len(bad) > 1)} {numbers} damaged"


def read_metrics(path: Path, warn: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; damaged lines, such as a last one that a kill cut short, are left out.

    Args:
      warn: called with a line about the damaged ones.

    Raises:
      OSError: the file cannot be read, or is not a regular file.
    """
    good, bad = read_lines(path)
    if bad and warn:
        warn(f"{describe_bad(path, bad)}, left out")
    return [record for _, record in good]


def describe(record: dict[str, Any]) -> str:
    """A record as one console line."""
    return "  ".join([f"step {record['step']}", *describe_parts(record).values()])


def describe_parts(record: dict[str, Any]) -> dict[str, str]:
    """The figures of a record in words, by name."""
    parts = {"loss": f"loss {record['train_loss']:.4f}"}
    if record.get("val_loss") is not None:
        bits = record.get("val_bits_per_byte")
        parts["val"] = f"val {record['val_loss']:.4f}" + (f" ({bits:.4f} bits/byte)" if bits is not None else "")
    if "reward" in record:
        parts["reward"] = f"reward {record['reward']:.3f}"
    if "pass_at_1" in record:
        parts["pass"] = f"pass@1 {record['pass_at_1']:.3f}"
    if "chat_core" in record:
        parts["chat_core"] = f"ChatCORE {record['chat_core']:.4f}"
    parts["lr"] = f"lr {record['lr']:.2e}"
    parts["speed"] = f"{record['tokens_per_s'] / 1e3:,.1f}K tok/s"
    if record.get("mfu") is not None:
        parts["mfu"] = f"MFU {record['mfu']:.1%}"
    if record.get("n_skipped"):
        parts["skipped"] = f"skipped {record['n_skipped']}"
    return parts
