"""A run's newest checkpoint in memory, read from and written to run directories of both frameworks."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt import config as config_lib
from jaxgpt.compare.trajectories import import_torch, to_arrays
from jaxgpt.config import Config, MeshConfig
from jaxgpt.errors import InputError
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.run.checkpoints import Checkpoint, choose_checkpoint
from jaxgpt.run.remote import RemoteRun
from jaxgpt.run.resume import read_config
from jaxgpt.training import step as jax_step
from jaxgpt.training.checkpoint import Checkpoints as JaxCheckpoints

TORCH_STATE = "state.safetensors"
"""The file by which torch_ref's checkpoints are known; it is in their manifest."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory. `leaves` are in jaxgpt's layout, by the names both frameworks use."""

    framework: str
    step: int
    config: Config
    about: dict
    val_loss: float | None
    leaves: dict[str, np.ndarray]


def read_run(run: Path, remote: RemoteRun | None = None) -> Saved:
    """The newest checkpoint that verifies, of either framework.

    Args:
      remote: the store that the directory is a copy of.

    Raises:
      InputError: there is none, or it is not one of a run.
    """
    directory = run / "checkpoints"
    if not directory.is_dir():
        raise InputError(
            f"--from={run} {'has no checkpoints' if run.is_dir() else 'does not exist'}; give a run directory, "
            "or a checkpoint of nanochat's or nanoGPT's"
        )
    chosen = choose_checkpoint(directory, remote=remote)
    if chosen is None:
        raise InputError(f"--from={run} has no checkpoint yet; train it until the first is saved")
    try:
        about = chosen.about
        config = read_config(about, f"{chosen.path}")
    except (KeyError, TypeError, InputError) as error:
        raise InputError(f"{chosen.path} does not say what its run was: {error}") from error
    framework = "torch" if TORCH_STATE in chosen.manifest["files"] else "jax"
    read = _read_torch if framework == "torch" else _read_jax
    leaves = read(directory, chosen, config)
    return Saved(framework, chosen.step, config, about, chosen.manifest["val_loss"], leaves)


def _one_device(config: Config) -> Config:
    """As it can be built on any machine; what a state holds does not depend on these settings."""
    train = dataclasses.replace(config.train, attention="xla")
    return dataclasses.replace(config, train=train, mesh=MeshConfig(data=1, platform="cpu"))


def jax_shapes(config: Config) -> Any:
    """The state of a config's run as shapes and dtypes, of one device."""
    config = _one_device(config)
    return jax_step.make_step(config, make_mesh(config.mesh)).state_shapes


def _read_jax(directory: Path, chosen: Checkpoint, config: Config) -> dict[str, np.ndarray]:
    with jax.enable_x64(config.train.dtype == "float64"), JaxCheckpoints(directory, read_only=True) as saved:
        return to_arrays(saved.restore(jax_shapes(config), chosen))


def place_state(leaves: Mapping[str, np.ndarray], shapes: Any) -> Any:
    """The state of these leaves, where `shapes` says."""
    with_paths, form = jax.tree_util.tree_flatten_with_path(shapes)
    placed = []
    for path, shape in with_paths:
        leaf = leaves[jax.tree_util.keystr(path, simple=True, separator=".")]
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype), path
        placed.append(jax.device_put(leaf, shape.sharding))
    return jax.tree_util.tree_unflatten(form, placed)


def _write_jax(directory: Path, saved: Saved) -> None:
    with jax.enable_x64(saved.config.train.dtype == "float64"), JaxCheckpoints(directory) as checkpoints:
        state = place_state(saved.leaves, jax_shapes(saved.config))
        checkpoints.save(saved.step, state, saved.about, val_loss=saved.val_loss)


def _torch_shapes(config: Config) -> Any:
    import_torch()
    from torch_ref.parallel.mesh import make_mesh as make_torch_mesh
    from torch_ref.training import step as torch_step

    config = _one_device(config)
    return torch_step.make_step(config, make_torch_mesh(config.mesh)).state_shapes


def _read_torch(directory: Path, chosen: Checkpoint, config: Config) -> dict[str, np.ndarray]:
    shapes = _torch_shapes(config)
    from torch_ref.models.weights import by_path, to_numpy
    from torch_ref.training.checkpoint import Checkpoints

    with Checkpoints(directory, read_only=True) as saved:
        return to_numpy(by_path(saved.restore(shapes, chosen)))


def _write_torch(directory: Path, saved: Saved) -> None:
    shapes = _torch_shapes(saved.config)
    from torch_ref.models.weights import by_path, refuse_foreign, to_torch, with_leaves
    from torch_ref.training.checkpoint import Checkpoints

    tensors = to_torch(saved.leaves)
    refuse_foreign(tensors, by_path(shapes), f"checkpoint {saved.step}")
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(saved.step, with_leaves(shapes, tensors), saved.about, val_loss=saved.val_loss)


def write_run(saved: Saved, framework: str, run: Path, out: Path) -> None:
    """A run directory that goes on where `run` is now."""
    {"torch": _write_torch, "jax": _write_jax}[framework](out / "checkpoints", saved)
    config = dataclasses.replace(saved.config, run=dataclasses.replace(saved.config.run, dir=str(out)))
    if (
        saved.framework not in ("torch", "jax") and saved.about["tokenizer"]
    ):  # that of a program with other files for it
        tokenizer = out / "tokenizer.json"
        tokenizer.write_text(json.dumps(saved.about["tokenizer"]), encoding="utf-8")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=str(tokenizer)))
    (out / "config.py").write_text(config_lib.to_source(config), encoding="utf-8")
    if (run / "metrics.jsonl").is_file():
        shutil.copyfile(run / "metrics.jsonl", out / "metrics.jsonl")


def params_of(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path.removeprefix("params."): leaf for path, leaf in leaves.items() if path.startswith("params.")}
