"""How a quantity grows along an axis: the exponent p of value^p, its table and its picture. Imports no JAX."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from jaxgpt.bench.record import Record, time_text
from jaxgpt.run.curve import import_pyplot

EXPONENTS_HEADER = ["axis", "fitted over", "time", "CPU time", "FLOPs", "temporaries", "counted", "compiling"]
MIN_SPAN = 2.0
"""Least ratio between the ends of a curve that is drawn over its whole height."""
POINTS_HEADER = ["axis", "value", "median", "least", "CPU time", "temporaries", "compiling"]


def upper_half(values: Sequence[int]) -> slice:
    """The points that are fitted: where what is constant has become small."""
    return slice((len(values) - 1) // 2, None)


def fit_exponent(values: Sequence[float], figures: Sequence[float]) -> float:
    """The slope of log(figure) over log(value), by least squares. NaN where a figure is not above 0."""
    if min(figures) <= 0 or len(set(values)) < 2:
        return math.nan
    return float(np.polyfit(np.log(values), np.log(figures), 1)[0])


def fit_axis(points: Sequence[Record]) -> Record:
    """The exponents of one axis over its upper half; of time also the lowest and the highest of a single round.

    Args:
      points: of `scaling.time_axes`, by rising value.
    """
    fitted = points[upper_half([point["value"] for point in points])]
    values = [point["value"] for point in fitted]
    found: Record = {"from": values[0], "to": values[-1]}
    for name in ("step_s", "cpu_s", "flops", "temporary_bytes", "counted_bytes", "compile_cpu_s"):
        exponent = fit_exponent(values, [point[name] for point in fitted])
        found[name] = exponent if math.isfinite(exponent) else None
    rounds = zip(*(point["by_round_s"] for point in fitted), strict=True)
    by_round = [fit_exponent(values, seconds) for seconds in rounds]
    return found | {"step_s_range": [min(by_round), max(by_round)]}


def summarise_point(axis: str, value: int, about: Record, turns: Sequence[Record]) -> Record:
    """One point's figures.

    Args:
      about: flops, temporary_bytes, counted_bytes, compile_cpu_s.
      turns: of each round step_s, a list, and cpu_s.
    """
    step_s = [seconds for turn in turns for seconds in turn["step_s"]]
    return {
        "axis": axis,
        "value": value,
        "step_s": median(step_s),
        "step_s_min": min(step_s),
        "cpu_s": median(turn["cpu_s"] for turn in turns),
        "by_round_s": [median(turn["step_s"]) for turn in turns],
        **about,
    }


def exponent_rows(axes: dict[str, Record]) -> list[list[str]]:
    """Rows under `EXPONENTS_HEADER`."""

    def text(exponent: float | None) -> str:
        return "" if exponent is None else f"{round(exponent, 2) + 0.0:.2f}"

    rows = []
    for name, axis in axes.items():
        fit = axis["exponents"]
        low, high = fit["step_s_range"]
        time = f"{text(fit['step_s'])} ({text(low)} to {text(high)})"
        rest = [text(fit[key]) for key in ("cpu_s", "flops", "temporary_bytes", "counted_bytes", "compile_cpu_s")]
        rows.append([name, f"{fit['from']} to {fit['to']}", time, *rest])
    return rows


def point_rows(axes: dict[str, Record]) -> list[list[str]]:
    """Rows under `POINTS_HEADER`."""
    return [
        [
            name, f"{point['value']:,}", *(time_text(point[key]) for key in ("step_s", "step_s_min", "cpu_s")),
            f"{point['temporary_bytes'] / 2**20:,.1f} MiB", time_text(point["compile_cpu_s"]),
        ]
        for name, axis in axes.items()
        for point in axis["points"]
    ]  # fmt: skip


def draw_axes(axes: dict[str, Record], path: Path) -> None:
    """Time and temporaries over each axis, both logarithmic, with the exponents, as a PNG."""
    plt = import_pyplot()
    n_rows = -(-len(axes) // 3)
    figure, grid = plt.subplots(n_rows, 3, figsize=(11, 3.2 * n_rows), layout="constrained", squeeze=False)
    for plot in grid.flat[len(axes) :]:
        plot.set_axis_off()
    for plot, (name, axis) in zip(grid.flat, axes.items(), strict=False):
        values = [point["value"] for point in axis["points"]]
        other = plot.twinx()
        for place, key, factor, label, color, style in (
            (plot, "step_s", 1e3, "time (ms)", "tab:blue", "-"),
            (plot, "cpu_s", 1e3, "time, CPU time dashed (ms)", "tab:blue", "--"),
            (other, "temporary_bytes", 2**-20, "temporaries (MiB)", "tab:orange", "-"),
        ):
            figures = [point[key] * factor for point in axis["points"]]
            place.plot(values, figures, marker="o", markersize=3, color=color, linestyle=style)
            place.set_yscale("log")
            place.set_ylabel(label, color=color)
            if max(figures) < MIN_SPAN * min(figures):  # else what hardly changes looks like a slope
                place.set_ylim(min(figures) / MIN_SPAN, max(figures) * MIN_SPAN)
        plot.set_xscale("log", base=2)
        fit = axis["exponents"]
        exponents = [
            f"{word} ^{fit[key]:.2f}"
            for word, key in (("time", "step_s"), ("CPU", "cpu_s"), ("FLOPs", "flops"))
            if fit[key]
        ]
        plot.set(xlabel=name, title=", ".join(exponents))
        plot.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
