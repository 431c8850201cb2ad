"""Reads a running step's metrics one step late, times them, and writes the records.

Step n is dispatched before the metrics of step n - 1 are read, so the device never waits for the console. Nothing
here knows a framework: a metric is whatever `float()` takes.
"""

import time
from collections.abc import Callable, Sequence

from jaxgpt.config import Config, schedule
from jaxgpt.config.flops import flops_per_token, mfu
from jaxgpt.run.bar import Progress
from jaxgpt.run.history import History
from jaxgpt.run.metrics import MetricsFile, describe, describe_parts
from jaxgpt.run.sinks import Sinks
from jaxgpt.run.spikes import Spikes


class Diverged(RuntimeError):
    """Too many steps in a row were not finite, and none of them was applied; or the last state gives no finite loss.

    Attributes:
      n_done: after so many steps the state was what gives no finite step; skipped ones did not change it.
    """

    def __init__(self, message: str, n_done: int):
        super().__init__(message)
        self.n_done = n_done


class Meter:
    """From (step, metrics) to records in metrics.jsonl, on the sinks, the progress bar and the console."""

    LINE_EVERY_S = 10.0
    """Without a bar a step is printed after so long, whether or not it is due for a record."""

    def __init__(
        self, config: Config, device_kind: str, n_devices: int,
        progress: Progress, files: Sequence[MetricsFile | Sinks | History], say: Callable[[str], None],
    ):  # fmt: skip
        self._config, self._progress, self._files, self._say = config, progress, files, say
        self._flops_per_token = [flops_per_token(model) for model in config.stage_models()]
        self._device = (device_kind, n_devices, config.train.dtype)
        self._pending = None
        self._record: dict = {}
        self.n_skipped = 0
        """Steps of this process that were not finite, and so changed nothing."""
        self._said_at_s = time.perf_counter()
        self.n_skipped_in_row = 0
        """Steps that were not finite, up to the one that was read last."""
        self.spike_step = 0
        """The last step that began a loss spike; 0: none did."""
        self._is_new_spike = False
        self.good_step = -1
        """The last step that was finite: so was all that it began with."""
        self.spikes = Spikes(config.train.spike_window, config.train.spike_sigmas)
        self.resume()

    def push(self, n_done: int, metrics: dict) -> None:
        """Takes over the metrics of the step just dispatched; reads and reports those of the step before."""
        previous, self._pending = self._pending, (n_done, metrics)
        if previous:
            self._read(*previous)
            self._report(is_due=previous[0] % self._config.log.every == 0)

    def take_spike(self) -> bool:
        """Whether a spike began since this was last asked."""
        is_new, self._is_new_spike = self._is_new_spike, False
        return is_new

    def settle(self) -> None:
        """Waits for the step last dispatched. Its record is open for `add` until `report` or `resume`."""
        if self._pending:
            self._read(*self._pending)
            self._pending = None

    def add(self, **values: float | None) -> None:
        """More to say about the settled step, such as val_loss."""
        self._record |= values

    def report(self) -> None:
        """Writes the settled step's record if it is due. Before a save: no checkpoint may be ahead of the records."""
        if self._record:
            n_done = self._record["step"]
            self._report(is_due=n_done % self._config.log.every == 0 or "val_loss" in self._record)

    def resume(self) -> None:
        """Reports what is not reported yet, and starts the clock again: the time since `settle` is not training."""
        self.report()
        self._clock = self._clock_before = time.perf_counter()
        self._n_tokens = self._n_tokens_before = 0

    def _read(self, n_done: int, metrics: dict) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._n_tokens += schedule.batch_tokens_at(self._config, n_done - 1)
        n_tokens = self._n_tokens_before + self._n_tokens
        tokens_per_s = n_tokens / max(time.perf_counter() - self._clock_before, 1e-9)
        flops_per_s = tokens_per_s * self._flops_per_token[schedule.stage_index(self._config, n_done - 1)]
        self.n_skipped_in_row = n_skipped_in_row = int(values.pop("n_skipped_in_row"))
        self.good_step = n_done if n_skipped_in_row == 0 else self.good_step
        self._record = {
            "step": n_done,
            "train_loss": values.pop("loss"),
            "lr": self._config.optim.lr * schedule.lr_scale_at(self._config, n_done - 1),
            "tokens": schedule.tokens_before(self._config, n_done),
            "tokens_per_s": tokens_per_s,
            "mfu": mfu(flops_per_s, *self._device),
            "n_skipped": int(values.pop("n_skipped")),
            **values,
        }
        self.n_skipped += n_skipped_in_row > 0
        self._progress.advance(n_done, describe_parts(self._record))
        if n_skipped_in_row >= self._config.train.max_skips:
            self._report(is_due=True)
            raise Diverged(
                f"loss or gradient was not finite for train.max_skips={n_skipped_in_row} steps in a row, "
                f"the last of them step {n_done}",
                n_done - n_skipped_in_row,
            )
        if (usual := self.spikes.check(self._record["train_loss"])) is not None:
            self.spike_step, self._is_new_spike = n_done, True
            self._say(
                f"step {n_done} begins a loss spike: {self._record['train_loss']:.4f}, where the median of the last "
                f"train.spike_window={self._config.train.spike_window} steps is {usual:.4f}"
            )

    def _report(self, *, is_due: bool) -> None:
        record, self._record = self._record, {}
        is_overdue = time.perf_counter() - self._said_at_s >= self.LINE_EVERY_S
        if (is_due and "val_loss" in record) or (not self._progress.is_shown and (is_due or is_overdue)):
            self._said_at_s = time.perf_counter()
            self._say(describe(record))
        if not is_due:
            return
        for file in self._files:
            file.write(record)
        # Speed is over the last two records: a device that works while the host waits has the next step done at once.
        self._clock_before, self._clock = self._clock, time.perf_counter()
        self._n_tokens_before, self._n_tokens = self._n_tokens, 0
