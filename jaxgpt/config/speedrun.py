"""The table of stages of modded-nanogpt's records: batch, rows, windows, learning rate and targets by thirds of a run.

Source: https://github.com/KellerJordan/modded-nanogpt train_gpt.py (93f0e6b, 25500ab).
"""

from jaxgpt.config.stages import StageConfig


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
