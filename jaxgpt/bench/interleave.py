"""Programs timed in turns on one machine, A B A B ..., each in a separate process.

What else runs on the machine then slows all of them alike, and a ratio is taken between neighbours in time. A program
compiles and warms up, says so, and waits for its turn on a pipe: one JSON object per line, both ways.

    parent                    program
                        <-    {"device": ..., "compile_s": ...}     ready: its first step is done
    {"run": 20}         ->
                        <-    {"step_s": [...], "host_s": [...], "peak_bytes": ...}
    {"trace": "DIR"}    ->
                        <-    {"operations": [...]}
    end of file         ->    leaves
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jaxgpt.errors import EXIT_BAD_INPUT, EXIT_DONE, Failure, InputError


class Workload(Protocol):
    """What a program repeats, compiled and run once.

    Attributes:
      about: what it says when it is ready; `time_s` holds the seconds that compiling took, as `compile_s`.
    """

    about: dict[str, Any]

    def dispatch(self) -> Any:
        """Starts the next repetition; gives what `settle` waits for."""
        ...

    def settle(self, pending: Any) -> None:
        """Waits for a repetition."""
        ...

    def peak_bytes(self) -> int:
        """Most memory in use so far: of the accelerator, or of the process where there is none."""
        ...

    def trace(self, directory: str, n_steps: int) -> list[dict[str, Any]]:
        """Records some repetitions for TensorBoard; gives operations by time: name, self_s, share, count."""
        ...


N_SETTLING_STEPS = 2
"""First steps of a turn that do not count: caches and cores are the other program's."""


def time_steps(workload: Workload, n_steps: int) -> dict[str, list[float]]:
    """Runs steps as the training loop does: each is dispatched before the one before it is waited for.

    Returns:
      step_s: `n_steps` times from one round of that loop to the next, in its steady state.
      host_s: what of each the host spent on dispatching.
    """
    step_s, host_s = [], []
    previous = workload.dispatch()
    clock = time.perf_counter()
    for _ in range(n_steps + N_SETTLING_STEPS):
        pending = workload.dispatch()
        host_s.append(time.perf_counter() - clock)
        workload.settle(previous)
        now = time.perf_counter()
        step_s.append(now - clock)
        previous, clock = pending, now
    workload.settle(previous)
    return {"step_s": step_s[N_SETTLING_STEPS:], "host_s": host_s[N_SETTLING_STEPS:]}


def serve(begin: Callable[[], Workload]) -> int:
    """The program's side: prepares the workload and answers until stdin ends. Its own prints go to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def say(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=out, flush=True)

        workload = begin()
        say(workload.about)
        for line in sys.stdin:
            message = json.loads(line)
            if "run" in message:
                say(time_steps(workload, message["run"]) | {"peak_bytes": workload.peak_bytes()})
            else:
                say({"operations": workload.trace(message["trace"], message["n_steps"])})
    return EXIT_DONE


class Program:
    """The parent's side: a process that serves a workload."""

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str] | None = None):
        """Starts the process; `about` is what it reports when it is ready, once `wait` has returned."""
        self.name = name
        self.about: dict[str, Any] = {}
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - until close
        self._begin = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8",
            env=os.environ | (env or {}),
        )  # fmt: skip

    def wait(self) -> None:
        """Waits until it is ready. `about` also gets start_s, from the command to the end of its first step."""
        self.about = self._read()
        self.about["start_s"] = time.perf_counter() - self._begin

    def run(self, n_steps: int) -> dict[str, Any]:
        """One turn: step_s, host_s, peak_bytes."""
        return self._ask({"run": n_steps})

    def trace(self, directory: str, n_steps: int) -> list[dict[str, Any]]:
        """As `Workload.trace`."""
        return self._ask({"trace": directory, "n_steps": n_steps})["operations"]

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; reading says why
            print(json.dumps(message), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        last = ([text for text in self._errors.read().splitlines() if text.strip()] or ["no message"])[-1]
        last = last.removeprefix("error: ").removeprefix("failed: ")
        raise (InputError if code == EXIT_BAD_INPUT else Failure)(f"{self.name} ended with code {code}: {last}")

    def close(self) -> None:
        """Ends it and waits for its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def interleave(
    programs: Sequence[Program], n_rounds: int, n_steps: int, say: Callable[[int], None] = lambda i: None
) -> dict[str, list[dict[str, Any]]]:
    """Name -> its turns, of `n_steps` each. `say` is called with the number of every finished round."""
    turns: dict[str, list[dict[str, Any]]] = {program.name: [] for program in programs}
    for i in range(n_rounds):
        for program in programs:
            turns[program.name].append(program.run(n_steps))
        say(i + 1)
    return turns
