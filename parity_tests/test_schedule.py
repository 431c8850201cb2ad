"""Schedules against their closed forms, nanoGPT's formula and the tokens they add up to."""

import math

import pytest

from jaxgpt.config import Config, GPT2Config, MuonConfig, OptimConfig, ScheduleConfig, StageConfig, TrainConfig
from jaxgpt.config.schedule import batch_tokens_at, hyper_at, lr_scale_at, momentum_at, tokens_before
from jaxgpt.config.steps import Plan
from jaxgpt.errors import InputError


def make(steps=100, stages=(), **schedule):
    return Config(
        model=GPT2Config(seq_len=8),
        train=TrainConfig(steps=steps, batch_tokens=64, micro_batch_size=8, stages=stages),
        optim=OptimConfig(schedule=ScheduleConfig(**schedule)),
    )


def test_cosine_is_nanogpts():
    config = make(warmup_steps=10, decay_steps=80, min_lr_frac=0.1)
    peak, low = 6e-4, 6e-5
    for it in range(100):
        if it < 10:
            expected = peak * (it + 1) / 11
        elif it > 80:
            expected = low
        else:
            expected = low + 0.5 * (1 + math.cos(math.pi * (it - 10) / 70)) * (peak - low)
        assert lr_scale_at(config, it) * peak == pytest.approx(expected, rel=1e-12)


def test_trapezoid_is_flat_then_straight():
    config = make(kind="trapezoid", warmdown_frac=0.2, min_lr_frac=0.0)
    assert [lr_scale_at(config, step) for step in (0, 79)] == [1.0, 1.0]
    assert lr_scale_at(config, 90) == pytest.approx(0.5)
    assert lr_scale_at(config, 99) == pytest.approx(1 / 20)


def test_constant_and_stage_scale():
    config = make(kind="constant", stages=(StageConfig(from_step=50, lr_scale=0.25),))
    assert lr_scale_at(config, 49) == 1.0
    assert lr_scale_at(config, 50) == 0.25


def test_tokens_before_adds_up_over_stages():
    config = make(stages=(StageConfig(from_step=10, batch_tokens=128), StageConfig(from_step=20, batch_tokens=256)))
    for step in range(40):
        assert tokens_before(config, step) == sum(batch_tokens_at(config, s) for s in range(step))


def test_tokens_do_not_wrap():
    config = make(steps=2**40)
    assert tokens_before(config, 2**40) == 64 * 2**40


def test_momentum_rises_then_stays():
    config = Config(optim=OptimConfig(muon=MuonConfig(momentum_warmup_steps=300)))
    assert momentum_at(config, 0) == 0.85
    assert momentum_at(config, 150) == pytest.approx(0.9)
    assert momentum_at(config, 300) == momentum_at(config, 10_000) == 0.95
    assert set(hyper_at(config, 0)) == {"lr_scale", "momentum", "decay_scale"}


def test_a_plan_counts_stages_and_the_rows_before():
    """Against a loop over the steps; a plan that cannot be is refused when it is made."""
    stages = (StageConfig(from_step=3, batch_tokens=64), StageConfig(from_step=5, lr_scale=0.5))
    config = Config(
        model=GPT2Config(seq_len=8, vocab_size=64),
        train=TrainConfig(steps=8, batch_tokens=32, micro_batch_size=2, stages=stages),
    )
    plan, rows = Plan(config, 2), 0
    for step in range(8):
        planned = plan.at(step)
        stage = 0 if step < 3 else 1 if step < 5 else 2
        n_tokens = (32, 64, 32)[stage]
        assert (planned.stage, planned.rows_before, planned.n_rows) == (stage, rows, 4)
        assert planned.n_micro == n_tokens // 32 and planned.hyper == hyper_at(config, step)
        rows += n_tokens // 8
    with pytest.raises(InputError, match=r"batch_tokens=32 is not a multiple of .* x 3 devices = 48"):
        Plan(config, 3)
