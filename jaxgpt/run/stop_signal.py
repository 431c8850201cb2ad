"""Ending a run by a signal, without losing a step: the same for both training loops."""

from collections.abc import Callable

from jaxgpt import signals

BEFORE = signals.Phase("interrupted before the first step; nothing to save")
STEPPING = signals.Phase(
    "finishing this step, then saving a checkpoint; {again} to quit without saving", is_deferred=True
)
SAVING = signals.Phase("the last checkpoint is being saved; {again} to quit without it", is_deferred=True)


class StopSignal:
    """SIGTERM, SIGHUP or Ctrl-C: the first finishes the step and saves, the second quits without saving.

    Several processes must stop at one step: every `every` steps they ask each other by `gather_texts`.
    """

    def __init__(self, every: int, n_processes: int, gather_texts: Callable[[str], list[str]]):
        self._every, self._n_processes, self._gather_texts = every, n_processes, gather_texts

    def is_agreed(self, n_done: int) -> bool:
        """Whether the run ends with this step. All processes must ask at each step."""
        is_set = signals.received() != 0
        if self._n_processes == 1:
            return is_set
        return n_done % self._every == 0 and any(self._gather_texts("stop" if is_set else ""))
