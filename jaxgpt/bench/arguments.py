"""The arguments of `jaxgpt bench serve` and `bench scaling`, and numbers in lists. Imports no JAX."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from jaxgpt.bench.axes import AXES, read_axes
from jaxgpt.config.parser import Parser
from jaxgpt.errors import InputError
from jaxgpt.files import user_file, user_location, user_path

SERVE_DOC = """Times a server: clients ask for streams, each for one text after another.

It starts `jaxgpt serve` for a run, or asks one that runs elsewhere (--url), which may be any program that speaks
OpenAI's API. The variable JAXGPT_API_KEY is the key. Prompts are random ids, so no prompt is found in the cache.

Time to first token is from the request to the first piece of text, time per token from there to the last one. Memory is
that of the server's process, by its /metrics. A request that is answered 429 counts as refused; its client waits as
long as the answer says, then sends its next one.
"""
SCALING_DOC = """Fits how the time and the memory of a training step grow with T, width, depth and the like.

The real step of a small GPT-2, on random tokens, with one setting at a time changed: T (tokens of a row), width, depth,
vocabulary, microbatches, devices (which divide the same rows; a CPU is divided into simulated ones). All points are
compiled, then timed in interleaved rounds. An exponent is a slope in log-log over the upper half of an axis; in
brackets, the lowest and the highest of a single round.

FLOPs and counted bytes are arithmetic on the config: what time and temporaries should grow like. Temporaries are the
compiled program's, on one device. CPU time is that of all threads, and of compiling it is what stands in the table: a
busy machine disturbs it less. Beside the JSON, FILE with .png is the picture. --report adds all of it to a page such as
docs/benchmarks.md.
"""
KINDS = ("bfloat16", "int8")
MOST = 10_000


def read_counts(flag: str, text: str, what: str, example: str) -> list[int]:
    """Numbers from 1 to 9,999 with commas between them; none for an empty text.

    Raises:
      InputError: one is none, such as `--batch=0 is no number of rows; give some, such as 1,8,32`.
    """
    parts = [part for part in text.split(",") if part]
    for part in parts:
        if not (part.isascii() and part.isdigit() and 0 < int(part) < MOST):
            raise InputError(f"{flag}={part} is no number of {what}; give some, such as {example}")
    return [int(part) for part in parts]


def read_serve_arguments(args: Sequence[str]) -> argparse.Namespace:
    """The arguments after `bench serve`; `clients` and `prompts` are lists of numbers.

    Raises:
      InputError: a number or an address is none, or a flag for a server of our own stands beside --url.
    """
    parser = Parser(
        "jaxgpt bench serve", SERVE_DOC, "(--run DIR | --model NAME | --url URL) [flags]",
        "--run runs/quickstart --clients 1,8 --prompts 16,128",
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="DIR", type=user_location, help="a run directory, such as runs/quickstart")
    source.add_argument("--model", metavar="NAME", type=user_path, help="as in jaxgpt serve: gpt2, hf:OWNER/NAME, ...")
    source.add_argument("--url", metavar="URL", help="a server that runs already, such as http://127.0.0.1:8000")
    parser.add_argument("--slots", type=int, metavar="N", help="of the server that is started (8)")
    parser.add_argument("--weights", choices=KINDS, help="of the server that is started (as stored)")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"), help="device (the fastest here)")
    parser.add_argument("--clients", default="1,4,8", metavar="N,N", help="clients at once (1,4,8)")
    parser.add_argument("--prompts", default="16,128", metavar="N,N", help="tokens of a prompt (16,128)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens of an answer (64)")
    parser.add_argument("--requests", type=int, default=4, metavar="N", help="requests of each client (4)")
    parser.add_argument("--json", type=user_file, metavar="FILE", help="the result (runs/bench/serve.json)")
    given = parser.read(args)
    given.clients = read_counts("--clients", given.clients, "clients", "1,4,8")
    given.prompts = read_counts("--prompts", given.prompts, "tokens", "16,128")
    for name in ("clients", "prompts"):
        if not getattr(given, name):
            raise InputError(f"--{name} is empty; leave it out, or give some, such as --{name} 1,8")
    for name in ("slots", "tokens", "requests"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise InputError(f"--{name}={getattr(given, name)} is below 1; choose a positive number")
    if given.url is not None:
        if urlsplit(given.url).scheme not in ("http", "https") or not urlsplit(given.url).hostname:
            raise InputError(f"--url={given.url} is no address of a server; give one such as http://127.0.0.1:8000")
        for name in ("slots", "weights", "platform"):
            if getattr(given, name) is not None:
                raise InputError(f"--{name} is of a server that is started here, not of --url; leave it out")
    given.json = given.json or Path("runs/bench/serve.json")
    return given


def read_scaling_arguments(args: Sequence[str]) -> argparse.Namespace:
    """The arguments after `bench scaling`; `axes` is a list of names.

    Raises:
      InputError: an axis is none, or a number is too small.
    """
    parser = Parser("jaxgpt bench scaling", SCALING_DOC, "[--axes NAME,NAME] [flags]", "--axes T,width --rounds 5")
    parser.add_argument("--axes", default="", metavar="NAMES", help=f"some of {','.join(AXES)} (all)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each point (5)")
    parser.add_argument("--platform", default="", choices=("cpu", "gpu", "tpu"), help="device (the fastest here)")
    parser.add_argument("--json", type=user_file, metavar="FILE", help="the result (runs/bench/scaling.json)")
    parser.add_argument("--report", type=user_file, metavar="FILE", help="add the result to this page")
    parser.add_argument("--label", default="", metavar="TEXT", help="what sets this result apart on the page")
    given = parser.read(args)
    given.axes = read_axes(given.axes)
    if given.rounds < 1:
        raise InputError(f"--rounds={given.rounds} is below 1; 5 is usual")
    given.json = given.json or Path("runs/bench/scaling.json")
    return given
