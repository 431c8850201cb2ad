"""train.micro_batch_size=auto and train.remat=auto: the choice against `plan --fit`, and runs on simulated devices."""

import dataclasses
import json
import re
import subprocess
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxgpt import train
from jaxgpt.config import Config, GPT2Config, MeshConfig, StageConfig, TrainConfig, load
from jaxgpt.config.auto import open_all, rows_overrides
from jaxgpt.config.command_line import apply_overrides, parse_args
from jaxgpt.config.derive import derive
from jaxgpt.config.hardware import usable_bytes
from jaxgpt.config.shipped import read_about, shipped_configs
from jaxgpt.errors import InputError
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.plan import auto, compiler, estimate
from jaxgpt.plan.__main__ import main as plan
from jaxgpt.plan.compiler import CompileCache
from jaxgpt.plan.estimate import ESTIMATE_SHARE, estimate_run
from jaxgpt.plan.fit import fit_micro_batch, row_choices
from jaxgpt.plan.forecast import look
from jaxgpt.plan.topology import parse_topology
from jaxgpt.prepare.__main__ import main as prepare
from jaxgpt.training.memory import gib
from jaxgpt.training.step import make_step
from torch_ref import train as torch_train

AUTO = ("--train.micro_batch_size=auto", "--train.remat=auto")
SMALL = Config(
    model=GPT2Config(seq_len=64, n_layer=1, n_head=2, n_embd=32, vocab_size=21),
    train=TrainConfig(steps=2, batch_tokens=64 * 24, micro_batch_size=12, dtype="float32"),
    mesh=MeshConfig(data=1),
)


def needed(config, rows, remat):
    setting = {"train.micro_batch_size": str(rows), "train.remat": remat}
    return estimate_run(apply_overrides(config, setting), "cpu").total_bytes


def limit_for(config, rows, remat):
    """A device that this setting fills."""
    return int(needed(config, rows, remat) / ESTIMATE_SHARE["cpu"]) + 1


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("auto")
    (directory / "text.txt").write_text("".join(f"{i} green bottles\n" for i in range(900)))
    data = directory / "bottles"
    arguments = ["bottles", "--input", str(directory / "text.txt"), "--out", str(data), "--tokenizer", "char"]
    assert prepare(arguments) == 0
    path = directory / "config.py"
    path.write_text(
        "from jaxgpt.config import *\n"
        f"config = Config(data=DataConfig(dir={str(data)!r}),"
        " model=GPT2Config(seq_len=64, n_layer=1, n_head=2, n_embd=32),"
        " train=TrainConfig(steps=2, batch_tokens=1536, micro_batch_size='auto', remat='auto', dtype='float32'),"
        " checkpoint=CheckpointConfig(every=1), eval=EvalConfig(every=0, tokens=400), mesh=MeshConfig(data=1))\n"
    )
    return path


@pytest.mark.parametrize("card", ["h100", "rtx4090", "v6e"])
def test_auto_is_what_plan_fit_finds(card, monkeypatch):
    """Each shipped config, by the estimate: for a named topology, and for a device at hand of its kind."""
    topology = parse_topology(card)
    limit, n_found = usable_bytes(topology.device), 0

    def count_state(config):  # tracing the optimizers of all configs takes a minute
        n_params = config.model.count_params().total
        return 4 * n_params, 8 * n_params

    def count(one):
        return look(one, topology, None)

    monkeypatch.setattr(estimate, "_state_bytes", count_state)
    for name, path in shipped_configs().items():
        config = open_all(load(str(path)))
        train_config = dataclasses.replace(config.train, steps=config.train.steps or 1)
        config = dataclasses.replace(config, train=train_config, mesh=MeshConfig(data=1))
        config = derive(config, read_about(path).vocabulary or 50_304).config
        device = topology.platform, topology.device_kind
        try:
            planned = fit_micro_batch(config, topology, count, count).overrides
        except InputError:
            with pytest.raises(InputError, match="does not fit"):
                auto.ask_estimate(config, *device, limit)
            continue
        assert auto.ask_estimate(config, *device, limit)[0] == planned, name
        n_found += 1
    assert n_found >= len(shipped_configs()) - 2


def test_a_run_starts_on_a_device_that_is_too_small_for_its_recipe(config_path, tmp_path, monkeypatch, capsys):
    """Steps of 24 rows where 3 fit; resumed on the same device, bit for bit; on a larger one, with all rows at once."""
    limit = limit_for(derive(SMALL).config, 3, "none")
    monkeypatch.setattr(auto, "limit_bytes", lambda _: limit)
    arguments = [f"--config={config_path}", f"--run.dir={tmp_path / 'run'}"]

    def losses():
        last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
        return [last[name] for name in ("step", "train_loss", "grad_norm", "val_loss")]

    assert train.main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"train.micro_batch_size=3 train.remat=none \(\S+ MiB of {gib(limit)}, by an estimate\)", said)
    assert "1,536 tokens = 8 x 3 rows x 64 x 1 device(s)" in said
    uninterrupted = losses()
    monkeypatch.setattr(auto, "limit_bytes", lambda _: 100 * limit)
    assert train.main([*arguments, "--resume-from=1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "train.micro_batch_size=3 train.remat=none (as in the checkpoint)" in said
    assert losses() == uninterrupted
    monkeypatch.setattr(train, "describe_devices", lambda _: "1 x larger")
    monkeypatch.setattr(train, "compile_programs", lambda *_: 1 / 0)  # the header is enough
    with pytest.raises(ZeroDivisionError):
        train.main([*arguments, "--resume-from=1"])
    assert "1,536 tokens = 1 x 24 rows x 64 x 1 device(s)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("is_asked", [True, False])
def test_after_running_full_a_smaller_setting_is_tried_once(config_path, tmp_path, monkeypatch, capsys, is_asked):
    tried = []

    def refuse(step, plan, *_):
        tried.append((plan.n_rows, plan.config.train.remat))
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(train, "compile_programs", refuse)
    setting = ["--train.micro_batch_size=12", "--train.remat=none"]
    arguments = [f"--config={config_path}", f"--run.dir={tmp_path}", *setting]
    with pytest.raises(InputError, match="does not fit into cpu"):
        train.main([*arguments, *(["--retry-oom"] if is_asked else [])])
    assert tried == [((12,), "none"), ((8,), "none")][: 1 + is_asked]
    assert ("--retry-oom tries that once" in " ".join(capsys.readouterr().out.split())) == is_asked


def test_a_setting_that_is_given_stays():
    """Rows alone, or the policy alone; where it cannot fit, the line says which other setting would help."""
    config = apply_overrides(derive(SMALL).config, {"model.n_layer": "4"})
    rows_alone = apply_overrides(config, {"train.micro_batch_size": "auto", "train.remat": "block"})
    found, _ = auto.ask_estimate(rows_alone, "cpu", "cpu", limit_for(config, 6, "block"))
    assert found == {"train.micro_batch_size": "6", "train.remat": "block"}
    remat_alone = apply_overrides(config, {"train.remat": "auto"})
    found, _ = auto.ask_estimate(remat_alone, "cpu", "cpu", limit_for(config, 12, "block"))
    assert found == {"train.remat": "block"}
    with pytest.raises(InputError, match=r"micro_batch_size=1 and train.remat=none; set --train.remat=auto, shard"):
        auto.ask_estimate(apply_overrides(config, {"train.micro_batch_size": "auto"}), "cpu", "cpu", 2**19)


def test_stages_keep_none_of_their_own_rows():
    """What is chosen for one stage must not meet another stage's given number."""
    stages = (StageConfig(from_step=1, micro_batch_size=4), StageConfig(from_step=2, seq_len=32, batch_tokens=32 * 24))
    config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, steps=3, stages=stages))
    for rows in ([8, 8, 24], [4, 4, 4], [6, 6, 6]):
        assert apply_overrides(config, rows_overrides(config, rows)).stage_rows() == rows
    assert open_all(config).stage_rows() == [0, 0, 0]


def test_lanes_of_conversations_divide_what_is_chosen():
    config = apply_overrides(SMALL, {"data.sampling": "conversations", "data.lanes": "8"})
    assert row_choices(config, parse_topology("h100")) == [8, 24]
    with pytest.raises(InputError, match=r"data.lanes=7 divides no microbatch .* a divisor of 24 rows"):
        row_choices(apply_overrides(config, {"data.lanes": "7"}), parse_topology("h100"))


def test_the_compiler_is_asked_first_and_its_failure_is_said(monkeypatch):
    """A compiler that answers by rows; then one that takes too long."""
    config, said = derive(SMALL).config, []
    monkeypatch.setattr(auto, "limit_bytes", lambda _: 2**40)
    monkeypatch.setattr(auto, "find_topology", lambda _: parse_topology("h100"))
    monkeypatch.setattr(CompileCache, "knows", lambda *_: True)

    def answer(_, one, topology):
        known = look(one, topology, None).footprint
        return [dataclasses.replace(known, is_over=one.train.micro_batch_size > 8)]

    monkeypatch.setattr(CompileCache, "footprints", answer)
    mesh = make_mesh(config.mesh)
    found, why = auto.choose(open_all(config), mesh, CompileCache(None), said.append)
    assert found == {"train.micro_batch_size": "8", "train.remat": "none"}
    assert why.endswith("by the compiler") and not said

    def refuse(*_, **__):
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.undo()
    monkeypatch.setattr(auto, "limit_bytes", lambda _: 2**40)
    monkeypatch.setattr(auto, "find_topology", lambda _: parse_topology("h100"))
    monkeypatch.setattr(compiler, "missing_plugin", lambda _: "")
    monkeypatch.setattr(subprocess, "run", refuse)
    found, why = auto.choose(open_all(config), mesh, CompileCache(None, 1), said.append)
    assert found == {"train.micro_batch_size": "24", "train.remat": "none"} and why.endswith("by an estimate")
    assert said[-1] == "the compiler for h100 took more than 1 s; the setting is chosen by an estimate"
    monkeypatch.setattr(auto, "limit_bytes", lambda _: 0)
    with pytest.raises(InputError, match=r"train.remat=auto: cpu does not say how much memory it has; give the values"):
        auto.choose(open_all(config), mesh, CompileCache(None), said.append)


def test_the_limit_is_the_least_that_is_known(tmp_path, monkeypatch):
    """A card: the runtime's figure and the table's. A computer: half of its memory, or of its container's."""
    monkeypatch.setattr(auto, "CGROUP", tmp_path / "memory.max")
    whole = auto.host_bytes()
    assert whole > 2**30
    (tmp_path / "memory.max").write_text("max\n")
    assert auto.host_bytes() == whole
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    assert auto.host_bytes() == 2**30
    assert [auto.limit_bytes(make_mesh(MeshConfig(data=n))) for n in (1, 2)] == [2**29, 2**28]
    table = usable_bytes(parse_topology("l4").device)
    for said, limit in ((0, table), (table - 1, table - 1), (table + 1, table)):
        card = SimpleNamespace(platform="gpu", device_kind="NVIDIA L4", memory_stats=lambda n=said: {"bytes_limit": n})
        mesh: Any = SimpleNamespace(devices=np.array([card]), local_devices=[card])
        assert auto.limit_bytes(mesh) == limit


def test_auto_is_a_word_for_rows_and_refused_where_nothing_settles_it(config_path, tmp_path):
    """On the command line, in a file, and in what a run saves."""
    given = parse_args([f"--config={config_path}"])
    assert (given.train.micro_batch_size, given.train.remat) == (0, "auto")
    assert parse_args(["--config=quickstart", *AUTO]).train.micro_batch_size == 0
    with pytest.raises(InputError, match=r"train.micro_batch_size=some is not an int"):
        parse_args(["--config=quickstart", "--train.micro_batch_size=some"])
    with pytest.raises(InputError, match=r"auto and train.remat=auto cannot be settled by torch_ref"):
        torch_train.main([f"--config={config_path}", f"--run.dir={tmp_path}"])
    with pytest.raises(InputError, match=r"train.remat=auto cannot be settled by this command; give the values"):
        make_step(apply_overrides(derive(SMALL).config, {"train.remat": "auto"}), make_mesh(SMALL.mesh))


def test_plan_settles_what_is_open(config_path, capsys):
    assert plan([f"--config={config_path}", "--device=h100", "--estimate"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "h100: train.micro_batch_size=24 train.remat=none" in said and "1 x 24 rows x 64" in said
