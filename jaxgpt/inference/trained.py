"""A trained model, opened: its weights on devices, its tokenizer, and the config of the run that made it.

It comes from a run directory (the newest checkpoint that verifies, or a step), or from other programs' weights
(see `pretrained.load_pretrained`). Nothing of it is executed: what a run was is read from the checkpoint's JSON, never
from RUN/config.py. The verbs that take such a model share the arguments that name it.
"""

import argparse
import dataclasses
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from jaxgpt.config import Config, MeshConfig, schedule
from jaxgpt.config.families import ModelConfig
from jaxgpt.data.sources import Source
from jaxgpt.data.tokenizer import GPT2Tokenizer, Tokenizer, tokenizer_from_json
from jaxgpt.errors import InputError
from jaxgpt.files import is_location
from jaxgpt.formats.hugging_face import PRETRAINED, fetch_model
from jaxgpt.formats.nanochat import find_nanochat, find_tokenizer
from jaxgpt.formats.pretrained import load_pretrained
from jaxgpt.formats.vocabulary import read_tokenizer
from jaxgpt.inference.engine import Engine
from jaxgpt.models import param_shapes
from jaxgpt.parallel.compile_cache import remember_programs
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.sharding import shard_params
from jaxgpt.run.checkpoints import choose_checkpoint, list_steps
from jaxgpt.run.remote import RemoteRun, opened_run
from jaxgpt.run.saved_config import read_config
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import param_dtype

GPT2_VOCAB_SIZES = (50257, 50304)
"""A model of so many ids whose tokenizer nobody names is taken to read GPT-2's, as nanoGPT does."""


@dataclass(frozen=True)
class Trained:
    """A model with everything that using it takes.

    Attributes:
      config: of the run; None for weights from elsewhere.
      model: what the parameters belong to.
      params: path -> array on `mesh`.
      tokenizer: None where nothing says which one it was.
      dtype: of the computation while training; for weights from elsewhere bfloat16, on a CPU float32.
      origin: for people, such as "runs/x step 2000".
      n_done: steps of the run after which these are its parameters.
    """

    config: Config | None
    model: ModelConfig
    params: dict[str, jax.Array]
    tokenizer: Tokenizer | None
    dtype: Literal["bfloat16", "float16", "float32", "float64"]
    mesh: Mesh
    origin: str
    n_done: int = 0

    @property
    def compute_dtype(self) -> Literal["bfloat16", "float16", "float32", "float64"]:
        """What to generate in: `dtype`, but on a CPU float32 in place of 16 bits, which are slower there."""
        is_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return "float32" if is_cpu and self.dtype in ("bfloat16", "float16") else self.dtype

    def engine(self) -> Engine:
        """Generates with it, in `compute_dtype`."""
        n_valid = self.tokenizer.vocab_size if self.tokenizer else None
        return Engine(self.model, self.params, dtype=self.compute_dtype, n_valid=n_valid)


def open_trained(source: str, *, step: int | None = None, platform: str = "", n_devices: int = 1) -> Trained:
    """Opens a run directory, or what `load_pretrained` takes: gpt2, hf:OWNER/NAME, a directory, a file.

    Raises:
      InputError: see `open_run` and `load_pretrained`.
    """
    if step is not None or is_location(source) or (Path(source) / "checkpoints").is_dir():
        return open_run(source, step=step, platform=platform, n_devices=n_devices)
    origin, source = source, str(fetch_model(source)) if source.startswith("hf:") else source
    mesh = _make_mesh(platform, n_devices)
    config, loaded = load_pretrained(source)
    shapes = place_params(config, "float32", mesh)
    params = {path: jax.device_put(loaded[path], shape.sharding) for path, shape in shapes.items()}
    tokenizer = _tokenizer_beside(source, config)
    dtype = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return Trained(None, config, params, tokenizer, dtype, mesh, origin)


def open_run(directory: str, *, step: int | None = None, platform: str = "", n_devices: int = 1) -> Trained:
    """Opens a checkpoint of a run, also while it trains, or of one at an object store.

    Turns on jax_enable_x64 for a run in float64.

    Args:
      step: None takes the newest that verifies.
      platform: cpu, gpu or tpu; empty takes the fastest.
      n_devices: that each hold the whole model; 0 takes all.

    Raises:
      InputError: no run there, no checkpoint in it, none that verifies, or one that this version cannot read.
      Failure: its store cannot be reached.
    """
    with opened_run(directory, "--run") as (run_dir, remote):
        return _open_run(directory, run_dir, remote, step, platform, n_devices)


def _open_run(
    directory: str, run_dir: Path, remote: RemoteRun | None, step: int | None, platform: str, n_devices: int
) -> Trained:
    _check_steps(directory, run_dir, step)
    mesh = _make_mesh(platform, n_devices)
    with Checkpoints(run_dir / "checkpoints", read_only=True, remote=remote) as saved:
        chosen = saved.choose(step)
        if chosen is None:
            raise InputError(f"--run={directory} has no checkpoint yet; train it until the first is saved")
        config, tokenizer = _read_about(chosen.about, f"{chosen.path}")
        if config.train.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        shapes = place_params(config.model, param_dtype(config), mesh)
        state = saved.restore({"params": shapes}, chosen, is_part=True)
    origin = f"{directory} step {chosen.step}"
    model = model_after(config, chosen.step)
    return Trained(config, model, state["params"], tokenizer, config.train.dtype, mesh, origin, chosen.step)


def _check_steps(directory: str, run_dir: Path, step: int | None) -> None:
    checkpoints = run_dir / "checkpoints"
    if not checkpoints.is_dir():
        there = "has no checkpoints" if run_dir.is_dir() else "does not exist"
        raise InputError(f"--run={directory} {there}; runs that can be opened: {', '.join(list_runs()) or 'none'}")
    steps = list_steps(checkpoints)
    if step is not None and step not in steps:
        raise InputError(f"--step={step} is not in {checkpoints}; there: {', '.join(map(str, steps[::-1])) or 'none'}")


def model_after(config: Config, n_done: int) -> ModelConfig:
    """A run's model after so many steps: with the windows of its last step, for the longest rows it was trained on."""
    stage = schedule.stage_index(config, max(n_done - 1, 0))
    models = config.stage_models()[: stage + 1]
    return models[-1].resize({"seq_len": max(model.seq_len for model in models)}, "")


def list_runs() -> list[str]:
    """Runs below runs/ that `open_run` can open, read or not: by their manifests, without the digests of files."""
    found = []
    for checkpoints in sorted(Path("runs").glob("*/checkpoints")):
        with suppress(InputError, OSError):
            chosen = choose_checkpoint(checkpoints, verify=False, warn=lambda _: None)
            if chosen and "_METADATA" in chosen.manifest["files"]:  # orbax's; torch_ref's checkpoints have none
                _read_about(chosen.about, str(chosen.path))
                found.append(str(checkpoints.parent))
    return found


def place_params(config: ModelConfig, dtype, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A model's parameters as shapes with shardings."""
    shapes = param_shapes(config, dtype)
    shardings = shard_params({path: leaf.shape for path, leaf in shapes.items()}, config, mesh)
    return {p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[p]) for p, leaf in shapes.items()}


def choose_tokenizer(tokenizer_json: dict | None, model: ModelConfig) -> Tokenizer | None:
    """The tokenizer that was saved, else GPT-2's for a vocabulary of its size, else None."""
    if tokenizer_json is not None:
        return tokenizer_from_json(tokenizer_json)
    return GPT2Tokenizer() if model.vocab_size in GPT2_VOCAB_SIZES else None


def with_tokenizer_of(trained: Trained, source: Source) -> Trained:
    """The model, with the tokenizer of this data if it came without one.

    Raises:
      InputError: the data has other tokens than the model.
    """
    theirs, ours = source.tokenizer, trained.tokenizer
    if theirs is None:
        return trained
    if ours is None and theirs.vocab_size <= trained.model.vocab_size:
        return dataclasses.replace(trained, tokenizer=theirs)
    if ours is None or ours.digest() != theirs.digest():
        has = f"{ours.vocab_size} ids of {ours.name}" if ours else f"{trained.model.vocab_size} ids"
        raise InputError(
            f"{source.data.directory} has the {theirs.vocab_size} ids of {theirs.name}, {trained.origin} reads {has}; "
            "the tokenizers differ: give data that was prepared with the model's"
        )
    return trained


def _tokenizer_beside(source: str, model: ModelConfig) -> Tokenizer | None:
    """The tokenizer of weights from elsewhere. A directory whose tokenizer cannot be read has none, with a note."""
    if files := find_nanochat(Path(source)):
        return find_tokenizer(files, model.vocab_size) or choose_tokenizer(None, model)
    found = None
    if Path(source).is_dir() and source not in PRETRAINED:
        try:
            found = read_tokenizer(Path(source))
        except InputError as error:
            print(f"note: {error}", file=sys.stderr)
            return None
        if found is None and model.vocab_size in GPT2_VOCAB_SIZES:
            print(
                f"note: {source} has no tokenizer.json; its {model.vocab_size} ids are read as GPT-2's", file=sys.stderr
            )
    if found is not None and found.vocab_size > model.vocab_size:
        raise InputError(
            f"{source}: its tokenizer has {found.vocab_size} ids, its model only {model.vocab_size}; "
            "fetch both from one model"
        )
    return found or choose_tokenizer(None, model)


def _read_about(about: dict[str, Any], source: str) -> tuple[Config, Tokenizer | None]:
    config = read_config(about, source)
    try:
        tokenizer = choose_tokenizer(about.get("tokenizer"), config.model)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    n_rows = config.model.vocab_size
    if tokenizer and tokenizer.vocab_size > n_rows:
        raise InputError(f"{source}: its tokenizer has {tokenizer.vocab_size} ids, its model only {n_rows}")
    return config, tokenizer


def _make_mesh(platform: str, n_devices: int) -> Mesh:
    remember_programs()
    return make_mesh(dataclasses.replace(MeshConfig(data=n_devices), platform=platform))


def open_source(args: argparse.Namespace, *, n_devices: int = 1) -> Trained:
    """The model that the arguments of a `source_parser` name."""
    if args.run is not None:
        return open_run(args.run, step=args.step, platform=args.platform, n_devices=n_devices)
    if args.step is not None:
        raise InputError(f"--step={args.step} needs --run; --model={args.model} has no checkpoints")
    return open_trained(args.model, platform=args.platform, n_devices=n_devices)


def check_run(directory: str, step: int | None = None) -> None:
    """Whether a run has a checkpoint to open, before anything else is read or fetched for it.

    Raises:
      InputError: the run or the step that --run and --step name does not exist.
    """
    with opened_run(directory, "--run") as (run_dir, _):
        _check_steps(directory, run_dir, step)
