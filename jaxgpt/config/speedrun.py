"""modded-nanogpt's speedrun: record 62 as a run, and the table of stages of its records.

A table changes batch, rows, windows, learning rate and targets by thirds of a run.

Source: https://github.com/KellerJordan/modded-nanogpt train_gpt.py (93f0e6b, 25500ab).
"""

import dataclasses

from jaxgpt.config.data import DataConfig
from jaxgpt.config.families import ModdedConfig
from jaxgpt.config.modded_optimizers import MODDED_62
from jaxgpt.config.settings import CheckpointConfig, Config, EvalConfig, SampleConfig, TrainConfig
from jaxgpt.config.stages import StageConfig

BATCH_TOKENS = (131_072, 262_144, 393_216)
"""Of a step, by thirds of the scheduled steps: eight rows."""


def speedrun_62(*, micro_batch_size: int = 1, row_tokens: int = 0, eval_seq_len: int = 262_144) -> Config:
    """Record 62 on fineweb10B: 1,600 steps, 424,673,280 tokens, by rows of 16,384 to 49,152.

    Its eight rows a step are the same whatever number of devices shares them.

    Args:
      micro_batch_size: rows that a device takes at a time.
      row_tokens: of every row; 0: an eighth of the step's batch, as in the record.
      eval_seq_len: tokens of a row of an evaluation; the record has 262,144.
    """
    stages = speedrun_stages(
        scheduled_steps=1560, batch_tokens=BATCH_TOKENS, windows=((3, 7), (5, 11), (6, 13)),
        lr_from=(1 / 3, 2 / 3), lr_scales=(1.52, 1.73), target_weights=((1.0, 0.5), (1.0,)),
    )  # fmt: skip
    if row_tokens:
        stages = tuple(dataclasses.replace(stage, seq_len=0) for stage in stages)
    return Config(
        model=ModdedConfig(record="62", vocab_size=50_304, bos_id=50_256, seq_len=row_tokens or BATCH_TOKENS[0] // 8),
        data=DataConfig(dir="data/fineweb10B", sampling="bos_aligned"),
        train=TrainConfig(
            steps=1600, batch_tokens=BATCH_TOKENS[0], micro_batch_size=micro_batch_size,
            target_weights=(1.0, 0.5, 0.25),
            stages=stages,
        ),
        optim=MODDED_62,
        eval=EvalConfig(
            every=250, tokens=10_485_760, spread=False, seq_len=eval_seq_len, long_window=20 * 128 + 1
        ),
        checkpoint=CheckpointConfig(every=500),
        sample=SampleConfig(every=0),
    )  # fmt: skip


def speedrun_stages(
    *,
    scheduled_steps: int,
    batch_tokens: tuple[int, int, int],
    windows: tuple[tuple[int, int], ...],
    lr_from: tuple[float, float],
    lr_scales: tuple[float, float],
    target_weights: tuple[tuple[float, ...], ...] = (),
    block_tokens: int = 128,
    n_rows: int = 8,
) -> tuple[StageConfig, ...]:
    """The rows after the first of a record's table: thirds of the scheduled steps, then the extension.

    Batch and windows change with the thirds, the learning rate once the part of the run exceeds `lr_from`, which in
    record 62 is a step later and in record 46 several earlier.

    Args:
      windows: (short, long) in blocks to the left of a query: of the second third, of the last, of the extension.
      lr_scales: from the two parts of the run in `lr_from` on.
      target_weights: of the second third and the last; empty: the next token alone throughout.
      n_rows: rows of a step; a row has batch_tokens / n_rows tokens.
    """
    firsts = [next(s for s in range(scheduled_steps) if int(3 * s / scheduled_steps) == third) for third in (1, 2)]
    firsts.append(scheduled_steps)
    changes: dict[int, dict[str, object]] = {}
    for i, (step, (short, long)) in enumerate(zip(firsts, windows, strict=True)):
        changes[step] = {"short_window": block_tokens * short + 1, "long_window": block_tokens * long + 1}
        if i < 2:
            changes[step] |= {"batch_tokens": batch_tokens[i + 1], "seq_len": batch_tokens[i + 1] // n_rows}
            changes[step] |= {"target_weights": target_weights[i]} if target_weights else {}
    for part, scale in zip(lr_from, lr_scales, strict=True):
        step = next(s for s in range(scheduled_steps) if s / scheduled_steps > part)
        changes.setdefault(step, {})["lr_scale"] = scale
    rows, kept = [], {"batch_tokens": batch_tokens[0], "lr_scale": 1.0}
    for step in sorted(changes):
        kept |= {name: value for name, value in changes[step].items() if name in kept}
        rows.append(StageConfig(from_step=step, **{**changes[step], **kept}))  # pyright: ignore[reportArgumentType]
    return tuple(rows)
