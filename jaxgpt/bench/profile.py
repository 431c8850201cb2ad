"""Where the time of a compiled program goes: a trace for TensorBoard or Perfetto, and its costliest operations.

A trace names instructions of the compiled program (`ynn_fusion.75`); the program's text says what each one is and
which line of ours it comes from. Instructions that compute the same thing for different layers are added up. Time is an
operation's own: what runs inside of it is not counted twice.

On a CPU an operation's time is that of the thread which started it: helpers that share a large matrix product are not
in the trace.
"""

import contextlib
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxgpt.errors import Failure

TRACES = "plugins/profile"
"""Where TensorBoard looks for traces below its log directory."""


class Instruction(NamedTuple):
    """A line of a compiled program: what it computes, the shape it gives, the JAX operation it was made for."""

    kind: str
    shape: str
    origin: str


@contextlib.contextmanager
def record(directory: str) -> Iterator[None]:
    """Traces what runs inside: `tensorboard --logdir DIRECTORY`, or open perfetto_trace.json.gz in ui.perfetto.dev."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(directory, create_perfetto_trace=True, profiler_options=options):
        yield


def find_costliest(directory: str, hlo: str, n_steps: int) -> list[dict[str, Any]]:
    """Operations of the newest trace in a directory, costliest first.

    Args:
      directory: that `record` wrote to.
      hlo: text of the compiled program.
      n_steps: how often it ran in the trace.

    Returns:
      For each operation: name, self_s per step, share of all operations' time, count per step.

    Raises:
      Failure: the trace holds no instruction of this program.
    """
    instructions = read_instructions(hlo)
    self_s: dict[Instruction, float] = defaultdict(float)
    count: dict[Instruction, int] = defaultdict(int)
    for thread in read_threads(newest_trace(directory)):
        for name, seconds in own_times(thread):
            if name in instructions:
                self_s[instructions[name]] += seconds
                count[instructions[name]] += 1
    total_s = sum(self_s.values())
    if not total_s:
        raise Failure(f"the trace in {directory} holds no operation of the compiled program")
    return [
        {
            "name": " ".join(filter(None, instruction)),
            "self_s": self_s[instruction] / n_steps,
            "share": self_s[instruction] / total_s,
            "count": count[instruction] / n_steps,
        }
        for instruction in sorted(self_s, key=lambda key: -self_s[key])
    ]


def newest_trace(directory: str) -> Path:
    """The Perfetto file of the trace that was recorded last."""
    found = sorted(Path(directory, TRACES).glob("*/perfetto_trace.json.gz"))
    if not found:
        raise Failure(f"{directory} holds no trace")
    return found[-1]


def read_threads(path: Path) -> list[list[tuple[str, float, float]]]:
    """The events of each thread or stream: name, begin and length in seconds."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    threads = defaultdict(list)
    for event in events:
        if event.get("ph") == "X":
            name = event.get("args", {}).get("hlo_op") or event["name"]
            threads[event["pid"], event["tid"]].append((name, event["ts"] / 1e6, event.get("dur", 0) / 1e6))
    return list(threads.values())


def own_times(events: list[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """Each event of a thread with its time less that of the events inside of it."""
    open_events: list[list] = []  # name, end, own time
    for name, begin, length in sorted(events, key=lambda event: (event[1], -event[2])):
        while open_events and open_events[-1][1] <= begin:
            done = open_events.pop()
            yield done[0], done[2]
        if open_events:
            open_events[-1][2] -= length
        open_events.append([name, begin + length, length])
    for done in open_events:
        yield done[0], done[2]


def read_instructions(hlo: str) -> dict[str, Instruction]:
    """Name -> what it is, of every instruction in a compiled program's text."""
    found = {}
    for match in re.finditer(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$", hlo, re.MULTILINE):
        name, shape, opcode, rest = match.groups()
        origin = re.search(r'op_name="([^"]*)"', rest)
        # Of a fusion the name says more than the opcode: ynn_fusion, add_select_fusion, wrapped_scatter.
        kind = re.sub(r"[.\d]+$", "", name) if opcode == "fusion" else opcode
        found[name] = Instruction(kind, re.sub(r"\{[^}]*\}", "", shape), shorten(origin[1] if origin else ""))
    return found


def shorten(origin: str) -> str:
    """`jit(wrapper)/while/body/closed_call/transpose(jvp())/dot_general` -> `backward dot_general`."""
    parts = [part for part in origin.split("/") if part not in ("while", "body", "cond", "closed_call", "checkpoint")]
    if parts and re.fullmatch(r"jit\(\w+\)", parts[0]):
        parts = parts[1:]
    passes = {"transpose(jvp": "backward", "jvp": "forward"}
    direction = next((word for start, word in passes.items() if any(p.startswith(start) for p in parts)), "update")
    labels = re.findall(r"jvp\(([^()]*)\)", "/".join(parts))
    return " ".join(filter(None, [direction, *(label for label in labels if label), parts[-1] if parts else ""]))
