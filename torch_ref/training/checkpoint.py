"""jaxgpt/training/checkpoint.py in PyTorch: one safetensors file under the same manifest.

    <directory>/<step>/state.safetensors    every leaf of the state by its path, and manifest.json beside it

A save ends before `save` returns, so there is nothing to wait for. Process 0 writes; every process reads. A pickle is
never opened.
"""

from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from jaxgpt.errors import Failure, InputError
from jaxgpt.run.checkpoints import Checkpoint, CheckpointDirectory, CheckpointError, one_line
from torch_ref.models.weights import by_path, with_leaves
from torch_ref.parallel.hosts import process_index
from torch_ref.parallel.texts import gather_texts

STATE = "state.safetensors"


def _name_non_finite(state: Any) -> str:
    floats = {path: leaf for path, leaf in by_path(state).items() if leaf.is_floating_point()}
    is_finite = torch.stack([torch.isfinite(leaf).all() for leaf in floats.values()]).tolist()
    return next((path for path, is_good in zip(floats, is_finite, strict=True) if not is_good), "")


class Checkpoints(CheckpointDirectory):
    packages = ("torch", "safetensors")

    def save(
        self, step: int, state: Any, about: dict, *, val_loss: float | None = None, is_proven: bool = True
    ) -> None:
        manifest = self._make_manifest(step, state, about, val_loss)
        failure = ""
        if self._process_index() == 0:
            n_bytes = sum(leaf.nbytes for leaf in by_path(state).values())
            if path := _name_non_finite(state):
                failure = f"{path} is not finite"
            elif not (failure := self._find_obstacle(step, n_bytes)):
                failure = self._write(step, state, manifest)
        if failure := self._find_first(failure):
            raise CheckpointError(f"checkpoint {step} is not saved: {failure}")
        self._unproven = None if is_proven else step
        if self._process_index() == 0:
            self._delete_in_background()

    def _write(self, step: int, state: Any, manifest: dict) -> str:
        """Writes the directory and makes it count. What failed, as a clause; or empty."""
        staging = self._path(step, ".saving")
        try:
            staging.mkdir()
            save_file({path: leaf.detach().contiguous() for path, leaf in by_path(state).items()}, staging / STATE)
            self._commit(step, manifest)
        except (OSError, SafetensorError, InputError, Failure) as error:
            self._remove_staging(step)
            return one_line(error)
        return ""

    def choose(self, step: int | None = None, *, verify: bool = True) -> Checkpoint | None:
        """As in CheckpointDirectory. Raises InputError, which names the fix, for a checkpoint of jaxgpt."""
        chosen = super().choose(step, verify=verify)
        if chosen and STATE not in chosen.manifest["files"]:
            raise InputError(
                f"{chosen.path} is jaxgpt's, it holds no {STATE}; "
                f"jaxgpt convert --from {self.directory.parent} --to torch DIR makes a run of it"
            )
        return chosen

    def _process_index(self) -> int:
        return process_index()

    def _gather_texts(self, text: str) -> list[str]:
        return gather_texts(text)

    def _describe(self, tree: Any) -> dict[str, list]:
        return {
            path: [str(leaf.dtype).removeprefix("torch."), list(leaf.shape)] for path, leaf in by_path(tree).items()
        }

    def _read(self, abstract_state: Any, chosen: Checkpoint, is_part: bool) -> Any:
        """Reads onto the CPU: `Step.put_state` takes it from there."""
        leaves = {}
        try:
            with safe_open(chosen.path / STATE, framework="pt") as file:
                for path, leaf in by_path(abstract_state).items():
                    leaves[path] = file.get_tensor(path)
                    found, wanted = ((tensor.dtype, tensor.shape) for tensor in (leaves[path], leaf))
                    if found != wanted:
                        raise InputError(f"{chosen.path}: {STATE} has {path} as {found}, not {wanted}")
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{chosen.path} cannot be read: {STATE} is not a safetensors file ({one_line(error)})"
            ) from error
        return with_leaves(abstract_state, leaves)
