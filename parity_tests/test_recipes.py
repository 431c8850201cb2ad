"""Every shipped config runs in miniature, and what its docstring says of it is computed here."""

import ast
import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from jaxgpt.config import MeshConfig, StageConfig, load, to_source
from jaxgpt.config.derive import derive
from jaxgpt.config.families import NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.train import main
from parity_tests.helpers.tiers import one_in
from torch_ref.train import main as torch_main

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
NANOCHAT = [
    path for path in CONFIGS
    if isinstance(load(path).model, NanochatConfig) and path.stem != "nanochat_cpu" and not load(path).data.is_chat
]  # fmt: skip
"""Base runs: what starts from another one has its size from there."""


SMOKED = [path for path in CONFIGS if path.stem in ("finetune_shakespeare", "a100", "nanochat_d12")]
"""One of each family and era in its own dtype; test_golden runs all in float64."""


@pytest.mark.parametrize("path", one_in(3, SMOKED), ids=lambda path: path.stem)
def test_smoke(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--config", str(path), "--smoke"]) == 0
    run = tmp_path / "runs" / "smoke" / path.stem
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 7))
    assert all(math.isfinite(record["train_loss"]) and math.isfinite(record["grad_norm"]) for record in records)
    assert [step for step in ("3", "6") if (run / "checkpoints" / step / "manifest.json").exists()] == ["3", "6"]
    wanted, ran = load(path), json.loads((run / "checkpoints" / "6" / "manifest.json").read_text())["about"]["config"]
    assert ran["model"]["family"] == wanted.model.family and ran["optim"]["algorithm"] == wanted.optim.algorithm
    assert ran["train"]["dtype"] == wanted.train.dtype and ran["data"]["sampling"] == wanted.data.sampling
    printed = capsys.readouterr().out
    assert "sample --run" in printed and ("best_fit packing discarded" in printed) == (
        ran["data"]["sampling"] == "best_fit"
    )


@pytest.mark.slow
def test_smoke_replaces_its_own_directory_and_spares_others(tmp_path, monkeypatch):
    """Where --run.dir is given it is that one; else smoke/<name> beside the run's."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", str(CONFIGS[0].with_name("quickstart.py")), "--smoke"]
    earlier = tmp_path / "runs" / "smoke" / "quickstart"
    (earlier / "data").mkdir(parents=True)
    (earlier / "checkpoints" / "6").mkdir(parents=True)
    assert main(arguments) == 0
    assert main([*arguments, "--run.dir=named/x"]) == 0 and main([*arguments, "--run.dir=named/x"]) == 0
    assert (tmp_path / "named/x/checkpoints/6").is_dir() and not (tmp_path / "named/smoke").exists()
    other = tmp_path / "elsewhere" / "x"
    (other / "data").mkdir(parents=True)
    (other / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="which it did not create"):
        main([*arguments, "--run.dir=elsewhere/x"])
    assert (other / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("path", NANOCHAT, ids=lambda path: path.stem)
def test_docstring_says_what_the_config_is(path):
    config = load(path)
    config = derive(config).config
    train, seq_len = config.train, config.model.seq_len
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    n_devices = 8 if "8 devices" in text else 1
    n_micro = train.batch_tokens // (train.micro_batch_size * seq_len * n_devices)
    assert f"{config.model.count_params().total:,} parameters" in text
    assert f"{train.batch_tokens:,} tokens = {n_micro} x {train.micro_batch_size} rows x {seq_len}" in text
    assert f"{train.steps:,}" in text.replace("steps:", "Steps:")
    assert f"{train.steps * train.batch_tokens / 1e9:.2f} billion tokens" in text
    assert f"--vocab-size {config.model.vocab_size}" in text
    assert f"--config {path.stem}" in text
    asked_gb = {int(n) for n in re.findall(r"(\d+) GB", text)}
    needed_gib = float(re.findall(r"Memory: ([\d.]+) GiB", text)[0])
    assert len(asked_gb) <= 1 and all(needed_gib * 2**30 < n * 1e9 for n in asked_gb)


@pytest.mark.slow
@pytest.mark.parametrize("train", [main, torch_main], ids=["jaxgpt", "torch_ref"])
def test_lanes_that_do_not_divide_a_later_stage_are_refused_before_compiling(train, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = CONFIGS[0].with_name("nanochat_cpu.py")
    assert main(["--config", str(path), "--smoke"]) == 0
    capsys.readouterr()
    config = load(path)
    row = config.model.seq_len
    stages = (StageConfig(from_step=3, batch_tokens=18 * row),)
    changed = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir="runs/smoke/nanochat_cpu/data", tokenizer="", lanes=4),
        train=dataclasses.replace(config.train, micro_batch_size=2, batch_tokens=12 * row, stages=stages),
        eval=dataclasses.replace(config.eval, tokens=row),
        mesh=MeshConfig(data=1),
    )
    (tmp_path / "lanes.py").write_text(to_source(changed))
    with pytest.raises(InputError, match=r"data\.lanes=4 does not divide the 18 rows of a step"):
        train(["--config", "lanes.py"])
    assert "compiled" not in capsys.readouterr().out
