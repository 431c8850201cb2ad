"""What a run tells people and programs: metrics.jsonl, the console, TensorBoard and Weights & Biases, the curve.

metrics.jsonl is the record: one object per logged step, floats at full precision, flushed at once. The console
and the sinks show the same numbers. A sink that fails is reported once and dropped; training goes on.
"""

import json
import os
import sys
import warnings
from pathlib import Path

from rich import progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from jaxgpt.errors import InputError

console = Console(highlight=False)


class MetricsFile:
    """metrics.jsonl of a run directory, cut back to `first_step` when a run goes on from there."""

    def __init__(self, path: Path, first_step: int):
        kept = [record for record in read_metrics(path) if record["step"] <= first_step] if path.exists() else []
        partial = path.with_name(path.name + ".tmp")
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run

    def write(self, record: dict) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; a last line that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Sinks:
    """TensorBoard and Weights & Biases, where asked for."""

    def __init__(self, run_dir: Path, config: dict, *, tensorboard: bool, wandb_project: str):
        self._writers = {}
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise InputError("log.tensorboard=true needs tensorboardX; pip install 'jaxgpt[tracking]'") from error
            writer = SummaryWriter(str(run_dir / "tensorboard"))
            self._writers["TensorBoard"] = (
                lambda record: [
                    writer.add_scalar(name, value, record["step"])
                    for name, value in record.items()
                    if name != "step" and value is not None
                ],
                writer.close,
            )
        if wandb_project:
            try:
                import wandb  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                raise InputError("log.wandb_project needs wandb; pip install 'jaxgpt[tracking]'") from error
            run = wandb.init(project=wandb_project, name=run_dir.name, config=config, dir=str(run_dir), resume="allow")
            self._writers["Weights & Biases"] = (lambda record: run.log(record, step=record["step"]), run.finish)

    def write(self, record: dict) -> None:
        for name, (write, _) in list(self._writers.items()):
            try:
                write(record)
            except Exception as error:  # whatever a tracker raises, it must not end the training
                console.print(f"[yellow]{name} failed and is switched off: {type(error).__name__}: {error}")
                del self._writers[name]

    def close(self) -> None:
        for _, close in self._writers.values():
            close()


class Progress:
    """A bar with the last step's numbers and the ETA; nothing where output goes to a file: lines tell there."""

    def __init__(self, n_steps: int, first_step: int):
        self.is_shown = console.is_terminal and not console.quiet
        columns = (
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
        )
        self._bar = progress.Progress(*columns, console=console, disable=not self.is_shown)
        self._task = self._bar.add_task("train", total=n_steps, completed=first_step, status="")

    def advance(self, n_done: int, status: str) -> None:
        self._bar.update(self._task, completed=n_done, status=status.split("  ", 1)[1])

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()


def describe(record: dict) -> str:
    """A record as one console line."""
    parts = [f"step {record['step']}", f"loss {record['train_loss']:.4f}"]
    if record.get("val_loss") is not None:
        bits = record.get("val_bits_per_byte")
        parts.append(f"val {record['val_loss']:.4f}" + (f" ({bits:.4f} bits/byte)" if bits is not None else ""))
    parts += [f"lr {record['lr']:.2e}", f"{record['tokens_per_s'] / 1e3:,.1f}K tok/s"]
    if record.get("mfu") is not None:
        parts.append(f"MFU {record['mfu']:.1%}")
    if record.get("n_skipped"):
        parts.append(f"skipped {record['n_skipped']}")
    return "  ".join(parts)


def print_facts(title: str, facts: dict[str, str]) -> None:
    """A two-column table of what a run is; facts without a value are left out."""
    table = Table(title=title, show_header=False, box=None, title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in facts.items():
        if value:
            table.add_row(name, value)
    console.print(table)


def draw_losses(records: list[dict], png_path: Path) -> None:
    """The loss curves as a PNG, and in the terminal."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    train = [(r["step"], r["train_loss"]) for r in records]
    val = [(r["step"], r["val_loss"]) for r in records if r.get("val_loss") is not None]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(*zip(*train, strict=True), linewidth=0.8, label="train")
    axes.plot(*zip(*val, strict=True), marker="o", markersize=3, label="val") if val else None
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(png_path, dpi=150)
    plt.close(figure)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import plotext
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(console.width, 90), 16)
    plotext.plot(*map(list, zip(*train, strict=True)), label="train", marker="braille")
    if val:
        plotext.scatter(*map(list, zip(*val, strict=True)), label="val", marker="o")
    plotext.xlabel("step")
    plotext.ylabel("loss")
    sys.stdout.write(plotext.build() + "\n")
