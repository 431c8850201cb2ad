"""How fast a run's steps follow each other: says when one is slow, when data are late, and what hangs.

Measured around the feed, so it costs a step two readings of the clock. The watchdog is faulthandler's, a C thread that
writes the stacks of all threads even where one of them holds the interpreter; another thread sets it again and again
while steps are made.
"""

import faulthandler
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TypeVar

from jaxgpt.files import open_in_place

T = TypeVar("T")


def stacks_path(run_dir: Path, index: int) -> Path:
    """Where process `index` of a run writes its stacks."""
    return run_dir / ("stacks.txt" if index == 0 else f"stacks.{index}.txt")


SLOW = 3.0
"""A step is slow that takes so many times the median."""
LEAST_S = 0.5
"""And that loses at least this: milliseconds are nobody's concern."""
WINDOW = 100
"""Steps of the median, and of the time spent waiting for data."""
LATE = 0.2
"""Share of the time that may be spent waiting for data."""
FIRST_PAUSE_S = 60.0
"""Between two warnings of a kind; doubled each time."""


class Pace:
    """Watches the steps of a training loop.

    Args:
      watchdog_s: write the stacks when no step ends for so long; 0: never.
      stacks: where to.
      say: receives a line.
    """

    def __init__(self, watchdog_s: float, stacks: Path, say: Callable[[str], None]):
        self._watchdog_s, self._stacks, self._say = watchdog_s, stacks, say
        self._n_steps, self._is_counted = 0, False
        self._times_s: deque[float] = deque(maxlen=WINDOW)
        self._waits_s: deque[float] = deque(maxlen=WINDOW)
        self._said: dict[str, tuple[float, float]] = {}

    def skip(self) -> None:
        """The step under way does not count: an evaluation or a save is in it."""
        self._is_counted = False

    def watch(self, feed: Generator[T, None, None], *, is_ahead: bool = True) -> Generator[T, None, None]:
        """The feed itself. Closing it closes that one.

        Args:
          is_ahead: whether it works ahead, so that its time is time spent waiting for data.
        """
        is_over = threading.Event()
        dog = threading.Thread(target=self._guard, args=(is_over,), name="watchdog", daemon=True)
        if self._watchdog_s:
            dog.start()
        try:
            began = time.perf_counter()
            while True:
                asked = time.perf_counter()
                item = next(feed, None)
                now = time.perf_counter()
                if item is None:
                    return
                if self._is_counted:
                    self._count(now - began, now - asked if is_ahead else 0.0)
                began, self._is_counted = now, True
                self._n_steps += 1
                yield item
        finally:
            is_over.set()
            if self._watchdog_s:
                dog.join()
            feed.close()

    def _count(self, step_s: float, wait_s: float) -> None:
        if step_s > LEAST_S and len(self._times_s) >= 10:
            usual_s = median(self._times_s)
            if step_s > max(SLOW * usual_s, usual_s + LEAST_S):
                data = f", {wait_s:.1f} s of it waiting for data" if wait_s > LEAST_S else ""
                self._warn("slow", f"step {self._n_steps} took {step_s:.1f} s{data}; the median is {usual_s:.3g} s")
        self._times_s.append(step_s)
        self._waits_s.append(wait_s)
        if self._n_steps % WINDOW == 0 and len(self._times_s) == WINDOW:
            total_s, waited_s = sum(self._times_s), sum(self._waits_s)
            if waited_s > max(LATE * total_s, LEAST_S):
                self._warn(
                    "late",
                    f"{waited_s / total_s:.0%} of the last {WINDOW} steps' time was spent waiting for data; "
                    "use more tokenizer threads, a faster disk, or token shards",
                )

    def _warn(self, kind: str, message: str) -> None:
        now = time.monotonic()
        next_s, pause_s = self._said.get(kind, (0.0, FIRST_PAUSE_S))
        if now >= next_s:
            self._said[kind] = (now + pause_s, 2 * pause_s)
            self._say(message)

    def _guard(self, is_over: threading.Event) -> None:
        """The thread that keeps the watchdog quiet while steps are made, and tells when it was not."""
        with suppress(OSError), open_in_place(self._stacks) as file:  # no file, no watchdog; the run goes on
            file.truncate(0)
            seen, began, is_told = -1, 0.0, False
            period_s = min(5.0, self._watchdog_s / 10)
            while True:
                now = time.monotonic()
                if seen != self._n_steps:
                    seen, began, is_told = self._n_steps, now, False
                    faulthandler.dump_traceback_later(self._watchdog_s, file=file)
                elif now - began > self._watchdog_s + 2 * period_s and not is_told:
                    is_told = True
                    self._say(
                        f"step {seen} takes longer than train.watchdog_s={self._watchdog_s:g}; "
                        f"what each thread is doing is in {self._stacks}"
                    )
                if is_over.wait(period_s):
                    break
            faulthandler.cancel_dump_traceback_later()
            if os.fstat(file.fileno()).st_size == 0:
                self._stacks.unlink()
