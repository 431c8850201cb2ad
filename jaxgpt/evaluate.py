"""Evaluates a model on held-out text: loss per token, perplexity, bits per byte.

The rows are the same each time: whole contexts, no two of which overlap, spread evenly over the split or, with
eval.spread=False, from its start. A run is evaluated with its own settings, so the loss on val agrees with the one
that training logged.

  jaxgpt evaluate --run runs/quickstart
  jaxgpt evaluate --run runs/owt --split both --tokens 0
  jaxgpt evaluate --model gpt2 --data data/openwebtext --json
  jaxgpt evaluate --config eval_gpt2 --split both
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse

from jaxgpt.config import load
from jaxgpt.errors import InputError, answer_early
from jaxgpt.files import user_location
from jaxgpt.inference.arguments import source_parser

DEFAULT_TOKENS = 1_000_000
DEFAULT_ROWS = 8


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
    parser.add_argument("--verify", action="store_true", help="hash all of the data again")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    settings = parser.read(expand_config(args))
    if settings.tokens is not None and settings.tokens < 0:
        raise InputError(f"--tokens={settings.tokens} is negative; 0 uses the whole split")
    if settings.micro_batch_size is not None and settings.micro_batch_size < 1:
        raise InputError(f"--micro-batch-size={settings.micro_batch_size} is below 1; choose a positive number")
    return settings


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
from typing import Any, Literal

import jax
import numpy as np
from rich.table import Table

from jaxgpt.config import Config, EvalConfig, MeshConfig, TrainConfig, schedule
from jaxgpt.data.sources import Source, open_directory
from jaxgpt.errors import EXIT_DONE, run_verb
from jaxgpt.inference.trained import Trained, open_source, with_tokenizer_of
from jaxgpt.parallel.mesh import count_batch_devices
from jaxgpt.run.console import console
from jaxgpt.training.step import Evaluator, make_evaluator
from jaxgpt.training.validation import Evaluation, evaluate_split


def main(args: list[str]) -> int:
    settings = read_arguments(args)
    trained = open_source(settings, n_devices=0)
    directory = settings.data or (trained.config.data.dir if trained.config else "")
    if not directory:
        raise InputError(f"--data is missing: {trained.origin} names no data; give a directory that prepare wrote")
    like = trained.config.data if trained.config else None
    source = open_directory(directory, like, verify_again=settings.verify)
    trained = with_tokenizer_of(trained, source)
    config = evaluation_config(trained, settings)
    evaluator = make_evaluator(config, trained.mesh)
    splits: list[Literal["train", "val"]] = ["train", "val"] if settings.split == "both" else [settings.split]
    token_bytes = trained.tokenizer.token_bytes() if trained.tokenizer else None
    if trained.tokenizer and token_bytes is None:
        note = f"the ids of the {trained.tokenizer.name} tokenizer do not stand for bytes"
        print(f"note: bits per byte not available: {note}", file=sys.stderr)
    results = {split: evaluate(trained, evaluator, source, split, config, token_bytes) for split in splits}
    facts = {"model": trained.origin, "data": source.config.dir, "dtype": config.train.dtype}
    if settings.json:
        print(json.dumps(facts | {"splits": {split: as_dict(result) for split, result in results.items()}}))
    else:
        print_table(facts, results)
    return EXIT_DONE


def evaluation_config(trained: Trained, settings: argparse.Namespace) -> Config:
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
    return Config(model=model, train=train, mesh=MeshConfig(data=n_devices), eval=EvalConfig(tokens=n_tokens))


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
