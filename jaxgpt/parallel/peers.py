"""The other processes of a run: texts from them before any device works, and what happens when one of them dies.

Every process writes a sign of life into the run's coordination service and reads the others'. One that has not written
for hosts.timeout_s counts as dead: it is named, and this process leaves at once, without the barriers at which JAX
would wait for the dead. One that fails by itself writes why. Checkpoints are committed by a rename, so the last one
stays valid.
"""

import contextlib
import functools
import itertools
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax._src import distributed

from jaxgpt.config import HostsConfig
from jaxgpt.errors import EXIT_FAILED, Failure, InputError, run_verb
from jaxgpt.parallel.hosts import JOIN_TIMEOUT_S, start_hosts
from jaxgpt.parallel.last_words import last_words

ALIVE, ENDED, TEXTS = "jaxgpt/alive/", "jaxgpt/ended/", "jaxgpt/texts/"
"""Keys in the coordination service; the process's number follows."""
_exchanges = itertools.count()
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
    place = f"{TEXTS}{next(_exchanges)}/"
    _service().key_value_set(f"{place}{distributed.global_state.process_id}", text)
    texts = []
    for index in range(n_processes):
        try:
            texts.append(_service().blocking_key_value_get(f"{place}{index}", JOIN_TIMEOUT_S * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise Failure(f"process {index} joined, but did not go on within {JOIN_TIMEOUT_S} s") from error
    return texts


@contextmanager
def with_peers(config: HostsConfig, platform: str) -> Iterator[None]:
    """Joins the processes of the run, and watches them until the block ends; nothing where there is one process.

    Whatever ends the block early is printed in one line, and the process leaves at once with the code of that.
    """
    with last_words(
        f"failed: not all processes joined within {JOIN_TIMEOUT_S} s; start them all, with one hosts.coordinator"
    ):
        start_hosts(config, platform)
    if distributed.global_state.num_processes == 1:
        yield
        return
    watch = _Watch(config.timeout_s)
    with last_words(f"failed: process 0 or the connection to it is gone; {RESUME}"):
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
        self.beat_s = min(2.0, timeout_s / 8)
        """Between signs of life."""
        self._timeout_s, self._done = timeout_s, threading.Event()
        self._index, self._n_processes = distributed.global_state.process_id, distributed.global_state.num_processes
        self._n_beats = 0
        self._seen: dict[int, tuple[str, float]] = {}
        """Process -> its last sign of life, and when it came."""

    def run(self) -> None:
        self.find_silent(self._timeout_s)
        while not self._done.wait(self.beat_s):
            if dead := self.find_silent(self._timeout_s):
                _end(Failure(f"{dead} gave no sign of life for {self._timeout_s} s; {RESUME}"), self)
            if words := self._read_last_words():
                _end(Failure(f"{words}; {RESUME}"), self)

    def stop(self) -> None:
        self._done.set()

    def _read_last_words(self) -> str:
        """What a process wrote that ended by itself; empty: none did."""
        try:
            ended = _service().key_value_dir_get(ENDED)
        except jax.errors.JaxRuntimeError:
            return ""
        return next((f"process {key.rpartition('/')[2]} ended: {words}" for key, words in ended), "")

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
        deadline = time.monotonic() + 5 * self.beat_s
        while time.monotonic() < deadline:
            time.sleep(self.beat_s / 4)
            if dead := self.find_silent(3 * self.beat_s):
                return dead
        return ""


def _leave(error: BaseException, watch: _Watch) -> None:
    """Ends this process for what its main thread raised; or for a peer's death, where that was the cause."""
    watch.stop()
    if not isinstance(error, InputError | KeyboardInterrupt | SystemExit) and (dead := watch.name_dead()):
        error = Failure(f"{dead} died while this process waited for it; {RESUME}")
    _end(error, watch)


def _end(error: BaseException, watch: _Watch) -> None:
    """Prints an error as a verb does, and ends this process with all its threads.

    Process 0 holds the coordination service, without which the others abort: it leaves after they have read why.
    """
    watch.stop()
    code: Any = EXIT_FAILED
    try:
        run_verb(functools.partial(_raise, error))
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        _service().key_value_set(f"{ENDED}{distributed.global_state.process_id}", first_line, allow_overwrite=True)
    if distributed.global_state.process_id == 0:
        time.sleep(2 * watch.beat_s)
    os._exit(code if isinstance(code, int) else EXIT_FAILED)


def _raise(error: BaseException, _: list[str]) -> int:
    raise error
