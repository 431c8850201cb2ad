"""jaxgpt against torch_ref, number by number: the same weights, the same batches, one table of what differs.

    python -m parity_tests.compare --config configs/x.py --steps 200 --dtype float64 [--section.field=value ...]
    python -m parity_tests.compare --runs A B
    python -m parity_tests.compare --report docs/parity.md

The first runs both on this machine, from the weights that jaxgpt draws (nanochat's zeros replaced by noise), on the
batches of the config's data, without dropout and with attention spelled out; the schedule is the config's, of which the
first steps are taken. --trace also
walks forward and backward pass and names the first place where the two part. --runs compares two finished runs by
their metrics.jsonl. --report measures the floors and the mutations anew and writes them down.

Precision is set on purpose on both sides: where float32 products may run as TF32, the tool refuses to judge. On a GPU
set XLA_FLAGS=--xla_gpu_deterministic_ops=true too, so that XLA's figures are the same in the next process.

Exit codes: 0 inside all gates, 1 outside of one, 2 bad input. The gates, with reasons, are in tolerances.py.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from rich.table import Table

from jaxgpt import config as config_lib
from jaxgpt.config import Config
from jaxgpt.config.command_line import parse_args
from jaxgpt.errors import InputError, run_verb
from jaxgpt.run.checkpoints import choose_checkpoint
from jaxgpt.run.console import console
from jaxgpt.run.metrics import read_metrics
from jaxgpt.run.progress import Progress
from parity_tests.tolerances import PARITY, Gate
from parity_tests.trajectories import (
    Arrays,
    Trajectory,
    draw_params,
    import_torch,
    read_batches,
    refuse_tf32,
    run_jax,
    run_torch,
)

DTYPES = ("float64", "float32", "bfloat16")


@dataclass(frozen=True)
class Row:
    """One compared quantity. `limit` None: reported, not judged."""

    quantity: str
    worst: str
    figure: float
    floor: float
    limit: float | None

    @property
    def is_inside(self) -> bool:
        return self.limit is None or self.figure <= self.limit  # NaN is outside

    @property
    def margin(self) -> float:
        """How many times the gate's limit the figure is."""
        return self.figure / self.limit if self.limit else 0.0


def compare(ours: Trajectory, theirs: Trajectory, gates: dict[str, Gate]) -> list[Row]:
    """One row per quantity, `theirs` being the reference.

    Raises:
      InputError: the two are of different models or of different lengths.
    """
    refuse_other_run(ours, theirs)
    n = len(theirs.losses)
    loss = np.abs(np.subtract(ours.losses, theirs.losses))
    norm = np.abs(np.divide(ours.grad_norms, theirs.grad_norms) - 1)
    figures = {
        "logits": ("step 1", np.max(np.abs(ours.logits - theirs.logits))),
        "loss, max": (f"step {np.argmax(loss) + 1}", np.max(loss)),
        "loss, mean": (f"{n} steps", np.mean(loss)),
        "gradient norm": (f"step {np.argmax(norm) + 1}", np.max(norm)),
        "gradients, step 1": find_worst(_without_lambdas(ours.grads), _without_lambdas(theirs.grads)),
        "parameters, step 1": find_worst(ours.first, theirs.first),
        "parameters, last step": find_worst(ours.last, theirs.last),
        "optimizer state": find_worst(ours.opt_state, theirs.opt_state, lambda_scales(theirs.opt_state)),
        "lambdas, gradients": find_worst(_only_lambdas(ours.grads), _only_lambdas(theirs.grads)),
        "key biases, gradients": find_worst_key_bias(ours.grads, theirs.grads, theirs.grads),
        "key biases, last step": find_worst_key_bias(ours.last, theirs.last, theirs.last),
    }
    return [
        Row(name.replace("last step", f"step {n}"), worst, float(figure), gates[name].floor, gates[name].limit)
        for name, (worst, figure) in figures.items()
        if worst
    ]  # fmt: skip


def refuse_other_run(ours: Trajectory, theirs: Trajectory) -> None:
    a, b = ({path: leaf.shape for path, leaf in side.last.items()} for side in (ours, theirs))
    for path in sorted(a.keys() | b.keys()):
        if a.get(path) != b.get(path):
            raise InputError(f"two models: {path} is {a.get(path)} in {ours.name}, {b.get(path)} in {theirs.name}")
    a, b = ({path: leaf.shape for path, leaf in side.opt_state.items()} for side in (ours, theirs))
    for path in sorted(a.keys() | b.keys()):
        if a.get(path) != b.get(path):
            raise InputError(f"two optimizers: {path} is {a.get(path)} in {ours.name}, {b.get(path)} in {theirs.name}")
    if len(ours.losses) != len(theirs.losses):
        raise InputError(f"two lengths: {ours.name} took {len(ours.losses)} steps, {theirs.name} {len(theirs.losses)}")


def key_part(path: str, array: np.ndarray) -> slice | None:
    """Which part of this tensor is the key bias, whose true gradient is 0: softmax does not see it."""
    if not path.endswith("attn.c_attn.bias"):
        return None
    width = array.shape[0] // 3
    return slice(width, 2 * width)


def relative_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """L2 norm of the difference, relative to theirs; absolute where theirs is 0."""
    a, b = (np.asarray(array, np.float64) for array in (ours, theirs))
    size = np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / (size if size > 0 else 1.0))


def is_lambda(path: str) -> bool:
    """One of nanochat's factors on activations, whose gradient is a sum over all of them that nearly cancels."""
    return re.fullmatch(r"\w+_lambdas?", path) is not None


def _only_lambdas(arrays: Arrays) -> Arrays:
    return {path: array for path, array in arrays.items() if is_lambda(path)}


def _without_lambdas(arrays: Arrays) -> Arrays:
    return {path: array for path, array in arrays.items() if not is_lambda(path)}


def lambda_scales(opt_state: Arrays) -> dict[str, float]:
    """What the first moments of lambdas are measured by: their second moments' root, which divides them.

    A mean of such sums of both signs may be near 0 by chance.
    """
    means = [path for path in opt_state if path.startswith("mu.") and is_lambda(path.removeprefix("mu."))]
    return {path: float(np.linalg.norm(opt_state[f"nu.{path.removeprefix('mu.')}"] ** 0.5)) for path in means}


def _distance(path: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    part = key_part(path, theirs)
    if part is not None:
        ours, theirs = (np.delete(array, part) for array in (ours, theirs))
    return relative_distance(ours, theirs)


def find_worst(ours: Arrays, theirs: Arrays, scales: dict[str, float] | None = None) -> tuple[str, float]:
    """The tensor that differs most, and by how much, key biases left out. NaN counts as most. ("", 0) of no tensors.

    Args:
      scales: path -> what a difference is relative to, where it is not the tensor's own norm.
    """
    distances = {path: _distance(path, ours[path], theirs[path]) for path in theirs}
    for path, scale in (scales or {}).items():
        distances[path] = float(np.linalg.norm(ours[path] - theirs[path]) / (scale or 1.0))
    worst = max(distances, key=lambda path: np.nan_to_num(distances[path], nan=np.inf), default="")
    return worst, distances.get(worst, 0.0)


def find_worst_key_bias(ours: Arrays, theirs: Arrays, scale: Arrays) -> tuple[str, float]:
    """As `find_worst` for the key biases alone, relative to the tensor they are a part of. ("", 0) without any."""
    worst = ("", 0.0)
    for path, b in theirs.items():
        part = key_part(path, b)
        if part is not None:
            size = np.linalg.norm(np.asarray(scale[path], np.float64))
            distance = float(np.linalg.norm(np.asarray(ours[path] - b, np.float64)[part]) / (size or 1.0))
            worst = max(worst, (path, distance), key=lambda pair: pair[1])
    return worst


def trace(ours: Trajectory, theirs: Trajectory, gates: dict[str, Gate]) -> str:
    """The first place where two traced runs part, by how much; or "no difference".

    Layers first, forward and backward; then what only the whole has: gradients of the model's own call, the update
    of the first step, the losses.
    """
    refuse_other_run(ours, theirs)
    names = [name.removeprefix("backward: ") for name in theirs.places if name.startswith("backward: ")]
    paths = [name for name in names if name in theirs.grads]
    found: list[tuple[str, Callable[[], float], float | None]] = []
    for name in theirs.places:
        path = name.removeprefix("backward: ")
        limit = gates["lambdas, gradients" if is_lambda(path) else "trace, " + name.partition(":")[0]].limit
        found.append((name, lambda n=name, p=path: _distance(p, ours.places[n], theirs.places[n]), limit))
    for what, a, b, quantity in (
        ("gradient of the whole model", ours.grads, theirs.grads, "gradients, step 1"),
        ("update of step 1", ours.first, theirs.first, "parameters, step 1"),
    ):
        for path in paths:
            gate = gates["lambdas, gradients" if is_lambda(path) and a is ours.grads else quantity]
            found.append((f"{what}: {path}", lambda a=a, b=b, p=path: _distance(p, a[p], b[p]), gate.limit))
    for i, (a, b) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        found.append((f"loss of step {i + 1}", lambda a=a, b=b: abs(a - b), gates["loss, max"].limit))
    for name, measure, limit in found:
        distance = measure()
        if limit is not None and not distance <= limit:
            return f"{name} ({distance:.1e}, gate {limit:.0e})"
    return "no difference"


def compare_runs(ours: Path, theirs: Path, dtype: str) -> tuple[list[Row], dict[str, list]]:
    """Rows for two run directories, and their curves: steps, and each one's losses.

    Raises:
      InputError: no metrics, no step in common, or the runs are of different configs.
    """
    refuse_other_config(ours, theirs)
    records = []
    for run in (ours, theirs):
        path = run / "metrics.jsonl"
        if not path.is_file():
            raise InputError(f"--runs: {path} is not there; give two run directories")
        try:
            records.append({record["step"]: record for record in read_metrics(path)})
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"--runs: {path} holds no records of a run") from error
    a, b = records
    gates = PARITY[dtype]
    rows, curves = [], {}
    for name in ("train_loss", "val_loss"):
        steps = [s for s in sorted(a.keys() & b.keys()) if a[s].get(name) is not None and b[s].get(name) is not None]
        if name == "train_loss" and not steps:
            raise InputError(
                f"--runs: {ours} and {theirs} have no logged step in common; log both with one --log.every"
            )
        if not steps:
            continue
        pair = [[records[step][name] for step in steps] for records in (a, b)]
        difference = np.abs(np.subtract(pair[0], pair[1]))
        worst = f"step {steps[int(np.argmax(difference))]}"
        for measure, at, figure in (
            ("max", worst, np.max(difference)),
            ("mean", f"{len(steps)} steps", np.mean(difference)),
        ):
            gate = gates[f"loss, {measure}"]
            rows.append(Row(f"{name}, {measure}", at, float(figure), gate.floor, gate.limit))
        if name == "train_loss":
            curves = {"steps": steps, "ours": pair[0], "theirs": pair[1]}
    return rows, curves


def read_config(run: Path) -> dict | None:
    """What the newest checkpoint says that the run was; None without one. Runs no code."""
    try:
        chosen = choose_checkpoint(run / "checkpoints", verify=False)
    except InputError:
        return None
    return chosen.about.get("config") if chosen else None


FREE = (
    r"run\.dir|hosts\..*|mesh\..*|log\..*|checkpoint\..*|sample\..*|eval\..*|data\.dir|train\.("
    "steps|micro_batch_size|dtype|matmul_precision|attention|remat|loss_chunk_tokens|init_from|max_skips)"
)  # fmt: skip
"""Settings in which two runs that are compared may differ: they change nothing but rounding."""


def refuse_other_config(ours: Path, theirs: Path) -> None:
    configs = [read_config(run) for run in (ours, theirs)]
    if configs[0] is None or configs[1] is None:
        return
    a, b = (config_lib.flatten(config) for config in configs)
    differing = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    differing = [f"{name} {a.get(name)!r} and {b.get(name)!r}" for name in differing if not re.fullmatch(FREE, name)]
    if differing:
        raise InputError(f"--runs: {ours} and {theirs} are not the same run: {'; '.join(differing)}")


# Showing


def print_rows(rows: Iterable[Row], title: str) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("quantity", no_wrap=True)
    table.add_column("worst", overflow="fold")
    for name in ("figure", "floor", "gate"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in rows:
        verdict = "-" if row.limit is None else "inside" if row.is_inside else f"[red]outside, {row.margin:.1e} x"
        limit = "-" if row.limit is None else f"{row.limit:.1e}"
        table.add_row(row.quantity, row.worst, f"{row.figure:.1e}", f"{row.floor:.1e}", limit, verdict)
    console.print(table)


def draw_curves(steps: list[int], ours: list[float], theirs: list[float], names: tuple[str, str], path: Path) -> None:
    """Both losses above, their difference below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

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


# The command


def read_arguments(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The tool's own arguments, and the rest, which are a config's."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message}; --help lists the arguments")

    parser = Parser("python -m parity_tests.compare", add_help=False, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--runs", nargs=2, type=Path, metavar=("A", "B"))
    parser.add_argument("--report", type=Path)
    given, rest = parser.parse_known_args(args)
    if given.steps < 1:
        raise InputError(f"--steps={given.steps} is below 1; choose a positive number")
    return given, rest


def main(args: list[str]) -> int:
    given, rest = read_arguments(args)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX leaves no memory of a GPU to torch
    if given.report:
        from parity_tests.report import write_report

        return write_report(given.report)
    if given.runs:
        return judge_runs(given, rest)
    config, _ = parse_args(rest, {}, __doc__ or "")
    dtype = given.dtype or config.train.dtype
    if dtype not in DTYPES:
        raise InputError(f"train.dtype={dtype} has no gates; choose --dtype from {', '.join(DTYPES)}")
    refuse_tf32(config)
    config, vocab_size, batches = read_batches(config, given.steps, dtype)
    params = draw_params(config, vocab_size)
    with Progress() as progress:
        bars = [progress.bar(name) for name in ("jaxgpt", "torch_ref")]
        ours = run_jax(config, vocab_size, params, batches, is_traced=given.trace, show=bars[0])
        theirs = run_torch(config, vocab_size, params, batches, is_traced=given.trace, show=bars[1])
    rows = compare(ours, theirs, PARITY[dtype])
    machine = describe_machine(config)
    print_rows(
        rows, f"{Path(config.run.dir).name}, {given.steps} steps, {dtype}: jaxgpt and torch_ref ({machine['device']})"
    )
    more: dict[str, Any] = {"config": config_lib.to_dict(config), "dtype": dtype, "machine": machine}
    if given.trace:
        more["trace"] = trace(ours, theirs, PARITY[dtype])
        console.print(f"first difference: {more['trace']}")
    if hint := explain(rows, dtype):
        console.print(hint, soft_wrap=True)
    curves = {"steps": list(range(1, given.steps + 1)), "ours": ours.losses, "theirs": theirs.losses}
    out = given.out or Path("runs") / f"parity-{Path(config.run.dir).name}-{dtype}"
    return conclude(rows, curves, ("jaxgpt", "torch_ref"), out, given.json, more)


EARLY = {
    "logits", "loss, max", "loss, mean", "gradients, step 1", "parameters, step 1", "lambdas, gradients",
    "key biases, gradients",
}  # fmt: skip
"""Quantities that a long run gives rounding no time to grow in, and the loss, which it hardly reaches."""


def explain(rows: Iterable[Row], dtype: str) -> str:
    """What to do where only late quantities are outside; else empty."""
    outside = {row.quantity for row in rows if not row.is_inside}
    if not outside or dtype == "float64" or outside & EARLY:
        return ""
    return (
        f"the first step and all losses are inside: in {dtype} the rest may be rounding that training has lifted, "
        "most of all under a large learning rate; --dtype float64 tells it from a bug"
    )


def judge_runs(given: argparse.Namespace, rest: list[str]) -> int:
    if rest:
        raise InputError(f"{rest[0]} has no meaning beside --runs, which trains nothing; drop it")
    if given.trace:
        raise InputError("--trace needs both models at work; give --config instead of --runs")
    ours, theirs = given.runs
    dtypes = {(read_config(run) or {}).get("train", {}).get("dtype") for run in given.runs} - {None}
    dtype = given.dtype or next((name for name in reversed(DTYPES) if name in dtypes), None)  # the coarsest
    if dtype is None:
        raise InputError(f"--dtype is missing, and {ours} has no checkpoint that names it; it chooses the gate")
    rows, curves = compare_runs(ours, theirs, dtype)
    print_rows(rows, f"{ours} and {theirs}, {len(curves['steps'])} common steps, gates of {dtype}")
    out = given.out or Path("runs") / f"parity-{ours.resolve().name}-{theirs.resolve().name}"
    return conclude(rows, curves, (str(ours), str(theirs)), out, given.json, {"runs": [str(ours), str(theirs)]})


def conclude(
    rows: list[Row], curves: dict, names: tuple[str, str], out: Path, json_path: Path | None, more: dict
) -> int:
    """Writes JSON and PNG; the exit code."""
    json_path = json_path or out / "parity.json"
    try:
        for directory in (out, json_path.parent):
            directory.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(to_json(rows, curves=curves, **more), indent=1) + "\n", encoding="utf-8")
        draw_curves(curves["steps"], curves["ours"], curves["theirs"], names, out / "parity.png")
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose another --out") from error
    outside = [row.quantity for row in rows if not row.is_inside]
    console.print(
        f"{'outside: ' + ', '.join(outside) if outside else 'inside all gates'}; {json_path}, {out}/parity.png"
    )
    return 1 if outside else 0


if __name__ == "__main__":
    sys.modules.setdefault("parity_tests.compare", sys.modules["__main__"])
    run_verb(main)
