"""The table of a run's stages: what each of its parts does otherwise than the part before.

Stage 0 is the config itself; `train.stages` lists the others. Sizes of the model and target weights stay as they are
until a row changes them. A batch and a learning rate belong to their row alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxgpt.config.section import Section, show
from jaxgpt.errors import require

SIZES = ("seq_len", "short_window", "long_window")
"""Fields of a model that a stage may change: parameters do not depend on them."""


@dataclass(frozen=True)
class StageConfig(Section):
    """A part of the run that differs from what comes before it."""

    PATH: ClassVar = "train.stages: "

    from_step: int
    """First step of the stage; it lasts until the next stage begins."""
    batch_tokens: int = 0
    """Tokens per optimizer step in this stage; 0: train.batch_tokens."""
    lr_scale: float = 1.0
    """Factor on every learning rate in this stage, on top of the schedule; trapezoid: the height that it falls from."""
    seq_len: int = 0
    """Tokens of a row from here on; 0: as before."""
    micro_batch_size: int = 0
    """Rows per device in one forward-backward pass from here on; 0: as before. plan --fit finds the most that fit,
    and train.micro_batch_size=auto sets them."""
    short_window: int = 0
    """The model's short_window from here on; 0: as before."""
    long_window: int = 0
    """The model's long_window from here on; 0: as before."""
    target_weights: tuple[float, ...] = ()
    """train.target_weights at from_step, between rows that have some a straight line; empty: this row has none."""

    def __post_init__(self):
        super().__post_init__()
        require(self.from_step >= 1, f"train.stages: from_step={self.from_step} is below 1; stage 0 is the config")
        require(self.batch_tokens >= 0, f"train.stages: batch_tokens={self.batch_tokens} is negative")
        require(self.lr_scale >= 0, f"train.stages: lr_scale={self.lr_scale} is negative")
        for name in (*SIZES, "micro_batch_size"):
            value = getattr(self, name)
            require(value >= 0, f"train.stages: {name}={value} is negative; 0 keeps that of the stage before")
        if self.target_weights:
            check_target_weights("train.stages: target_weights", self.target_weights)

    def sizes(self) -> dict[str, int]:
        """The sizes of the model that this stage changes, by field."""
        return {name: getattr(self, name) for name in SIZES if getattr(self, name)}


def check_target_weights(name: str, weights: tuple[float, ...]) -> None:
    """Raises InputError unless a loss can be weighted so."""
    require(any(weights), f"{name}={show(weights)} are all zero; (1.0,) predicts the next token")
    require(min(weights) >= 0, f"{name}={show(weights)} has a negative weight; choose 0 or more")
