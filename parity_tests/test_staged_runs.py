"""Runs through stages that change the model: both frameworks agree, resuming is exact, nothing is compiled late."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxgpt import config as config_lib
from jaxgpt import evaluate, train
from jaxgpt.compare import tolerances
from jaxgpt.compare.trajectories import draw_params, run_jax, run_torch
from jaxgpt.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    MeshConfig,
    NanochatConfig,
    OptimConfig,
    SampleConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from jaxgpt.run import meter
from parity_tests import small_runs
from parity_tests.helpers.train_runs import TEXT, write_text
from torch_ref import train as torch_train

CHANGES = (3, 6)
N_STEPS = 8


def test_both_frameworks_agree_through_stages_in_float64():
    """Row length, window, batch and learning rate change, and three targets become two and one."""
    config = small_runs.make_config("nanochat2026", N_STEPS, "float64", is_small=True)
    n_rows, seq_lens = small_runs.N_ROWS, (32, 16, 48)
    stages = tuple(
        StageConfig(
            from_step=step, batch_tokens=n_rows * seq_len, seq_len=seq_len, short_window=window, lr_scale=scale,
            target_weights=weights,
        )
        for step, seq_len, window, scale, weights in zip(
            CHANGES, seq_lens[1:], (5, 12), (1.5, 0.7), ((1.0, 0.5), (1.0,)), strict=True
        )
    )  # fmt: skip
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, depth=2, backout=False),  # after the last layer it has no gradient
        train=dataclasses.replace(config.train, steps=N_STEPS, stages=stages, target_weights=(1.0, 0.5, 0.25)),
        optim=dataclasses.replace(config.optim, grad_divisor=8.0 * n_rows),
    )
    lengths = [seq_lens[sum(step >= change for change in CHANGES)] for step in range(N_STEPS)]
    batches = [small_runs.make_batches(step + 1, seq_len)[step] for step, seq_len in enumerate(lengths)]
    params = draw_params(config)
    ours, theirs = run_jax(config, params, batches), run_torch(config, params, batches)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=tolerances.FP64)
    np.testing.assert_allclose(ours.grad_norms, theirs.grad_norms, rtol=tolerances.FP64)
    for name in ("grads", "first", "last", "opt_state"):
        for path, leaf in getattr(ours, name).items():
            other = getattr(theirs, name)[path]
            error = np.linalg.norm(leaf - other) / max(np.linalg.norm(other), 1e-30)
            assert error < tolerances.FP64, (name, path, error)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    """A run of nine steps with two changes, which evaluates and saves after each step."""
    directory = tmp_path_factory.mktemp("staged")
    stages = (
        StageConfig(from_step=4, batch_tokens=256, seq_len=32, short_window=9, target_weights=(1.0, 0.5),
                    micro_batch_size=8),
        StageConfig(from_step=7, batch_tokens=192, seq_len=24, short_window=5, lr_scale=0.5, target_weights=(1.0,),
                    micro_batch_size=2),
    )  # fmt: skip
    config = Config(
        data=DataConfig(dir=str(write_text(directory, TEXT)), sampling="sequential"),
        model=NanochatConfig(depth=2, head_dim=16, n_embd=32, seq_len=16, short_window=5, window_pattern="SL"),
        train=TrainConfig(
            steps=9, batch_tokens=128, micro_batch_size=4, dtype="float32", stages=stages,
            target_weights=(1.0, 0.5, 0.25),
        ),
        optim=OptimConfig(algorithm="muon", lr=1e-3, schedule=ScheduleConfig(kind="trapezoid")),
        eval=EvalConfig(every=1, tokens=160, seq_len=32),
        log=LogConfig(every=1), checkpoint=CheckpointConfig(every=1, keep=20), sample=SampleConfig(every=9),
        mesh=MeshConfig(data=1),
    )  # fmt: skip
    path = directory / "config.py"
    path.write_text(config_lib.to_source(config))
    return path


def figures(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: [r[name] for name in ("train_loss", "grad_norm", "val_loss", "tokens")] for r in records}


@pytest.mark.parametrize("loop", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_a_run_resumed_before_at_and_after_a_change_is_exact(loop, config_path, tmp_path, monkeypatch, capsys):
    main = {"jax": train.main, "torch": torch_train.main}[loop]
    whole, events = tmp_path / "whole", []

    def listen(event, duration_secs, **about):
        if event.endswith("backend_compile_duration"):
            events.append(about["fun_name"])

    push = meter.Meter.push
    monkeypatch.setattr(meter.Meter, "push", lambda self, n, m: (push(self, n, m), events.append(n)))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert main([f"--config={config_path}", f"--run.dir={whole}"]) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    late = [event for event in events[events.index(1) :] if event in ("jit(train_step)", "jit(eval_step)")]
    assert not late and (loop == "torch" or events.index(1) > 5), events
    expected = figures(whole)
    if loop == "jax":
        capsys.readouterr()
        assert evaluate.main([f"--run={whole}", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["splits"]["val"]["loss"]
        fours = [f"--train.stages.{i}.micro_batch_size=4" for i in (0, 1)]
        assert main([f"--config={config_path}", f"--run.dir={tmp_path / 'fours'}", "--sample.every=0", *fours]) == 0
        for step, values in figures(tmp_path / "fours").items():
            assert values == pytest.approx(expected[step], rel=tolerances.FP32_OP * 10), "the split of a batch matters"
        assert found == pytest.approx(expected[9][2], rel=1e-6)
    assert [expected[n][3] for n in (4, 7, 9)] == [512, 512 + 3 * 256, 512 + 3 * 256 + 2 * 192]
    for step in (3, 4, 5):
        parts = tmp_path / f"from {step}"
        shutil.copytree(whole, parts)
        assert main([f"--config={config_path}", f"--run.dir={parts}", f"--resume-from={step}", "--sample.every=0"]) == 0
        assert figures(parts) == expected
        shutil.rmtree(parts)
