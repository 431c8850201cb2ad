"""docs/memory.md: what the compiler says of the recipes that people ask about, beside what was guessed before.

Also the picture of a sweep. Every figure of the page is computed when the page is written.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxgpt import config as config_lib
from jaxgpt.config import Config
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.config.hardware import GIB, GPU_MEMORY_FRACTION, GPU_RESERVE_BYTES
from jaxgpt.errors import Failure, InputError
from jaxgpt.extras import pip_install
from jaxgpt.plan.compiler import PACKAGES, installed_version
from jaxgpt.plan.forecast import Forecast
from jaxgpt.plan.topology import Topology, parse_topology
from jaxgpt.run.curve import import_pyplot

Ask = Callable[[Config, Topology], Forecast]
NEAR = 0.15
"""An estimate this close to the compiler's figure counts as agreeing."""


@dataclass(frozen=True)
class Recipe:
    """A run that a document, or nanoGPT's README, proposes for a card.

    Attributes:
      title: what the row is called.
      config: file name in configs/, without .py.
      device: for `--device`.
      guess: what was said before anybody compiled it: memory, time.
      overrides: dotted names and values on top of the config.
    """

    title: str
    config: str
    device: str
    guess: str = ""
    overrides: dict[str, str] = field(default_factory=dict)


_D32 = {"model.depth": "32", "train.batch_tokens": "1048576", "train.remat": "block"}
RECIPES = (
    *(Recipe(f"{title} on {device}", config, device, guess if device == meant else "")
      for title, config, meant, guess in (
          ("1, conservative: d12, T 1024, 4 rows", "a100", "a100-40gb", "5 to 6 GB; 8 to 12 hours"),
          ("2, balanced: d14, T 1536, 4 rows", "a100_40gb_d14", "a100-40gb", "fits; 12 to 16 hours"),
          ("3, aggressive: d16, T 2048, 8 rows", "a100_80gb_d16", "a100-80gb", "fits; 16 to 24 hours"),
          ("4, maximum: d18, T 2048, 8 rows", "a100_80gb_d18", "a100-80gb", "fits; 20 to 30 hours"),
      )
      for device in ("a100-40gb", "a100-80gb")),
    Recipe("RTX 4090, d20, T 1024, 4 rows", "rtx4090_d20", "rtx4090", "works; about 80 hours"),
    Recipe("RTX 4090, d20, T 1024, 2 rows", "rtx4090_d20", "rtx4090", "if 4 rows do not fit",
           {"train.micro_batch_size": "2"}),
    Recipe("8 x H100, d20, 32 rows", "speedrun_d20", "h100x8", "30 to 40 GB a card; 4 hours"),
    Recipe("8 x H100, d20, fsdp", "speedrun_d20", "h100x8", "", {"mesh.fsdp": "8"}),
    *(Recipe(f"GPT-2 124M on {device}", "gpt2_124m", device, "4 to 5 days (nanoGPT)" if device == "a100-40gbx8" else "")
      for device in ("a100-40gb", "a100-80gb", "h100", "h200", "b200", "rtx3090", "rtx4090", "l4", "a100-40gbx8",
                     "v4x1", "v5e", "v5px1", "v6e")),
    Recipe("record 62, float8 head, 1 row on h100", "speedrun_h100", "h100", "30 GB on each of 8"),
    Recipe("record 62, float8 head, 4 rows on h100", "speedrun_h100", "h100", "63 to 75 GB; 0.17 hours",
           {"train.micro_batch_size": "4"}),
    Recipe("record 62, 1 row on a100-40gb", "speedrun_a100", "a100-40gb"),
    Recipe("record 62, 1 row, remat block on rtx4090", "speedrun_rtx4090", "rtx4090", "24 GB should work"),
    Recipe("record 62, 1 row of 16,384 on v6ex8", "speedrun_v6e8", "v6ex8"),
    Recipe("track 3, 64 rows on h100", "track3", "h100"),
    Recipe("GPT-2 124M on t4, float16", "gpt2_124m", "t4", "",
           {"train.dtype": "float16", "train.attention": "xla", "train.micro_batch_size": "2"}),
    Recipe("GPT-2 124M on v5e-8, fsdp", "gpt2_124m", "v5e-8", "", {"mesh.fsdp": "8", "train.micro_batch_size": "10"}),
)  # fmt: skip
PODS = (
    Recipe("d32 on h100x64, fsdp 8", "speedrun_d20", "h100x64", "",
           {**_D32, "mesh.fsdp": "8", "train.micro_batch_size": "8"}),
    Recipe("d32 on v5e-256, fsdp 256", "speedrun_d20", "v5e-256", "",
           {**_D32, "mesh.fsdp": "256", "train.micro_batch_size": "2"}),
    Recipe("d32 on v5e-256, data 16 x fsdp 16", "speedrun_d20", "v5e-256", "",
           {**_D32, "mesh.fsdp": "16", "train.micro_batch_size": "2"}),
)  # fmt: skip
"""What one card cannot hold; depth 32 is nanochat's 1,000 dollar model."""
OTHERS_ON = "h100"
"""The card for configs of the repository that no recipe names: they are compiled to judge the estimate."""

VOCAB_SIZES = {"nanochat_cpu": 4096, "quickstart": 96, "shakespeare_char": 65, "shakespeare_char_cpu": 65}
"""The vocabulary of configs that leave it to their data, which need not exist here."""


def write_page(path: Path, ask: Ask, fill_vocabulary: Callable[[Config], Config], configs: Path) -> None:
    """Compiles the recipes, or reads the cache, and writes the page."""
    shown = {recipe.config for recipe in RECIPES}
    others = [
        Recipe(
            name, name, OTHERS_ON, overrides={"model.vocab_size": str(VOCAB_SIZES[name])} if name in VOCAB_SIZES else {}
        )
        for name in sorted(path.stem for path in configs.glob("*.py"))
        if name not in shown
    ]
    rows, others, pods = (_look_at(recipes, ask, fill_vocabulary, configs) for recipes in (RECIPES, others, PODS))
    forecasts = [forecast for _, forecast in rows + others + pods if isinstance(forecast, Forecast)]
    if any(forecast.is_estimate for forecast in forecasts):
        raise Failure(
            f"{path} holds compilers' figures only; install both plug-ins: {pip_install('plan-gpu')} "
            f"and {pip_install('plan-tpu')}"
        )
    estimates = [
        (recipe, forecast, ask.estimate(forecast.config, forecast.topology))  # pyright: ignore[reportFunctionMemberAccess]
        for recipe, forecast in rows + others + pods
        if isinstance(forecast, Forecast)
    ]
    versions = ", ".join(f"{name} {installed_version(name)}" for name in PACKAGES)
    text = f"""# Memory and speed of the recipes, by the compiler

Written by `jaxgpt plan --report {path}`; do not edit. Nothing ran: each training step was compiled for the
card, on a machine without it
({versions}).
Figures are GiB on one device. Usable is what JAX takes of a GPU (XLA_CLIENT_MEM_FRACTION, {GPU_MEMORY_FRACTION} by
default; at most all but {GPU_RESERVE_BYTES / GIB:.2f} GiB, which CUDA and its libraries need), or what libtpu shows of
a TPU. "At best" is the least that the peaks allow. The forecast sums the compiled program's kernels at the rates that
such kernels reach (`jaxgpt/plan/timing.py`); `python -m parity_tests.forecast` compares it with public step times.

## One card, one host

{_table(rows)}

The guess for the conservative A100 recipe counts 0.8 GB each for weights and gradients; parameters, gradients and
optimizer state are float32 here.

A row of record 62 has 16,384 to 49,152 tokens, and the figures are those of the longest. "24 GB should work": one row
at a time with `--train.remat=block` does, without it an A100's 40 GB are needed. Four rows at a time lie within the 63
to 75 GB (of 10^9 bytes) that were guessed, and leave JAX no room on an H100 but by XLA_CLIENT_MEM_FRACTION.

## The other configs, on one {OTHERS_ON}

{_table(others)}

## Pods

{_table(pods)}

{_collectives(pods + rows)}

## The estimate without a compiler

Within {NEAR:.0%} of the compiler's total: {_count_near(estimates)}. Where it is not:

{_estimates(estimates)}

## Against a card

Not measured yet. `total` above stands against `peak memory` of a bench on the card itself:

    for c in gpt2_124m nanochat_d12 shakespeare_char; do
      jaxgpt plan --config configs/$c.py --device h100
      jaxgpt bench --config configs/$c.py
    done
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _look_at(recipes, ask, fill_vocabulary, configs: Path) -> list[tuple[Recipe, Forecast | str]]:
    found: list[tuple[Recipe, Forecast | str]] = []
    for recipe in recipes:
        config = apply_overrides(config_lib.load(configs / f"{recipe.config}.py"), recipe.overrides)
        try:
            found.append((recipe, ask(fill_vocabulary(config), parse_topology(recipe.device))))
        except (InputError, Failure) as error:
            found.append((recipe, str(error)))
    return found


def _table(rows: list[tuple[Recipe, Forecast | str]]) -> str:
    names = ("recipe", "guessed before", "parameters", "optimizer", "gradients", "activations", "total", "usable",
             "verdict", "at best, tokens/s", "at best, hours", "forecast, tokens/s", "forecast, hours",
             "forecast MFU, causal", "compiled in")  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---|---|" + "--:|" * 6 + "---|" + "--:|" * 6]
    for recipe, forecast in rows:
        if isinstance(forecast, str):
            lines.append(f"| {recipe.title} | {recipe.guess} | | | | | | | {forecast} | | | | | | |")
            continue
        one = forecast.footprint
        parts = (one.params_bytes, one.opt_state_bytes, one.gradients_bytes, one.activations_bytes + one.code_bytes)
        sizes = [f"{n / GIB:.2f}" for n in (*parts, one.total_bytes, forecast.usable_bytes)]
        likely, speed = forecast.likely, ("", "", "")
        if likely:
            speed = (f"{likely.tokens_per_s:,.0f}", f"{likely.days * 24:,.1f}", f"{likely.mfu:.0%}")
        rest = (f"{forecast.tokens_per_s:,.0f}", f"{forecast.days * 24:,.1f}", *speed, f"{forecast.compile_s:.0f} s")
        lines.append(f"| {' | '.join((recipe.title, recipe.guess, *sizes, forecast.verdict, *rest))} |")
    return "\n".join(lines)


def _collectives(rows: list[tuple[Recipe, Forecast | str]]) -> str:
    names = ("recipe", "collective", "devices", "times a step", "sent by a device, GiB", "parameters whole in float32")
    lines = [f"| {' | '.join(names)} |", "|---|---|--:|--:|--:|--:|"]
    for recipe, forecast in rows:
        if isinstance(forecast, str):
            continue
        whole = f"{sum(forecast.footprint.gathered_whole.values()) / GIB:.2f} GiB"
        for kind, size, count, sent in forecast.footprint.collectives:
            lines.append(f"| {recipe.title} | {kind} | {size} | {count} | {sent / GIB:.2f} | {whole} |")
    return "\n".join(lines)


def _count_near(estimates: list[tuple[Recipe, Forecast, Forecast]]) -> str:
    near = sum(abs(_error(real, guessed)) <= NEAR for _, real, guessed in estimates)
    return f"{near} of {len(estimates)} recipes"


def _estimates(estimates: list[tuple[Recipe, Forecast, Forecast]]) -> str:
    lines = ["| recipe | compiler, GiB | estimate, GiB | off by |", "|---|--:|--:|--:|"]
    for recipe, real, guessed in estimates:
        if abs(_error(real, guessed)) > NEAR:
            totals = [one.footprint.total_bytes / GIB for one in (real, guessed)]
            lines.append(f"| {recipe.title} | {totals[0]:.2f} | {totals[1]:.2f} | {_error(real, guessed):+.0%} |")
    return "\n".join(lines)


def _error(real: Forecast, guessed: Forecast) -> float:
    return guessed.footprint.total_bytes / real.footprint.total_bytes - 1


def draw_sweep(panels: list[list[tuple[str, Forecast]]], path: Path) -> None:
    """Memory against setting as stacked bars, with the line of what the device can give: a panel for each device."""
    plt = import_pyplot()
    width = max(6.0, 1.6 * max(map(len, panels)) + 1)
    figure, below_each_other = plt.subplots(
        len(panels), figsize=(width, 4.5 * len(panels)), layout="constrained", squeeze=False
    )
    for axes, rows in zip(below_each_other[:, 0], panels, strict=True):
        _draw_panel(axes, rows)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_panel(axes: Any, rows: list[tuple[str, Forecast]]) -> None:
    labels = [label.replace(" ", "\n") for label, _ in rows]
    footprints = [forecast.footprint for _, forecast in rows]
    parts = {
        "parameters": [one.params_bytes for one in footprints],
        "optimizer state": [one.opt_state_bytes for one in footprints],
        "gradients": [one.gradients_bytes for one in footprints],
        "activations, temporaries": [one.activations_bytes + one.inputs_bytes + one.code_bytes for one in footprints],
    }
    forecast = rows[0][1]
    bottom = [0.0] * len(rows)
    for name, values in parts.items():
        heights = [value / GIB for value in values]
        axes.bar(labels, heights, bottom=bottom, label=name, width=0.7)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.axhline(forecast.usable_bytes / GIB, color="black", linestyle="--", label="usable")
    axes.axhline(forecast.topology.device.visible_bytes / GIB, color="grey", linewidth=0.8, label="the card")
    axes.set(
        ylabel="GiB per device", title=f"{forecast.topology.name}, {'estimate' if forecast.is_estimate else 'compiled'}"
    )
    axes.tick_params("x", labelsize="small")
    axes.legend(fontsize="small")
