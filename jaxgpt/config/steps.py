"""The plan of a run's steps: the rows, the microbatches and the learning rate of each.

Computed from the complete config and the number of devices; nothing else decides what a step is. A stage is known by
its number: 0 is the config's own, 1 the first of `train.stages`.
"""

from dataclasses import dataclass, field

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
      n_micro: microbatches of a step, by stage.

    Raises:
      InputError: a stage's batch does not divide; names the nearest that does.
    """

    config: Config
    n_devices: int
    n_micro: tuple[int, ...] = field(init=False)

    def __post_init__(self):
        tokens = self.config.stage_batch_tokens()
        counts = tuple(count_microbatches(self.config, n_tokens, self.n_devices) for n_tokens in tokens)
        object.__setattr__(self, "n_micro", counts)

    @property
    def n_steps(self) -> int:
        return self.config.train.steps

    @property
    def n_rows(self) -> int:
        """Rows of a microbatch over all devices; also of an evaluation's batch."""
        return self.config.train.micro_batch_size * self.n_devices

    def at(self, step: int) -> PlannedStep:
        """The step of this number, from 0; steps after the last have its hyperparameters."""
        stage = schedule.stage_index(self.config, step)
        rows_before = schedule.tokens_before(self.config, step) // self.config.model.seq_len
        hyper = schedule.hyper_at(self.config, min(step, self.n_steps - 1))
        return PlannedStep(step, stage, rows_before, self.n_micro[stage], self.n_rows, hyper)
