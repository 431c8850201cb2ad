"""Resuming a run, for both training loops: what must not have changed since its checkpoint."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxgpt.config import flatten, to_dict
from jaxgpt.errors import InputError
from jaxgpt.run.agreement import check_agreement
from jaxgpt.run.checkpoints import CheckpointDirectory, list_steps
from jaxgpt.run.console import console, working
from jaxgpt.run.saved_config import read_config


def list_changes(
    then: dict[str, Any], now: dict[str, Any], n_done: int, directory: Path, *, allow_change: bool = False
) -> str:
    """Differences between a checkpoint's config and the one to resume with, in words; empty if there are none.

    Args:
      then, now: `about` of the checkpoint and of this process: config, data_sha256, data_files, tokenizer.
      allow_change: whether settings that decide what the next steps read may differ.

    Raises:
      InputError: the architecture, the data or the tokenizer is another one, or the next steps would read others.
    """
    old = flatten(to_dict(read_config(then, f"{directory}/{n_done}")))
    changed = {name: (old.get(name), value) for name, value in flatten(now["config"]).items() if old.get(name) != value}
    listed = {name: f"{name} {was!r} -> {is_now!r}" for name, (was, is_now) in changed.items()}
    architecture = [name for name in listed if name.startswith("model.") and name not in FREE_MODEL_FIELDS]
    if architecture:
        settings = " ".join(f"--{name}={changed[name][0]}" for name in architecture)
        raise InputError(
            f"checkpoint {n_done} in {directory} is another model: {'; '.join(listed[name] for name in architecture)}; "
            f"to resume it pass {settings}"
        )
    files = then.get("data_files")  # not in older checkpoints
    for name, digest in now.get("data_files", {}).items():
        if isinstance(files, dict) and files.get(name, digest) != digest:
            raise InputError(
                f"the data in {now['config']['data']['dir']}/{name} changed since checkpoint {n_done} of {directory} "
                f"(SHA-256 {digest[:16]}...); restore the old file, or start a new run with train.init_from"
            )
    for name, what in (("data_sha256", "data"), ("tokenizer", "tokenizer")):
        if then.get(name) not in (None, now[name]):  # None: an older version could not read the tokenizer of this data
            raise InputError(
                f"the {what} in data.dir={now['config']['data']['dir']} changed since checkpoint {n_done} of "
                f"{directory}; restore the old {what}, or start a new run with train.init_from"
            )
    reading = [name for name in listed if _decides_batches(name, *changed[name])]
    if reading and not allow_change:
        settings = " ".join(f"--{name}={changed[name][0]}" for name in reading if name != "train.stages")
        raise InputError(
            f"{'; '.join(listed[name] for name in reading)} since checkpoint {n_done} in {directory}: the next steps "
            f"would read other data; {f'pass {settings}' if settings else 'restore train.stages'}, "
            "or --allow-change to resume with other batches"
        )
    return "; ".join(listed.values())


def _decides_batches(name: str, was: Any, is_now: Any) -> bool:
    """Whether another value of the setting changes which rows a step reads."""
    if name == "train.stages":
        read, reads = (
            [(stage["from_step"], stage["batch_tokens"], stage.get("seq_len", 0)) for stage in stages]
            for stages in (was or [], is_now)
        )
        return read != reads
    return name in (
        "run.seed", "data.sampling", "data.train_files", "data.bos_id", "data.max_document_tokens",
        "train.batch_tokens", "chat.packing", "chat.trained", "chat.max_tokens",
        "rl.samples", "rl.max_tokens", "rl.temperature", "rl.top_k", "rl.normalize",
    )  # fmt: skip


FREE_MODEL_FIELDS = ("model.dropout",)
"""Fields of the model that may change when a run is resumed."""


def resume(
    saved: CheckpointDirectory,
    abstract_state: Any,
    about: dict,
    exchange_texts: Callable[[str], list[str]],
    step: int | None = None,
    *,
    allow_change: bool = False,
) -> tuple[int, Any, dict[str, Any]]:
    """Step and state of the newest valid checkpoint, if it is of this run, or of that of a step; and its `about`.

    Newer ones are set aside by `CheckpointDirectory.restore`.

    Args:
      abstract_state: see `CheckpointDirectory.restore`.
      about: of this process, as it will be saved.
      exchange_texts: between the processes, which must have chosen the same checkpoint.
      allow_change: see `list_changes`.

    Raises:
      InputError: no checkpoint; or the architecture, the data or the tokenizer is another one, or the next steps would
        read others.
    """
    steps = list_steps(saved.directory)
    if step is not None and step not in steps:
        there = ", ".join(str(other) for other in reversed(steps)) or "none"
        raise InputError(f"--resume-from={step} is not among the checkpoints in {saved.directory}: {there}")
    with working(f"verifying the checkpoints in {saved.directory}"):
        chosen = saved.choose(step)
    if chosen is None:
        raise InputError(f"{saved.directory} has no checkpoint to resume from; start without --resume")
    changes = list_changes(chosen.about, about, chosen.step, saved.directory, allow_change=allow_change)
    manifest = hashlib.sha256(json.dumps(chosen.manifest, sort_keys=True).encode()).hexdigest()
    check_agreement({"the checkpoint's step": chosen.step, "the checkpoint": manifest}, exchange_texts)
    with working(f"reading checkpoint {chosen.step}"):
        state = saved.restore(abstract_state, chosen)
    console.say(f"resuming from step {chosen.step}" + (f"; changed: {changes}" if changes else ""))
    return chosen.step, state, chosen.about
