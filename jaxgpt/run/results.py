"""What an evaluation of a run found: one JSON file for each, in the run's directory, for reports and other readers.

    <run>/evaluations/<kind>-<step>-<digest>.json
    {"format": 1, "kind": "tasks", "step": 809, "time": "2026-01-31T12:00:00+00:00", "seconds": 41.5,
     "results": {"ARC-Easy": {"score": 0.3561}, "ChatCORE": {"score": 0.0730}}, "about": {"dtype": "bfloat16"}}

`results` maps a name to numbers. Of the kinds core and tasks each name has its `score`, and CORE and ChatCORE are names
like the others; of the kind loss the names are splits, with `loss` in nats per token. The digest is over the names in
`results` and over `about`: the same evaluation replaces its file, another one gets its own.
"""

import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxgpt.files import read_bounded, refuse_link, write_atomically

FOLDER = "evaluations"
FORMAT = 1
"""Raised when an older reader would misread a newer record."""
MAX_BYTES = 16 * 2**20
LARGEST = 1e15
"""No figure of a run is larger; a record that holds one is damaged."""
Kind = Literal["loss", "core", "tasks"]
NEEDED = {"loss": "loss", "core": "score", "tasks": "score"}
"""Kind -> what each of its results has."""


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Attributes:
      kind: what was evaluated.
      step: steps of the run after which these are its parameters.
      time: when it ended, ISO 8601 in UTC.
      seconds: how long it took.
      results: name -> number by name.
      about: what the figures depend on besides the parameters, as JSON.
    """

    kind: Kind
    step: int
    time: str
    seconds: float
    results: dict[str, dict[str, float]]
    about: dict[str, Any]


def write_result(
    run_dir: Path, kind: Kind, step: int, seconds: float, results: dict[str, dict[str, Any]], about: dict[str, Any]
) -> Path:
    """Writes the record of an evaluation; entries of `results` that are None are left out.

    Raises:
      InputError: the folder is a symbolic link.
      OSError: it cannot be written.
      ValueError: a figure is no number that JSON holds.
    """
    folder = run_dir / FOLDER
    refuse_link(folder, "evaluate a copy of the run, or remove the link")
    folder.mkdir(exist_ok=True)
    record = {
        "format": FORMAT,
        "kind": kind,
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "results": {
            name: {key: value for key, value in figures.items() if value is not None}
            for name, figures in results.items()
        },
        "about": about,
    }
    if fault := find_fault(record):
        raise ValueError(f"the record of an evaluation has {fault}")
    identity = json.dumps([about, sorted(results)], sort_keys=True)
    path = folder / f"{kind}-{step}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.json"
    write_atomically(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path


def read_results(run_dir: Path) -> tuple[list[Result], list[str]]:
    """The evaluations of a run, oldest first, and each file that is no such record with its reason, in a line."""
    found, faults = [], []
    for path in sorted((run_dir / FOLDER).glob("*.json")):
        try:
            record = json.loads(read_bounded(path, MAX_BYTES), parse_constant=_refuse_constant)
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
            continue
        except (ValueError, RecursionError):
            faults.append(f"{path}: it is not JSON")
            continue
        if fault := find_fault(record):
            faults.append(f"{path}: it has {fault}")
            continue
        found.append(Result(**{name: record[name] for name in Result.__dataclass_fields__}))
    return sorted(found, key=lambda result: result.time), faults


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def is_figure(value: Any) -> bool:
    """Whether a value is a number that a run can have."""
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST  # so it is not NaN


def is_time(value: Any) -> bool:
    """Whether a value is a point in time with its zone, as ISO 8601."""
    try:
        return isinstance(value, str) and datetime.datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def find_fault(record: Any) -> str:
    """What is wrong with the fields of a record, in words; empty: nothing."""
    if not isinstance(record, dict):
        return "no fields"
    if record.get("format") != FORMAT:
        return f"format {str(record.get('format'))[:20]}, and this version reads {FORMAT}"
    kind, step, results = record.get("kind"), record.get("step"), record.get("results")
    if not isinstance(kind, str) or kind not in NEEDED:
        return "no kind that is known"
    if type(step) is not int or not 0 <= step < LARGEST:
        return "no step"
    if not is_time(record.get("time")):
        return "no time"
    if not is_figure(record.get("seconds")) or record["seconds"] < 0:
        return "no seconds"
    if not isinstance(record.get("about"), dict):
        return "no about"
    if not isinstance(results, dict) or not results:
        return "no results"
    for name, figures in results.items():
        if not isinstance(figures, dict) or not all(map(is_figure, figures.values())):
            return f"something else than numbers in results of {name[:60]!r}"
        if NEEDED[kind] not in figures:
            return f"no {NEEDED[kind]} in results of {name[:60]!r}"
    return ""
