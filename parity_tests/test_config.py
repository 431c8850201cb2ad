"""Config files, overrides and their one-line errors."""

import ast
import dataclasses
import runpy
import shutil
from pathlib import Path

import pytest

from jaxgpt.config import (
    NANOCHAT_2025,
    NANOCHAT_2026,
    Config,
    GPT2Config,
    GroupConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
    flatten,
    from_dict,
    load,
    nanochat_2025,
    nanochat_2026,
    to_dict,
    to_source,
)
from jaxgpt.config.command_line import apply_overrides, field_paths, parse_args
from jaxgpt.errors import InputError

REPO = Path(__file__).parents[1]
CONFIGS = sorted((REPO / "configs").glob("*.py"))


def override(**values):
    return apply_overrides(Config(), {name.replace("__", "."): value for name, value in values.items()})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_survives_source_and_json(path, tmp_path):
    config = load(path)
    written = tmp_path / "config.py"
    written.write_text(to_source(config))
    assert load(written) == config
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_file_can_be_copied_alone(path, tmp_path, monkeypatch):
    copied = shutil.copy(path, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    assert load("mine.py") == load(path) == runpy.run_path(str(copied))["config"]


def test_nanochat_presets_leave_open_what_the_depth_gives():
    """nanochat's dial alone; the rest of a run is the era's, and a value can be replaced as in any config."""
    config = nanochat_2025(depth=8, seq_len=512, batch_tokens=65_536, micro_batch_size=2)
    assert (config.model.n_embd, config.model.seq_len, config.train.steps, config.optim) == (0, 512, 0, NANOCHAT_2025)
    assert (config.train.batch_tokens, config.train.micro_batch_size, config.data.sampling) == (65_536, 2, "stream")
    config = nanochat_2026(depth=8, seq_len=512, micro_batch_size=2)
    assert (config.train.batch_tokens, config.train.steps, config.optim) == (0, 0, NANOCHAT_2026)
    assert (config.model.vocab_size, config.data.dir, config.data.sampling) == (32_768, "data/climbmix", "best_fit")
    assert apply_overrides(config, {"model.depth": "6"}).model.n_layer == 6


def test_tuples_survive_source_and_json(tmp_path):
    config = Config(
        train=TrainConfig(stages=(StageConfig(from_step=5, lr_scale=0.5),)),
        optim=OptimConfig(groups=(GroupConfig(match="wte", lr=0.3),)),
    )
    written = tmp_path / "config.py"
    written.write_text(to_source(config))
    assert load(written) == from_dict(to_dict(config)) == config
    assert apply_overrides(config, {"optim.groups.0.lr": "0.5"}).optim.groups[0].lr == 0.5


def test_overrides_are_applied_together():
    """Faults: C3."""
    config = override(model__n_head="5", model__n_embd="100")
    assert (config.model.n_head, config.model.n_embd) == (5, 100)
    assert override(optim__lr="1").optim.lr == 1.0
    assert override(log__tensorboard="true").log.tensorboard is True


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.n_layers": "3"}, "no config field model.n_layers; did you mean model.n_layer?"),
        ({"n_layer": "3"}, "no config field n_layer; did you mean model.n_layer?"),
        ({"modle.n_layer": "3"}, "no config field modle.n_layer; did you mean model.n_layer?"),
        ({"train.steps": "abc"}, "train.steps=abc is not an int"),
        ({"train.steps": "1.5"}, "train.steps=1.5 is not an int"),
        ({"optim.lr": "fast"}, "optim.lr=fast is not a float"),
        ({"optim.lr": "nan"}, "optim.lr=nan is not a number"),
        ({"log.tensorboard": "maybe"}, "log.tensorboard=maybe is not a bool; write true or false"),
        ({"train.dtype": "int8"}, "train.dtype=int8 is not one of 'bfloat16', 'float16', 'float32', 'float64'"),
        ({"model": "3"}, "model is a section; set one of its fields, such as model.family"),
        ({"train.stages": "3"}, "train.stages holds several values; set it in a config file"),
        ({"train.stages.0.lr_scale": "3"}, "no config field train.stages.0; train.stages has 0 entries"),
        ({"optim.lr": "-1"}, "optim.lr=-1.0 is negative; choose 0 or more"),
        ({"optim.beta2": "1"}, "optim.beta2=1.0 is outside [0, 1)"),
        ({"model.dropout": "1.5"}, "model.dropout=1.5 is outside [0, 1); 0 turns it off"),
        ({"train.steps": "-1"}, "train.steps=-1 is negative; 0 derives it"),
        ({"model.n_head": "5"}, "model.n_embd=768 is not a multiple of model.n_head=5; nearest widths: 765, 770"),
        (
            {"train.batch_tokens": "262144", "train.micro_batch_size": "4", "model.seq_len": "1536"},
            "train.batch_tokens=262144 is not a multiple of train.micro_batch_size=4 x model.seq_len=1536 x "
            "1 device = 6144; nearest: 258048, 264192",
        ),
        (
            {"mesh.fsdp": "3"},
            "train.batch_tokens=491520 is not a multiple of train.micro_batch_size=12 x model.seq_len=1024 x "
            "3 devices = 36864; nearest: 479232, 516096; 1, 2, 4, 5 devices divide it",
        ),
    ],
)
def test_bad_override_names_field_value_and_way_out(overrides, message):
    """Faults: C1, C2, C4, C8, C9."""
    with pytest.raises(InputError) as caught:
        apply_overrides(Config(), overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--config is missing; give a Python file, or one of: a100, "),
        (["--config=nowhere.py"], "--config=nowhere.py does not exist; give a Python file, or a name; shipped: a100, "),
        (["train.steps=3"], "unexpected argument train.steps=3; settings are written --section.field=value"),
        (["--trian.steps=3"], "no config field trian.steps; did you mean train.steps?"),
        (["--optim.lr=1", "--optim.lr=2"], "--optim.lr is given twice; keep one"),
    ],
)
def test_bad_command_line(args, message):
    """Faults: C5, C6."""
    with pytest.raises(InputError) as caught:
        parse_args(args)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"config = (", "bad.py:1: SyntaxError"),
        (b"x = 1", "has no value named config of type jaxgpt.config.Config"),
        (b"\xff\xfe", "bad.py:1: SyntaxError"),
        (b"import no_such_module", "bad.py:1: ModuleNotFoundError"),
        (b"from jaxgpt.config import *\nconfig = Config(nope=1)", "bad.py:2: TypeError"),
    ],
)
def test_bad_config_file(tmp_path, source, message):
    """Faults: C7."""
    path = tmp_path / "bad.py"
    path.write_bytes(source)
    with pytest.raises(InputError) as caught:
        load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.n_layers": 3}, "no field model.n_layers"),
        ({"train.steps": "3"}, "train.steps='3' is not an int"),
        ({"train.dtype": "int8"}, "train.dtype=int8 is not one of"),
    ],
)
def test_saved_config_is_checked(change, message):
    """Faults: C1, C2."""
    values = to_dict(Config())
    for name, value in change.items():
        section, field = name.split(".")
        values[section][field] = value
    with pytest.raises(InputError, match=message):
        from_dict(values)


def test_space_separated_values():
    config = parse_args(
        ["--config", str(CONFIGS[0]), "--train.steps", "30", "--log.tensorboard", "--optim.schedule.warmup_steps=0"]
    )
    assert (config.train.steps, config.log.tensorboard) == (30, True)
    assert config.run.dir == f"runs/{CONFIGS[0].stem}"


def test_every_field_is_read_somewhere():
    """A setting that nothing reads is a promise that nothing keeps."""
    read = set()
    for path in (REPO / "jaxgpt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
    unread = [path for path in field_paths() if path.split(".")[-1] not in read]
    for kind in (StageConfig, GroupConfig):
        unread += [f.name for f in dataclasses.fields(kind) if f.name not in read]
    assert not unread


def test_flatten_names_settings_as_typed():
    assert flatten(to_dict(Config()))["model.n_layer"] == GPT2Config().n_layer
