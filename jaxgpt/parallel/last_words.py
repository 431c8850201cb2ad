"""A line for the cases in which XLA aborts the process instead of raising.

It does so where not everybody joined a run, and when the coordination service of a run is gone; from a thread of its
own, where no handler of Python's would run. So this handler is the C library's.
"""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from jaxgpt.errors import EXIT_FAILED


@contextmanager
def last_words(message: str) -> Iterator[None]:
    """Where the process is aborted within the block, it prints the message and ends with exit code 1."""
    line = f"{message}\n".encode()

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_: int) -> None:
        os.write(2, line)
        os._exit(EXIT_FAILED)

    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    before = libc.signal(signal.SIGABRT, ctypes.cast(on_abort, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)
