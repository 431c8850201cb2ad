"""The loss curve of a run: a PNG, and a plot in the terminal."""

import io
import math
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxgpt.files import write_atomically
from jaxgpt.run.console import console

Curve = list[tuple[int, float]]


def import_pyplot() -> ModuleType:
    """matplotlib.pyplot, drawing into files. A notebook's MPLBACKEND, which may not exist here, is not read."""
    notebooks = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    finally:
        if notebooks is not None:
            os.environ["MPLBACKEND"] = notebooks
    return plt


def draw_losses(records: list[dict[str, Any]], png_path: Path) -> str:
    """The loss curves as a PNG, and in the terminal.

    Returns:
      What could not be drawn and why, in one line; empty if nothing failed. Nothing is raised: the run is over.
    """
    train, val = (finite_points(records, name) for name in ("train_loss", "val_loss"))
    if not train and not val:
        return f"{png_path} was not drawn: no loss of the run is finite" if records else ""
    faults = []
    for what, draw in ((str(png_path), lambda: draw_png(train, val, png_path)), ("the plot", lambda: show(train, val))):
        try:
            draw()
        except Exception as error:  # whatever a plotting library raises, it must not end the run
            faults.append(f"{what} was not drawn: {type(error).__name__}: {error}")
    return "; ".join(faults)


def finite_points(records: list[dict[str, Any]], name: str) -> Curve:
    """Step and value of the records that have a finite one."""
    points: list[tuple[int, Any]] = [(record["step"], record.get(name)) for record in records]
    return [(step, value) for step, value in points if type(value) in (int, float) and math.isfinite(value)]


def draw_png(train: Curve, val: Curve, path: Path) -> None:
    plt = import_pyplot()
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    if train:
        axes.plot(*zip(*train, strict=True), linewidth=0.8, label="train")
    if val:
        axes.plot(*zip(*val, strict=True), marker="o", markersize=3, label="val")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    plt.close(figure)
    write_atomically(path, picture.getvalue())


def show(train: Curve, val: Curve) -> None:
    """In the terminal, where its encoding has the characters."""
    if console.quiet or not console.encoding.startswith("utf"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import plotext
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(console.width, 90), 16)
    if train:
        plotext.plot(*map(list, zip(*train, strict=True)), label="train", marker="braille")
    if val:
        plotext.scatter(*map(list, zip(*val, strict=True)), label="val", marker="o")
    plotext.xlabel("step")
    plotext.ylabel("loss")
    sys.stdout.write(plotext.uncolorize(plotext.build()) + "\n")
