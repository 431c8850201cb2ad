"""Numbers that change during a run, as functions of the step: learning rate, momentum, weight decay, batch.

Host functions of plain numbers. The loop hands what they give to the compiled step as arrays, so a schedule
never recompiles anything, and torch_ref reads the same ones.
"""

import math

from jaxgpt.config.settings import Config


def is_due(n_done: int, every: int) -> bool:
    """Whether something is done after this many steps that is done every `every`; 0: never."""
    return every > 0 and n_done % every == 0


def stage_index(config: Config, step: int) -> int:
    """Number of the stage that step (from 0) falls into: 0 before the first of train.stages."""
    return sum(stage.from_step <= step for stage in config.train.stages)


def batch_tokens_at(config: Config, step: int) -> int:
    """Tokens of step (from 0), over all devices and microbatches."""
    return config.stage_batch_tokens()[stage_index(config, step)]


def tokens_before(config: Config, step: int) -> int:
    """Tokens of steps 0 .. step - 1 together. A Python int: it does not wrap."""
    starts = [0, *(stage.from_step for stage in config.train.stages)]
    ends = [*starts[1:], step]
    return sum(
        max(min(end, step) - start, 0) * batch_tokens_at(config, start) for start, end in zip(starts, ends, strict=True)
    )


def lr_scale_at(config: Config, step: int) -> float:
    """Learning rate of step (from 0) as a fraction of the peak.

    Cosine is nanoGPT's: warm-up gives step n (n + 1) / (warmup_steps + 1), then half a cosine from 1 to
    min_lr_frac at decay_steps, and min_lr_frac after it. Trapezoid is nanochat's and modded-nanogpt's: warm-up by
    (n + 1) / warmup_steps, flat, then a straight line that would reach min_lr_frac at decay_steps.
    """
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
    return factor * (1 - (1 - low) * warmdown_at(config, step))


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
    """Muon's momentum at step (from 0): a straight line up, flat (modded-nanogpt), and down again (nanochat 2026)."""
    muon = config.optim.muon
    if step < muon.momentum_warmup_steps:
        progress = step / muon.momentum_warmup_steps
        return muon.momentum_start + progress * (muon.momentum - muon.momentum_start)
    if muon.momentum_end < 0:
        return muon.momentum
    return muon.momentum + warmdown_at(config, step) * (muon.momentum_end - muon.momentum)


def decay_scale_at(config: Config, step: int) -> float:
    """Muon's weight decay at step (from 0) as a fraction of the configured one."""
    if config.optim.muon.decay_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(step / config.train.steps, 1.0)))


NO_HYPER = {"lr_scale": 0.0, "momentum": 0.0, "decay_scale": 0.0}
"""Placeholders in the form that `hyper_at` returns: what a step is compiled for."""


def hyper_at(config: Config, step: int) -> dict[str, float]:
    """Inputs of the training step at step (from 0)."""
    return {
        "lr_scale": lr_scale_at(config, step),
        "momentum": momentum_at(config, step),
        "decay_scale": decay_scale_at(config, step),
    }
