"""Serves a trained model: OpenAI's HTTP API, which existing clients speak, and a page to chat on.

The page is at http://127.0.0.1:8000/, the API below /v1: chat/completions, completions and models. /health says whether
it serves, /metrics counts for Prometheus. Only this machine can connect unless --host names another address; give an
API key then. SIGTERM or Ctrl-C finishes the answers that are on their way.

  jaxgpt serve --run runs/chat
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}'
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse
import importlib.util
import os
from pathlib import Path

from jaxgpt.errors import InputError, answer_early
from jaxgpt.extras import pip_install
from jaxgpt.inference.arguments import source_parser

LIBRARIES = ("starlette", "uvicorn", "pydantic", "prometheus_client")
KEY_VARIABLE = "JAXGPT_API_KEY"


def read_arguments(args: list[str]) -> argparse.Namespace:
    parser = source_parser("jaxgpt serve", __doc__, "[flags]", "--run runs/quickstart --port 8080")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (127.0.0.1: this machine)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: any that is free (8000)")
    parser.add_argument("--api-key", metavar="KEY", help=f"clients must send it (the variable {KEY_VARIABLE})")
    parser.add_argument("--name", metavar="NAME", help="of the model for clients (the name of the run)")
    parser.add_argument("--slots", type=int, default=8, metavar="N", help="texts that are generated at once (8)")
    parser.add_argument("--weights", choices=("bfloat16", "int8"), help="lighter weights (as stored); int8 is fastest")
    parser.add_argument("--queue", type=int, default=64, metavar="N", help="texts that wait; more get 429 (64)")
    parser.add_argument("--deadline", type=float, default=600.0, metavar="S", help="seconds for an answer (600)")
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="a site whose pages may call the API"
    )
    given = parser.read(args)
    given.api_key = given.api_key or os.environ.get(KEY_VARIABLE) or None
    for is_good, message in (
        (0 <= given.port < 65536, f"--port={given.port} is not from 0 to 65535; choose one that is"),
        (given.slots >= 1, f"--slots={given.slots} is below 1; generate at least one text at once"),
        (given.queue >= 1, f"--queue={given.queue} is below 1; let at least one text wait"),
        (0 < given.deadline < float("inf"), f"--deadline={given.deadline} is not above 0; give seconds"),
        (given.name is None or (given.name.isprintable() and given.name), "--name is empty or not printable"),
    ):
        if not is_good:
            raise InputError(message)
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise InputError(f"jaxgpt serve needs {library}; {pip_install('serve')}")
    return given


if __name__ == "__main__":
    answer_early(read_arguments)

import asyncio
import sys

from jaxgpt import signals
from jaxgpt.errors import EXIT_DONE, run_verb
from jaxgpt.inference.trained import open_source
from jaxgpt.inference.weights import with_weights
from jaxgpt.serve.app import make_app
from jaxgpt.serve.batching import Batching
from jaxgpt.serve.gate import LOOPBACK, Limits
from jaxgpt.serve.server import DRAINING, open_socket, serve


def main(args: list[str]) -> int:
    return run_server(read_arguments(args))


def run_server(given: argparse.Namespace) -> int:
    listening = open_socket(given.host, given.port)
    trained = open_source(given)
    if given.weights:
        trained = with_weights(trained, given.weights)
    backend = Batching(trained, given.name or model_name(given), n_slots=given.slots, n_queue=given.queue)
    app = make_app(
        backend,
        limits=Limits(deadline_s=given.deadline),
        api_key=given.api_key,
        origins=tuple(given.allow_origin),
        is_loopback=given.host in LOOPBACK,
    )
    host = f"[{given.host}]" if ":" in given.host else given.host
    say(f"{trained.origin} as {backend.model_name!r}: http://{host}:{listening.getsockname()[1]}/")
    if given.host not in LOOPBACK and given.api_key is None:
        say("warning: other machines can connect, and no --api-key is asked of them")
    signals.enter(DRAINING)
    asyncio.run(serve(app, listening))
    backend.close()
    return EXIT_DONE


def model_name(given: argparse.Namespace) -> str:
    """The last part of the run's or the model's name."""
    return Path(str(given.run or given.model).rstrip("/")).name or "model"


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_verb(main)
