"""Times a run on this machine, alone or in turns with PyTorch.

Without PART the real training step: its batches, its optimizer. PART is attention, loss, optimizer or decode, at the
shapes of the config, or data: the loader alone, which must supply ten times what the step uses. decode --batch 1,8
times prompts and tokens of so many rows at once: to the first token, per token, tokens/s, bytes. There --vs names
other ways to generate, of which each gets the same weights and prompts in turn: torch, torch_ref with a cache; nanogpt,
nanoGPT's generate, a whole forward pass per token; hf, Hugging Face generate with a cache. serve times a server under
a number of clients: jaxgpt bench serve --help. scaling fits how a step's time and memory grow: bench scaling --help.

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

from jaxgpt.bench.arguments import KINDS, read_counts, read_scaling_arguments, read_serve_arguments
from jaxgpt.config.command_line import parse_args
from jaxgpt.config.parser import Parser
from jaxgpt.errors import InputError, answer_early
from jaxgpt.extras import pip_install
from jaxgpt.files import user_file

PARTS = ("step", "attention", "loss", "optimizer", "decode", "data")
OWN_ARGUMENTS = ("serve", "scaling")
"""Parts whose arguments are no config."""
RIVALS = ("torch", "plain")
WRITERS = ("torch", "nanogpt", "hf")
"""Other ways to generate, for decode --batch."""
PARSER = Parser(
    "jaxgpt bench", __doc__, "[PART] --config FILE [--section.field=value ...] [flags]",
    "--config quickstart --vs torch --rounds 4", takes_config=True,
)  # fmt: skip
PARSER.add_argument("part", nargs="?", default="step", metavar="PART", help=", ".join((*PARTS, *OWN_ARGUMENTS)))
PARSER.add_argument("--vs", default="", metavar="NAMES", help="against torch,plain; decode --batch: torch,nanogpt,hf")
PARSER.add_argument("--batch", default="", metavar="N,N", help="of decode: times prompts and tokens of so many rows")
PARSER.add_argument("--weights", default="", metavar="KINDS", help="with --batch, also: bfloat16, int8")
PARSER.add_rare("--prompt-tokens", type=int, metavar="N", help="with --batch: of a prompt (half a context)")
PARSER.add_rare("--tokens", type=int, metavar="N", help="with --batch: generated in a turn (64, or what has room)")
PARSER.add_argument("--rounds", type=int, default=8, metavar="N", help="turns of each program (8)")
PARSER.add_argument("--steps", type=int, default=0, metavar="N", help="steps of a turn (about a second of them)")
PARSER.add_argument("--json", type=user_file, metavar="FILE", help="the result (runs/bench/CONFIG-PART.json)")
PARSER.add_argument("--profile", action="store_true", help="trace, and print the costliest operations")
PARSER.add_argument("--report", type=user_file, metavar="FILE", help="add the result to this page")
PARSER.add_argument("--label", default="", metavar="TEXT", help="what sets this result apart on the page")


def read_arguments(args: list[str]) -> argparse.Namespace:
    """The bench's own options; what is in `settings` goes to each program. The programs it starts read theirs."""
    if args[:1] == ["serve"]:
        return read_serve_arguments(args[1:])
    if args[:1] == ["scaling"]:
        return read_scaling_arguments(args[1:])
    given = PARSER.read(args)
    part = given.part
    if part not in PARTS:
        raise InputError(f"bench {part}: no such part; choose one of {', '.join((*PARTS, *OWN_ARGUMENTS))}")
    given.batch = read_counts("--batch", given.batch, "rows", "1,8,32")
    check_rivals(given)
    if given.profile and part in ("decode", "data"):
        raise InputError(f"bench {part} has no --profile")
    given.weights = [kind for kind in given.weights.split(",") if kind]
    if (given.batch or given.weights) and not (part == "decode" and given.batch):
        raise InputError(f"bench {part} has no --batch and --weights; bench decode --batch 1,8 has")
    if given.batch and (given.report or given.steps):
        raise InputError("bench decode --batch has no --report and --steps; its figures are in --json")
    for kind in given.weights:
        if kind not in KINDS:
            raise InputError(f"--weights={kind} is not bfloat16 or int8; give one, or both with a comma")
    for flag, value in (("--prompt-tokens", given.prompt_tokens), ("--tokens", given.tokens)):
        if value is not None and (value < 1 or not given.batch):
            why = "is below 1" if value < 1 else "is for decode --batch"
            raise InputError(f"{flag}={value} {why}; leave it out, or time decode --batch 1")
    given.json = given.json or Path("runs/bench", f"{Path(given.config or '').stem}-{part}.json")
    for name in ("rounds", "steps"):
        if getattr(given, name) < (name == "rounds"):
            raise InputError(f"--{name}={getattr(given, name)} is too small")
    parse_args(given.settings)
    return given


def check_rivals(given: argparse.Namespace) -> None:
    """Makes `vs` a list. Raises InputError where the part has no such rival, or a library is not installed."""
    part, rivals = given.part, WRITERS if given.batch else RIVALS
    given.vs = [name for name in given.vs.split(",") if name]
    for name in given.vs:
        if name not in (*RIVALS, *WRITERS) or (given.batch and name not in rivals):
            raise InputError(f"--vs={name} is not one of {', '.join(rivals)}")
        if importlib.util.find_spec("torch") is None:
            raise InputError(f"--vs={name} needs PyTorch; {pip_install('torch')}")
        if name == "hf" and importlib.util.find_spec("transformers") is None:
            raise InputError("--vs=hf needs transformers; pip install 'transformers>=4.50'")
    if given.batch:
        return
    if given.vs and part in ("decode", "data"):
        raise InputError(f"bench {part} has no --vs; bench decode --batch 1 --vs torch,nanogpt,hf has")
    for name in given.vs:
        if name not in RIVALS:
            raise InputError(f"--vs={name} is for bench decode --batch; others have {', '.join(RIVALS)}")
    if "plain" in given.vs and part != "step":
        raise InputError(f"bench {part} has no --vs plain; --vs torch does")


if __name__ == "__main__" and sys.argv[1:2] != ["worker"]:
    answer_early(read_arguments)

import datetime
import functools
import json
import os
import shlex
import time
from contextlib import ExitStack
from statistics import median

import numpy as np

from jaxgpt.bench.axes import BASE, point_config
from jaxgpt.bench.clients import HEADER, require_room, serve_rows, time_clients
from jaxgpt.bench.exponents import EXPONENTS_HEADER, POINTS_HEADER, draw_axes, exponent_rows, point_rows
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
from jaxgpt.bench.served import find_model, started_server
from jaxgpt.config import Config
from jaxgpt.config.steps import Plan
from jaxgpt.data.sources import Source
from jaxgpt.errors import EXIT_DONE, EXIT_FAILED, run_verb
from jaxgpt.run.console import console, working
from jaxgpt.run.opening import open_run
from jaxgpt.run.progress import Progress, Show

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
    if args[:1] == ["serve"]:
        return time_server(given, args)
    if args[:1] == ["scaling"]:
        return time_scaling(given, args)
    config, rest = parse_args(given.settings), given.settings
    run = open_run(config)
    config = run.config.without_stages()
    record = head_of(given.part, args) | {
        "config": given.config, "label": given.label, "batch_tokens": config.train.batch_tokens,
    }  # fmt: skip
    if given.batch:
        record |= time_decoding(given, config)
    elif given.part == "data":
        record |= time_loader(config, run.source, rest)
    else:
        record |= time_programs(given, config, rest)
    write(record, given)
    return EXIT_FAILED if record.get("is_too_slow") else EXIT_DONE


def head_of(part: str, args: list[str]) -> Record:
    """What every record has: what was measured, by which command, when, and on which machine."""
    return {
        "part": part,
        "command": shlex.join(["jaxgpt", "bench", *args]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": describe_machine(),
    }


def work(part: str, rest: list[str]) -> int:
    """jaxgpt's program: `bench worker PART --config FILE ...`, which the bench itself starts."""
    from jaxgpt.bench.workload import prepare  # here, so that the bench itself takes no memory of a GPU

    config = parse_args(rest)
    return serve(lambda: prepare(config, part))


def time_decoding(given: argparse.Namespace, config: Config) -> Record:
    """Figures of `decode --batch`, which are printed as a table."""
    if given.vs:  # in one process with PyTorch, which needs memory of a GPU too
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from jaxgpt.bench.generation import generation_tables, time_generation  # JAX, which the bench else leaves to others

    with working("compiling and decoding", is_said=True) as work:
        found = time_generation(
            config, given.batch, [None, *given.weights], given.vs, given.rounds,
            n_prompt=given.prompt_tokens, n_tokens=given.tokens,
            say=lambda turn: work.now(f"turn {turn} of {given.rounds}" if turn else "compiling and decoding"),
        )  # fmt: skip
    for table in generation_tables(found):
        console.print(to_table(*table))
    return found


def time_server(given: argparse.Namespace, args: list[str]) -> int:
    """`bench serve`: a table, and its JSON."""
    if given.run is not None:
        from jaxgpt.inference.trained import check_run  # here: it imports JAX

        check_run(given.run)
    record = head_of("serve", args)
    options = [
        f"--{name}={getattr(given, name)}"
        for name in ("run", "model", "slots", "weights", "platform")
        if getattr(given, name) is not None
    ]
    with ExitStack() as stack:
        with working("starting the server"):
            address = given.url or stack.enter_context(started_server(options))
        record["model"], n_context = find_model(address)
        require_room(given.prompts, given.tokens, n_context)
        progress = stack.enter_context(Progress())
        record["loads"] = time_loads(given, address, record["model"], progress)
    console.print(
        to_table(
            f"{record['model']}, {given.tokens} tokens each; MB of the server", HEADER, serve_rows(record["loads"])
        )
    )
    write(record, given)
    return EXIT_DONE


def time_scaling(given: argparse.Namespace, args: list[str]) -> int:
    """`bench scaling`: two tables, their picture, and the JSON of both."""
    import jax  # here, for the same reason as in `work`

    from jaxgpt.bench.scaling import open_points, prepare_point, time_axes

    record = head_of("scaling", args) | {"config": "gpt2", "label": given.label}
    points = open_points(given.axes, given.platform)
    with working("compiling and timing", is_said=True) as work:
        axes = time_axes(
            points,
            given.rounds,
            lambda axis, value: prepare_point(point_config(axis, value, given.platform)),
            say=work.now,
        )
    record |= {"versions": {"jax": jax.__version__}, "device": jax.devices()[0].device_kind, "base": BASE, "axes": axes}
    record["tables"] = [
        ["exponents", EXPONENTS_HEADER, exponent_rows(axes)],
        ["points", POINTS_HEADER, point_rows(axes)],
    ]
    write(record, given)
    return EXIT_DONE


def time_loads(given: argparse.Namespace, address: str, model: str, progress: Progress) -> list[Record]:
    """Figures for each length of prompts and number of clients, after one request of each length to compile."""
    found = []
    for n_prompt in given.prompts:
        for n_clients, n_requests in ((1, 1), *((n, given.requests) for n in given.clients)):
            bar = progress.bar(f"{n_clients} clients, prompts of {n_prompt} tokens", hides_when_done=True)
            figures = time_clients(
                address, model, n_clients=n_clients, n_requests=n_requests, n_prompt=n_prompt, n_tokens=given.tokens,
                say=functools.partial(show_requests, bar, n_clients * n_requests),
            )  # fmt: skip
            found.append(figures)
        del found[-len(given.clients) - 1]
    return found


def show_requests(bar: Show, n_requests: int, n_done: int) -> None:
    bar(n_done, n_requests, f"{n_done} of {n_requests} requests")


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
    for table in record.get("tables", ()):
        console.print(to_table(*table))
    if record.get("axes"):
        draw_axes(record["axes"], png)
    for name, operations in record.get("operations", {}).items():
        console.print(to_table(f"costliest operations of {name}", PROFILE_HEADER, profile_rows(operations)))
    if record.get("ratio") is not None:
        console.print(f"jaxgpt over the best of torch_ref ({record['best_of_torch']}): {record['ratio']:.3f}")
    if record.get("note"):
        console.print(record["note"], soft_wrap=True)
    has_picture = record.get("programs") or record.get("axes")
    console.print(f"{given.json}" + (f", {png}" if has_picture else ""), soft_wrap=True)
    if record["part"] != "serve" and given.report:
        write_page(given.report, record, png if record.get("axes") else None)
        console.print(f"{given.report}", soft_wrap=True)


if __name__ == "__main__":
    run_verb(main)
