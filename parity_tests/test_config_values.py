"""Every way into a config has the same check of its values: a file, the command line, saved JSON, Python."""

import itertools
import typing

import numpy as np
import pytest

from jaxgpt.config import (
    Config,
    EvalConfig,
    GPT2Config,
    NanochatConfig,
    OptimConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
    from_dict,
    load,
    nanochat_2026,
    to_dict,
    to_source,
)
from jaxgpt.config.command_line import apply_overrides, parse_args
from jaxgpt.config.derive import derive
from jaxgpt.config.schedule import is_due
from jaxgpt.config.section import Section, check, field_types, is_section
from jaxgpt.errors import InputError
from parity_tests.helpers.environment import REPO


class Broken:
    """Raises whatever is asked of it."""

    def __eq__(self, other):
        raise ZeroDivisionError

    def __repr__(self):
        raise ZeroDivisionError


WRONG = [
    None, True, 1.5, 12.0, float("nan"), float("inf"), -(10**400), 10**5000, "x", "a\nb", "\ud800", [], {}, [1], [{}],
    object(), {"n_layer": 1}, np.zeros(2), np.float32(3), 1j, b"x", int, Broken(),
]  # fmt: skip


def sections(kind=Config):
    """All dataclasses of a config, the root first."""
    found = [kind]
    for field_type in field_types(kind).values():
        for option in (field_type, *typing.get_args(field_type)):
            found += [inner for inner in sections(option) if inner not in found] if is_section(option) else []
    return found


def make(kind, values):
    needed = {"StageConfig": {"from_step": 3}, "GroupConfig": {"match": "x"}}
    return kind(**needed.get(kind.__name__, {}) | values)


@pytest.mark.parametrize("kind", sections(), ids=lambda kind: kind.__name__)
def test_no_section_accepts_a_value_that_a_run_cannot_use(kind):
    """Whatever is put into a field, it is refused in one line, or is of the field's type. Faults: C2, C4."""
    assert issubclass(kind, Section)
    for name, field_type in field_types(kind).items():
        for value in WRONG:
            try:
                made = make(kind, {name: value})
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 300
                assert name in str(error) or "has no lr" in str(error)
            else:
                held = getattr(made, name)
                assert check(name, held, field_type) == held
                assert hash(made) == hash(made)
                assert to_dict(made)  # JSON that a checkpoint can hold


WAYS = ["file", "command line", "JSON", "Python"]


def enter(way, name, value, tmp_path):
    """The config that results when one field is given this way."""
    section, field = name.split(".")
    if way == "command line":
        return apply_overrides(Config(), {name: str(value)})
    if way == "JSON":
        values = to_dict(Config())
        values[section][field] = value
        return from_dict(values)
    kind = type(getattr(Config(), section))
    if way == "Python":
        return Config(**{section: kind(**{field: value})})
    path = tmp_path / "c.py"
    path.write_text(
        f"from jaxgpt.config import *\ninf, nan = float('inf'), float('nan')\n"
        f"config = Config({section}={kind.__name__}({field}={value!r}))\n"
    )
    return load(path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optim.algorithm", "lion", "optim.algorithm=lion is not one of 'adamw', 'muon'"),
        ("train.dtype", "fp8", "train.dtype=fp8 is not one of 'bfloat16', "),
        ("model.n_layer", 1.0, "model.n_layer=1.0 is not an int; write 1"),
        ("model.n_layer", 1.5, "model.n_layer=1.5 is not an int"),
        ("optim.lr", float("nan"), "optim.lr=nan is not a number"),
        ("optim.grad_clip", float("inf"), "optim.grad_clip=inf is beyond float32's 3.4e+38; 0 turns clipping off"),
        ("run.seed", 2**80, f"run.seed={2**80} is outside"),
        ("run.dir", "a\nb", "run.dir='a\\nb' holds a control character"),
        ("model.seq_len", 1, "model.seq_len=1 is below 2"),
        ("train.micro_batch_size", -1, "train.micro_batch_size=-1 is negative"),
    ],
)
def test_each_way_refuses_the_same(way, name, value, message, tmp_path):
    """Faults: C2, C4, F19."""
    with pytest.raises(InputError) as caught:
        enter(way, name, value, tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_accepts_the_same(way, tmp_path):
    """An int for a float, a round number with an exponent for an int, `~` in paths. Faults: C3."""
    assert enter(way, "optim.lr", 1, tmp_path).optim.lr == 1.0
    steps = enter(way, "train.steps", 1e3, tmp_path).train.steps
    assert (steps, type(steps)) == (1000, int)
    assert enter(way, "run.dir", "~/runs/x", tmp_path).run.dir.startswith("/")


def test_numbers_of_numpy_become_pythons():
    optim = OptimConfig(lr=np.float32(0.5))  # pyright: ignore[reportArgumentType]
    assert type(optim.lr) is float
    model = GPT2Config(n_layer=np.int64(3))  # pyright: ignore[reportArgumentType]
    assert type(model.n_layer) is int


def test_small_round_numbers_are_written_with_an_exponent_on_the_command_line_only():
    assert apply_overrides(Config(), {"train.steps": "2e1"}).train.steps == 20
    with pytest.raises(InputError, match=r"train.steps=20.0 is not an int; write 20"):
        apply_overrides(Config(), {"train.steps": "20.0"})


def test_lists_become_tuples(tmp_path):
    """So they can be overridden by name, hashed, and read back. Faults: F19."""
    train = TrainConfig(stages=[StageConfig(from_step=5)])  # pyright: ignore[reportArgumentType]
    config = Config(train=train)
    assert config.train.stages == (StageConfig(from_step=5),)
    assert apply_overrides(config, {"train.stages.0.lr_scale": "0.5"}).train.stages[0].lr_scale == 0.5
    (tmp_path / "config.py").write_text(to_source(config))
    assert load(tmp_path / "config.py") == from_dict(to_dict(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 3}, "saved config: train=3 is not a section"),
        ({"train": {"stages": [{}]}}, "saved config: train.stages.0.from_step is missing"),
        ({"train": {"stages": [3]}}, "saved config: train.stages.0=3 is not a section"),
        ({"train": {"stages": 5}}, "saved config: train.stages=5 is not a tuple of StageConfig(...)"),
        ({"train": {"stages": [{"from_step": 1}] * 400_000}}, "train.stages has 400000 entries; at most 1000"),
        ({"optim": {"groups": [{"match": "(" * 10_000}]}}, "is not a regular expression"),
        ({"model": {"family": []}}, "saved config: model.family=[] is not one of gpt2, nanochat"),
        ({"model": {"family": "gpt2", "a\nb": 1}}, r"saved config: no field model.a\nb; it was written by another"),
        ([], "saved config: top level=[] is not a section"),
    ],
)
def test_a_saved_config_of_another_form_is_one_line(change, message):
    """Faults: F13, C58."""
    with pytest.raises(InputError) as caught:
        from_dict(to_dict(Config()) | change if isinstance(change, dict) else change)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: NanochatConfig(head_dim=63), "model.head_dim=63 is odd"),
        (
            lambda: NanochatConfig(n_embd=768, head_dim=64, n_kv_head=5),
            "model.n_kv_head=5 does not divide",
        ),
        (lambda: apply_overrides(Config(), {"hosts.coordinator": "here"}), "hosts.coordinator='here' is not host:port"),
        (lambda: apply_overrides(Config(), {"hosts.count": "2", "hosts.index": "2"}), "hosts.index=2 is not below"),
        (
            lambda: apply_overrides(Config(), {"optim.schedule.warmup_steps": "9", "optim.schedule.decay_steps": "8"}),
            "optim.schedule.warmup_steps=9 is above optim.schedule.decay_steps=8",
        ),
        (
            lambda: parse_args(
                ["--config=configs/quickstart.py", "--train.steps=5", "--optim.schedule.warmup_steps=500"]
            ),
            "optim.schedule.warmup_steps=500 is above train.steps=5; lower the warm-up",
        ),
    ],
)
def test_values_that_do_not_fit_together_are_refused(given, message):
    """Faults: C8, C10, C11, F27."""
    with pytest.raises(InputError) as caught:
        given()
    assert message in str(caught.value)


def test_a_warm_up_longer_than_the_run_is_told():
    """No error where only the steps were lowered: that is how one tries a config. Faults: C11, F27."""
    schedule = ScheduleConfig(warmup_steps=500)
    config = Config(model=GPT2Config(vocab_size=9), train=TrainConfig(steps=5), optim=OptimConfig(schedule=schedule))
    (warning,) = derive(config).warnings
    assert warning.startswith("optim.schedule.warmup_steps=500 is above train.steps=5: the learning rate never reaches")


def test_zero_steps_are_derived_or_refused():
    """0 means: by the horizon. A family without a rule asks for a number. Faults: C16."""
    with pytest.raises(InputError, match=r"train.steps=0 needs train.target_flops or"):
        derive(Config(model=GPT2Config(vocab_size=9), train=TrainConfig(steps=0)))
    assert derive(nanochat_2026(depth=4, seq_len=512, micro_batch_size=2)).config.train.steps > 0
    assert not is_due(10, Config(eval=EvalConfig(every=0)).eval.every)


@pytest.mark.parametrize("limit", [1, 300, 4096, 8192, 12_288])
@pytest.mark.parametrize("rows", [1, 3, 12, 20])
def test_rows_are_cut_into_the_fewest_chunks_within_the_limit_and_evenly(limit, rows):
    train = TrainConfig(loss_chunk_tokens=limit, micro_batch_size=rows)
    for seq_len in (1, 17, 1024, 1536):
        chunk_len = train.loss_chunk_len(seq_len)
        n_chunks = next(n for n in itertools.count(1) if n * max(limit // rows, 1) >= seq_len)
        assert 1 <= chunk_len <= max(limit // rows, 1)
        assert 0 <= n_chunks * chunk_len - seq_len < n_chunks


def test_no_shipped_config_pads_its_rows_for_the_loss():
    for path in sorted((REPO / "configs").glob("*.py")):
        config = load(path)
        assert config.model.seq_len % config.train.loss_chunk_len(config.model.seq_len) == 0, path.stem
