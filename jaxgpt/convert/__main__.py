"""Takes a run from one framework to the other, or exports its model.

The newest checkpoint that verifies becomes a run directory DIR with a checkpoint of the other framework: parameters,
optimizer state, step, counters and loss scale move bit for bit, and what the checkpoint says about its run goes along.
metrics.jsonl is copied, and config.py is the run's settings with run.dir=DIR, so that the run continues by

    python -m torch_ref.train --config DIR/config.py --resume      (or jaxgpt train)

hf writes a directory that transformers' pipeline loads: weights, tokenizer, settings, a model card; gguf one file for
llama.cpp. RUN is only read, and nothing in it is executed. --push uploads what hf has written to the Hugging Face hub.
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
from jaxgpt.config.parser import Parser
from jaxgpt.errors import answer_early
from jaxgpt.files import user_file

PARSER = Parser("jaxgpt convert", __doc__, "--from RUN --to FORM DIR", "--from runs/quickstart --to hf exported")
PARSER.add_argument("--from", dest="run", metavar="RUN", type=user_file, required=True, help="of either framework")
PARSER.add_argument("--to", choices=("torch", "jax", "hf", "gguf"), required=True, help="what to make of it")
PARSER.add_argument("out", metavar="DIR", type=user_file, help="where it goes; must be empty or not exist")
PARSER.add_argument("--push", metavar="OWNER/NAME", help="with --to hf: upload it to this model of the hub")
PARSER.add_argument("--private", action="store_true", help="with --push: make a new repository private")
PARSER.add_argument("--revision", metavar="BRANCH", default="main", help="with --push (main)")
if __name__ == "__main__":
    answer_early(PARSER.read)

import dataclasses
import shlex
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
from jaxgpt.config.schedule import tokens_before
from jaxgpt.data.hub_repository import Repository
from jaxgpt.errors import InputError, run_verb
from jaxgpt.formats.export import FORMS, export
from jaxgpt.formats.push import check_push, push
from jaxgpt.inference.trained import choose_tokenizer
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.run.checkpoints import Checkpoint, choose_checkpoint
from jaxgpt.run.console import console
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


def read_run(run: Path) -> Saved:
    """The newest checkpoint that verifies, of either framework.

    Raises:
      InputError: there is none, or it is not one of a run.
    """
    directory = run / "checkpoints"
    if not directory.is_dir():
        raise InputError(
            f"--from={run} {'has no checkpoints' if run.is_dir() else 'does not exist'}; give a run directory"
        )
    chosen = choose_checkpoint(directory)
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
    given = PARSER.read(args)
    run, out = given.run, given.out
    hub = Repository(given.push, given.revision) if given.push is not None else None
    if hub and given.to != "hf":
        raise InputError(f"--push={given.push} needs --to hf, not --to {given.to}")
    if not hub and (given.private or given.revision != "main"):
        raise InputError("--private and --revision belong to --push OWNER/NAME; give it too")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not empty; choose another directory")
    if hub:
        check_push(hub, is_private=given.private)
    saved = read_run(run)
    try:
        if given.to in FORMS:
            tokenizer_json = saved.about.get("tokenizer")
            tokenizer = choose_tokenizer(tokenizer_json, saved.config.model)
            facts = {
                "data": saved.config.data.dir,
                "optimizer": saved.config.optim.algorithm,
                "step": f"{saved.step:,}",
                "tokens": f"{tokens_before(saved.config, saved.step):,}",
            }
            if saved.val_loss is not None:
                facts["validation loss"] = f"{saved.val_loss:.4f} nats per token"
            params = params_of(saved.leaves)
            done = f"wrote {out}: {export(given.to, out, saved.config, params, tokenizer, facts)}"
        else:
            write_run(saved, given.to, run, out)
            verb = {"torch": "python -m torch_ref.train", "jax": "jaxgpt train"}[given.to]
            done = f"next: {verb} --config {shlex.quote(str(out / 'config.py'))} --resume"
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose another directory") from error
    console.print(f"step {saved.step} of {run}, {saved.framework} -> {given.to}; {done}", soft_wrap=True, markup=False)
    if hub:
        size = sum(path.stat().st_size for path in out.iterdir())
        console.print(f"uploading {size / 1e6:,.1f} MB to {hub}", soft_wrap=True, markup=False)
        url = push(out, hub, is_private=given.private, message=f"step {saved.step:,} of a run of jaxgpt")
        console.print(f"uploaded: {url}", soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    run_verb(main)
