"""How a comparison is shown: a table, JSON, two curves; and the machine it was made on."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table
from rich.text import Text

from jaxgpt.compare.gates import Row
from jaxgpt.compare.trajectories import import_torch
from jaxgpt.config import Config
from jaxgpt.run.console import console
from jaxgpt.run.curve import import_pyplot


def print_rows(rows: Iterable[Row], title: str) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("quantity", no_wrap=True)
    table.add_column("worst", overflow="fold")
    for name in ("figure", "floor", "gate"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in rows:
        verdict = "-" if row.limit is None else "inside" if row.is_inside else f"outside, {row.margin:.1e} x"
        style = "red" if verdict.startswith("outside") else ""
        limit = "-" if row.limit is None else f"{row.limit:.1e}"
        table.add_row(row.quantity, row.worst, f"{row.figure:.1e}", f"{row.floor:.1e}", limit, Text(verdict, style))
    console.print(table)


def draw_curves(steps: list[int], ours: list[float], theirs: list[float], names: tuple[str, str], path: Path) -> None:
    """Both losses above, their difference below."""
    plt = import_pyplot()
    figure, (above, below) = plt.subplots(2, figsize=(8, 6), sharex=True, layout="constrained")
    above.plot(steps, theirs, linewidth=1.6, label=names[1])
    above.plot(steps, ours, linewidth=0.8, linestyle="--", label=names[0])
    above.set(ylabel="loss (nats per token)")
    above.legend()
    difference = np.abs(np.subtract(ours, theirs))
    below.plot(steps, np.where(difference > 0, difference, np.nan), marker=".", markersize=2, linewidth=0.6)
    if difference.any():
        below.set_yscale("log")
    below.set(xlabel="step", ylabel="difference")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def to_json(rows: Iterable[Row], **more: Any) -> dict:
    """What the table says, and whatever else is given, as JSON holds it."""
    table = [dataclasses.asdict(row) | {"is_inside": row.is_inside} for row in rows]
    return {"rows": table, "is_inside": all(row["is_inside"] for row in table), **more}


def describe_machine(config: Config | None = None) -> dict[str, str]:
    """Versions and devices that the figures were made with."""
    import platform

    torch = import_torch()
    is_gpu = config is not None and config.mesh.platform == "gpu"
    device = torch.cuda.get_device_name() if is_gpu else f"CPU, {platform.machine()}, {os.cpu_count()} cores"
    return {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version(), "device": device}
