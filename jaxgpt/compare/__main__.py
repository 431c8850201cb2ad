"""jaxgpt against torch_ref, number by number: the same weights, the same batches, one table.

    jaxgpt compare --config NAME --steps 200 --dtype float64 [--section.field=value ...]
    jaxgpt compare --runs A B

The first runs both on this machine, from the weights that jaxgpt draws (zeros of nanochat and modded-nanogpt replaced
by noise), on the batches of the config's data, without dropout and with attention spelled out; the schedule is the
config's, of which the first steps are taken. --trace also walks forward and backward pass and names the first place
where the two part. --runs compares two finished runs by their metrics.jsonl.

Precision is set on purpose on both sides: where float32 products may run as TF32, the tool refuses to judge. On a GPU
set XLA_FLAGS=--xla_gpu_deterministic_ops=true too, so that XLA's figures are the same in the next process.

Exit codes: 0 inside all gates, 1 outside of one, 2 bad input. The gates, with reasons, are in tolerances.py.
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse

from jaxgpt.compare.tolerances import DTYPES
from jaxgpt.config.command_line import parse_args
from jaxgpt.config.parser import Parser
from jaxgpt.errors import InputError, answer_early
from jaxgpt.files import user_file, user_location

PARSER = Parser(
    "jaxgpt compare", __doc__, "(--config FILE | --runs A B) [--section.field=value ...]",
    "--config quickstart --steps 9", takes_config=True,
)  # fmt: skip
PARSER.add_argument("--steps", type=int, default=200, metavar="N", help="of both, on the same batches (200)")
PARSER.add_argument("--dtype", choices=DTYPES, help="of the computation (the config's)")
PARSER.add_argument("--runs", nargs=2, type=user_location, metavar=("A", "B"), help="two finished runs instead")
PARSER.add_argument("--trace", action="store_true", help="name the first layer where the two differ")
PARSER.add_argument("--out", type=user_file, metavar="DIR", help="for the table and curves (runs/parity-...)")
PARSER.add_argument("--json", type=user_file, metavar="FILE", help="the table as JSON (OUT/parity.json)")


def read_arguments(args: list[str]) -> argparse.Namespace:
    given = PARSER.read(args)
    if given.steps < 1:
        raise InputError(f"--steps={given.steps} is below 1; choose a positive number")
    if not given.runs:
        parse_args(given.settings)
    return given


if __name__ == "__main__":
    answer_early(read_arguments)

import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jaxgpt import config as config_lib
from jaxgpt.compare.finished_runs import compare_runs, read_run
from jaxgpt.compare.gates import Row, compare, trace
from jaxgpt.compare.tables import describe_machine, draw_curves, print_rows, to_json
from jaxgpt.compare.tolerances import PARITY
from jaxgpt.compare.trajectories import draw_params, read_batches, refuse_tf32, run_jax, run_torch
from jaxgpt.errors import run_verb
from jaxgpt.run.console import console
from jaxgpt.run.progress import Progress
from jaxgpt.run.remote import opened_run


def main(args: list[str]) -> int:
    given = read_arguments(args)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX leaves no memory of a GPU to torch
    if given.runs:
        return show_finished_runs(given)
    config = parse_args(given.settings)
    dtype = given.dtype or config.train.dtype
    if dtype not in DTYPES:
        raise InputError(f"train.dtype={dtype} has no gates; choose --dtype from {', '.join(DTYPES)}")
    refuse_tf32(config)
    config, batches = read_batches(config, given.steps, dtype)
    params = draw_params(config)
    with Progress() as progress:
        bars = [progress.bar(name) for name in ("jaxgpt", "torch_ref")]
        ours = run_jax(config, params, batches, is_traced=given.trace, show=bars[0])
        theirs = run_torch(config, params, batches, is_traced=given.trace, show=bars[1])
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


def show_finished_runs(given: argparse.Namespace) -> int:
    if given.settings:
        raise InputError(f"{given.settings[0]} has no meaning beside --runs, which trains nothing; drop it")
    if given.trace:
        raise InputError("--trace needs both models at work; give --config instead of --runs")
    with ExitStack() as stack:
        places = {run: stack.enter_context(opened_run(run, "--runs"))[0] for run in dict.fromkeys(given.runs)}
        return show_difference(given, *(places[run] for run in given.runs))


def show_difference(given: argparse.Namespace, ours: Path, theirs: Path) -> int:
    dtypes = {(read_run(run) or {}).get("train", {}).get("dtype") for run in (ours, theirs)} - {None}
    dtype = given.dtype or next((name for name in reversed(DTYPES) if name in dtypes), None)  # the coarsest
    if dtype is None:
        raise InputError(f"--dtype is missing, and {ours} has no checkpoint that names it; it chooses the gate")
    rows, curves = compare_runs(ours, theirs, dtype)
    print_rows(rows, f"{given.runs[0]} and {given.runs[1]}, {len(curves['steps'])} common steps, gates of {dtype}")
    names = [Path(run).resolve().name for run in given.runs]
    out = given.out or Path("runs") / f"parity-{names[0]}-{names[1]}"
    return conclude(rows, curves, (given.runs[0], given.runs[1]), out, given.json, {"runs": given.runs})


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
    run_verb(main, prints="result")
