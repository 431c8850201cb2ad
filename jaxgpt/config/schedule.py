"""Numbers that change during a run, as functions of the step: learning rate, momentum, weight decay, batch.

Host functions of plain numbers. The loop hands what they give to the compiled step as arrays, so a schedule
never recompiles anything, and torch_ref reads the same ones.
"""

import math
from typing import Any

import numpy as np

from jaxgpt.config.settings import Config


def is_due(n_done: int, every: int) -> bool:
    """Whether something is done after this many steps that is done every `every`; 0: never."""
    return every > 0 and n_done % every == 0


def stage_index(config: Config, step: int) -> int:
    """Number of the stage that step (from 0) falls into: 0 before the first of train.stages."""
    return sum(stage.from_step <= step for stage in config.train.stages)


def eval_stage(config: Config, n_done: int) -> int:
    """Which of `Config.eval_models` is evaluated after so many steps: that of the step to come, or the last."""
    return len(config.train.stages) + 1 if n_done >= config.train.steps else stage_index(config, n_done)


def batch_tokens_at(config: Config, step: int) -> int:
    """Tokens of step (from 0), over all devices and microbatches."""
    return config.stage_batch_tokens()[stage_index(config, step)]


def steps_before(config: Config, step: int) -> list[int]:
    """How many of the steps 0 .. step - 1 fall into each stage."""
    starts = [0, *(stage.from_step for stage in config.train.stages)]
    ends = [*starts[1:], step]
    return [max(min(end, step) - start, 0) for start, end in zip(starts, ends, strict=True)]


def tokens_before(config: Config, step: int) -> int:
    """Tokens of steps 0 .. step - 1 together. A Python int: it does not wrap."""
    return sum(n * tokens for n, tokens in zip(steps_before(config, step), config.stage_batch_tokens(), strict=True))


def lr_scale_at(config: Config, step: int) -> float:
    """Learning rate of step (from 0) as a fraction of the peak.

    Cosine is nanoGPT's: warm-up gives step n (n + 1) / (warmup_steps + 1), then half a cosine from 1 to
    min_lr_frac at decay_steps, and min_lr_frac after it. Trapezoid is nanochat's and modded-nanogpt's: warm-up by
    (n + 1) / warmup_steps, flat, then a straight line that would reach min_lr_frac at decay_steps, and min_lr_frac
    after it. A stage's lr_scale is a factor; of a trapezoid it is the height that the line falls from, so that all
    stages end at min_lr_frac. chat.init_lr_frac is a factor on all of it.
    """
    return config.chat.init_lr_frac * _shape_at(config, step)


def _shape_at(config: Config, step: int) -> float:
    schedule = config.optim.schedule
    end = schedule.decay_steps or config.train.steps
    low = schedule.min_lr_frac
    factor = config.stage_lr_scales()[stage_index(config, step)]
    if step < schedule.warmup_steps:
        return factor * (step + 1) / (schedule.warmup_steps + (schedule.kind != "trapezoid"))
    if schedule.kind == "constant":
        return factor
    if schedule.kind == "cosine":
        if step > end:
            return factor * low
        progress = (step - schedule.warmup_steps) / max(end - schedule.warmup_steps, 1)
        return factor * (low + 0.5 * (1 + math.cos(math.pi * progress)) * (1 - low))
    return factor - (factor - low) * warmdown_at(config, step)


def warmdown_at(config: Config, step: int) -> float:
    """Fraction of the trapezoid's descent completed at step (from 0): 0 before it, 1 at its end."""
    schedule = config.optim.schedule
    end = schedule.decay_steps or config.train.steps
    warmdown_steps = round(schedule.warmdown_frac * end)
    begun = step - (end - warmdown_steps)
    if not warmdown_steps:
        return float(step >= end)
    return min(max(begun / warmdown_steps, 0.0), 1.0)


def momentum_at(config: Config, step: int) -> float:
    """Muon's momentum at step (from 0): a straight line up, flat, and down again.

    Down over the learning rate's descent (nanochat 2026), or over the last steps of the run (modded-nanogpt).
    """
    muon = config.optim.muon
    if step < muon.momentum_warmup_steps:
        progress = step / muon.momentum_warmup_steps
        return muon.momentum_start + progress * (muon.momentum - muon.momentum_start)
    if muon.momentum_end < 0:
        return muon.momentum
    progress = warmdown_at(config, step)
    if muon.momentum_cooldown_steps:
        begun = step - (config.train.steps - muon.momentum_cooldown_steps)
        progress = min(max(begun / muon.momentum_cooldown_steps, 0.0), 1.0)
    return muon.momentum + progress * (muon.momentum_end - muon.momentum)


def decay_scale_at(config: Config, step: int) -> float:
    """Muon's weight decay at step (from 0) as a fraction of the configured one."""
    if config.optim.muon.decay_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(step / config.train.steps, 1.0)))


def target_weights_at(config: Config, step: int) -> tuple[float, ...]:
    """Weights of the targets 1, 2, ... tokens ahead at step (from 0); as many throughout a stage.

    A straight line between the rows of the table that have weights, and constant after the last of them. Targets
    that have no weight in a whole stage are left out of it.
    """
    first, last = _ends(config, stage_index(config, step))
    n_targets = max(k for k, weights in enumerate(zip(first, last, strict=True), start=1) if any(weights))
    return _weights_on_line(config, step)[:n_targets]


def is_weighted(config: Config, stage: int) -> bool:
    """Whether a stage predicts more than the next token, or weights it."""
    return any(weights[0] != 1 or any(weights[1:]) for weights in _ends(config, stage))


def _ends(config: Config, stage: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The weights at a stage's first and at its last step: between them is one straight line."""
    starts = [0, *(stage.from_step for stage in config.train.stages), config.train.steps]
    return _weights_on_line(config, starts[stage]), _weights_on_line(config, max(starts[stage + 1] - 1, starts[stage]))


def _weights_on_line(config: Config, step: int) -> tuple[float, ...]:
    rows = [(0, config.train.target_weights)]
    rows += [(stage.from_step, stage.target_weights) for stage in config.train.stages if stage.target_weights]
    n_targets = max(len(weights) for _, weights in rows)
    points = [(start, weights + (0.0,) * (n_targets - len(weights))) for start, weights in rows]
    begin, before = max(point for point in points if point[0] <= step)
    end, after = min((point for point in points if point[0] > step), default=(begin + 1, before))
    progress = (step - begin) / (end - begin)
    return tuple(a + (b - a) * progress if a != b else a for a, b in zip(before, after, strict=True))


NO_HYPER: dict[str, Any] = {"lr_scale": 0.0, "momentum": 0.0, "decay_scale": 0.0}
"""Placeholders in the form that `hyper_at` returns where no target is weighted: what a step is compiled for."""


def hyper_at(config: Config, step: int) -> dict[str, Any]:
    """Inputs of the training step at step (from 0).

    target_weights, one for each target and rounded to float32, is among them where the stage `is_weighted`.
    """
    hyper: dict[str, Any] = {
        "lr_scale": lr_scale_at(config, step),
        "momentum": momentum_at(config, step),
        "decay_scale": decay_scale_at(config, step),
    }
    if is_weighted(config, stage_index(config, step)):
        hyper["target_weights"] = np.asarray(target_weights_at(config, step), np.float32).tolist()
    return hyper
