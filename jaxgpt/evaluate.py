"""Evaluates a trained model on held-out text: loss in nats per token, perplexity, bits per byte.

The rows are the same each time: whole contexts, apart from each other, spread evenly over the split. A run is
evaluated with its own settings, so the loss on val agrees with the one that training logged.

  python -m jaxgpt.evaluate --run runs/quickstart
  python -m jaxgpt.evaluate --run runs/owt --split both --tokens 0
  python -m jaxgpt.evaluate --model gpt2 --data data/openwebtext --json
  python -m jaxgpt.evaluate --config configs/eval_gpt2.py --split both
"""

import argparse
import dataclasses
import json
from typing import Any, Literal

import jax
from rich.table import Table

from jaxgpt.config import Config, EvalConfig, MeshConfig, TrainConfig, load
from jaxgpt.data.sources import Source, open_directory
from jaxgpt.errors import EXIT_DONE, InputError, run_verb
from jaxgpt.files import user_location
from jaxgpt.inference.trained import Trained, open_source, source_parser, with_tokenizer_of
from jaxgpt.parallel.mesh import count_batch_devices
from jaxgpt.run.console import console
from jaxgpt.training.step import Evaluator, make_evaluator
from jaxgpt.training.validation import Evaluation, evaluate_split

DEFAULT_TOKENS = 1_000_000
DEFAULT_ROWS = 8


def main(args: list[str]) -> int:
    settings = parse_args(expand_config(args))
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
    results = {split: evaluate(trained, evaluator, source, split, config) for split in splits}
    facts = {"model": trained.origin, "data": source.config.dir, "dtype": config.train.dtype}
    if settings.json:
        print(json.dumps(facts | {"splits": {split: as_dict(result) for split, result in results.items()}}))
    else:
        print_table(facts, results)
    return EXIT_DONE


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
    return [*(f"{name}={value}" for name, value in named.items()), *rest]


def parse_args(args: list[str]) -> argparse.Namespace:
    parser = source_parser("jaxgpt.evaluate", __doc__ or "")
    parser.add_argument("--data", metavar="DIR", type=user_location, help="data directory (default: the run's)")
    parser.add_argument("--split", choices=("train", "val", "both"), default="val", help="default: val")
    parser.add_argument(
        "--tokens", type=int, metavar="N",
        help=f"tokens to evaluate; 0: all (default: the run's eval.tokens, else {DEFAULT_TOKENS:,})",
    )  # fmt: skip
    parser.add_argument(
        "--micro-batch-size", type=int, metavar="N",
        help=f"rows per device at one time (default: the run's, else {DEFAULT_ROWS})",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"),
        help="dtype of the computation (default: the run's, else bfloat16, float32 on a CPU)",
    )  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="hash all of the data again, also what was hashed before")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    settings = parser.parse_args(args)
    if settings.tokens is not None and settings.tokens < 0:
        raise InputError(f"--tokens={settings.tokens} is negative; 0 uses the whole split")
    if settings.micro_batch_size is not None and settings.micro_batch_size < 1:
        raise InputError(f"--micro-batch-size={settings.micro_batch_size} is below 1; choose a positive number")
    return settings


def evaluation_config(trained: Trained, settings: argparse.Namespace) -> Config:
    """The config for `make_evaluator`: the run's, without dropout, on this machine's devices."""
    run = trained.config or Config(
        train=TrainConfig(micro_batch_size=DEFAULT_ROWS), eval=EvalConfig(tokens=DEFAULT_TOKENS)
    )
    model = trained.model.without_dropout()
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
    trained: Trained, evaluator: Evaluator, source: Source, split: Literal["train", "val"], config: Config
) -> Evaluation:
    """The loss on one split."""
    tokenizer = trained.tokenizer
    rows, starts = source.val_rows(config, split)
    with jax.set_mesh(trained.mesh):
        return evaluate_split(
            evaluator,
            trained.params,
            rows,
            starts,
            n_rows=config.train.micro_batch_size * count_batch_devices(trained.mesh),
            token_bytes=tokenizer.token_bytes() if tokenizer else None,
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
