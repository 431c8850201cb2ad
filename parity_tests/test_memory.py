"""A device's memory in training: the stated figure against planning's, and a simulated device that runs full."""

import dataclasses
import re

import jax
import pytest
import torch

from jaxgpt import train
from jaxgpt.config import Config, GPT2Config, MeshConfig, NanochatConfig, StageConfig, TrainConfig
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.config.derive import derive
from jaxgpt.errors import InputError
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.plan.estimate import estimate_run
from jaxgpt.plan.footprint import compile_run
from jaxgpt.prepare.__main__ import main as prepare
from jaxgpt.training.memory import CLEARLY_LESS, advice_on_memory, advise, describe_memory, gib, smaller_setting
from jaxgpt.training.programs import lower_train
from jaxgpt.training.step import make_step
from torch_ref import train as torch_train

SMALL = Config(
    model=GPT2Config(seq_len=64, n_layer=2, n_head=2, n_embd=32, vocab_size=128),
    train=TrainConfig(steps=1, batch_tokens=64 * 24, micro_batch_size=12, dtype="float32"),
    mesh=MeshConfig(data=1),
)
FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes."


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(SMALL.mesh)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("full")
    (directory / "text.txt").write_text("".join(f"{i} green bottles\n" for i in range(900)))
    data = directory / "bottles"
    arguments = ["bottles", "--input", str(directory / "text.txt"), "--out", str(data), "--tokenizer", "char"]
    assert prepare(arguments) == 0
    path = directory / "config.py"
    path.write_text(
        "from jaxgpt.config import *\n"
        f"config = Config(data=DataConfig(dir={str(data)!r}),"
        " model=GPT2Config(seq_len=64, n_layer=2, n_head=2, n_embd=32),"
        " train=TrainConfig(steps=1, batch_tokens=1536, micro_batch_size=12, dtype='float32'),"
        " eval=EvalConfig(every=0, tokens=400), mesh=MeshConfig(data=1))\n"
    )
    return path


def test_the_stated_figure_is_the_one_of_planning(mesh):
    """The step as training compiles it, and as `jaxgpt.plan` does."""
    config = derive(SMALL, 128).config
    with jax.set_mesh(mesh):
        said = describe_memory(lower_train(make_step(config, mesh), 2, 12).compile(), mesh)
    (planned,) = compile_run(SMALL, jax.devices()[:1])
    assert said.startswith(f"{gib(planned.total_bytes)} on each device"), said


def test_planning_compiles_each_kind_of_stage():
    """By batch, row length and number of targets; a stage with another learning rate is no new kind."""
    stages = (
        StageConfig(from_step=2, lr_scale=0.5), StageConfig(from_step=3, batch_tokens=32 * 48, seq_len=32),
        StageConfig(from_step=4, batch_tokens=32 * 48, target_weights=(1.0,)),
    )  # fmt: skip
    config = dataclasses.replace(
        SMALL, train=dataclasses.replace(SMALL.train, steps=5, stages=stages, target_weights=(1.0, 0.5))
    )
    found = compile_run(config, jax.devices()[:1])
    assert [(one.n_micro, one.seq_len) for one in found] == [(2, 64), (4, 32), (4, 32)]
    assert found[0].activations_bytes > found[1].activations_bytes
    assert estimate_run(derive(config, 128).config, "gpu").n_micro == 2


@pytest.mark.parametrize("moment", ["compiling", "running"])
def test_a_full_device_is_one_line_with_a_setting_that_trains(config_path, tmp_path, monkeypatch, moment):
    """Faults: C81."""

    def refuse(*_):
        raise jax.errors.JaxRuntimeError(FULL)

    refuse.memory_analysis = lambda: None
    with monkeypatch.context() as patch:
        programs = refuse if moment == "compiling" else lambda step, plan, *_: ([refuse] * len(plan.n_micro), step)
        patch.setattr(train, "compile_programs", programs)
        with pytest.raises(InputError) as error:
            train.main([f"--config={config_path}", f"--run.dir={tmp_path / 'full'}"])
    line = str(error.value)
    assert "\n" not in line and "train.micro_batch_size=12 train.remat=none does not fit" in line and FULL in line
    setting = re.findall(r"--train\.\S+=\S+", line)
    assert len(setting) == 2
    assert train.main([f"--config={config_path}", f"--run.dir={tmp_path / 'less'}", *setting]) == 0


def test_a_full_cuda_device_is_one_line_with_a_smaller_microbatch(config_path, tmp_path, monkeypatch):
    """Faults: C81."""

    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nOf the allocated memory ...")
        yield

    monkeypatch.setattr(torch_train, "make_feed", refuse)
    with pytest.raises(InputError) as error:
        torch_train.main([f"--config={config_path}", f"--run.dir={tmp_path}"])
    line = str(error.value)
    assert "\n" not in line and "train.micro_batch_size=12 with train.remat=none does not fit (CUDA out" in line
    assert line.endswith("; try --train.micro_batch_size=8")


def test_other_faults_of_the_device_pass_through(mesh):
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: a cable fell out"),
        advice_on_memory(SMALL, make_step(SMALL, mesh)),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: a cable fell out")


@pytest.mark.parametrize("share", [10, 0.6, 0.3])
def test_advice_stays_below_what_failed_and_within_the_device(mesh, share):
    step = make_step(SMALL, mesh)
    failed = estimate_run(SMALL, "cpu").total_bytes
    found = smaller_setting(SMALL, step, int(share * failed))
    total = estimate_run(apply_overrides(SMALL, found), "cpu").total_bytes
    assert total <= min(CLEARLY_LESS, share) * failed
    assert share < 1 or found == smaller_setting(SMALL, step, 0)


def test_advice_counts_the_stage_with_the_longest_rows(mesh):
    model = NanochatConfig(depth=2, seq_len=32, vocab_size=128)
    train = dataclasses.replace(SMALL.train, steps=2, batch_tokens=32 * 16, micro_batch_size=8)
    train = dataclasses.replace(train, stages=(StageConfig(from_step=1, batch_tokens=256 * 16, seq_len=256),))
    config = derive(dataclasses.replace(SMALL, model=model, train=train), 128).config
    usable = int(0.4 * estimate_run(config, "cpu").total_bytes)
    found = smaller_setting(config, make_step(config, mesh), usable)
    assert estimate_run(apply_overrides(config, found), "cpu").total_bytes <= usable


def test_a_model_that_cannot_fit_is_told_so(mesh):
    one = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, micro_batch_size=1, remat="block"))
    assert "split the model over more devices (mesh.fsdp)" in advise(smaller_setting(one, make_step(one, mesh), 1))
