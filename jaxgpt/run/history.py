"""history.jsonl: when a run was trained, by which code, on which machine.

A process that trains adds a line that says what it is, then one with step and time about every minute, and a last one
when it ends. So a report knows how long a run took although it was killed and resumed: to a minute.
"""

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxgpt
from jaxgpt.files import open_in_place, read_bounded
from jaxgpt.run.results import LARGEST, is_time

FILE = "history.jsonl"
MAX_BYTES = 64 * 2**20
"""Of the file: one with a line for every minute of a month has 4 MB."""
PULSE_S = 60.0
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
STAGES = ("base", "mid", "sft", "rl")
"""From text to an assistant: pretraining, midtraining, supervised fine-tuning, reinforcement learning."""


class History:
    """Adds the lines of this process. What cannot be written is a warning, once; training continues.

    Args:
      stage: one of STAGES.
      devices: number and kind, such as "8 x NVIDIA H100 80GB HBM3".
      warn: called with one line.
    """

    def __init__(self, path: Path, first_step: int, stage: str, devices: str, warn: Callable[[str], None]):
        self._path, self._step, self._warn = path, first_step, warn
        self._written_at_s = 0.0
        self._fd: int | None = None
        try:
            self._fd = _open_to_append(path)
        except OSError as error:
            self._fail(error)
        self._append({"began": True, "stage": stage, "devices": devices} | describe_program())

    def write(self, record: dict[str, Any]) -> None:
        """Takes over the step of a record of metrics.jsonl."""
        self._step = record["step"]
        if time.monotonic() - self._written_at_s >= PULSE_S:
            self._append({})

    def close(self) -> None:
        self._append({"ended": True})
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, values: dict[str, Any]) -> None:
        if self._fd is None:
            return
        self._written_at_s = time.monotonic()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            os.write(self._fd, (json.dumps({"step": self._step, "time": now} | values) + "\n").encode())
        except OSError as error:
            os.close(self._fd)
            self._fd = None
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._warn(f"{self._path} cannot be written ({error.strerror}); a report will lack the time from here on")


def _open_to_append(path: Path) -> int:
    """Opens the file at the beginning of a line, whatever a killed process or a full disk left there."""
    with open_in_place(path) as file:
        fd = os.dup(file.fileno())
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
    return fd


def describe_program() -> dict[str, Any]:
    """The code and the machine: commit, versions of the packages in use, operating system, cores."""
    return {
        "commit": find_commit(),
        "versions": {
            "jaxgpt": jaxgpt.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES if name in sys.modules},
        },
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


@functools.cache
def find_commit() -> str:
    """The git commit of this package's working copy, with -dirty where tracked files differ; empty where it is none."""
    root = Path(jaxgpt.__file__).parents[1]
    if not (root / ".git").exists():  # a directory further up would be another project
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of another copy
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=variables)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@dataclass(frozen=True)
class Session:
    """One process that trained the run.

    Attributes:
      began, ended: in UTC; for a process that was killed, `ended` is its last sign of life.
      was_closed: whether it ended by itself.
      about: stage, devices, commit, versions, machine, as far as they are of the right form.
    """

    first_step: int
    last_step: int
    began: datetime.datetime
    ended: datetime.datetime
    was_closed: bool
    about: dict[str, Any]

    @property
    def seconds(self) -> float:
        return max((self.ended - self.began).total_seconds(), 0.0)


def read_history(run_dir: Path) -> tuple[list[Session], list[str]]:
    """The processes that trained a run, oldest first, and what of the file is damaged, in lines."""
    path = run_dir / FILE
    try:
        content = read_bounded(path, MAX_BYTES)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{path}: {error.strerror}"]
    sessions: list[list[dict[str, Any]]] = []
    bad = []
    for number, line in enumerate(content.splitlines(), 1):
        entry = _read_line(line)
        if entry is not None and entry.get("began") is True:
            sessions.append([entry])
        elif entry is not None and sessions:
            sessions[-1].append(entry)
        else:
            bad.append(number)
    faults = [f"{path}: {len(bad)} damaged, the first is line {bad[0]}; left out"] if bad else []
    return [_summarize(entries) for entries in sessions], faults


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return entry if type(step) is int and 0 <= step < LARGEST and is_time(entry.get("time")) else None


def _summarize(entries: list[dict[str, Any]]) -> Session:
    first, last = entries[0], entries[-1]
    texts = {
        name: first[name] for name in ("stage", "devices", "commit", "machine") if isinstance(first.get(name), str)
    }
    versions = first.get("versions")
    if isinstance(versions, dict) and all(isinstance(version, str) for version in versions.values()):
        texts["versions"] = versions
    began, ended = (datetime.datetime.fromisoformat(entry["time"]) for entry in (first, last))
    return Session(first["step"], last["step"], began, ended, last.get("ended") is True, texts)
