"""What the records in a run's directory say. Nothing in them is trusted: what is damaged is named and left out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.config import Config
from jaxgpt.errors import InputError
from jaxgpt.run.checkpoints import list_steps
from jaxgpt.run.history import STAGES, Session, read_history
from jaxgpt.run.manifest import Damaged, read_manifest
from jaxgpt.run.metrics import describe_bad, read_lines
from jaxgpt.run.results import FOLDER, LARGEST, Result, is_figure, read_results
from jaxgpt.run.resume import read_config

MAX_METRICS_BYTES = 2**30
"""Of metrics.jsonl: a line has 250 bytes, and a long run a million of them."""


@dataclass(frozen=True)
class RunRecord:
    """A run, as its directory tells.

    Attributes:
      name: as the user wrote the run.
      stage: one of `history.STAGES`.
      step: of the newest checkpoint; None without one.
      config: of that checkpoint.
      manifest: of that checkpoint; empty without one.
      metrics: the records of metrics.jsonl, with their figures alone.
      faults: each record that is damaged, in a line.
    """

    name: str
    stage: str
    step: int | None
    config: Config | None
    manifest: dict[str, Any]
    metrics: list[dict[str, Any]]
    sessions: list[Session]
    results: list[Result]
    faults: list[str]

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        return next((record[name] for record in reversed(self.metrics) if name in record), None)

    def score(self, metric: str) -> float | None:
        """The newest score of a task, of CORE or of ChatCORE; that of a later step first."""
        found = [
            (result.step, result.time, result.results[metric]["score"])
            for result in self.results
            if result.kind != "loss" and metric in result.results and (result.kind == "tasks" or metric == "CORE")
        ]
        return max(found)[2] if found else None

    def metrics_scored(self) -> set[str]:
        """Names for which `score` has a value."""
        names = {name for result in self.results if result.kind == "tasks" for name in result.results}
        return names | {"CORE" for result in self.results if result.kind == "core" and "CORE" in result.results}

    @property
    def seconds(self) -> float | None:
        """How long processes trained the run, evaluations in between included; None where nothing says so."""
        return sum(session.seconds for session in self.sessions) if self.sessions else None

    @property
    def evaluation_seconds(self) -> float:
        return sum(result.seconds for result in self.results)


def read_run(run_dir: Path, name: str, stage: str = "") -> RunRecord:
    """Reads the records of a run; runs no code of it, and no framework.

    Args:
      stage: "" takes what the run's history says, else base.

    Raises:
      InputError: the directory does not exist, or has no record of a run.
    """
    if not run_dir.is_dir():
        raise InputError(f"{name} does not exist; give directories of runs, such as runs/quickstart")
    if not any((run_dir / part).exists() for part in ("metrics.jsonl", "checkpoints", FOLDER)):
        raise InputError(
            f"{name} has no record of a run (metrics.jsonl, checkpoints, {FOLDER}); give a run's directory"
        )
    step, manifest, config, faults = _read_checkpoint(run_dir / "checkpoints")
    metrics, metrics_faults = _read_metrics(run_dir / "metrics.jsonl")
    sessions, session_faults = read_history(run_dir)
    results, result_faults = read_results(run_dir)
    said = [session.about.get("stage") for session in sessions]
    stage = stage or next((one for one in reversed(said) if one in STAGES), "base")
    faults = [*faults, *metrics_faults, *session_faults, *result_faults]
    return RunRecord(name, stage, step, config, manifest, metrics, sessions, results, faults)


def _read_checkpoint(directory: Path) -> tuple[int | None, dict[str, Any], Config | None, list[str]]:
    """Step, manifest and config of the newest checkpoint whose manifest can be read."""
    faults = []
    try:
        steps = list_steps(directory)
    except OSError as error:
        return None, {}, None, [f"{directory}: {error.strerror}"]
    for step in steps:
        path = directory / str(step)
        try:
            manifest = read_manifest(path)
        except Damaged as damage:
            faults.append(f"{path} is not a checkpoint: {damage}")
            continue
        try:
            return step, manifest, read_config(manifest["about"], str(path)), faults
        except InputError as error:
            return step, manifest, None, [*faults, str(error)]
    return None, {}, None, faults


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        if path.stat().st_size > MAX_METRICS_BYTES:
            return [], [f"{path}: it has more than {MAX_METRICS_BYTES} bytes"]
        good, bad = read_lines(path)
    except FileNotFoundError:
        return [], [f"{path} does not exist, so there are no curves"]
    except OSError as error:
        return [], [f"{path}: {error.strerror}"]
    records = [record for _, record in good if 0 <= record["step"] < LARGEST]
    n_odd = len(good) - len(records)
    faults = [f"{describe_bad(path, bad)}, left out"] if bad else []
    faults += [f"{path}: {n_odd} records of an impossible step, left out"] if n_odd else []
    return [{name: value for name, value in record.items() if is_figure(value)} for record in records], faults
