"""The axes of `jaxgpt bench scaling`: a small GPT-2, and what one setting at a time changes of it. Imports no JAX."""

import dataclasses

from jaxgpt.config import Config, DataConfig, GPT2Config, MeshConfig, OptimConfig, ScheduleConfig, TrainConfig
from jaxgpt.config.derive import derive
from jaxgpt.errors import require

HEAD_DIM = 32
"""Channels of a head at every width, so that a wider model has more heads, not larger ones."""
N_ROWS = 8
"""Rows of a microbatch over all devices."""
N_SIMULATED = 8
"""Devices that a CPU is divided into where --axes has `devices`."""
AXES: dict[str, tuple[int, ...]] = {
    "T": (64, 128, 256, 512, 1024),
    "width": (64, 128, 256, 384, 512),
    "depth": (1, 2, 4, 8, 16),
    "vocabulary": (1024, 4096, 8192, 16384, 32768),
    "microbatches": (1, 2, 4, 8),
    "devices": (1, 2, 4, 8),
}
"""Axis -> its points. Each axis leaves the others where `BASE` has them."""
BASE = {"T": 128, "width": 128, "depth": 2, "vocabulary": 1024, "microbatches": 1, "devices": 1}
MIN_POINTS = 2


def point_config(axis: str, value: int, platform: str = "") -> Config:
    """The complete config of a point: microbatches are added to the batch, devices divide the rows that are there."""
    at = BASE | {axis: value}
    n_tokens = N_ROWS * at["T"] * at["microbatches"]
    config = Config(
        data=DataConfig(dir="none"),
        model=GPT2Config(
            seq_len=at["T"],
            n_layer=at["depth"],
            n_head=at["width"] // HEAD_DIM,
            n_embd=at["width"],
            vocab_size=at["vocabulary"],
        ),
        train=TrainConfig(steps=1000, batch_tokens=n_tokens, micro_batch_size=N_ROWS // at["devices"], dtype="float32"),
        optim=OptimConfig(schedule=ScheduleConfig(warmup_steps=0)),
        mesh=dataclasses.replace(MeshConfig(data=at["devices"]), platform=platform),
    )
    return derive(config).config


def read_axes(text: str) -> list[str]:
    """Names of axes with commas between them, in the order given; all of them for an empty text.

    Raises:
      InputError: one is no axis, or stands there twice.
    """
    names = [name for name in text.split(",") if name] or [*AXES]
    for name in names:
        require(name in AXES, f"--axes={name} is no axis; choose from {','.join(AXES)}")
        require(names.count(name) == 1, f"--axes={text} has {name} twice; name each axis once")
    return names
