"""Takes a run from one framework to the other: python -m jaxgpt.convert --from RUN --to torch|jax|hf|gguf DIR

The newest checkpoint that verifies becomes a run directory DIR with a checkpoint of the other framework: parameters,
optimizer state, step, counters and loss scale move bit for bit, and what the checkpoint says about its run goes along.
metrics.jsonl is copied, and config.py is the run's settings with run.dir=DIR, so that the run continues by

    python -m torch_ref.train --config DIR/config.py --resume      (or jaxgpt.train)

hf writes a directory that transformers' pipeline loads: weights, tokenizer, settings, a model card; gguf one file for
llama.cpp. RUN is only read, and nothing in it is executed.
"""

import argparse
import dataclasses
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxgpt import config as config_lib
from jaxgpt.compare.trajectories import import_torch, to_arrays
from jaxgpt.config import Config, MeshConfig
from jaxgpt.config.schedule import tokens_before
from jaxgpt.errors import InputError, run_verb
from jaxgpt.files import user_file, user_location
from jaxgpt.formats.export import FORMS, export
from jaxgpt.inference.trained import choose_tokenizer
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.run.checkpoints import Checkpoint, choose_checkpoint
from jaxgpt.run.console import console
from jaxgpt.run.remote import RemoteRun, opened_run
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
            f"--from={run} {'has no checkpoints' if run.is_dir() else 'does not exist'}; give a run directory"
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


def _jax_shapes(config: Config) -> Any:
    config = _one_device(config)
    return jax_step.make_step(config, make_mesh(config.mesh)).state_shapes


def _read_jax(directory: Path, chosen: Checkpoint, config: Config) -> dict[str, np.ndarray]:
    with jax.enable_x64(config.train.dtype == "float64"), JaxCheckpoints(directory, read_only=True) as saved:
        return to_arrays(saved.restore(_jax_shapes(config), chosen))


def _write_jax(directory: Path, saved: Saved) -> None:
    with jax.enable_x64(saved.config.train.dtype == "float64"), JaxCheckpoints(directory) as checkpoints:
        shapes = _jax_shapes(saved.config)
        with_paths, form = jax.tree_util.tree_flatten_with_path(shapes)
        placed = []
        for path, shape in with_paths:
            leaf = saved.leaves[jax.tree_util.keystr(path, simple=True, separator=".")]
            assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype), path
            placed.append(jax.device_put(leaf, shape.sharding))
        state = jax.tree_util.tree_unflatten(form, placed)
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
    (out / "config.py").write_text(config_lib.to_source(config), encoding="utf-8")
    if (run / "metrics.jsonl").is_file():
        shutil.copyfile(run / "metrics.jsonl", out / "metrics.jsonl")


def params_of(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path.removeprefix("params."): leaf for path, leaf in leaves.items() if path.startswith("params.")}


def main(args: list[str]) -> int:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message}; --help lists the arguments")

    parser = Parser(
        "python -m jaxgpt.convert",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="run", metavar="RUN", type=user_location, required=True, help="a run of either framework"
    )
    parser.add_argument("--to", choices=("torch", "jax", *FORMS), required=True)
    parser.add_argument(
        "out", metavar="DIR", type=user_file, help="where the converted run goes; must be empty or not exist"
    )
    given = parser.parse_args(args)
    with opened_run(given.run, "--from") as (run, remote):
        return convert(given, run, remote)


def convert(given: argparse.Namespace, run: Path, remote: RemoteRun | None) -> int:
    out = given.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not empty; choose another directory")
    saved = read_run(run, remote)
    try:
        if given.to in FORMS:
            tokenizer_json = saved.about.get("tokenizer")
            tokenizer = choose_tokenizer(tokenizer_json, saved.config.model)
            facts = {"step": f"{saved.step:,}", "tokens": f"{tokens_before(saved.config, saved.step):,}"}
            if saved.val_loss is not None:
                facts["validation loss"] = f"{saved.val_loss:.4f} nats per token"
            params = params_of(saved.leaves)
            done = f"wrote {out}: {export(given.to, out, saved.config, params, tokenizer, facts)}"
        else:
            write_run(saved, given.to, run, out)
            verb = {"torch": "torch_ref", "jax": "jaxgpt"}[given.to]
            done = f"next: python -m {verb}.train --config {shlex.quote(str(out / 'config.py'))} --resume"
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose another directory") from error
    console.print(f"step {saved.step} of {run}, {saved.framework} -> {given.to}; {done}", soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    run_verb(main)
