"""The plan of a run's steps: the rows, the microbatches and the learning rate of each.

Computed from the complete config and the number of devices; nothing else decides what a step is. A stage is known by
its number: 0 is the config's own, 1 the first of `train.stages`.
"""

from dataclasses import dataclass
from functools import cached_property

from jaxgpt.config import schedule
from jaxgpt.config.settings import Config, count_microbatches


@dataclass(frozen=True)
class PlannedStep:
    """One optimizer step.

    Attributes:
      step: from 0.
      stage: number of the stage that it belongs to.
      rows_before: rows of all earlier steps together.
      n_micro: microbatches.
      n_rows: rows of a microbatch, over all devices.
      hyper: what the schedules give, by name.
    """

    step: int
    stage: int
    rows_before: int
    n_micro: int
    n_rows: int
    hyper: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """All steps of a run.

    Attributes:
      config: complete.
      n_devices: that split the rows of a batch between them.
    """

    config: Config
    n_devices: int

    @property
    def n_steps(self) -> int:
        return self.config.train.steps

    @property
    def n_rows(self) -> int:
        """Rows of a microbatch over all devices; also of an evaluation's batch."""
        return self.config.train.micro_batch_size * self.n_devices

    @cached_property
    def n_micro(self) -> tuple[int, ...]:
        """Microbatches of a step, by stage.

        Raises:
          InputError: a stage's batch does not divide; names the nearest that does.
        """
        tokens = self.config.stage_batch_tokens()
        return tuple(count_microbatches(self.config, n_tokens, self.n_devices) for n_tokens in tokens)

    def at(self, step: int) -> PlannedStep:
        """The step of this number, from 0; steps after the last have its hyperparameters."""
        stage = schedule.stage_index(self.config, step)
        rows_before = schedule.tokens_before(self.config, step) // self.config.model.seq_len
        hyper = schedule.hyper_at(self.config, min(step, self.n_steps - 1))
        return PlannedStep(step, stage, rows_before, self.n_micro[stage], self.n_rows, hyper)
