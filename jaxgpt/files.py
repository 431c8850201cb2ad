"""Files that are written completely or not at all, locks that a kill releases, and reading that never hangs.

A run's directory may come from someone else. What is written into it never goes through a link that lies there.
"""

import contextlib
import errno
import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO

from jaxgpt.errors import InputError

LOCK_POLL_S = 0.2


def open_regular(path: str | Path) -> BufferedReader:
    """Opens a regular file for reading. Any path from outside may name a pipe, which waits forever, or a device.

    Raises:
      OSError: it cannot be opened, or is something else; strerror says what.
    """
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}

    def refuse(mode: int) -> None:
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory, not a file", str(path))
        if not stat.S_ISREG(mode):
            kind = kinds.get(stat.S_IFMT(mode), "something else")
            raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))

    refuse(os.stat(path).st_mode)  # before opening: to open a device can already do something
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        refuse(os.fstat(fd).st_mode)  # the name may mean another file by now
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_bounded(path: str | Path, limit_bytes: int) -> bytes:
    """All of a regular file of at most so many bytes.

    Raises:
      OSError: as `open_regular`; or the file is larger, and strerror says so.
    """
    with open_regular(path) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"it has more than {limit_bytes} bytes", str(path))
    return content


def open_in_place(path: str | Path) -> IO[str]:
    """Opens a file for reading and appending, made if it does not exist. What lies there and is none is removed: a
    link, which may lead to a file of someone else, a pipe, or a device.

    Raises:
      OSError: it cannot be opened; IsADirectoryError where it is a directory.
    """
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        os.unlink(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.fdopen(os.open(path, flags, 0o666), "a+", encoding="utf-8")


def refuse_link(path: Path, advice: str) -> None:
    """Raises InputError where a directory that is to be written is a link to another one."""
    if path.is_symlink():
        raise InputError(f"{path} is a symbolic link to {os.readlink(path)}, and is not written through; {advice}")


def flush_to_disk(file: IO) -> None:
    """Returns when what was written to the file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Returns when the names in the directory are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_in_place(file: IO, path: Path) -> None:
    """Flushes a complete temporary file to the disk, closes it, and renames it to `path`."""
    flush_to_disk(file)
    file.close()
    os.replace(file.name, path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file in one step: a kill at any instant leaves the old content or the new, never a part.

    Where writing fails, the old file stays and no temporary file remains. Several processes and threads may write the
    same path; the last one to finish wins. A kill can leave `<name>.<number>.tmp`.
    """
    partial = path.with_name(f"{path.name}.{threading.get_native_id()}.tmp")
    try:
        partial.unlink(missing_ok=True)  # of a killed process with this number
        with open(partial, "xb") as file:  # x: not through a link
            file.write(content.encode() if isinstance(content, str) else content)
            put_in_place(file, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def wait_for_lock(file: IO[str], why: str) -> None:
    """`take_lock`, after waiting for another process that holds it; stderr says so once.

    Args:
      why: what the other process does, for the line, such as "reads the same location".

    Raises:
      OSError, ImportError: there are no locks.
    """
    has_said = False
    while True:
        try:
            return take_lock(file)
        except BlockingIOError as owner:
            if not has_said:
                print(f"waiting for {owner}, which {why}", file=sys.stderr, flush=True)
            has_said = True
            time.sleep(LOCK_POLL_S)


def take_lock(file: IO[str]) -> None:
    """Locks a file, opened with mode a+, until it is closed, and writes this process's id and host into it.

    The lock is the kernel's (flock), so a killed process leaves none behind. A child that was forked, not spawned,
    inherits it.

    Raises:
      BlockingIOError: another process holds it; its message names that process.
      OSError: the file system has no locks.
      ImportError: the operating system has none (Windows).
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise BlockingIOError(file.read().strip() or "another process") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
    file.flush()


@contextlib.contextmanager
def lock_run(run_dir: str | Path) -> Iterator[None]:
    """Holds a run directory for this process, by `<run_dir>/lock`. Called by process 0 only.

    Raises:
      InputError: another process holds it (names its id and host), or the directory cannot be locked.
    """
    path = Path(run_dir) / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_in_place(path)
    except OSError as error:
        raise InputError(f"{run_dir} cannot be written: {error}; choose another --run.dir") from error
    with file:
        try:
            take_lock(file)
        except BlockingIOError as owner:
            raise InputError(f"{run_dir} is in use by {owner}; wait for it or choose another --run.dir") from None
        except OSError as error:
            advice = "choose another --run.dir"
            raise InputError(f"{run_dir} is on a file system without locks: {error}; {advice}") from error
        try:
            yield
        finally:
            file.truncate(0)


_LOCATION = re.compile(r"[a-z][a-z0-9+.-]*://")


def is_location(text: str) -> bool:
    """Whether a path is at an object store (`jaxgpt.stores`), or looks so, and not on this machine's disks."""
    return bool(_LOCATION.match(text))


def user_location(text: str, name: str = "path") -> str:
    """As `user_path`; locations at an object store, such as s3://bucket/x, are accepted too.

    file:///x is the path /x.

    Raises:
      InputError: as `user_path`; or file:// is not followed by an absolute path.
    """
    if text.startswith("file://"):
        path = text.removeprefix("file://").removeprefix("localhost")
        if not path.startswith("/"):
            raise InputError(f"{name}={text} names no absolute path; write file:///path, or a plain path")
        text = path
    path = os.path.expanduser(text)
    if any(ord(character) < 32 for character in path):
        raise InputError(f"{name}={text!r} holds a control character; choose another path")
    if path.startswith("~"):
        user = path.partition("/")[0]
        raise InputError(f"{name}={text}: {user} has no home directory here; a name that begins so is written ./{text}")
    return path


def user_path(text: str, name: str = "path") -> str:
    """A path as a user wrote it, with `~` and `~user` replaced by the home directory.

    A shell replaces them only where a word begins with them, so not in --run.dir=~/x.

    Args:
      name: of the setting, for messages.

    Raises:
      InputError: it names a user that does not exist, or holds a control character, as no path of a run should; or it
        is at an object store.
    """
    path = user_location(text, name)
    if is_location(path):
        raise InputError(f"{name}={text} is not on this machine; copy it here, and give the path of the copy")
    return path


def user_file(text: str) -> Path:
    """`user_path` for command lines that read paths as such."""
    return Path(user_path(text))
