"""The directory of a run, for both training loops: who may enter it, what is written at the start and at the end.

runs/x/config.py, metrics.jsonl, loss.png, checkpoints/
"""

import dataclasses
from pathlib import Path
from typing import Any

from jaxgpt.config import Config, flatten, from_dict, to_dict, to_source
from jaxgpt.errors import InputError
from jaxgpt.run.curve import draw_losses
from jaxgpt.run.metrics import MetricsFile, read_metrics
from jaxgpt.run.sinks import Sinks


def refuse_old_run(run_dir: Path) -> None:
    """An existing run is only entered to resume it."""
    if any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*")):
        raise InputError(
            f"run.dir={run_dir} holds a run already; --resume goes on with it, or choose another --run.dir"
        )


def list_changes(then: dict[str, Any], now: dict[str, Any], n_done: int, directory: Path) -> str:
    """What differs between the config of a checkpoint and the one to go on with, in words; empty where nothing does.

    Args:
      then, now: `about` of the checkpoint and of this process: config, data_sha256, tokenizer.

    Raises:
      InputError: the architecture, the data or the tokenizer is another one.
    """
    old = flatten(to_dict(read_config(then, f"{directory}/{n_done}")))
    changed = {name: (old.get(name), value) for name, value in flatten(now["config"]).items() if old.get(name) != value}
    listed = {name: f"{name} {was!r} -> {is_now!r}" for name, (was, is_now) in changed.items()}
    architecture = [name for name in listed if name.startswith("model.") and name not in FREE_MODEL_FIELDS]
    if architecture:
        settings = " ".join(f"--{name}={changed[name][0]}" for name in architecture)
        raise InputError(
            f"checkpoint {n_done} in {directory} is another model: {'; '.join(listed[name] for name in architecture)}; "
            f"to resume it pass {settings}"
        )
    for name, what in (("data_sha256", "data"), ("tokenizer", "tokenizer")):
        if then[name] not in (None, now[name]):  # None: an older version could not read the tokenizer of this data
            raise InputError(
                f"the {what} in data.dir={now['config']['data']['dir']} changed since checkpoint {n_done} of "
                f"{directory}; bring the old {what} back, or start a new run with train.init_from"
            )
    return "; ".join(listed.values())


FREE_MODEL_FIELDS = ("model.dropout",)
"""Fields of the model that may change when a run is resumed."""


def read_config(about: dict[str, Any], source: str) -> Config:
    """The complete config of a checkpoint, of this version or of one before it.

    Args:
      about: what the checkpoint says of its run.
      source: of it, for messages.

    Raises:
      InputError: it does not say what its model is, or another version wrote it.
    """
    values = about.get("config")
    if not isinstance(values, dict):
        raise InputError(f"{source} does not say what its model is (config); it is no checkpoint of a run")
    try:
        config = from_dict(values)
        vocab_size = about.get("vocab_size", config.model.vocab_size)  # beside the config in older checkpoints
        if type(vocab_size) is not int or vocab_size < 1:
            raise InputError(f"vocab_size={vocab_size!r} is no positive integer")
        model = dataclasses.replace(config.model, vocab_size=vocab_size).complete(vocab_size)
        return dataclasses.replace(config, model=model)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def open_logs(config: Config, run_dir: Path, first_step: int) -> list[MetricsFile | Sinks]:
    """Writes config.py, and opens metrics.jsonl and the sinks."""
    (run_dir / "config.py").write_text(to_source(config), encoding="utf-8")
    log = config.log
    sinks = Sinks(run_dir, to_dict(config), tensorboard=log.tensorboard, wandb_project=log.wandb_project)
    return [MetricsFile(run_dir / "metrics.jsonl", first_step), sinks]


def draw_curve(run_dir: Path) -> None:
    """Writes loss.png, once there is something to draw."""
    records = read_metrics(run_dir / "metrics.jsonl")
    if records:
        draw_losses(records, run_dir / "loss.png")
