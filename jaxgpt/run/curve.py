"""The loss curve of a run: a PNG, and a plot in the terminal."""

import sys
import warnings
from pathlib import Path

from jaxgpt.run.console import console


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
