"""Two finished run directories, compared by their metrics.jsonl."""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from jaxgpt import config as config_lib
from jaxgpt.compare.gates import Row
from jaxgpt.compare.tolerances import PARITY
from jaxgpt.errors import InputError
from jaxgpt.run.checkpoints import list_steps
from jaxgpt.run.manifest import Damaged, read_manifest
from jaxgpt.run.metrics import read_metrics
from jaxgpt.run.resume import read_config


def compare_runs(ours: Path, theirs: Path, dtype: str) -> tuple[list[Row], dict[str, list]]:
    """Rows for two run directories, and their curves: steps, and each one's losses.

    Raises:
      InputError: no metrics, no step in common, or the runs are of different configs.
    """
    refuse_other_config(ours, theirs)
    records = []
    for run in (ours, theirs):
        path = run / "metrics.jsonl"
        if not path.is_file():
            raise InputError(f"--runs: {path} does not exist; give two run directories")
        try:
            records.append({record["step"]: record for record in read_metrics(path)})
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"--runs: {path} holds no records of a run") from error
    a, b = records
    gates = PARITY[dtype]
    rows, curves = [], {}
    for name in ("train_loss", "val_loss"):
        steps = [s for s in sorted(a.keys() & b.keys()) if a[s].get(name) is not None and b[s].get(name) is not None]
        if name == "train_loss" and not steps:
            raise InputError(
                f"--runs: {ours} and {theirs} have no logged step in common; log both with one --log.every"
            )
        if not steps:
            continue
        pair = [[records[step][name] for step in steps] for records in (a, b)]
        difference = np.abs(np.subtract(pair[0], pair[1]))
        worst = f"step {steps[int(np.argmax(difference))]}"
        for measure, at, figure in (
            ("max", worst, np.max(difference)),
            ("mean", f"{len(steps)} steps", np.mean(difference)),
        ):
            gate = gates[f"loss, {measure}"]
            rows.append(Row(f"{name}, {measure}", at, float(figure), gate.floor, gate.limit))
        if name == "train_loss":
            curves = {"steps": steps, "ours": pair[0], "theirs": pair[1]}
    return rows, curves


def read_run(run: Path) -> dict | None:
    """What the newest checkpoint says that the run was; None without one. Reads its manifest alone, runs no code."""
    for step in list_steps(run / "checkpoints"):
        path = run / "checkpoints" / str(step)
        with suppress(Damaged, InputError):
            return config_lib.to_dict(read_config(read_manifest(path)["about"], str(path)))
    return None


FREE = (
    r"run\.dir|hosts\..*|mesh\..*|log\..*|checkpoint\..*|sample\..*|eval\..*|data\.dir|train\.("
    "steps|micro_batch_size|dtype|logits_dtype|matmul_precision|attention|remat|loss_chunk_tokens|init_from|max_skips|spike_window|spike_sigmas|spike_rollback|watchdog_s)"
)  # fmt: skip
"""Settings in which two runs that are compared may differ: they change nothing but rounding."""


def refuse_other_config(ours: Path, theirs: Path) -> None:
    configs = [read_run(run) for run in (ours, theirs)]
    if configs[0] is None or configs[1] is None:
        return
    a, b = (config_lib.flatten(config) for config in configs)
    differing = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    differing = [f"{name} {a.get(name)!r} and {b.get(name)!r}" for name in differing if not re.fullmatch(FREE, name)]
    if differing:
        raise InputError(f"--runs: {ours} and {theirs} are not the same run: {'; '.join(differing)}")
