"""The plan of a run's steps: the rows, the microbatches and the learning rate of each.

Computed from the complete config and the number of devices; nothing else decides what a step is. A stage is known by
its number: 0 is the config's own, 1 the first of `train.stages`.
"""

from dataclasses import dataclass, field
from typing import Any

from jaxgpt.config import schedule
from jaxgpt.config.auto import refuse_open
from jaxgpt.config.settings import Config, count_microbatches


@dataclass(frozen=True)
class PlannedStep:
    """One optimizer step.

    Attributes:
      step: from 0.
      stage: number of the stage that it belongs to.
      rows_before: rows of all earlier steps together.
      tokens_before: their tokens.
      n_micro: microbatches.
      n_rows: rows of a microbatch, over all devices.
      seq_len: tokens of a row.
      hyper: what the schedules give, by name.
    """

    step: int
    stage: int
    rows_before: int
    tokens_before: int
    n_micro: int
    n_rows: int
    seq_len: int
    hyper: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """All steps of a run.

    Attributes:
      config: complete.
      n_devices: that split the rows of a batch between them.
      n_micro: microbatches of a step, by stage.
      n_rows: rows of a microbatch over all devices, by stage.
      seq_lens: tokens of a row, by stage.

    Raises:
      InputError: a stage's batch does not divide; names the nearest that does.
    """

    config: Config
    n_devices: int
    n_micro: tuple[int, ...] = field(init=False)
    n_rows: tuple[int, ...] = field(init=False)
    seq_lens: tuple[int, ...] = field(init=False)

    def __post_init__(self):
        refuse_open(self.config, "this command")
        seq_lens = tuple(self.config.stage_seq_lens())
        counts = tuple(count_microbatches(self.config, stage, self.n_devices) for stage in range(len(seq_lens)))
        object.__setattr__(self, "n_micro", counts)
        object.__setattr__(self, "n_rows", tuple(rows * self.n_devices for rows in self.config.stage_rows()))
        object.__setattr__(self, "seq_lens", seq_lens)

    @property
    def n_steps(self) -> int:
        return self.config.train.steps

    @property
    def n_eval_rows(self) -> int:
        """Rows of an evaluation's batch over all devices."""
        return min(self.n_rows)

    def first_step(self, stage: int) -> int:
        """The step that a stage begins with."""
        return self.config.train.stages[stage - 1].from_step if stage else 0

    def first_alike(self, stage: int) -> int:
        """The first stage whose compiled step serves this one too: same model, microbatches and targets."""
        models = self.config.stage_models()
        kinds = [
            (model, n_micro, n_rows, len(schedule.hyper_at(self.config, self.first_step(i)).get("target_weights", ())))
            for i, (model, n_micro, n_rows) in enumerate(zip(models, self.n_micro, self.n_rows, strict=True))
        ]
        return kinds.index(kinds[stage])

    def at(self, step: int) -> PlannedStep:
        """The step of this number, from 0; steps after the last have its hyperparameters."""
        stage = schedule.stage_index(self.config, step)
        steps = schedule.steps_before(self.config, step)
        rows_before = sum(
            n * n_micro * n_rows for n, n_micro, n_rows in zip(steps, self.n_micro, self.n_rows, strict=True)
        )
        return PlannedStep(
            step=step,
            stage=stage,
            rows_before=rows_before,
            tokens_before=schedule.tokens_before(self.config, step),
            n_micro=self.n_micro[stage],
            n_rows=self.n_rows[stage],
            seq_len=self.seq_lens[stage],
            hyper=schedule.hyper_at(self.config, min(step, self.n_steps - 1)),
        )

    def eval_stage(self, n_done: int) -> int:
        """Which of `Config.eval_models` is evaluated after so many steps: that of the step to come, or the last."""
        return schedule.eval_stage(self.config, n_done)
