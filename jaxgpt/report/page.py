"""The page about runs: results by stage, published ones, curves, time and cost, what differs, where it comes from."""

import math
from collections.abc import Sequence

from jaxgpt.config import flatten, to_dict
from jaxgpt.report.blocks import Block, Heading, Items, Page, Paragraph, Table
from jaxgpt.report.curves import draw_curves
from jaxgpt.report.records import RunRecord
from jaxgpt.report.reference import PUBLISHED, TASKS
from jaxgpt.run.history import STAGES

NONE = "-"
FIRST, LAST = "CORE", "ChatCORE"


def make_page(runs: Sequence[RunRecord], price: float | None, title: str, made: str) -> Page:
    """The page about one run or several.

    Args:
      price: of the machine, in dollars per hour; None: no costs.
      made: when and by what, in words.
    """
    runs = sorted(runs, key=lambda run: STAGES.index(run.stage))
    labels = label_runs(runs)
    picture = draw_curves(runs, labels)
    notes = find_notes(runs, labels)
    blocks: list[Block] = [
        Paragraph(made),
        *([Items(tuple(notes))] if notes else []),
        Heading("Results"),
        summarize(runs, labels),
        *_core_by_task(runs, labels),
        Heading("Published results"),
        published(),
        Paragraph(
            "Each is one run; another of the same recipe differs. CORE by the baselines of DCLM's first table, as "
            "nanochat computes it; ChatCORE over the tasks of the row, except for Ascend's, which does not follow from "
            "them."
        ),
        Heading("Runs"),
        describe_runs(runs, labels),
        *([picture] if picture else []),
        Heading("Time and cost"),
        times(runs, labels, price),
        Paragraph(
            "Training is the time of its processes, their start, evaluations and saves included; of one that was "
            "killed, up to its last sign of life, at most a minute before. Evaluations are those with a record."
            + ("" if price is not None else " Costs need --price, the machine's in dollars per hour.")
        ),
        *_differences(runs, labels),
        Heading("Where it comes from"),
        provenance(runs, labels),
        *_evaluations(runs, labels),
    ]
    return Page(title, tuple(blocks))


def label_runs(runs: Sequence[RunRecord]) -> list[str]:
    """What each run is called: its stage, and its name where it shares the stage with another."""
    stages = [run.stage for run in runs]
    return [f"{run.stage.upper()} {run.name}" if stages.count(run.stage) > 1 else run.stage.upper() for run in runs]


def find_notes(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[str]:
    """What is missing or damaged."""
    missing = [stage.upper() for stage in STAGES if stage not in {run.stage for run in runs}]
    notes = [f"Missing stages: {', '.join(missing)}."] if missing else []
    notes += [f"{label} ({run.name}) has no record of CORE or tasks." for label, run in zip(labels, runs, strict=True)
              if not run.metrics_scored()]  # fmt: skip
    notes += [f"{label} ({run.name}): {int(skipped)} steps were not finite, and changed nothing."
              for label, run in zip(labels, runs, strict=True) if (skipped := run.last("n_skipped"))]  # fmt: skip
    return notes + [f"Left out: {fault}." for run in runs for fault in run.faults]


# Figures


def score(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    minutes = int(seconds / 60 + 0.5)
    return f"{minutes // 60:,} h {minutes % 60} min"


# Tables


def summarize(runs: Sequence[RunRecord], labels: Sequence[str]) -> Table:
    """Metric x stage as in nanochat's report: CORE first, ChatCORE last, "-" where nothing was measured."""
    columns = []
    for stage in STAGES:
        of_stage = [(label, run) for label, run in zip(labels, runs, strict=True) if run.stage == stage]
        columns += of_stage or [(stage.upper(), None)]
    metrics = set().union(*(run.metrics_scored() for run in runs)) | {FIRST, LAST}
    ordered = [FIRST, *sorted(metrics - {FIRST, LAST}), LAST]
    rows = tuple((metric, *(score(run.score(metric) if run else None) for _, run in columns)) for metric in ordered)
    return Table("Scores by stage", ("Metric", *(label for label, _ in columns)), rows, (15, 8))


def _core_by_task(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[Table]:
    """CORE's tasks, each from the newest evaluation."""
    newest = [next((result for result in reversed(run.results) if result.kind == "core"), None) for run in runs]
    columns = [(label, result.results) for label, result in zip(labels, newest, strict=True) if result]
    names = list(dict.fromkeys(name for _, results in columns for name in results if name != FIRST))
    if not names:
        return []
    rows = tuple(
        (name, *(score(results[name]["score"] if name in results else None) for _, results in columns))
        for name in names
    )
    return [Table("CORE by task, above chance", ("Task", *(label for label, _ in columns)), rows)]


def published() -> Table:
    rows = tuple(
        (row.run, row.stage.upper(), *(score(row.scores.get(metric)) for metric in (FIRST, *TASKS)))
        for row in PUBLISHED
    )
    return Table("nanochat and its ports", ("Run", "Stage", FIRST, *TASKS), rows)


def describe_runs(runs: Sequence[RunRecord], labels: Sequence[str]) -> Table:
    """What each run trained, and how far its losses came. They are of different texts in different stages."""
    rows = []
    for label, run in zip(labels, runs, strict=True):
        model = run.config.model if run.config else None
        shapes = [shape for path, (_, shape) in run.manifest.get("state", {}).items() if path.startswith("params.")]
        step = run.last("step") if run.step is None else run.step
        rows.append((
            label, run.name, f"{model.family}, {model.n_layer} x {model.n_embd}" if model else NONE,
            count(sum(map(math.prod, shapes)) or None), count(step), count(run.last("tokens")),
            *(score(run.last(name)) for name in ("train_loss", "val_loss", "val_bits_per_byte")),
        ))  # fmt: skip
    losses = ("Training loss", "Validation loss", "Bits per byte")
    head = ("Stage", "Run", "Model", "Parameters", "Steps", "Tokens", *losses)
    return Table("Runs, with their last losses in nats per token", head, tuple(rows))


def times(runs: Sequence[RunRecord], labels: Sequence[str], price: float | None) -> Table:
    """Per run and together; a total leaves out what no record tells."""

    def row(label: str, training: float | None, evaluations: float) -> tuple[str, ...]:
        spent = None if training is None and not evaluations else (training or 0.0) + evaluations
        cost = NONE if spent is None or price is None else f"{spent / 3600 * price:,.2f}"
        return label, duration(training), duration(evaluations or None), duration(spent), cost

    known = [run.seconds for run in runs if run.seconds is not None]
    rows = [row(label, run.seconds, run.evaluation_seconds) for label, run in zip(labels, runs, strict=True)]
    rows.append(row("Together", sum(known) if known else None, sum(run.evaluation_seconds for run in runs)))
    at = "" if price is None else f", at {price:,.2f} dollars per hour"
    return Table(f"Time by stage{at}", ("Stage", "Training", "Evaluations", "Both", "Dollars"), tuple(rows))


def _differences(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[Block]:
    """Settings that are not the same in all runs."""
    known = [(label, flatten(to_dict(run.config))) for label, run in zip(labels, runs, strict=True) if run.config]
    if len(known) < 2:
        return []
    names = sorted({name for _, values in known for name in values})
    rows = []
    for name in names:
        shown = [str(values[name]) if name in values else NONE for _, values in known]
        if len(set(shown)) > 1:
            rows.append((name, *shown))
    if not rows:
        return [Heading("What differs"), Paragraph("The configs are the same.")]
    table = Table("Settings that differ", ("Setting", *(label for label, _ in known)), tuple(rows))
    return [Heading("What differs"), table]


def provenance(runs: Sequence[RunRecord], labels: Sequence[str]) -> Table:
    """Code, data and machines of each run, as its processes and its newest checkpoint say."""
    columns = []
    for run in runs:
        about = [session.about for session in run.sessions]
        columns.append({
            "Run": run.name,
            "Seed": str(run.config.run.seed) if run.config else NONE,
            "Commit": _all([one.get("commit", "") for one in about]),
            "SHA-256 of the data": run.manifest.get("about", {}).get("data_sha256") or NONE,
            "Versions": _pairs(about[-1].get("versions") if about else run.manifest.get("versions")) or NONE,
            "Devices": _all([one.get("devices", "") for one in about]),
            "Machine": _all([one.get("machine", "") for one in about]),
            "Processes": str(len(run.sessions) or NONE),
            "Began": run.sessions[0].began.isoformat(" ", "minutes") if run.sessions else NONE,
        })  # fmt: skip
    rows = tuple((name, *(column[name] for column in columns)) for name in columns[0])
    return Table("Code, data and machines", ("About", *labels), rows)


def _all(values: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, values))) or NONE


def _pairs(values: object) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, dict) else ""


def _evaluations(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[Table]:
    rows = tuple(
        (
            label, result.kind, f"{result.step:,}", result.time, duration(result.seconds),
            ", ".join(f"{name} {_show(figures)}" for name, figures in result.results.items()),
            _pairs(result.about),
        )
        for label, run in zip(labels, runs, strict=True) for result in run.results
    )  # fmt: skip
    head = ("Stage", "Kind", "Step", "Ended", "Took", "Found", "With")
    return [Table("Evaluations", head, rows)] if rows else []


def _show(figures: dict[str, float]) -> str:
    main = "score" if "score" in figures else "loss"
    return score(figures.get(main))
