"""One run directory, one process: a lock that a kill releases."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from jaxgpt.errors import InputError


@contextlib.contextmanager
def lock_run(run_dir: str | Path) -> Iterator[None]:
    """Holds a run directory for this process. Of a run of several processes, number 0 alone calls it.

    The lock is the kernel's (flock on `<run_dir>/lock`), so a killed process leaves none behind. A child that
    was forked, not spawned, inherits it.

    Raises:
      InputError: another process holds it (names its id and host), or the directory cannot be locked.
    """
    path = Path(run_dir) / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise InputError(f"{run_dir} cannot be written: {error}; choose another --run.dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            way_out = "wait for it or choose another --run.dir"
            raise InputError(f"{run_dir} is in use by {owner}; {way_out}") from None
        except OSError as error:
            way_out = "choose another --run.dir"
            raise InputError(f"{run_dir} is on a file system without locks: {error}; {way_out}") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
