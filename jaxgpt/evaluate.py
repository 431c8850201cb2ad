"""Evaluates a model on held-out text: loss per token, perplexity, bits per byte.

The rows are the same each time: whole contexts, no two of which overlap, spread evenly over the split or, with
eval.spread=False, from its start. A run is evaluated with its own settings, so the loss on val agrees with the one
that training logged.

  jaxgpt evaluate --run runs/quickstart
  jaxgpt evaluate --run runs/owt --split both --tokens 0
  jaxgpt evaluate --model gpt2 --data data/openwebtext --json
  jaxgpt evaluate --config eval_gpt2 --split both

With --weights int8 or bfloat16 it is the loss of the lighter weights that jaxgpt serve can decode with.

With --core it evaluates on CORE instead, the 22 tasks by which nanochat ranks base models:

  jaxgpt evaluate --run runs/d20 --core --core-data eval_bundle
  jaxgpt evaluate --model gpt2 --core --max-per-task 500 --out core_gpt2.json

With --tasks it asks a chat model the tasks of ChatCORE, or others that prepare --mixture knows: letters by their
likelihood, the rest by what the model writes with its calculator. --tasks all runs the six of 2025, --tasks 2026 the
five of 2026. Rows come from the hub, or from --task-input TASK=FILE:

  jaxgpt evaluate --run runs/sft --tasks "ARC-Easy|GSM8K"
  jaxgpt evaluate --run runs/sft --tasks all --max-per-task 100 --json

Finished tasks are kept in RUN/evaluations/tasks, those of --tasks with the model's answers, so that the same command
continues after an interruption. HumanEval runs the programs that the model writes, in a sandbox; for --model, weights
from elsewhere, --allow-code has to be given. HellaSwag by itself, as modded-nanogpt evaluates it:

  jaxgpt evaluate --run runs/modded --hellaswag hellaswag_val.jsonl
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse

from jaxgpt.config import load
from jaxgpt.errors import InputError, answer_early
from jaxgpt.files import is_location, user_location, user_path
from jaxgpt.inference.arguments import source_parser

DEFAULT_TOKENS = 1_000_000
DEFAULT_ROWS = 8
CORE_DATA = "data/eval_bundle"


def read_arguments(args: list[str]) -> argparse.Namespace:
    parser = source_parser("jaxgpt evaluate", __doc__, "[--data DIR] [flags]", "--run runs/quickstart --split both")
    parser.add_argument("--config", metavar="FILE", help="weights and data of a config with init_from")
    parser.add_argument("--data", metavar="DIR", type=user_location, help="data directory (the run's)")
    parser.add_argument("--split", choices=("train", "val", "both"), default="val", help="what to evaluate on (val)")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help=f"tokens; 0: all (the run's eval.tokens, else {DEFAULT_TOKENS:,})"
    )
    parser.add_argument(
        "--micro-batch-size", type=int, metavar="N", help=f"rows per device (the run's, else {DEFAULT_ROWS})"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="(the run's; float32 on a CPU)")
    parser.add_rare("--weights", choices=("bfloat16", "int8"), help="lighter weights, as jaxgpt serve has (as stored)")
    parser.add_argument("--verify", action="store_true", help="hash all of the data again")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--core", action="store_true", help="evaluate on CORE's tasks in place of --data")
    parser.add_argument(
        "--core-data", metavar="DIR", type=user_path, help=f"nanochat's eval_bundle, unpacked ({CORE_DATA})"
    )
    parser.add_rare("--core-tasks", metavar="A,B", help="only these; present: those whose files exist (all 22)")
    parser.add_argument("--max-per-task", type=int, metavar="N", help="items of each task (all)")
    parser.add_rare("--baselines", choices=("v1", "v2"), help="v1: nanochat's, v2: DCLM's corrected ones (v1)")
    parser.add_argument("--out", metavar="FILE", type=user_path, help="keeps finished tasks (in RUN/evaluations/tasks)")
    parser.add_argument("--hellaswag", metavar="FILE", type=user_path, help="evaluate on hellaswag_val.jsonl instead")
    parser.add_argument("--tasks", metavar="A|B", help="of a chat model: all, 2025, 2026, or names with |")
    parser.add_argument("--task-input", nargs="+", metavar="TASK=FILE", default=[], help="local copies of tasks")
    parser.add_rare("--task-data", metavar="DIR", type=user_path, help="where tasks of the hub are kept (data/tasks)")
    for flag, name, kind, about in OF_WRITING:
        parser.add_rare(flag, dest=name, type=kind, metavar="N", help=f"--tasks: {about}")
    parser.add_rare("--allow-code", action="store_true", help="run HumanEval's programs of weights from elsewhere")
    parser.add_rare(
        "--allow-unconfined", action="store_true", help="run them also where a protection of the sandbox is missing"
    )
    settings = parser.read(expand_config(args))
    check_kind(settings)
    if settings.tokens is not None and settings.tokens < 0:
        raise InputError(f"--tokens={settings.tokens} is negative; 0 uses the whole split")
    if settings.micro_batch_size is not None and settings.micro_batch_size < 1:
        raise InputError(f"--micro-batch-size={settings.micro_batch_size} is below 1; choose a positive number")
    return settings


OF_WRITING = (
    ("--samples", "n_samples", int, "answers to a problem, of which one has to be right (1)"),
    ("--temperature", "temperature", float, "of written answers; 0 takes the most likely token (0)"),
    ("--top-k", "top_k", int, "tokens among which an answer is sampled; 0: all (50)"),
    ("--max-new-tokens", "max_tokens", int, "tokens of an answer (512)"),
    ("--seed", "seed", int, "of sampled answers (42)"),
    ("--rows", "n_rows", int, "answers written at once on a device (8)"),
)
"""Flags that say how answers are written: flag, field of `Writing`, type, what it means."""
FLAGS = {
    "text": ("data", "tokens", "micro_batch_size", "weights"),
    "core": ("core_data", "core_tasks", "baselines", "max_per_task", "out"),
    "tasks": (
        "task_input", "task_data", "max_per_task", "out", "allow_code", "allow_unconfined",
        *(name for _, name, _, _ in OF_WRITING),
    ),
    "hellaswag": (),
}  # fmt: skip
"""Flags that mean something for one kind of evaluation, or for several."""
KINDS = {"text": "held-out text", "core": "--core", "tasks": "--tasks", "hellaswag": "--hellaswag"}


def kind_of(settings: argparse.Namespace) -> str:
    """Which evaluation is asked for. Raises InputError where several are."""
    asked = [kind for kind in ("core", "tasks", "hellaswag") if getattr(settings, kind)]
    if len(asked) > 1:
        raise InputError(f"--{asked[0]} and --{asked[1]} are different evaluations; give one of them")
    return asked[0] if asked else "text"


def check_kind(settings: argparse.Namespace) -> None:
    """Raises InputError where flags of different evaluations are mixed, or no number of items is left."""
    asked = kind_of(settings)
    flags = {name: flag for flag, name, _, _ in OF_WRITING}
    for name in dict.fromkeys(name for names in FLAGS.values() for name in names):
        value = getattr(settings, name)
        if value in (None, False, []) or name in FLAGS[asked]:
            continue
        flag = flags.get(name, f"--{name.replace('_', '-')}")
        wanted = " or ".join(KINDS[kind] for kind, names in FLAGS.items() if name in names)
        shown = flag if value is True else f"{flag}={' '.join(value) if isinstance(value, list) else value}"
        raise InputError(f"{shown} is for {wanted}, not for {KINDS[asked]}; leave it out")
    if settings.max_per_task is not None and settings.max_per_task < 1:
        raise InputError(f"--max-per-task={settings.max_per_task} is below 1; leave it out to use all items")


def expand_config(args: list[str]) -> list[str]:
    """`--config FILE` as the arguments it stands for: the weights, data and sizes that a config evaluates."""
    if "--config" in args[:-1]:
        i = args.index("--config")
        path, rest = args[i + 1], args[:i] + args[i + 2 :]
    else:
        path = next((arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")), "")
        rest = [arg for arg in args if not arg.startswith("--config=")]
    if not path:
        return args
    config = load(path)
    if not config.train.init_from:
        raise InputError(
            f"--config={path} has train.init_from='', so there are no weights to evaluate; use --run for a run"
        )
    named = {
        "--model": config.train.init_from,
        "--data": config.data.dir,
        "--tokens": config.eval.tokens,
        "--micro-batch-size": config.train.micro_batch_size,
    }
    given = {arg.partition("=")[0].replace("_", "-") for arg in rest}
    return [*(f"{name}={value}" for name, value in named.items() if name not in given), *rest]


if __name__ == "__main__":
    answer_early(read_arguments)

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.table import Table

from jaxgpt.chat.core import core_table
from jaxgpt.chat.core_run import record_file, require_tokenizer, run_core
from jaxgpt.chat.core_tasks import choose_tasks
from jaxgpt.chat.generated import Writing
from jaxgpt.chat.hellaswag import evaluate_hellaswag, read_problems
from jaxgpt.chat.span_scores import SpanScorer
from jaxgpt.chat.task_run import open_tasks, run_tasks, task_table
from jaxgpt.config import Config, EvalConfig, MeshConfig, TrainConfig, schedule
from jaxgpt.data.sources import Source, open_directory
from jaxgpt.errors import EXIT_DONE, run_verb
from jaxgpt.inference.trained import Trained, check_run, open_source, with_tokenizer_of
from jaxgpt.inference.weights import with_weights
from jaxgpt.parallel.mesh import count_batch_devices
from jaxgpt.run.console import console
from jaxgpt.run.results import Kind, write_result
from jaxgpt.tasks.hub_files import DIRECTORY
from jaxgpt.tasks.mixtures import Sources, read_inputs
from jaxgpt.training.step import Evaluator, make_evaluator
from jaxgpt.training.validation import Evaluation, evaluate_split


def main(args: list[str]) -> int:
    settings = read_arguments(args)
    if settings.core:
        return evaluate_on_core(settings)
    if settings.tasks:
        return evaluate_on_tasks(settings)
    if settings.hellaswag:
        return evaluate_on_hellaswag(settings)
    trained = open_source(settings, n_devices=0)
    directory = settings.data or (trained.config.data.dir if trained.config else "")
    if not directory:
        raise InputError(f"--data is missing: {trained.origin} names no data; give a directory that prepare wrote")
    like = trained.config.data if trained.config else None
    tokenizer_json = trained.tokenizer.to_json() if trained.tokenizer else None
    source = open_directory(directory, like, verify_again=settings.verify, tokenizer_json=tokenizer_json)
    trained = with_tokenizer_of(trained, source)
    config = evaluation_config(trained, source, settings)
    if settings.weights:
        trained = with_weights(trained, settings.weights)
    evaluator = make_evaluator(config, trained.mesh)
    splits: list[Literal["train", "val"]] = ["train", "val"] if settings.split == "both" else [settings.split]
    token_bytes = trained.tokenizer.token_bytes() if trained.tokenizer else None
    if trained.tokenizer and token_bytes is None:
        note = f"the ids of the {trained.tokenizer.name} tokenizer do not stand for bytes"
        print(f"note: bits per byte not available: {note}", file=sys.stderr)
    began_s = time.perf_counter()
    results = {split: evaluate(trained, evaluator, source, split, config, token_bytes) for split in splits}
    facts = {"model": trained.origin, "data": source.config.dir, "dtype": config.train.dtype}
    if settings.run is not None and not settings.weights:  # the record is of the run's own weights
        about = {key: facts[key] for key in ("data", "dtype")}
        about |= {"data_sha256": source.digest, "tokens": config.eval.tokens}
        figures = {split: as_dict(result) for split, result in results.items()}
        record(settings.run, "loss", trained.n_done, time.perf_counter() - began_s, figures, about)
    if settings.json:
        print(json.dumps(facts | {"splits": {split: as_dict(result) for split, result in results.items()}}))
    else:
        print_table(facts, results)
    return EXIT_DONE


def evaluate_on_core(settings: argparse.Namespace) -> int:
    directory = Path(settings.core_data or CORE_DATA)
    tasks = choose_tasks(directory, settings.core_tasks.split(",") if settings.core_tasks else ())
    trained = open_source(settings, n_devices=0)
    trained = dataclasses.replace(trained, dtype=settings.dtype or trained.dtype)
    n_items = settings.max_per_task or 0
    report = run_core(
        trained, tasks, directory, table=settings.baselines or "v1", max_per_task=n_items,
        record_path=record_file(settings.run, trained.n_done, n_items, settings.out),
    )  # fmt: skip
    if settings.run is not None:
        figures = {
            name: {"score": task["centred"], "accuracy": task["accuracy"]} for name, task in report["tasks"].items()
        }
        if report["core"] is not None:
            figures = {"CORE": {"score": report["core"]}} | figures
        about = {name: report[name] for name in ("dtype", "max_per_task", "baselines")}
        seconds = sum(task["seconds"] for task in report["tasks"].values())
        record(settings.run, "core", trained.n_done, seconds, figures, about)
    show(report, core_table, settings.json)
    return EXIT_DONE


def evaluate_on_tasks(settings: argparse.Namespace) -> int:
    given = {name: getattr(settings, name) for _, name, _, _ in OF_WRITING}
    writing = Writing(**{name: value for name, value in given.items() if value is not None})
    sources = Sources(
        Path(settings.task_data or DIRECTORY), read_inputs(settings.task_input, "--task-input"),
        allow_unconfined=settings.allow_unconfined,
    )  # fmt: skip
    if settings.run is not None:
        check_run(settings.run, settings.step)
    tasks = open_tasks(settings.tasks, sources)
    if "HumanEval" in (task.name for task in tasks.values()) and settings.run is None and not settings.allow_code:
        raise InputError(
            f"--model={settings.model} would run programs that it writes, for HumanEval; add --allow-code to run them"
        )
    trained = open_source(settings, n_devices=0)
    trained = dataclasses.replace(trained, dtype=settings.dtype or trained.dtype)
    n_items = settings.max_per_task or 0
    path = record_file(settings.run, trained.n_done, n_items, settings.out, "tasks")
    report = run_tasks(trained, tasks, writing=writing, max_per_task=n_items, record_path=path)
    if settings.run is not None:
        figures = {name: {"score": task["accuracy"]} for name, task in report["tasks"].items()}
        if report["chat_core"] is not None:
            figures |= {"ChatCORE": {"score": report["chat_core"]}}
        about = {name: report[name] for name in ("dtype", "max_per_task", "n_samples", "temperature", "max_tokens")}
        about |= {"era": report["era"]} if report["era"] else {}
        seconds = sum(task["seconds"] for task in report["tasks"].values())
        record(settings.run, "tasks", trained.n_done, seconds, figures, about)
    show(report, task_table, settings.json)
    return EXIT_DONE


def show(report: dict[str, Any], draw: Callable[[dict[str, Any]], tuple[Table, list[str]]], is_json: bool) -> None:
    """Prints a report to stdout: as one JSON object, or as its table and the lines under it."""
    if is_json:
        print(json.dumps(report))
        return
    table, lines = draw(report)
    console.say(f"model {report['model']}, dtype {report['dtype']}")
    console.print(table)
    for line in lines:
        console.say(line)


def evaluate_on_hellaswag(settings: argparse.Namespace) -> int:
    problems = read_problems(Path(settings.hellaswag))
    trained = open_source(settings, n_devices=0)
    trained = dataclasses.replace(trained, dtype=settings.dtype or trained.dtype)
    result = evaluate_hellaswag(problems, SpanScorer(trained), require_tokenizer(trained))
    facts = {"model": trained.origin, "dtype": trained.compute_dtype}
    figures = {
        "accuracy": result.accuracy, "n_problems": len(result.answers), "n_cropped": result.n_cropped,
        "answers": result.answers,
    }  # fmt: skip
    if settings.json:
        print(json.dumps(facts | {"hellaswag": figures}))
        return EXIT_DONE
    console.say(f"model {facts['model']}, dtype {facts['dtype']}")
    cropped = f"; {result.n_cropped:,} were longer than the context" if result.n_cropped else ""
    console.say(f"HellaSwag accuracy {result.accuracy:.4f} on {len(result.answers):,} problems{cropped}")
    return EXIT_DONE


def evaluation_config(trained: Trained, source: Source, settings: argparse.Namespace) -> Config:
    """The config for `make_evaluator`: the run's, without dropout, on this machine's devices."""
    run = trained.config or Config(
        train=TrainConfig(micro_batch_size=DEFAULT_ROWS), eval=EvalConfig(tokens=DEFAULT_TOKENS)
    )
    model = trained.model
    if trained.config:
        model = trained.config.eval_models()[schedule.eval_stage(trained.config, trained.n_done)]
    model = model.without_dropout()
    rows = settings.micro_batch_size or run.train.micro_batch_size
    n_devices = count_batch_devices(trained.mesh)
    train = TrainConfig(
        batch_tokens=rows * model.seq_len * n_devices,
        micro_batch_size=rows,
        dtype=settings.dtype or trained.dtype,
        matmul_precision=run.train.matmul_precision,
        attention="xla" if run.train.attention == "xla" else "auto",
        loss_chunk_tokens=run.train.loss_chunk_tokens,
    )
    n_tokens = run.eval.tokens if settings.tokens is None else settings.tokens
    config = Config(model=model, train=train, mesh=MeshConfig(data=n_devices), eval=EvalConfig(tokens=n_tokens))
    if not source.config.is_chat:
        return config
    return dataclasses.replace(config, data=source.config, chat=dataclasses.replace(run.chat, base=""))


def evaluate(
    trained: Trained,
    evaluator: Evaluator,
    source: Source,
    split: Literal["train", "val"],
    config: Config,
    token_bytes: np.ndarray | None,
) -> Evaluation:
    """The loss on one split."""
    rows, starts = source.val_rows(config, split)
    with jax.set_mesh(trained.mesh):
        return evaluate_split(
            evaluator,
            trained.params,
            rows,
            starts,
            n_rows=config.train.micro_batch_size * count_batch_devices(trained.mesh),
            token_bytes=token_bytes,
        )


def record(
    run: str, kind: Kind, step: int, seconds: float, results: dict[str, dict[str, Any]], about: dict[str, Any]
) -> None:
    """Writes the record of an evaluation into the run's directory, for `jaxgpt report`.

    Where that cannot be, stderr says so; the figures are printed all the same.
    """
    if is_location(run):
        print(f"note: --run={run} is at a store, which gets no record of this evaluation", file=sys.stderr)
        return
    try:
        write_result(Path(run), kind, step, seconds, results, about)
    except (OSError, ValueError) as error:
        print(f"note: {run} gets no record of this evaluation: {error}", file=sys.stderr)


def as_dict(result: Evaluation) -> dict[str, Any]:
    return dataclasses.asdict(result) | {"perplexity": result.perplexity}


def print_table(facts: dict[str, str], results: dict[str, Evaluation]) -> None:
    """Prints to stdout, below a line about what was evaluated."""
    console.say(", ".join(f"{name} {value}" for name, value in facts.items()))
    table = Table("split", "loss (nats/token)", "perplexity", "bits per byte", "tokens")
    for split, result in results.items():
        bits = "" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
        table.add_row(split, f"{result.loss:.4f}", f"{result.perplexity:.2f}", bits, f"{result.n_tokens:,}")
    console.print(table)


if __name__ == "__main__":
    run_verb(main, prints="result")
