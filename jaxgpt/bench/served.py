"""A server to time: `jaxgpt serve` in a process that is started and ended here, or one that runs elsewhere."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import httpx

from jaxgpt.errors import EXIT_BAD_INPUT, Failure, InputError

KEY_VARIABLE = "JAXGPT_API_KEY"
ANSWER_S = 600.0
"""How long a client waits for the next piece of an answer; the first request of a shape compiles."""
LEAVE_S = 40.0
"""For a server to end; it drains for at most 30 s."""
READY = re.compile(r"(https?://\S+?)/?\s*$")
"""How the last word of the line ends by which a server says that it listens."""


@contextlib.contextmanager
def started_server(options: Sequence[str]) -> Iterator[str]:
    """The address of a `jaxgpt serve` with these options, on a free port of this machine. It is ended on leaving.

    Raises:
      InputError, Failure: it ended before it listened; with its last line.
    """
    command = [sys.executable, "-m", "jaxgpt.serve", "--port=0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace") as process:
        try:
            yield _wait(process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[str]) -> str:
    """The address that the server says. What it says later is read, and dropped."""
    assert process.stderr is not None
    last = "no message"
    for line in process.stderr:
        if found := READY.search(line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return found[1]
        last = line.strip() or last
    code = process.wait()
    last = last.removeprefix("error: ").removeprefix("failed: ")
    kind = InputError if code == EXIT_BAD_INPUT else Failure
    raise kind(last if code == EXIT_BAD_INPUT else f"jaxgpt serve ended with code {code}: {last}")


def connect(address: str) -> httpx.Client:
    """A client with a connection of its own."""
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=address, headers=headers, timeout=httpx.Timeout(ANSWER_S, connect=10.0))


def find_model(address: str) -> tuple[str, int | None]:
    """The name of the model that is served, and its context in tokens; None where the server does not say.

    Raises:
      InputError: nothing answers there, or not in OpenAI's way.
    """
    try:
        with connect(address) as client:
            answer = client.get("/v1/models")
            if answer.status_code == 401:
                raise InputError(f"--url={address} wants an API key; set the variable {KEY_VARIABLE}")
            answer.raise_for_status()
            first = answer.json()["data"][0]
            return str(first["id"]), first.get("context_tokens")
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--url={address} does not list its models at /v1/models: {error or type(error).__name__}; start a server"
        ) from error


def resident_bytes(address: str) -> int | None:
    """Memory of the server's process; None where its /metrics does not say."""
    with connect(address) as client:
        answer = client.get("/metrics")
    found = re.search(r"^process_resident_memory_bytes (\S+)$", answer.text, re.MULTILINE)
    return int(float(found[1])) if found and answer.is_success else None
