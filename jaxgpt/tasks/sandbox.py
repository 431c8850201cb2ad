"""Runs Python that a model wrote in a process that may do almost nothing, and ends it whole.

    run = run_python("assert 1 + 1 == 2")
    run.is_good

The process gets an empty environment, no stdin, a temporary directory, limits on time, memory, files and output, and no
network. Where the kernel permits (Linux: Landlock, seccomp, namespaces), it can read nothing but Python and the
system's libraries, write nothing outside its directory, and start or signal no process. What the kernel does not permit
is named in `Run.missing`; without `allow_unconfined` such a run is refused before the code starts. sandbox_child.py is
the inside.

It is no virtual machine: a fault of the kernel is a way out. And code that is written to deceive its judge can, since
it shares a process with the tests.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jaxgpt.errors import Failure, InputError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_POLL_S = 0.02
_ENTRY_BYTES = 4096
"""What an empty file counts, so that their number is bounded too."""
_SHOWN_BYTES = 16 << 10
_READ_BYTES = 64 << 10


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      wall_s: seconds until it is killed.
      memory_bytes: of address space.
      output_bytes: of stdout, and of stderr; also of each file that it writes.
      disk_bytes: of all files in its directory.
    """

    wall_s: float = 5.0
    memory_bytes: int = 256 << 20
    output_bytes: int = 4 << 20
    disk_bytes: int = 32 << 20
    n_files: int = 64
    n_processes: int = 64

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value <= 0:
                raise InputError(f"sandbox limit {name}={value} is not above 0; choose a positive one")


@dataclass(frozen=True)
class Run:
    """What became of a program.

    Attributes:
      is_good: it ran to its last line and ended with code 0.
      stdout, stderr: the last 16 KiB of each.
      ended: "done", "exit" (before its last line), "error", "time", "memory", "disk", or "signal N".
      missing: protection -> why this machine does not give it.
    """

    is_good: bool
    stdout: str
    stderr: str
    ended: str
    missing: dict[str, str]

    @property
    def error(self) -> str:
        """The last line of stderr, such as "AssertionError"."""
        return (self.stderr.strip().splitlines() or [""])[-1]


def run_python(code: str, limits: Limits | None = None, *, allow_unconfined: bool = False) -> Run:
    """Runs a program. May be called from any thread, several at a time.

    Args:
      allow_unconfined: run it also where a protection is missing; `Run.missing` names it.

    Raises:
      Failure: the sandbox cannot be set up; or a protection is missing, and `allow_unconfined` is not set.
    """
    limits = limits or Limits()
    try:
        content = code.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no source file holds
        return Run(False, "", f"SyntaxError: {error}", "error", {})
    with (
        tempfile.TemporaryDirectory(prefix="jaxgpt-sandbox-", ignore_cleanup_errors=True) as directory,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        Path(directory, "program.py").write_bytes(content)
        return _run_in(Path(directory), limits, stdout, stderr, allow_unconfined)


def _run_in(directory: Path, limits: Limits, stdout: IO[bytes], stderr: IO[bytes], allow_unconfined: bool) -> Run:
    told = {
        "cpu_s": int(limits.wall_s) + 1, "memory_bytes": limits.memory_bytes, "file_bytes": limits.output_bytes,
        "n_files": limits.n_files, "n_processes": limits.n_processes,
        "required": not allow_unconfined,
    }  # fmt: skip
    read_end, write_end = os.pipe()
    try:
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD), str(write_end), json.dumps(told)],
            cwd=directory, env={}, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, pass_fds=(write_end,),
            start_new_session=True,
        ) as process:  # fmt: skip
            os.close(write_end)
            write_end = -1
            try:
                ended = _wait(process, directory, limits)
            finally:
                _end(process)
        report = _read_ready(read_end)
    except OSError as error:
        raise Failure(f"the sandbox cannot be started: {error}; free memory or processes") from error
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
    head, _, tail = report.partition(b"\n")
    try:
        missing = {name: reason for name, reason in json.loads(head).items() if reason}
    except ValueError as error:
        reason = _tail(stderr).strip().splitlines() or [ended or f"code {process.returncode}"]
        if ended == "time":
            return Run(False, "", "the interpreter did not start in time", "time", {})
        raise Failure(f"the sandbox cannot be set up: {reason[-1]}; check {sys.executable}") from error
    if missing and not allow_unconfined:
        names = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise Failure(
            f"this machine cannot confine a program ({names}), so none was run; use Linux 5.13 or later outside a "
            "container that forbids it, or allow unconfined programs"
        )
    text = _tail(stderr)
    is_good = not ended and process.returncode == 0 and tail == b"done"
    return Run(is_good, _tail(stdout), text, ended or _name_end(process.returncode, tail, text), missing)


def _wait(process: subprocess.Popen[bytes], directory: Path, limits: Limits) -> str:
    """Waits for the end of the process, or for a limit that it passed: its name."""
    end_s = time.monotonic() + limits.wall_s
    while True:
        try:
            process.wait(_POLL_S)
            return ""
        except subprocess.TimeoutExpired:
            if time.monotonic() > end_s:
                return "time"
            if _disk_bytes(directory) > limits.disk_bytes:
                return "disk"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the whole session. What left it (possible only without the filter of system calls) shares no terminal."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _disk_bytes(directory: Path) -> int:
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += max(entry.stat(follow_symlinks=False).st_size, _ENTRY_BYTES)
    return total


def _read_ready(fd: int) -> bytes:
    """What was written into a pipe; never waits, though a process that escaped may hold its other end."""
    content = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while len(content) < _READ_BYTES and selector.select(0):
            block = os.read(fd, _READ_BYTES)
            if not block:
                break
            content += block
    return content


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _SHOWN_BYTES))
    return file.read(_SHOWN_BYTES).decode(errors="replace")


def _name_end(code: int, tail: bytes, stderr: str) -> str:
    if code < 0:
        return "time" if -code in (signal.SIGXCPU, signal.SIGKILL) else f"signal {-code}"
    if code == 0:
        return "done" if tail == b"done" else "exit"
    return "memory" if stderr.rstrip().rpartition("\n")[2].startswith("MemoryError") else "error"
