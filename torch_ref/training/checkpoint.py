"""jaxgpt/checkpoint.py in PyTorch: one safetensors file under the same sealed manifest.

    <directory>/<step>/state.safetensors    every leaf of the state by its path, and manifest.json beside it

Directories are named, kept, deleted and set aside as there. A save ends before `save` returns, so there is nothing
to wait for. Process 0 writes; every process reads. A pickle is never opened.
"""

import datetime
import importlib.metadata
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from jaxgpt.errors import Failure, InputError
from jaxgpt.run.manifest import FORMAT, Damaged, fsync_directory, read_seal, verify_seal, write_seal
from torch_ref.models.weights import by_path, with_leaves
from torch_ref.parallel.hosts import process_count, process_index

FREE_DISK_FACTOR = 1.2
STATE = "state.safetensors"
_LEFTOVER = re.compile(r"\d+\.(saving|deleting)")


class CheckpointError(Failure):
    """A checkpoint could not be saved. The message is one line; older checkpoints are as they were."""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:1000] or type(error).__name__


def _print_warning(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _describe(tree: Any) -> dict[str, list]:
    return {
        path: [str(leaf.dtype).removeprefix("torch."), list(leaf.shape)] for path, leaf in by_path(tree).items()
    }  # fmt: skip


def _list_misfits(saved: dict[str, list], wanted: dict[str, list], is_part: bool) -> list[str]:
    misfits = []
    for path, (dtype, shape) in wanted.items():
        if path not in saved:
            misfits.append(f"{path} is missing in it")
            continue
        saved_dtype, saved_shape = saved[path]
        if saved_shape != shape:
            misfits.append(f"{path} has shape {tuple(saved_shape)}, not {tuple(shape)}")
        if saved_dtype != dtype:
            misfits.append(f"{path} has dtype {saved_dtype}, not {dtype}")
    if not is_part:
        misfits += [f"{path} is extra in it" for path in saved if path not in wanted]
    return misfits


def _name_non_finite(state: Any) -> str:
    floats = {path: leaf for path, leaf in by_path(state).items() if leaf.is_floating_point()}
    is_finite = torch.stack([torch.isfinite(leaf).all() for leaf in floats.values()]).tolist()
    return next((path for path, is_good in zip(floats, is_finite, strict=True) if not is_good), "")


def _gather(text: str) -> list[str]:
    if process_count() == 1:
        return [text]
    data = torch.tensor(list(text.encode()), dtype=torch.uint8)
    n_bytes = torch.tensor(data.numel())
    dist.all_reduce(n_bytes, dist.ReduceOp.MAX)
    rows = [torch.zeros(int(n_bytes), dtype=torch.uint8) for _ in range(process_count())]
    dist.all_gather(rows, torch.nn.functional.pad(data, (0, int(n_bytes) - data.numel())))
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in rows]


def _find_first(text: str) -> str:
    return next((text for text in _gather(text) if text), "")


class Checkpoints:
    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 2,
        keep_best: bool = True,
        read_only: bool = False,
        warn: Callable[[str], None] = _print_warning,
    ):
        assert keep >= 1, f"keep={keep}: the newest is never deleted"
        self.directory = Path(directory)
        self.keep, self.keep_best, self.read_only, self.warn = keep, keep_best, read_only, warn
        if read_only or process_index() != 0:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self.directory.iterdir():
                if _LEFTOVER.fullmatch(path.name) and path.is_dir():
                    shutil.rmtree(path)
        except OSError as error:
            raise InputError(f"{directory} cannot be written: {error}; choose another --run.dir") from error

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.directory / f"{step}{suffix}"

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        names = [path.name for path in self.directory.iterdir() if path.is_dir()]
        return sorted((int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name)), reverse=True)

    def save(self, step: int, state: Any, about: dict, *, val_loss: float | None = None) -> None:
        assert step >= 0, step
        assert not self.read_only, "opened with read_only=True"
        failure = ""
        if process_index() == 0:
            if path := _name_non_finite(state):
                failure = f"{path} is not finite"
            else:
                n_bytes = sum(leaf.numel() * leaf.element_size() for leaf in by_path(state).values())
                failure = self._find_obstacle(step, n_bytes) or self._commit(step, state, about, val_loss)
        if failure := _find_first(failure):
            raise CheckpointError(f"checkpoint {step} is not saved: {failure}")
        if process_index() == 0:
            try:
                self._delete_old()
            except OSError as error:
                self.warn(f"checkpoint {step} is saved, but an older one is not deleted: {error}")

    def _find_obstacle(self, step: int, state_bytes: int) -> str:
        latest = max(self._steps(), default=-1)
        if step <= latest:
            return f"{self._path(latest)} is there already, and steps only rise"
        free_bytes = shutil.disk_usage(self.directory).free
        if free_bytes < FREE_DISK_FACTOR * state_bytes:
            sizes = f"{free_bytes / 1e9:.3f} GB free, a save of {state_bytes / 1e9:.3f} GB"
            return f"{self.directory} has {sizes} asks for {FREE_DISK_FACTOR} times its size"
        return ""

    def _commit(self, step: int, state: Any, about: dict, val_loss: float | None) -> str:
        """Writes the directory and renames it. What failed, as a clause; or empty."""
        manifest = {
            "format": FORMAT,
            "step": step,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "safetensors")},
            "val_loss": val_loss if val_loss is not None and math.isfinite(val_loss) else None,
            "about": json.loads(json.dumps(about, allow_nan=False)),
            "state": _describe(state),
        }
        staging = self._path(step, ".saving")
        try:
            staging.mkdir()
            save_file({path: leaf.detach().contiguous() for path, leaf in by_path(state).items()}, staging / STATE)
            write_seal(staging, manifest)
            os.rename(staging, self._path(step))
            fsync_directory(self.directory)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            return _one_line(error)
        return ""

    def _delete_old(self) -> None:
        val_losses = {}
        for step in self._steps():
            with suppress(Damaged):
                val_losses[step] = read_seal(self._path(step))["val_loss"]
        kept = set(list(val_losses)[: self.keep])
        judged = [(loss, step) for step, loss in val_losses.items() if loss is not None]
        if self.keep_best and judged:
            kept.add(min(judged)[1])
        for step in val_losses.keys() - kept:
            os.rename(self._path(step), self._path(step, ".deleting"))
            shutil.rmtree(self._path(step, ".deleting"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        pass

    def latest(self, *, verify: bool = True) -> int | None:
        return self._choose(None, verify)

    def _choose(self, step: int | None, verify: bool) -> int | None:
        answer: dict = {}
        if process_index() == 0:
            faults = []
            for candidate in self._steps() if step is None else [step]:
                try:
                    verify_seal(self._path(candidate), has_digests=verify)
                except Damaged as damage:
                    faults.append(f"{self._path(candidate)} is not a checkpoint: {damage}")
                else:
                    answer = {"step": candidate}
                    break
            if faults and not answer:
                answer = {"error": f"{'; '.join(faults)}; nothing was changed there"}
            elif faults:
                for fault in faults:
                    self.warn(fault)
        answer = json.loads(_gather(json.dumps(answer))[0])
        if "error" in answer:
            raise InputError(answer["error"])
        return answer.get("step")

    def about(self, step: int) -> dict:
        return self._manifest(step)["about"]

    def _manifest(self, step: int) -> dict:
        try:
            manifest = read_seal(self._path(step))
        except Damaged as damage:
            raise InputError(f"{self._path(step)} is not a checkpoint: {damage}") from damage
        if STATE not in manifest["files"]:
            raise InputError(
                f"{self._path(step)} is jaxgpt's, it holds no {STATE}; "
                f"python -m parity_tests.convert --from {self.directory.parent} --to torch DIR makes a run of it"
            )
        return manifest

    def restore(
        self, abstract_state: Any, *, step: int | None = None, verify: bool = True, is_part: bool = False
    ) -> tuple[int, Any, dict]:
        """As in jaxgpt, but the state comes on the CPU: `Step.put_state` takes it from there."""
        chosen = self._choose(step, verify)
        if chosen is None:
            raise InputError(f"{self.directory} holds no checkpoint to go on from; start without --resume")
        manifest = self._manifest(chosen)
        misfits = _list_misfits(manifest["state"], _describe(abstract_state), is_part)
        if misfits:
            more = f"; and {len(misfits) - 5} more" if len(misfits) > 5 else ""
            way_out = "use the model and optimizer settings it was written with"
            raise InputError(f"{self._path(chosen)} does not fit: {'; '.join(misfits[:5])}{more}; {way_out}")
        leaves = {}
        try:
            with safe_open(self._path(chosen) / STATE, framework="pt") as file:
                for path, leaf in by_path(abstract_state).items():
                    leaves[path] = file.get_tensor(path)
                    found, wanted = ((tensor.dtype, tensor.shape) for tensor in (leaves[path], leaf))
                    if found != wanted:
                        raise InputError(f"{self._path(chosen)}: {STATE} has {path} as {found}, not {wanted}")
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{self._path(chosen)} cannot be read: {STATE} is not a safetensors file ({_one_line(error)})"
            ) from error
        if not self.read_only and process_index() == 0:
            for newer in [other for other in self._steps() if other > chosen]:
                self._set_aside(newer, chosen)
        return chosen, with_leaves(abstract_state, leaves), manifest["about"]

    def _set_aside(self, step: int, chosen: int) -> None:
        n_before = sum(1 for _ in self.directory.glob(f"{step}.rejected*"))
        aside = self._path(step, f".rejected{n_before or ''}")
        try:
            os.rename(self._path(step), aside)
        except OSError as error:
            raise InputError(f"{self._path(step)} cannot be renamed: {error}; move it away") from error
        self.warn(f"{self._path(step)} is set aside as {aside.name}: the run goes on from step {chosen}")
