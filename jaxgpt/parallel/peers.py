"""The other processes of a run: texts from them before any device works, and what happens when one of them dies.

Every process writes a sign of life into the run's coordination service and reads the others'. One that has not written
for hosts.timeout_s counts as dead: it is named, and this process leaves at once, without the barriers at which JAX would
wait for the dead. Checkpoints are committed by a rename, so the last one stays valid.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax._src import distributed

from jaxgpt.config import HostsConfig
from jaxgpt.errors import EXIT_FAILED, Failure, run_verb
from jaxgpt.parallel.hosts import JOIN_TIMEOUT_S, start_hosts

ALIVE, TEXTS = "jaxgpt/alive/", "jaxgpt/texts/"
"""Keys in the coordination service; the process's number follows."""
BEATS = 8
"""Signs of life within hosts.timeout_s."""
RESUME = "the last checkpoint is intact; start all processes again with --resume"


def _service() -> Any:
    """The coordination service's client, which JAX has no public name for."""
    return distributed.global_state.client


def exchange_texts(text: str) -> list[str]:
    """The texts of all processes, in their order, without a device. All must call it.

    Raises:
      Failure: a process did not send its text in time; names it.
    """
    n_processes = distributed.global_state.num_processes
    if n_processes == 1:
        return [text]
    _service().key_value_set(f"{TEXTS}{distributed.global_state.process_id}", text)
    texts = []
    for index in range(n_processes):
        try:
            texts.append(_service().blocking_key_value_get(f"{TEXTS}{index}", JOIN_TIMEOUT_S * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise Failure(f"process {index} joined, but did not go on within {JOIN_TIMEOUT_S} s") from error
    return texts


@contextmanager
def with_peers(config: HostsConfig, platform: str) -> Iterator[None]:
    """Joins the processes of the run, and watches them until the block ends; nothing where there is one process.

    Whatever ends the block early is printed in one line, and the process leaves at once with the code of that.
    """
    with _last_words(f"not all processes joined within {JOIN_TIMEOUT_S} s; start them all, with one hosts.coordinator"):
        start_hosts(config, platform)
    if distributed.global_state.num_processes == 1:
        yield
        return
    watch = _Watch(config.timeout_s)
    with _last_words(f"process 0 or the connection to it is gone; {RESUME}"):
        watch.start()
        try:
            yield
        except BaseException as error:
            _leave(error, watch)
        watch.stop()


class _Watch(threading.Thread):
    """Says that this process lives, and sees whether the others do."""

    def __init__(self, timeout_s: float):
        super().__init__(name="peers", daemon=True)
        self._timeout_s, self._done = timeout_s, threading.Event()
        self._index, self._n_processes = distributed.global_state.process_id, distributed.global_state.num_processes
        self._n_beats = 0
        self._seen: dict[int, tuple[str, float]] = {}
        """Process -> its last sign of life, and when it came."""

    def run(self) -> None:
        while not self._done.wait(self._timeout_s / BEATS):
            if dead := self.find_silent(self._timeout_s):
                _end(lambda dead=dead: _fail(f"{dead} gave no sign of life for {self._timeout_s} s; {RESUME}"))

    def stop(self) -> None:
        self._done.set()
        self.join()

    def find_silent(self, limit_s: float) -> str:
        """A process that has been silent for so long, in words; empty: none."""
        now = time.monotonic()
        try:
            self._n_beats += 1
            sign = f"{self._n_beats} on {socket.gethostname()}"
            _service().key_value_set(f"{ALIVE}{self._index}", sign, allow_overwrite=True)
            signs = {int(key.rpartition("/")[2]): sign for key, sign in _service().key_value_dir_get(ALIVE)}
        except jax.errors.JaxRuntimeError:
            signs = {}
        for index in range(self._n_processes):
            sign, since = self._seen.get(index, ("", now))
            self._seen[index] = (signs.get(index, sign), since if signs.get(index, sign) == sign else now)
        silent = [index for index, (_, since) in self._seen.items() if now - since > limit_s and index != self._index]
        if not silent:
            return ""
        host = self._seen[silent[0]][0].partition(" on ")[2]
        return f"process {silent[0]}" + (f" on {host}" if host else "")

    def name_dead(self) -> str:
        """The process whose end broke a collective, in words: it is the one that falls silent."""
        beat_s = self._timeout_s / BEATS
        deadline = time.monotonic() + 4 * beat_s
        while time.monotonic() < deadline:
            time.sleep(beat_s / 4)
            if dead := self.find_silent(2 * beat_s):
                return dead
        return "another process"


def _leave(error: BaseException, watch: _Watch) -> None:
    if isinstance(error, jax.errors.JaxRuntimeError):
        first_line = str(error).splitlines()[0][:200]
        dead = watch.name_dead()
        _end(lambda: _fail(f"{dead} ended while this one trained ({first_line}); {RESUME}"))
    _end(lambda: _reraise(error))


def _fail(message: str) -> int:
    raise Failure(message)


def _reraise(error: BaseException) -> int:
    raise error


def _end(fail: Callable[[], int]) -> None:
    """Prints what `fail` raises as a verb does, and ends this process and all its threads.

    Process 0 holds the coordination service, without which the others abort: it leaves last.
    """
    code: Any = EXIT_FAILED
    try:
        run_verb(lambda _: fail())
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if distributed.global_state.process_id == 0:
        time.sleep(1)
    os._exit(code if isinstance(code, int) else EXIT_FAILED)


@contextmanager
def _last_words(message: str) -> Iterator[None]:
    """Where XLA aborts this process within the block, it ends with this line and exit code 1.

    XLA aborts, from a thread of its own, when the coordination service is gone or not everybody joined. No handler of
    Python's would run then, so this is the C library's.
    """
    line = f"failed: {message}\n".encode()

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
