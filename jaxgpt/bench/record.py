"""What a benchmark measured: one JSON object per benchmark, a table, a picture, and a page made of many of them.

Times are medians over all steps of all turns, with the tenth and the ninetieth percentile. A ratio is taken in each
round, between neighbours in time, and its median is given with its range.
"""

import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.table import Table

from jaxgpt.config import Config
from jaxgpt.config.flops import flops_per_token, mfu
from jaxgpt.run.curve import import_pyplot

Record = dict[str, Any]
"""What `--json` writes."""
N_PROFILED = 10


def summarise(config: Config, part: str, about: Record, turns: Sequence[Record]) -> Record:
    """One program's figures.

    Args:
      config: derived, so that its model has a shape.
      part: step, or the part that was timed; only a step counts tokens and FLOPs.
      about: what the program reported when it was ready.
      turns: from `interleave.interleave`.
    """
    step_s = [seconds for turn in turns for seconds in turn["step_s"]]
    tenths = quantiles(step_s, n=10) if len(step_s) > 1 else step_s * 9
    figures = about | {
        "n_steps": len(step_s),
        "step_s": median(step_s),
        "step_s_p10": tenths[0],
        "step_s_p90": tenths[-1],
        "step_s_min": min(step_s),
        "by_round_s": [median(turn["step_s"]) for turn in turns],
        "host_s": median([seconds for turn in turns for seconds in turn["host_s"]]),
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
    }
    if part == "decode":
        figures["tokens_per_s"] = 1 / figures["step_s"]
    if part == "step":
        tokens_per_s = config.train.batch_tokens / figures["step_s"]
        device = (about["device"], about["n_devices"], config.train.dtype)
        figures["tokens_per_s"] = tokens_per_s
        for name, is_causal in (("full", False), ("causal", True)):
            flops_per_s = tokens_per_s * flops_per_token(config.model, causal=is_causal)
            figures[f"flops_per_s_{name}"] = flops_per_s
            figures[f"mfu_{name}"] = mfu(flops_per_s, *device)
    return figures


def compare(programs: dict[str, Record], ours: str = "jaxgpt") -> Record:
    """How our step time relates to the others': `ratio` is ours over the best of torch_ref's, None without it.

    `ratios` has for each other program the ratio round by round and its median.
    """
    others = {name: figures for name, figures in programs.items() if name != ours}
    ratios = {}
    for name, figures in others.items():
        pairs = zip(programs[ours]["by_round_s"], figures["by_round_s"], strict=True)
        by_round = [a / b for a, b in pairs]
        ratios[name] = {"median": median(by_round), "by_round": by_round}
    torch = {name: figures["step_s"] for name, figures in others.items() if name.startswith("torch_ref")}
    best = min(torch, key=lambda name: torch[name]) if torch else None
    ratio = programs[ours]["step_s"] / torch[best] if best else None
    return {"ratio": ratio, "best_of_torch": best, "ratios": ratios}


def describe_machine() -> dict[str, str]:
    """Processor, cores, memory, system, and how busy it was before this began."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (OSError, ValueError):
        names, memory = [], "unknown"
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": memory,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "load before": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
    }


def time_text(seconds: float) -> str:
    """A duration with three digits: 38.4 ms, 950 us, 2.31 s."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor:
            value = seconds / factor
            return (
                f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
            )
    return f"{seconds * 1e9:.0f} ns"


def rows_of(record: Record) -> tuple[list[str], list[list[str]]]:
    """The table of a record: its header, a column for each program, and its rows, one for each figure."""
    programs, ratios = record["programs"], record.get("ratios", {})

    def row(name: str, text: Callable[[Record], str]) -> list[str]:
        return [name, *(text(figures) for figures in programs.values())]

    def share(figures: Record, convention: str) -> str:
        value = figures[f"mfu_{convention}"]
        return "peak not known" if value is None else f"{value:.1%}"

    rows = [
        row("median", lambda f: time_text(f["step_s"])),
        row("p10 to p90", lambda f: f"{time_text(f['step_s_p10'])} to {time_text(f['step_s_p90'])}"),
        row("least", lambda f: time_text(f["step_s_min"])),
    ]
    if ratios:
        texts = {}
        for name, ratio in ratios.items():
            low, high = min(ratio["by_round"]), max(ratio["by_round"])
            texts[name] = f"{ratio['median']:.3f} ({low:.2f} to {high:.2f})"
        rows.append(["jaxgpt over this, by rounds", *(texts.get(name, "") for name in programs)])
    if record["part"] in ("step", "decode"):
        rows.append(row("tokens/s", lambda f: f"{f['tokens_per_s']:,.0f}"))
    if record["part"] == "step":
        for convention in ("full", "causal"):
            rows.append(row(f"GFLOP/s, {convention}", lambda f, c=convention: f"{f[f'flops_per_s_{c}'] / 1e9:,.1f}"))
            rows.append(row(f"MFU, {convention}", lambda f, c=convention: share(f, c)))
    rows += [
        row("host time", lambda f: time_text(f["host_s"])),
        row("compiling and warming up", lambda f: time_text(f["compile_s"])),
        row("from command to ready", lambda f: time_text(f["start_s"])),
        row("peak memory", lambda f: f"{f['peak_bytes'] / 2**20:,.0f} MiB"),
    ]
    return ["", *programs], rows


def profile_rows(operations: Sequence[Record]) -> list[list[str]]:
    """The costliest operations: share, own time per step, how often, what."""
    return [
        [f"{o['share']:.1%}", time_text(o["self_s"]), f"{o['count']:.3g}", o["name"]]
        for o in operations[:N_PROFILED]
    ]  # fmt: skip


PROFILE_HEADER = ["share", "time per step", "times", "operation"]


def to_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """For the terminal."""
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def draw(record: Record, path: Path) -> None:
    """Step time of each program, round by round, as a PNG."""
    plt = import_pyplot()
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, figures in record["programs"].items():
        rounds = range(1, len(figures["by_round_s"]) + 1)
        axes.plot(rounds, [s * 1e3 for s in figures["by_round_s"]], marker="o", markersize=3, label=name)
    axes.set(xlabel="round", ylabel="median time (ms)", title=title_of(record), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def title_of(record: Record) -> str:
    """`shakespeare_char_cpu, step`, and the label where it has one."""
    what = {"step": "one training step", "data": "the loader", "scaling": "how a step scales"}.get(
        record["part"], record["part"]
    )
    return f"{Path(record['config']).stem}, {what}" + (f": {record['label']}" if record.get("label") else "")


PAGE_HEAD = """\
# Benchmarks, measured

Written by a command; run it again instead of editing. Each section is one run of it, kept in `{directory}` as JSON.
Programs take turns in processes of their own, after compiling and warming up; a ratio is taken between neighbours in
time. Times are medians. Host time is what the host spends on dispatching a step (schedules, the next batch, the call);
for eager PyTorch, and on a CPU, it is the step. GFLOP/s and MFU come from `jaxgpt/flops.py`, `full` with attention over
the whole square, `causal` with the half that counts. Peak memory is that of the device, on a CPU that of the process.

On a GPU the same command does it, once the data is prepared:

    jaxgpt bench --config configs/gpt2_124m.py --mesh.platform=gpu --vs torch --profile --report {page}
"""


def write_page(page: Path, record: Record, picture: Path | None = None) -> None:
    """Adds a record to the page: keeps it beside, and writes the page from all that are kept.

    Args:
      picture: PNG of the record, kept beside too. What a person wrote about NAME.json, in NAME.md, follows its tables.
    """
    directory = page.with_suffix("")
    directory.mkdir(parents=True, exist_ok=True)
    name = "-".join(filter(None, [Path(record["config"]).stem, record["part"], record.get("label", "")]))
    name = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")
    if picture:
        record = record | {"picture": f"{name}.png"}
        shutil.copyfile(picture, directory / record["picture"])
    (directory / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    records = [(json.loads(path.read_text(encoding="utf-8")), path) for path in sorted(directory.glob("*.json"))]
    records.sort(key=lambda r: (Path(r[0]["config"]).stem, r[0]["part"] != "step", r[0]["part"], r[0]["date"]))
    sections = [_section(record, path) for record, path in records]
    head = PAGE_HEAD.format(directory=directory.name + "/", page=page)
    page.write_text("\n".join([head, *sections]), encoding="utf-8")


def _section(record: Record, path: Path) -> str:
    """A record's part of the page; `path` is of its JSON."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"## {title_of(record)}",
        "",
        f"    {record['command']}",
        "",
        f"{record['date']}; {machine['processor']}, {machine['cores']} cores, {machine['memory']}; "
        f"{machine['system']}; {versions}; load before: {machine['load before']}.",
        "",
    ]
    if record.get("programs"):
        lines += _markdown(*rows_of(record))
    if record.get("ratio") is not None:
        lines += [f"jaxgpt over the best of torch_ref ({record['best_of_torch']}): **{record['ratio']:.3f}**.", ""]
    if record.get("note"):
        lines += [record["note"], ""]
    for _, header, rows in record.get("tables", ()):
        lines += _markdown(header, rows)
    if record.get("picture"):
        lines += [f"![{title_of(record)}]({path.parent.name}/{record['picture']})", ""]
    remark = path.with_suffix(".md")
    if remark.is_file():
        lines += [remark.read_text(encoding="utf-8")]
    for name, operations in record.get("operations", {}).items():
        lines += [f"Costliest operations of {name}:", "", *_markdown(PROFILE_HEADER, profile_rows(operations))]
    return "\n".join(lines)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + " --- |" * len(header), *lines[1:], ""]
