"""Measures the floors of every recipe without a bug, and which gate sees which planted bug, and writes them down:

    python -m parity_tests.report docs/parity.md
    python -m parity_tests.report docs/parity_modded.md --modded

The second is of modded-nanogpt's records. A mutant is judged by the least that can show its bug; where that is inside
all gates it is trained. So "no" means that training did not show it either.
"""

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.compare.gates import Row, compare, find_loudest
from jaxgpt.compare.tables import describe_machine
from jaxgpt.compare.tolerances import DTYPES, PARITY
from jaxgpt.compare.trajectories import import_torch
from jaxgpt.errors import InputError, run_verb
from jaxgpt.run.console import console
from parity_tests.mutation_trials import ALL_MUTATIONS, make_brief_trials, make_trials, run_reference, run_unmutated
from parity_tests.mutations import Mutation
from parity_tests.small_runs import MODDED_RECIPES, RECIPES

N_MUTANT_STEPS = 8


@dataclass(frozen=True)
class Subject:
    """What one report is about.

    Attributes:
      n_steps: of the runs without a bug, by dtype.
      mutant_dtypes: in which mutants are tried.
      about: lines of Markdown that describe the recipes.
      options: of the command that writes the report.
    """

    recipes: tuple[str, ...]
    n_steps: dict[str, int]
    mutant_dtypes: tuple[str, ...]
    about: tuple[str, ...]
    options: str = ""

    @property
    def mutations(self) -> dict[str, Mutation]:
        return {name: mutation for name, mutation in ALL_MUTATIONS.items() if mutation.recipe in self.recipes}


FIRST = Subject(
    RECIPES,
    {"float64": 200, "float32": 200, "bfloat16": 60},
    DTYPES,
    (
        "Four recipes: GPT-2 with AdamW and with Muon, and nanochat of November 2025 and of July 2026 with its own",
        "optimizer. Models have 2 layers (nanochat: 4; mutants: 1 and 3), width 32, context 32 (short windows: 9), and",
        "64 ids of a Markov chain; 8 rows in 2 microbatches.",
    ),
)
MODDED = Subject(
    MODDED_RECIPES,
    {"float64": 60, "float32": 60},
    ("float64",),
    (
        "Three recipes: modded-nanogpt's records 62 and 46 and the model of its track 3, each with its own optimizer.",
        "Records have 4 layers with every part of theirs, width 48 and 6 heads; track 3 has 2 layers (mutants: 1) and",
        "width 32. 64 ids of a Markov chain, 8 rows in 2 microbatches, packed documents of 8 tokens or so. The runs of",
        "the records go through all stages: rows of 16, 32 and 48 tokens, four pairs of windows with YaRN's changes,",
        "two factors on the learning rate; in record 62 also three, two and one targets, and the split of embedding",
        "and head at step 40. Mutants have one stage, in which YaRN has changed the rotation once.",
    ),
    " --modded",
)

Floors = dict[tuple[str, str], list[Row]]
"""Rows by dtype and recipe."""
Seen = dict[str, dict[str, Row | None]]
"""The loudest row by mutation and dtype; None where no gate saw it."""


def write_report(path: Path, subject: Subject) -> int:
    """Measures, and writes Markdown; the exit code is 1 where float64 misses a bug or a gate fails without one."""
    import_torch().set_num_threads(1)  # models this small lose by more
    floors: Floors = {}
    for dtype, n_steps in subject.n_steps.items():
        for recipe in subject.recipes:
            console.print(f"floors: {dtype}, {recipe}")
            params, reference = run_reference(recipe, n_steps, dtype)
            ours = run_unmutated(recipe, params, n_steps, dtype)
            floors[dtype, recipe] = compare(ours, reference, PARITY[dtype])
    seen: Seen = {name: {} for name in subject.mutations}
    for dtype in subject.mutant_dtypes:
        for i, name in enumerate(seen):
            seen[name][dtype] = row = try_mutation(name, dtype)
            said = f"{row.quantity}, {row.margin:.0e} x" if row else "no"
            console.print(f"mutations: {dtype}, {i + 1} of {len(seen)}, {name}: {said}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(format_report(subject, floors, seen), encoding="utf-8")
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
    if mutation.recipe in MODDED_RECIPES and not mutation.is_masked:  # to train a model of many stages is dear
        row = find_loudest(
            make_brief_trials(mutation.recipe, dtype, N_MUTANT_STEPS).try_mutant(mutation, is_brief=True)
        )
        if row:
            return row
    trials = make_trials(mutation.recipe, mutation.is_masked, dtype, N_MUTANT_STEPS)
    return find_loudest(trials.try_mutant(mutation, is_brief=True)) or find_loudest(trials.try_mutant(mutation))


def format_report(subject: Subject, floors: Floors, seen: Seen) -> str:
    machine = describe_machine()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    flags = f", XLA_FLAGS={os.environ['XLA_FLAGS']}" if os.environ.get("XLA_FLAGS") else ""
    versions = f"jax {machine['jax']}, torch {machine['torch']}, Python {machine['python']}"
    lines = [
        "# Parity of jaxgpt and torch_ref, measured",
        "",
        "Written by a command; run it again instead of editing:",
        f"`python -m parity_tests.report docs/parity{'_modded' * bool(subject.options)}.md{subject.options}`.",
        f"{today}; {machine['device']}; {versions}{flags}.",
        "",
        *subject.about,
        "`parity_tests/small_runs.py` has the rest. Both frameworks start from one set of weights, no matrix of them",
        "zero, and read the same batches. Gates, with their reasons, stand in `jaxgpt/compare/tolerances.py`. A config",
        "of one's own: `python -m jaxgpt.compare --config configs/x.py --steps 200 --dtype float32`.",
        "",
        "## Floors: without a bug",
        "",
        "Tensors are compared by the L2 norm of the difference, relative; logits and losses absolutely. Two kinds",
        "stand apart: the key biases, the middle third of `c_attn.bias`, which softmax does not see, so that their",
        "true gradient is 0 and AdamW blows its rounding up to whole steps; and the lambdas of nanochat and",
        "modded-nanogpt, whose gradients are sums over all activations that nearly cancel.",
        "",
    ]
    for dtype, n_steps in subject.n_steps.items():
        lines += [f"{dtype}, {n_steps} steps:", "", *_floor_table(subject, floors, dtype), ""]
    counts = ", ".join(
        f"{dtype} sees {sum(by_dtype[dtype] is not None for by_dtype in seen.values())} of {len(seen)}"
        for dtype in subject.mutant_dtypes
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
    return "\n".join([*lines, *_format_table(["mutation", "recipe", *subject.mutant_dtypes], table)]) + "\n"


def _floor_table(subject: Subject, floors: Floors, dtype: str) -> list[str]:
    """A row per quantity, a column per recipe; "" where a recipe has no such quantity."""
    by_recipe = {recipe: {row.quantity: row for row in floors[dtype, recipe]} for recipe in subject.recipes}
    quantities = list(dict.fromkeys(name for rows in by_recipe.values() for name in rows))
    table = []
    for name in quantities:
        rows = [by_recipe[recipe].get(name) for recipe in subject.recipes]
        limit = next(row.limit for row in rows if row)
        figures = ["" if row is None else f"{row.figure:.1e}" for row in rows]
        table.append([name, *figures, "-" if limit is None else f"{limit:.0e}"])
    return _format_table(["quantity", *subject.recipes, "gate"], table)


def _format_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def main(args: list[str]) -> int:
    subject = MODDED if args[1:] == ["--modded"] else FIRST
    if not args or args[0].startswith("-") or args[1:] not in ([], ["--modded"]):
        raise InputError("give one path, such as docs/parity.md, or docs/parity_modded.md --modded")
    return write_report(Path(args[0]), subject)


if __name__ == "__main__":
    run_verb(main)
