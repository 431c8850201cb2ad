"""Saving while a run trains, for both training loops: only good states become checkpoints that replace others."""

import json
import math
from collections.abc import Callable
from typing import Any

from jaxgpt.run.checkpoints import CheckpointDirectory, CheckpointError
from jaxgpt.run.console import console, working
from jaxgpt.run.meter import Diverged, Meter


class Saving:
    """The checkpoints of a training loop.

    Args:
      saved: where they go.
      about: what a checkpoint says of its run (`Run.about`).
      meter: knows which steps were finite, and the losses that spikes are measured by.
      gather_texts: the texts of all processes.
      loss_of: (steps done, parameters) -> their loss on a few rows.
    """

    def __init__(
        self, saved: CheckpointDirectory, about: dict[str, Any], meter: Meter,
        gather_texts: Callable[[str], list[str]], loss_of: Callable[[int, Any], float],
    ):  # fmt: skip
        self._saved, self._about, self._meter = saved, about, meter
        self._gather_texts, self._loss_of = gather_texts, loss_of

    def follow(self) -> None:
        """After each step: reports a save that failed in the background, and lets checkpoints that are good replace
        older ones."""
        try:
            self._saved.raise_if_failed()
        except CheckpointError as error:
            if error.is_final:
                raise
            console.say(error, "red")
        self._saved.confirm(self._meter.good_step)

    def save(self, n_done: int, state: Any, cursors: dict, val_loss: float | None, *, must: bool) -> None:
        """Saves a state that is good, after its step's record. A failure ends the run only if this is its last save;
        else it is a warning.

        A step's loss is that of the parameters before its update, so a state can be finite and give no finite loss:
        its own is computed first.

        Args:
          cursors: where the readers of this process stand.
          val_loss: of these parameters, where an evaluation has just given it.

        Raises:
          Diverged: the last state gives no finite loss; nothing is saved.
        """
        self._meter.report()
        n_skipped = self._meter.n_skipped_in_row
        own_loss = self._loss_of(n_done, state.params) if val_loss is None else val_loss
        fault = ""
        if not math.isfinite(own_loss):
            fault = f"its parameters give a loss of {own_loss}"
        elif n_skipped > (1 if must else 0):  # the last batch alone may be at fault
            fault = f"loss or gradient was not finite for {n_skipped} steps in a row"
        if fault and must:
            raise Diverged(f"checkpoint {n_done} is not saved: {fault}", n_done - n_skipped)
        if fault:
            console.say(f"checkpoint {n_done} is not saved: {fault}", "red")
            return
        about = self._about | self._gather_cursors(cursors) | {"spikes": self._meter.spikes.to_json()}
        try:
            with working(f"saving checkpoint {n_done}"):
                self._saved.save(n_done, state, about, val_loss=val_loss, is_proven=must)
        except CheckpointError as error:
            if error.is_final or (
                must and not error.is_earlier
            ):  # where this one fails too, closing the directory raises that
                raise
            console.say(error, "red")

    def _gather_cursors(self, cursors: dict) -> dict[str, Any]:
        """Where the readers of all processes stand; nothing where batches need none."""
        parts = [json.loads(text) for text in self._gather_texts(json.dumps(cursors))]
        merged = {lane: cursor for part in parts for lane, cursor in part.items()}
        return {"cursors": merged} if merged else {}
