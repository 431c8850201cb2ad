"""Times a run on this machine: python -m jaxgpt.bench [PART] --config configs/x.py [--vs torch] [--section.field=value]

Without PART the real training step: its batches, its optimizer. PART is attention, loss, optimizer or decode, at the
shapes of the config, or data: the loader alone, which must supply ten times what the step uses.

Programs run in turns, each in a separate process, after compiling and warming up. --vs torch adds torch_ref, eager
and compiled; --vs plain a GPT in plain PyTorch (for GPT-2 with AdamW); both: --vs torch,plain.

  --rounds N       turns of each program (default 8)
  --steps N        steps of a turn (default: about a second of them)
  --json FILE      where the result goes (default runs/bench/CONFIG-PART.json); FILE with .png is the picture
  --profile        also trace jaxgpt and torch_ref for TensorBoard and Perfetto, and print their costliest operations
  --report FILE    add the result to a page such as docs/benchmarks.md
  --label TEXT     what sets this result apart from others of the config on the page

Exit codes: 0 done, 1 the loader is too slow, 2 bad input. JSON: `ratio` is jaxgpt's median over torch_ref's best.
"""

import argparse
import datetime
import importlib.util
import json
import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NoReturn

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
from jaxgpt.config.command_line import parse_args
from jaxgpt.config.steps import Plan
from jaxgpt.data.sources import Source
from jaxgpt.errors import EXIT_DONE, EXIT_FAILED, InputError, run_verb
from jaxgpt.extras import pip_install
from jaxgpt.files import user_file
from jaxgpt.run.console import console, working
from jaxgpt.run.opening import open_run

PARTS = ("step", "attention", "loss", "optimizer", "decode", "data")
RIVALS = ("torch", "plain")
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
    given, rest = read_arguments(args)
    config, _ = parse_args(rest, {}, __doc__ or "")
    run = open_run(config)
    config = run.config.without_stages()
    record = {
        "config": given.config,
        "part": given.part,
        "label": given.label,
        "command": shlex.join(["python", "-m", "jaxgpt.bench", *args]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": describe_machine(),
        "batch_tokens": config.train.batch_tokens,
    }
    if given.part == "data":
        record |= time_loader(config, run.source, rest)
    else:
        record |= time_programs(given, config, rest)
    write(record, given)
    return EXIT_FAILED if record.get("is_too_slow") else EXIT_DONE


def read_arguments(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The bench's own options, and what is left: --config and the overrides."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message}; --help lists the options")

    part = "step"
    if args and not args[0].startswith("-"):
        part, args = args[0], args[1:]
    if part not in PARTS:
        raise InputError(f"bench {part}: no such part; choose one of {', '.join(PARTS)}")
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--vs", default="")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--json", type=user_file)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--report", type=user_file)
    parser.add_argument("--label", default="")
    given, rest = parser.parse_known_args(args)
    given.part, given.vs = part, [name for name in given.vs.split(",") if name]
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
    given.json = given.json or Path("runs/bench", f"{Path(given.config or '').stem}-{part}.json")
    for name in ("rounds", "steps"):
        if getattr(given, name) < (name == "rounds"):
            raise InputError(f"--{name}={getattr(given, name)} is too small")
    return given, ["--config", given.config, *rest] if given.config else rest


def work(part: str, rest: list[str]) -> int:
    """jaxgpt's program: `bench worker PART --config FILE ...`, which the bench itself starts."""
    from jaxgpt.bench.workload import prepare  # here, so that the bench itself takes no memory of a GPU

    config, _ = parse_args(rest, {}, __doc__ or "")
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
        reader.read(plan.at(step), 0, plan.n_rows)
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
