"""CORE of a trained model, as `jaxgpt evaluate --core` runs it, and the file that keeps what is finished."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.chat.core import TaskResult, as_json, evaluate_core
from jaxgpt.chat.core_tasks import Baselines, CoreTask
from jaxgpt.chat.finished_tasks import FinishedTasks
from jaxgpt.chat.span_scores import SpanScorer
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.files import is_location
from jaxgpt.inference.trained import Trained
from jaxgpt.run.console import working
from jaxgpt.run.results import FOLDER, Kind


def run_core(
    trained: Trained,
    tasks: Sequence[CoreTask],
    directory: Path,
    *,
    table: Baselines = "v1",
    max_per_task: int = 0,
    record_path: Path | None = None,
) -> dict[str, Any]:
    """Evaluates; the value of `core.as_json`.

    Args:
      tasks: see `choose_tasks`.
      directory: the unpacked bundle.
      max_per_task: items of each task; 0: all.
      record_path: see `FinishedTasks`; None: nothing is kept.

    Raises:
      InputError: the model has no tokenizer; or see `evaluate_core`.
    """
    tokenizer = require_tokenizer(trained)
    facts = {"model": trained.origin, "dtype": trained.compute_dtype, "max_per_task": max_per_task}
    record = None
    if record_path:
        about = {"weights": weights_digest(trained), "tokenizer": tokenizer.digest()}
        record = FinishedTasks(record_path, facts | about, TaskResult)
    results = evaluate_core(tasks, directory, SpanScorer(trained), tokenizer, max_per_task=max_per_task, record=record)
    return as_json(results, table, facts)


def record_file(run: str | None, n_done: int, max_per_task: int, out: str | None, kind: Kind = "core") -> Path | None:
    """Where finished tasks are kept: `out`, or in the run's directory; None, with a note, where there is neither."""
    if out:
        return Path(out)
    if run is None or is_location(run):
        print("note: finished tasks are not kept; with --out FILE an interrupted evaluation continues", file=sys.stderr)
        return None
    cap = f"_max{max_per_task}" if max_per_task else ""
    return Path(run) / FOLDER / "tasks" / f"{kind}_step{n_done:06d}{cap}.json"


def require_tokenizer(trained: Trained) -> Tokenizer:
    """The model's tokenizer.

    Raises:
      InputError: it has none.
    """
    if trained.tokenizer is None:
        raise InputError(
            f"{trained.origin} has no tokenizer for its {trained.model.vocab_size} ids, so texts cannot be evaluated; "
            "put its tokenizer.json beside the weights"
        )
    return trained.tokenizer


def weights_digest(trained: Trained) -> str:
    """SHA-256 (hex) of all parameters, by path."""
    digest = hashlib.sha256()
    with working("hashing the weights"):
        for path, leaf in sorted(trained.params.items()):
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8).data)
    return digest.hexdigest()
