"""Ending a run by a signal, without losing a step: the same for both training loops."""

import os
import signal
from collections.abc import Callable

from jaxgpt.run.console import console


class StopSignal:
    """SIGTERM or Ctrl-C: the first finishes the step and saves, the second quits without saving.

    Several processes must stop at one step: every `every` steps they ask each other by `gather_texts`.
    """

    def __init__(self, every: int, n_processes: int, gather_texts: Callable[[str], list[str]]):
        self._every, self._n_processes, self._gather_texts = every, n_processes, gather_texts
        self._is_set = False

    def __enter__(self) -> "StopSignal":
        self._before = {n: signal.signal(n, self._receive) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _frame) -> None:
        if self._is_set:
            os._exit(128 + number)
        self._is_set = True
        again = "press again" if number == signal.SIGINT else "send it again"
        name = signal.Signals(number).name
        console.print(
            f"{name}: finishing this step, then saving a checkpoint; {again} to quit without saving", soft_wrap=True
        )

    def is_agreed(self, n_done: int) -> bool:
        """Whether the run ends with this step. All processes must ask at each step."""
        if self._n_processes == 1:
            return self._is_set
        return n_done % self._every == 0 and any(self._gather_texts("stop" if self._is_set else ""))
