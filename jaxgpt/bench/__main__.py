"""Times a run on this machine, alone or in turns with PyTorch.

Without PART the real training step: its batches, its optimizer. PART is attention, loss, optimizer or decode, at the
shapes of the config, or data: the loader alone, which must supply ten times what the step uses. decode --batch 1,8
times prompts and tokens of so many rows at once: to the first token, per token, tokens/s, bytes.

Programs run in turns, each in a separate process, after compiling and warming up. --vs torch adds torch_ref, eager
and compiled; --vs plain a GPT in plain PyTorch (for GPT-2 with AdamW); both: --vs torch,plain. --profile traces jaxgpt
and torch_ref for TensorBoard and Perfetto. --report adds the result to a page such as docs/benchmarks.md; --label says
what sets it apart from others of the config there. Beside the JSON, FILE with .png is the picture.

Exit codes: 0 done, 1 the loader is too slow, 2 bad input. JSON: `ratio` is jaxgpt's median over torch_ref's best.
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse
import importlib.util
import sys
from pathlib import Path

from jaxgpt.config.command_line import parse_args
from jaxgpt.config.parser import Parser
from jaxgpt.errors import InputError, answer_early
from jaxgpt.extras import pip_install
from jaxgpt.files import user_file

PARTS = ("step", "attention", "loss", "optimizer", "decode", "data")
RIVALS = ("torch", "plain")
PARSER = Parser(
    "jaxgpt bench", __doc__, "[PART] --config FILE [--section.field=value ...] [flags]",
    "--config quickstart --vs torch --rounds 4", takes_config=True,
)  # fmt: skip
PARSER.add_argument("part", nargs="?", default="step", metavar="PART", help=", ".join(PARTS))
PARSER.add_argument("--vs", default="", metavar="NAMES", help="against torch, plain or torch,plain")
PARSER.add_argument("--batch", default="", metavar="N,N", help="of decode: times prompts and tokens of so many rows")
PARSER.add_argument("--weights", default="", metavar="KINDS", help="with --batch, also: bfloat16, int8")
PARSER.add_argument("--rounds", type=int, default=8, metavar="N", help="turns of each program (8)")
PARSER.add_argument("--steps", type=int, default=0, metavar="N", help="steps of a turn (about a second of them)")
PARSER.add_argument("--json", type=user_file, metavar="FILE", help="the result (runs/bench/CONFIG-PART.json)")
PARSER.add_argument("--profile", action="store_true", help="trace, and print the costliest operations")
PARSER.add_argument("--report", type=user_file, metavar="FILE", help="add the result to this page")
PARSER.add_argument("--label", default="", metavar="TEXT", help="what sets this result apart on the page")


def read_arguments(args: list[str]) -> argparse.Namespace:
    """The bench's own options; what is in `settings` goes to each program. The programs it starts read theirs."""
    given = PARSER.read(args)
    part = given.part
    if part not in PARTS:
        raise InputError(f"bench {part}: no such part; choose one of {', '.join(PARTS)}")
    given.vs = [name for name in given.vs.split(",") if name]
    for name in given.vs:
        if name not in RIVALS:
            raise InputError(f"--vs={name} is not one of {', '.join(RIVALS)}")
        if importlib.util.find_spec("torch") is None:
            raise InputError(f"--vs={name} needs PyTorch; {pip_install('torch')}")
    if given.vs and part in ("decode", "data"):
        raise InputError(f"bench {part} has no --vs; torch_ref has no such part")
    if "plain" in given.vs and part != "step":
        raise InputError(f"bench {part} has no --vs plain; --vs torch does")
    if given.profile and part in ("decode", "data"):
        raise InputError(f"bench {part} has no --profile")
    given.batch = [text for text in given.batch.split(",") if text]
    given.weights = [kind for kind in given.weights.split(",") if kind]
    if (given.batch or given.weights) and not (part == "decode" and given.batch):
        raise InputError(f"bench {part} has no --batch and --weights; bench decode --batch 1,8 has")
    if given.batch and (given.report or given.steps):
        raise InputError("bench decode --batch has no --report and --steps; its figures are in --json")
    for text in given.batch:
        if not (text.isascii() and text.isdigit() and 0 < int(text) < 10_000):
            raise InputError(f"--batch={text} is no number of rows; give some, such as 1,8,32")
    for kind in given.weights:
        if kind not in ("bfloat16", "int8"):
            raise InputError(f"--weights={kind} is not bfloat16 or int8; give one, or both with a comma")
    given.json = given.json or Path("runs/bench", f"{Path(given.config or '').stem}-{part}.json")
    for name in ("rounds", "steps"):
        if getattr(given, name) < (name == "rounds"):
            raise InputError(f"--{name}={getattr(given, name)} is too small")
    parse_args(given.settings)
    return given


if __name__ == "__main__" and sys.argv[1:2] != ["worker"]:
    answer_early(read_arguments)

import datetime
import json
import shlex
import time
from contextlib import ExitStack
from statistics import median

import numpy as np

from jaxgpt.bench.interleave import Program, interleave, serve
from jaxgpt.bench.record import (
    PROFILE_HEADER,
    Record,
    compare,
    describe_machine,
    draw,
    profile_rows,
    rows_of,
    summarise,
    time_text,
    title_of,
    to_table,
    write_page,
)
from jaxgpt.config import Config
from jaxgpt.config.steps import Plan
from jaxgpt.data.sources import Source
from jaxgpt.errors import EXIT_DONE, EXIT_FAILED, run_verb
from jaxgpt.run.console import console, working
from jaxgpt.run.opening import open_run

PLAIN = "plain torch"
TURN_S = 1.0
"""Length of a turn, unless --steps says otherwise."""
MAX_STEPS, MIN_STEPS = 1000, 5
PROFILED_STEPS = 10
DATA_S = 2.0
"""How long the loader is timed."""
WANTED_APPETITES = 10
"""How many times the step's tokens the loader must supply."""


def main(args: list[str]) -> int:
    if args[:1] == ["worker"]:
        return work(args[1], args[2:])
    given = read_arguments(args)
    config, rest = parse_args(given.settings), given.settings
    run = open_run(config)
    config = run.config.without_stages()
    record = {
        "config": given.config,
        "part": given.part,
        "label": given.label,
        "command": shlex.join(["jaxgpt", "bench", *args]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": describe_machine(),
        "batch_tokens": config.train.batch_tokens,
    }
    if given.batch:
        from jaxgpt.bench.generation import (  # JAX, which the bench else leaves to others
            HEADER,
            table_rows,
            time_generation,
        )

        with working("compiling and decoding", is_said=True):
            record["batches"] = time_generation(
                config, [int(text) for text in given.batch], [None, *given.weights], given.rounds
            )
        console.print(to_table("generation", HEADER, table_rows(record["batches"])))
    elif given.part == "data":
        record |= time_loader(config, run.source, rest)
    else:
        record |= time_programs(given, config, rest)
    write(record, given)
    return EXIT_FAILED if record.get("is_too_slow") else EXIT_DONE


def work(part: str, rest: list[str]) -> int:
    """jaxgpt's program: `bench worker PART --config FILE ...`, which the bench itself starts."""
    from jaxgpt.bench.workload import prepare  # here, so that the bench itself takes no memory of a GPU

    config = parse_args(rest)
    return serve(lambda: prepare(config, part))


def commands(given: argparse.Namespace, rest: list[str]) -> dict[str, list[str]]:
    """Name -> command of each program, jaxgpt's first."""
    run = [sys.executable, "-m"]
    found = {"jaxgpt": [*run, "jaxgpt.bench", "worker", given.part, *rest]}
    if "torch" in given.vs:
        for mode in ("eager", "compiled"):
            found[f"torch_ref {mode}"] = [*run, "jaxgpt.bench.torch_workload", given.part, mode, *rest]
    if "plain" in given.vs:
        found[PLAIN] = [*run, "jaxgpt.bench.plain_torch", *rest]
    return found


def time_programs(given: argparse.Namespace, config: Config, rest: list[str]) -> Record:
    """Figures of all programs, how ours relate to the others', and with --profile their costliest operations."""
    # A process that reserves most of a GPU's memory when it starts leaves none to the others.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if given.vs else {}
    with ExitStack() as stack:
        programs: list[Program] = []
        for name, command in commands(given, rest).items():
            with working(f"{name}: compiling and warming up", is_said=True):
                programs.append(stack.enter_context(Program(name, command, env)))
                programs[-1].wait()
        slowest_s = max(median(program.run(MIN_STEPS)["step_s"]) for program in programs)
        n_steps = given.steps or min(max(round(TURN_S / slowest_s), MIN_STEPS), MAX_STEPS)
        with working(f"{given.rounds} rounds of {n_steps} steps each", is_said=True):
            turns = interleave(programs, given.rounds, n_steps)
        operations = {}
        for program in programs if given.profile else ():
            if program.name != PLAIN:
                directory = given.json.with_suffix("") / program.name.replace(" ", "_")
                operations[program.name] = program.trace(str(directory), PROFILED_STEPS)
                console.print(f"trace of {program.name}: {directory}", soft_wrap=True)
        figures = {p.name: summarise(config, given.part, p.about, turns[p.name]) for p in programs}
    versions = {name: text for f in figures.values() for name, text in f.pop("versions").items()}
    return {"programs": figures, "versions": versions, "operations": operations, **compare(figures)}


def time_loader(config: Config, source: Source, rest: list[str]) -> Record:
    """Tokens per second of the loader alone, and how many training steps of this machine that would feed."""
    command = [sys.executable, "-m", "jaxgpt.bench", "worker", "step", *rest]
    with working("timing a training step", is_said=True), Program("jaxgpt", command) as program:
        program.wait()
        step_s = median(program.run(MIN_STEPS)["step_s"])
    n_devices = program.about["n_devices"]
    plan, reader = Plan(config, n_devices), source.reader(config)
    step, batch_s = 0, []
    begin_s = time.perf_counter()
    while step < 2 or time.perf_counter() - begin_s < DATA_S:
        begin = time.thread_time()
        reader.read(plan.at(step), 0, plan.at(step).n_rows)
        batch_s.append(time.thread_time() - begin)
        step += 1
    wall_s = time.perf_counter() - begin_s
    reader.close()
    on_one_core, appetite = config.train.batch_tokens / median(batch_s), config.train.batch_tokens / step_s
    factor = config.train.batch_tokens * step / wall_s / appetite
    note = (
        f"{config.train.batch_tokens:,} tokens in {time_text(median(batch_s))} of one core: "
        f"{on_one_core / 1e6:,.1f} M tokens/s. The training step uses {appetite:,.0f} tokens/s here; the loader "
        f"supplies {factor:,.0f} times that."
    )
    return {
        "tokens_per_s": on_one_core,
        "step_tokens_per_s": appetite,
        "appetites": factor,
        "is_too_slow": factor < WANTED_APPETITES,
        "versions": {"numpy": np.__version__},
        "note": note,
    }


def write(record: Record, given: argparse.Namespace) -> None:
    """Prints the result, and writes it to disk."""
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    png = given.json.with_suffix(".png")
    if record.get("programs"):
        console.print(to_table(title_of(record), *rows_of(record)))
        draw(record, png)
    for name, operations in record.get("operations", {}).items():
        console.print(to_table(f"costliest operations of {name}", PROFILE_HEADER, profile_rows(operations)))
    if record.get("ratio") is not None:
        console.print(f"jaxgpt over the best of torch_ref ({record['best_of_torch']}): {record['ratio']:.3f}")
    if record.get("note"):
        console.print(record["note"], soft_wrap=True)
    console.print(f"{given.json}" + (f", {png}" if record.get("programs") else ""), soft_wrap=True)
    if given.report:
        write_page(given.report, record)
        console.print(f"{given.report}", soft_wrap=True)


if __name__ == "__main__":
    run_verb(main)
