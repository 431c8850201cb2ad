"""Directories of runs with the records that training and evaluating leave, but no weights: what a report reads."""

import json
from pathlib import Path

from jaxgpt.config import Config, GPT2Config, RunConfig, TrainConfig, to_dict
from jaxgpt.run.manifest import make_manifest, write_manifest
from jaxgpt.run.metrics import dump
from jaxgpt.run.results import write_result

SHAPES = {"params.wte": ["float32", [64, 32]], "params.h.0.attn.c_q": ["float32", [32, 32]], "opt.mu": ["float32", [9]]}
N_PARAMS = 64 * 32 + 32 * 32


def make_config(seed: int = 1, steps: int = 40) -> Config:
    model = GPT2Config(vocab_size=64, seq_len=32, n_layer=1, n_head=2, n_embd=32)
    train = TrainConfig(steps=steps, batch_tokens=256, micro_batch_size=8)
    return Config(model=model, train=train, run=RunConfig(seed=seed))


def write_checkpoint(run: Path, config: Config, step: int, digest: str = "d" * 64) -> None:
    path = run / "checkpoints" / str(step)
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"\0" * 8)
    about = {"config": to_dict(config), "data_sha256": digest, "tokenizer": None}
    write_manifest(path, make_manifest(step, SHAPES, about, 3.5, ("numpy",)))


def write_metrics(run: Path, n_steps: int, first_loss: float = 4.0) -> None:
    lines = [
        {"step": step, "train_loss": first_loss - step / n_steps, "lr": 1e-3, "tokens": step * 256, "tokens_per_s": 1e4}
        for step in range(1, n_steps + 1)
    ]
    lines[-1] |= {"val_loss": first_loss - 0.9, "val_bits_per_byte": 1.25}
    (run / "metrics.jsonl").write_text("".join(f"{dump(line)}\n" for line in lines))


def write_history(run: Path, stage: str, began: str = "2026-01-31T10:00:00+00:00", *, minutes: int = 90) -> None:
    """A process that trained so long."""
    about = {
        "began": True, "stage": stage, "devices": "8 x NVIDIA H100", "machine": "Linux x86_64, 2 cores",
        "commit": "c" * 40, "versions": {"jaxgpt": "0.1.0", "jax": "0.10.2"},
    }  # fmt: skip
    hour, rest = divmod(minutes, 60)
    ended = began.replace("T10:00", f"T{10 + hour}:{rest:02}")
    entries = [{"step": 0, "time": began} | about, {"step": 40, "time": ended, "ended": True}]
    with (run / "history.jsonl").open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def write_run(run: Path, stage: str, scores: dict[str, float], config: Config | None = None, step: int = 40) -> Path:
    """A whole run; scores of CORE and of tasks."""
    run.mkdir(parents=True)
    write_checkpoint(run, config or make_config(), step)
    write_metrics(run, 40)
    write_history(run, stage)
    core = {name: {"score": score} for name, score in scores.items() if name == "CORE"}
    tasks = {name: {"score": score} for name, score in scores.items() if name != "CORE"}
    about = {"dtype": "bfloat16"}
    if core:
        write_result(run, "core", step, 30.0, core, about)
    if tasks:
        write_result(run, "tasks", step, 30.0, tasks, about)
    return run
