"""Measures the floors of every recipe without a bug, and which gate sees which planted bug, and writes them down:

    python -m parity_tests.report docs/parity.md

A mutant is judged by the least that can show its bug; where that is inside all gates it is trained. So "no" means that
training did not show it either.
"""

import datetime
import os
from pathlib import Path

from jaxgpt.compare.gates import Row, compare, find_loudest
from jaxgpt.compare.tables import describe_machine
from jaxgpt.compare.tolerances import DTYPES, PARITY
from jaxgpt.compare.trajectories import import_torch
from jaxgpt.errors import InputError, run_verb
from jaxgpt.run.console import console
from parity_tests.mutation_trials import ALL_MUTATIONS, make_trials, run_reference, run_unmutated
from parity_tests.small_runs import RECIPES

N_FLOOR_STEPS = {"float64": 200, "float32": 200, "bfloat16": 60}
N_MUTANT_STEPS = 8

Floors = dict[tuple[str, str], list[Row]]
"""Rows by dtype and recipe."""
Seen = dict[str, dict[str, Row | None]]
"""The loudest row by mutation and dtype; None where no gate saw it."""


def write_report(path: Path) -> int:
    """Measures, and writes Markdown; the exit code is 1 where float64 misses a bug or a gate fails without one."""
    import_torch().set_num_threads(1)  # models this small lose by more
    floors: Floors = {}
    for dtype in DTYPES:
        for recipe in RECIPES:
            console.print(f"floors: {dtype}, {recipe}")
            params, reference = run_reference(recipe, N_FLOOR_STEPS[dtype], dtype)
            ours = run_unmutated(recipe, params, N_FLOOR_STEPS[dtype], dtype)
            floors[dtype, recipe] = compare(ours, reference, PARITY[dtype])
    seen: Seen = {name: {} for name in ALL_MUTATIONS}
    for dtype in DTYPES:
        for i, name in enumerate(ALL_MUTATIONS):
            seen[name][dtype] = row = try_mutation(name, dtype)
            said = f"{row.quantity}, {row.margin:.0e} x" if row else "no"
            console.print(f"mutations: {dtype}, {i + 1} of {len(ALL_MUTATIONS)}, {name}: {said}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(format_report(floors, seen), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}; choose another path") from error
    console.print(f"wrote {path}")
    unseen = [name for name, by_dtype in seen.items() if by_dtype["float64"] is None]
    outside = [(key, row.quantity) for key, rows in floors.items() for row in rows if not row.is_inside]
    if unseen or outside:
        console.say(f"unseen in float64: {unseen}; outside without a bug: {outside}", "red")
    return 1 if unseen or outside else 0


def try_mutation(name: str, dtype: str) -> Row | None:
    """The loudest gate. In bfloat16 the losses of a few steps see what a first batch does not."""
    mutation = ALL_MUTATIONS[name]
    trials = make_trials(mutation.recipe, mutation.is_masked, dtype, N_MUTANT_STEPS)
    return find_loudest(trials.try_mutant(mutation, is_brief=True)) or find_loudest(trials.try_mutant(mutation))


def format_report(floors: Floors, seen: Seen) -> str:
    machine = describe_machine()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    flags = f", XLA_FLAGS={os.environ['XLA_FLAGS']}" if os.environ.get("XLA_FLAGS") else ""
    versions = f"jax {machine['jax']}, torch {machine['torch']}, Python {machine['python']}"
    lines = [
        "# Parity of jaxgpt and torch_ref, measured",
        "",
        "Written by a command; run it again instead of editing:",
        "`python -m parity_tests.report docs/parity.md`.",
        f"{today}; {machine['device']}; {versions}{flags}.",
        "",
        "Four recipes: GPT-2 with AdamW and with Muon, and nanochat of November 2025 and of July 2026 with its own",
        "optimizer. Models have 2 layers (nanochat: 4; mutants: 1 and 3), width 32, context 32 (short windows: 9), and",
        "64 ids of a Markov chain; 8 rows in 2 microbatches. `parity_tests/small_runs.py` has the rest. Both",
        "frameworks start from one set of weights, no matrix of them zero, and read the same batches. Gates, with",
        "their reasons, stand in `jaxgpt/compare/tolerances.py`. A config of one's own:",
        "`python -m jaxgpt.compare --config configs/x.py --steps 200 --dtype float32`.",
        "",
        "## Floors: without a bug",
        "",
        "Tensors are compared by the L2 norm of the difference, relative; logits and losses absolutely. Two kinds",
        "stand apart: the key biases, the middle third of `c_attn.bias`, which softmax does not see, so that their",
        "true gradient is 0 and AdamW blows its rounding up to whole steps; and nanochat's lambdas, whose gradients",
        "are sums over all activations that nearly cancel.",
        "",
    ]
    for dtype in DTYPES:
        lines += [f"{dtype}, {N_FLOOR_STEPS[dtype]} steps:", "", *_floor_table(floors, dtype), ""]
    counts = ", ".join(
        f"{dtype} sees {sum(by_dtype[dtype] is not None for by_dtype in seen.values())} of {len(seen)}"
        for dtype in DTYPES
    )
    lines += [
        f"## Mutations: one bug in jaxgpt, up to {N_MUTANT_STEPS} steps",
        "",
        "For each dtype the quantity that is furthest outside of its gate: figure (times the gate's limit).",
        f"{counts}.",
        "A bug of the model is judged by the first batch, one of the update by the optimizer alone; where that shows",
        "nothing, by a run.",
        "",
    ]
    table = [
        [name, ALL_MUTATIONS[name].recipe]
        + [f"{row.quantity}: {row.figure:.1e} ({row.margin:.0e})" if row else "no" for row in by_dtype.values()]
        for name, by_dtype in seen.items()
    ]
    return "\n".join([*lines, *_format_table(["mutation", "recipe", *DTYPES], table)]) + "\n"


def _floor_table(floors: Floors, dtype: str) -> list[str]:
    """A row per quantity, a column per recipe; "" where a recipe has no such quantity."""
    by_recipe = {recipe: {row.quantity: row for row in floors[dtype, recipe]} for recipe in RECIPES}
    quantities = list(dict.fromkeys(name for rows in by_recipe.values() for name in rows))
    table = []
    for name in quantities:
        rows = [by_recipe[recipe].get(name) for recipe in RECIPES]
        limit = next(row.limit for row in rows if row)
        figures = ["" if row is None else f"{row.figure:.1e}" for row in rows]
        table.append([name, *figures, "-" if limit is None else f"{limit:.0e}"])
    return _format_table(["quantity", *RECIPES, "gate"], table)


def _format_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def main(args: list[str]) -> int:
    if len(args) != 1 or args[0].startswith("-"):
        raise InputError("give one path, such as docs/parity.md")
    return write_report(Path(args[0]))


if __name__ == "__main__":
    run_verb(main)
