"""Curves of all runs in one picture: training loss, validation loss, reward."""

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

from jaxgpt.report.blocks import Picture
from jaxgpt.report.html import LIGHT, N_SERIES
from jaxgpt.report.records import RunRecord
from jaxgpt.run.curve import import_pyplot
from jaxgpt.streams import one_line

FILE = "curves.png"
PANELS = {
    "train_loss": "training loss (nats per token)",
    "val_loss": "validation loss (nats per token)",
    "reward": "mean reward",
}
"""Metric -> what its panel is called; a panel without a curve is left out."""
MAX_POINTS = 1000
"""Of a curve; where a run has more, each point is the mean of as many records as it takes."""
LINES = ("-", "--", "-.", ":")
"""Curves differ by line, not only by colour."""
NAME_CHARACTERS = 60

Point = tuple[float, float]


def draw_curves(runs: Sequence[RunRecord], labels: Sequence[str]) -> Picture | None:
    """The curves of runs; None where no run has one."""
    found = {
        metric: [(i, points) for i, run in enumerate(runs) if (points := read_points(run.metrics, metric))]
        for metric in PANELS
    }
    found = {metric: curves for metric, curves in found.items() if curves}
    if not found:
        return None
    plt = import_pyplot()
    ink, line = "#010203", "#040506"  # replaced by colours of the style
    settings = {
        "svg.fonttype": "none", "svg.hashsalt": "jaxgpt", "text.parse_math": False, "text.color": ink,
        "axes.edgecolor": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "grid.color": line,
    }  # fmt: skip
    with plt.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks; a browser has others
        figure, axes = plt.subplots(len(found), figsize=(9, 3.2 * len(found)), squeeze=False, layout="constrained")
        for (metric, curves), (panel,) in zip(found.items(), axes, strict=True):
            for i, points in curves:
                style = {"color": LIGHT[f"s{i % N_SERIES}"], "linestyle": LINES[(i + i // N_SERIES) % len(LINES)]}
                marker = "o" if len(points) == 1 else ""
                label = "\u200b" + one_line(labels[i])[:NAME_CHARACTERS]  # or one that begins with _ has no legend
                panel.plot(*zip(*points, strict=True), linewidth=1.4, marker=marker, label=label, **style)
            panel.set(xlabel="step", ylabel=PANELS[metric])
            panel.grid(alpha=0.4)
            panel.legend(framealpha=0)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=130)
        plt.close(figure)
    names = "; ".join(
        f"{PANELS[metric]} of {', '.join(labels[i] for i, _ in curves)}" for metric, curves in found.items()
    )
    return Picture(f"Curves over steps: {names}", _in_page(svg.getvalue(), ink, line), png.getvalue(), FILE)


def read_points(records: Sequence[dict[str, Any]], metric: str) -> list[Point]:
    """Step and value of a metric, as at most MAX_POINTS points."""
    points = [(float(record["step"]), float(record[metric])) for record in records if metric in record]
    size = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _in_page(svg: str, ink: str, line: str) -> str:
    """The picture as an element of a page: without prologue, links and comments, in colours of the page's style."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    colours = {ink: "ink", line: "line"} | {LIGHT[f"s{i}"]: f"s{i}" for i in range(N_SERIES)}
    for value, name in colours.items():
        svg = re.sub(rf"(?<=: ){value}(?=[;\"])", f"var(--{name})", svg)
    return svg.strip()
