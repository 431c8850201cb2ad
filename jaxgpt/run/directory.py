"""The directory of a run, for both training loops: who may enter it, what is written at the start and at the end.

runs/x/config.py, metrics.jsonl, loss.png, checkpoints/
"""

from pathlib import Path
from typing import Any

from jaxgpt.config import Config, flatten, to_dict, to_source
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
      then, now: `about` of the checkpoint and of this process: config, vocab_size, data_sha256, tokenizer.

    Raises:
      InputError: the architecture, the data or the tokenizer is another one.
    """
    old, new = (flatten(values["config"]) for values in (then, now))
    changed = {name: (old.get(name), value) for name, value in new.items() if old.get(name) != value}
    listed = {name: f"{name} {was!r} -> {is_now!r}" for name, (was, is_now) in changed.items()}
    architecture = [text for name, text in listed.items() if name.startswith("model.") and name != "model.dropout"]
    if then["vocab_size"] != now["vocab_size"]:
        architecture.append(f"vocabulary {then['vocab_size']} -> {now['vocab_size']}")
    if architecture:
        raise InputError(f"checkpoint {n_done} in {directory} is another model: {'; '.join(architecture)}")
    for name, what in (("data_sha256", "data"), ("tokenizer", "tokenizer")):
        if then[name] not in (None, now[name]):  # None: an older version could not read the tokenizer of this data
            raise InputError(
                f"the {what} in data.dir={now['config']['data']['dir']} changed since checkpoint {n_done} of "
                f"{directory}; bring the old {what} back, or start a new run with train.init_from"
            )
    return "; ".join(listed.values())


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
