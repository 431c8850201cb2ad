"""Tables of stages: the schedules of the speedrun's records, to the digests of the originals' own code."""

import dataclasses
import hashlib

import pytest

from jaxgpt.config import (
    Config,
    DataConfig,
    EvalConfig,
    GPT2Config,
    MeshConfig,
    MuonConfig,
    NanochatConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
    from_dict,
    load,
    speedrun_stages,
    to_dict,
    to_source,
)
from jaxgpt.config import schedule as schedules
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.config.steps import Plan
from jaxgpt.errors import InputError
from jaxgpt.prepare.smoke import shrink

BLOCK = 128
MOMENTUM = MuonConfig(momentum_warmup_steps=300, momentum_end=0.85, momentum_cooldown_steps=50)


@dataclasses.dataclass(frozen=True)
class LongWindows(NanochatConfig):
    """nanochat with a long window of its own: sizes of which a table of stages can change all."""

    long_window: int = 0


def record(steps, warmdown_end, stages, weights=(1.0,)):
    model = LongWindows(seq_len=131_072 // 8, short_window=BLOCK + 1, vocab_size=50_304)
    train = TrainConfig(steps=steps, batch_tokens=131_072, micro_batch_size=1, stages=stages, target_weights=weights)
    rate = ScheduleConfig(kind="trapezoid", decay_steps=warmdown_end, warmdown_frac=0.55, min_lr_frac=0.1)
    return Config(
        model=dataclasses.replace(model, long_window=3 * BLOCK + 1),  # pyright: ignore[reportArgumentType]
        train=train, optim=OptimConfig(algorithm="muon", schedule=rate, muon=MOMENTUM, grad_divisor=8),
        data=DataConfig(sampling="sequential"), eval=EvalConfig(seq_len=262_144, long_window=20 * BLOCK + 1),
    )  # fmt: skip


SIZES = {"batch_tokens": (131_072, 262_144, 393_216), "windows": ((3, 7), (5, 11), (6, 13))}
RECORD_62 = record(
    1600, 1560,
    speedrun_stages(
        scheduled_steps=1560, lr_from=(1 / 3, 2 / 3), lr_scales=(1.52, 1.73), target_weights=((1.0, 0.5), (1.0,)),
        **SIZES,
    ),
    (1.0, 0.5, 0.25),
)  # fmt: skip
RECORD_46 = record(
    2160, 2120, speedrun_stages(scheduled_steps=2120, lr_from=(0.33, 0.66), lr_scales=(1.51, 1.93), **SIZES)
)
TRACK_3 = Config(
    model=NanochatConfig(seq_len=1024, vocab_size=50_304),
    train=TrainConfig(steps=3250, batch_tokens=524_288, micro_batch_size=64),
    optim=OptimConfig(
        algorithm="muon", grad_divisor=1,
        schedule=ScheduleConfig(kind="trapezoid", warmdown_frac=0.7, min_lr_frac=0.0),
    ),
)  # fmt: skip


def lines_of(config):
    """`step tokens short long m mu w0,...` of all steps and of the validation after them."""
    plan, models = Plan(config, 1), config.stage_models()
    for step in range(config.train.steps + 1):
        planned, hyper = plan.at(step), schedules.hyper_at(config, step)
        model = models[planned.stage]
        windows = " ".join(f"{(getattr(model, name) - 1) // BLOCK}" for name in ("short_window", "long_window"))
        weights = ",".join(f"{w:.9e}" for w in schedules.target_weights_at(config, step))
        n_tokens = planned.n_micro * planned.n_rows * planned.seq_len
        yield f"{step} {n_tokens} {windows} {hyper['lr_scale']:.9e} {hyper['momentum']:.9e} {weights}\n"


def sha256(lines):
    return hashlib.sha256("".join(lines).encode()).hexdigest()


DIGESTS = {
    "62": (
        RECORD_62, "335cb2f1e372f40acfc7fc43926f018709e77cbe49bf6bd811cbe3b788e07698",
        1528.8372727272654, 1502.5, 2055.375, 424_673_280,
    ),
    "46": (
        RECORD_46, "a6945e969d3b6953c94ee70cbfebf39d96fd649d62ede722af0003786c0f7172",
        2120.370025728982, 2034.5, 2160.0, 571_342_848,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIGESTS)
def test_the_schedules_of_a_record_are_the_originals(name):
    config, digest, rates, momenta, weights, n_tokens = DIGESTS[name]
    lines, steps = list(lines_of(config)), range(config.train.steps)
    assert sha256(lines) == digest, lines[:2]
    hypers = [schedules.hyper_at(config, step) for step in steps]
    assert sum(hyper["lr_scale"] for hyper in hypers) == pytest.approx(rates, rel=1e-12)
    assert sum(hyper["momentum"] for hyper in hypers) == pytest.approx(momenta, rel=1e-12)
    assert sum(sum(schedules.target_weights_at(config, step)) for step in steps) == pytest.approx(weights, rel=1e-12)
    assert Plan(config, 1).at(config.train.steps).tokens_before == n_tokens
    assert schedules.tokens_before(config, config.train.steps) == n_tokens


def test_the_learning_rate_of_track_3_is_the_originals():
    rates = [schedules.lr_scale_at(TRACK_3, step) for step in range(3250)]
    digest = "5a88b4df3695e30ccc2e96a06c59053bfa118c57e1daf96fe61077a4e8d1d0b2"
    assert sha256(f"{step} {rate:.9e}\n" for step, rate in enumerate(rates)) == digest
    assert sum(rates) == pytest.approx(2113.0, rel=1e-12)


def test_the_learning_rate_of_record_62_lags_the_batch_by_a_step():
    plan = Plan(RECORD_62, 1)
    for step, tokens, rate in ((520, 262_144, 1.0), (521, 262_144, 1.52), (1040, 393_216, 0.9606060606060607),
                               (1041, 393_216, 1.0859790209790208), (1560, 393_216, 0.1)):  # fmt: skip
        planned = plan.at(step)
        assert (planned.n_micro, planned.n_rows * planned.seq_len * 8) == (8, tokens)
        assert planned.hyper["lr_scale"] == pytest.approx(rate, rel=1e-14)


def test_weights_are_rounded_to_float32_and_as_many_throughout_a_stage():
    """In a stage with the next token alone there are none, so that its step is that of any other run."""
    by_stage = {}
    for step in range(1600):
        weights = schedules.hyper_at(RECORD_62, step).get("target_weights", [])
        by_stage.setdefault(schedules.stage_index(RECORD_62, step), set()).add(len(weights))
    assert by_stage == {0: {3}, 1: {2}, 2: {2}, 3: {0}, 4: {0}, 5: {0}}
    assert schedules.hyper_at(RECORD_62, 1)["target_weights"] == [1.0, 0.5, 0.24951922893524170]
    assert "target_weights" not in schedules.hyper_at(RECORD_46, 0)


def test_evaluations_see_the_stage_to_come_and_the_last_one_wider_windows():
    models, plan = RECORD_62.eval_models(), Plan(RECORD_62, 1)
    assert [plan.eval_stage(n) for n in (0, 519, 520, 521, 1559, 1560, 1599, 1600)] == [0, 0, 1, 2, 4, 5, 5, 6]
    assert [(getattr(model, "long_window", 0) - 1) // BLOCK for model in models] == [3, 7, 7, 11, 11, 13, 20]
    assert {model.seq_len for model in models} == {262_144}
    assert isinstance(models[6], LongWindows) and models[6].short_window == 6 * BLOCK + 1


SMALL = NanochatConfig(depth=2, seq_len=16, short_window=5, window_pattern="SL", vocab_size=64)
GPT2 = GPT2Config(seq_len=16, vocab_size=64)


@pytest.mark.parametrize(
    ("model", "stages", "more", "message"),
    [
        (GPT2, [{"seq_len": 32}], {}, "train.stages: seq_len=32 is above model.seq_len=16, for which model.f"),
        (GPT2, [], {"eval": EvalConfig(seq_len=32)}, "eval.seq_len=32 is above model.seq_len=16"),
        (GPT2, [{"short_window": 4}], {}, "train.stages: short_window=4 has no model.short_window to change in"),
        (SMALL, [{"long_window": 4}], {}, "train.stages: long_window=4 has no model.long_window to change in"),
        (SMALL, [], {"eval": EvalConfig(long_window=9)}, "eval.long_window=9 has no model.long_window to change in"),
        (SMALL, [{"seq_len": 24}], {}, "train.stages: from_step=3: batch_tokens=64 is not a multiple of "
         "train.micro_batch_size=2 x seq_len=24 x 1 device = 48; nearest: 48, 96"),
        (SMALL, [{"seq_len": 32}], {"data": DataConfig(sampling="best_fit")}, "train.stages: seq_len=32 differs from "
         "model.seq_len=16, but data.sampling=best_fit packs rows of one length"),
        (SMALL, [], {"eval": EvalConfig(spread=False), "data": DataConfig(sampling="best_fit")},
         "eval.spread=False does not apply to data.sampling=best_fit"),
    ],
    ids=["longer_than_positions", "evaluated_longer", "no_short_window", "no_long_window", "evaluated_wider",
         "batch_does_not_divide", "text", "text_from_its_start"],
)  # fmt: skip
def test_a_table_that_cannot_be_is_refused_in_one_line(model, stages, more, message):
    stages = tuple(StageConfig(from_step=3 + i, **values) for i, values in enumerate(stages))
    with pytest.raises(InputError) as caught:
        Config(model=model, train=TrainConfig(steps=8, batch_tokens=64, micro_batch_size=2, stages=stages), **more)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("n_devices", "unit", "message"),
    [
        (3, 49_152, "nearest: 98304, 147456; 1, 2, 4 devices divide it"),
        (16, 262_144, "nearest: 262144; 1, 2, 4, 8 devices divide it"),
    ],
)
def test_devices_that_cannot_share_the_rows_of_a_record_are_told_which_can(n_devices, unit, message):
    """modded-nanogpt stops with "world_size must be a divisor of 8"."""
    with pytest.raises(InputError) as caught:
        dataclasses.replace(load("speedrun_a100"), mesh=MeshConfig(data=n_devices))
    assert str(caught.value) == (
        "train.batch_tokens=131072 is not a multiple of train.micro_batch_size=1 x model.seq_len=16384 x "
        f"{n_devices} devices = {unit}; {message}"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StageConfig(from_step=1, seq_len=-1), "train.stages: seq_len=-1 is negative"),
        (lambda: StageConfig(from_step=1, target_weights=(0.0,)), "train.stages: target_weights=(0.0,) are all zero"),
        (lambda: TrainConfig(target_weights=()), "train.target_weights=() are all zero"),
        (lambda: TrainConfig(target_weights=(1.0, -0.5)), "train.target_weights=(1.0, -0.5) has a negative weight"),
        (lambda: TrainConfig(target_weights="1"), "train.target_weights='1' is not a tuple of float"),  # pyright: ignore[reportArgumentType]
        (lambda: MuonConfig(momentum_cooldown_steps=5), "momentum_cooldown_steps=5 has no optim.muon.momentum_end"),
        (lambda: OptimConfig(grad_divisor=-1), "optim.grad_divisor=-1.0 is negative"),
    ],
    ids=["seq_len", "zero_weights", "no_weights", "negative_weight", "no_tuple", "cooldown", "divisor"],
)
def test_a_value_that_cannot_be_is_refused_in_one_line(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_survives_source_json_and_the_command_line(tmp_path):
    stages = (StageConfig(from_step=3, seq_len=8), StageConfig(from_step=5, short_window=3, target_weights=(1, 0.5)))
    train = TrainConfig(steps=8, batch_tokens=64, micro_batch_size=2, stages=stages, target_weights=(1, 0.5, 0.25))
    config = Config(model=SMALL, train=train)
    (tmp_path / "config.py").write_text(to_source(config))
    assert load(tmp_path / "config.py") == from_dict(to_dict(config)) == config
    changed = apply_overrides(config, {"train.target_weights": "1,.75", "train.stages.0.seq_len": "16"}).train
    assert (changed.target_weights, changed.stages[0].seq_len) == ((1.0, 0.75), 16)
    with pytest.raises(InputError, match=r"train.target_weights is given whole; write --train.target_weights=1.0,0.5"):
        apply_overrides(config, {"train.target_weights.0": "2"})


def test_sizes_stay_until_a_row_changes_them_and_a_batch_does_not():
    """A row without weights lies on the line between those that have some."""
    stages = (
        StageConfig(from_step=4, batch_tokens=128, seq_len=32, target_weights=(1.0, 0.5)),
        StageConfig(from_step=6, short_window=9), StageConfig(from_step=8, seq_len=8, target_weights=(1.0,)),
    )  # fmt: skip
    config = Config(model=SMALL, train=TrainConfig(steps=10, batch_tokens=64, micro_batch_size=2, stages=stages))
    assert [(m.seq_len, m.window(0)) for m in config.stage_models()] == [(16, 5), (32, 5), (32, 9), (8, 8)]
    assert [schedules.batch_tokens_at(config, step) for step in (0, 4, 6, 8)] == [64, 128, 64, 64]
    expected = {0: (1.0, 0.0), 2: (1.0, 0.25), 4: (1.0, 0.5), 6: (1.0, 0.25), 7: (1.0, 0.125), 8: (1.0,), 20: (1.0,)}
    assert {step: schedules.target_weights_at(config, step) for step in expected} == expected
    plan, rows, tokens = Plan(config, 1), 0, 0
    for step in range(10):
        planned = plan.at(step)
        assert (planned.rows_before, planned.tokens_before) == (rows, tokens)
        rows += planned.n_micro * planned.n_rows
        tokens += planned.n_micro * planned.n_rows * planned.seq_len
    assert config.largest_stage().model.seq_len == 32
    assert config.at_stage(2).train == dataclasses.replace(config.train, batch_tokens=64, stages=())


def test_smoke_keeps_the_stages(tmp_path):
    config = dataclasses.replace(RECORD_62, run=RunConfig(dir=str(tmp_path / "run")))
    small = shrink(config, [])
    assert [stage.from_step for stage in small.train.stages] == [1, 2, 3, 4, 5]
    assert [model.seq_len for model in small.stage_models()] == [64, 128, 128, 192, 192, 192]
    assert len(set(small.eval_models())) == 5 and Plan(small, 1).n_micro == (2,) * 6
    hypers = [schedules.hyper_at(small, step).get("target_weights", ()) for step in range(6)]
    assert [len(weights) for weights in hypers] == [3, 2, 2, 0, 0, 0]
