"""Runs of nanochat and nanoGPT as ours, and ours as theirs: weights, optimizer state, settings, the step.

What they do not save starts as in a new run, such as float16's loss scale. Of nanochat's place in its shards the row
group is kept, whose documents are then read again (here) or left out (there).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt.compare.trajectories import to_arrays
from jaxgpt.config import Config, to_dict
from jaxgpt.config.families import NanochatConfig
from jaxgpt.convert.runs import Saved, jax_shapes, params_of
from jaxgpt.data.tokenizer import BPETokenizer, Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.formats.nanochat import (
    NanochatFiles,
    find_nanochat,
    find_tokenizer,
    model_settings,
    narrow_paths,
    read_meta,
    read_nanochat,
    save_nanochat_model,
    save_tokenizer,
    state_dict,
)
from jaxgpt.formats.nanochat_optim import read_optim
from jaxgpt.formats.nanochat_settings import (
    data_place,
    read_place,
    read_settings,
    refuse_other_training,
    user_settings,
)
from jaxgpt.formats.nanochat_split import OptimSplit
from jaxgpt.formats.nanogpt import CHECKPOINT, load_checkpoint, read_nanogpt
from jaxgpt.formats.nanogpt_run import NO_LOSS, read_moments, save_nanogpt
from jaxgpt.formats.nanogpt_run import read_settings as read_nanogpt_settings
from jaxgpt.formats.stored import Params
from jaxgpt.formats.torch_file import save_torch, to_number
from jaxgpt.run.console import console
from jaxgpt.training.step import LOSS_SCALE_INIT

FOREIGN = {"nanochat": "nanochat's checkpoint files", "nanogpt": "nanoGPT's ckpt.pt"}
MOMENTS = ("mu", "nu", "momentum", "square")


def read_foreign(path: Path) -> Saved | None:
    """The run in nanochat's checkpoint directory (its newest step), a model_NNNNNN.pt, or nanoGPT's ckpt.pt.

    Without optimizer state in it, the optimizer starts anew; a line on the console says so. None for other paths.

    Raises:
      InputError: a file is damaged, missing, or of another model.
    """
    if files := find_nanochat(path):
        return _read_nanochat(files)
    file = path / CHECKPOINT if path.is_dir() else path
    is_checkpoint = file.is_file() and file.suffix == ".pt"
    return _read_nanogpt(file) if is_checkpoint else None


def _read_nanochat(files: NanochatFiles) -> Saved:
    meta = read_meta(files)
    model, params = read_nanochat(files, meta, keeps_double=True)
    optim = read_optim(files, model)
    groups = optim.groups if optim else {}
    config = read_settings(meta, model, groups, _dtype_of(params), str(files.meta))
    step = meta.get("step", files.step)
    if type(step) is not int or not 0 <= step < 2**31:
        raise InputError(f"{files.meta}: step={step!r:.40} is not a number of steps; copy it again")
    if optim is None:
        console.warn(f"{files.optim(0)} does not exist, so the optimizer starts anew")
    count, moments = (optim.n_updates, optim.moments) if optim else (0, {})
    saved = _make_saved("nanochat", config, step, params, count, moments, None)
    tokenizer = find_tokenizer(files, model.vocab_size)
    saved.about["tokenizer"] = tokenizer.to_json() if tokenizer else None
    if cursors := read_place(meta, config, str(files.meta)):
        saved.about["cursors"] = cursors
    return saved


def _read_nanogpt(path: Path) -> Saved:
    checkpoint = load_checkpoint(path)
    model, params = read_nanogpt(path, checkpoint, keeps_double=True)
    n_updates, moments, is_old = 0, {}, False
    if "optimizer" in checkpoint:
        n_updates, moments, is_old = read_moments(path, model, checkpoint["optimizer"])
    else:
        console.warn(f"{path} has no optimizer, so it starts anew")
    config = read_nanogpt_settings(path, checkpoint, model, _dtype_of(params), is_old=is_old)
    step, val_loss = checkpoint.get("iter_num"), checkpoint.get("best_val_loss", NO_LOSS)
    if type(step) is not int or not 0 <= step < 2**31:
        raise InputError(f"{path}: iter_num={step!r:.40} is not a number of steps; copy it again")
    val_loss = to_number(val_loss)
    has_loss = isinstance(val_loss, int | float) and 0 < val_loss < NO_LOSS
    return _make_saved("nanogpt", config, step, params, n_updates, moments, float(val_loss) if has_loss else None)


def _dtype_of(params: Params) -> str:
    is_double = any(array.dtype == np.float64 for array in params.values())
    return "float64" if is_double else "bfloat16"


def _make_saved(
    program: str,
    config: Config,
    step: int,
    params: Params,
    n_updates: int,
    moments: Mapping[str, Mapping[str, np.ndarray]],
    val_loss: float | None,
) -> Saved:
    with jax.enable_x64(config.train.dtype == "float64"):
        shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax_shapes(config))
        leaves = to_arrays(shapes)
    found: dict[str, Any] = {f"params.{path}": array for path, array in params.items()}
    found |= {f"opt_state.{name}.{path}": array for name, tree in moments.items() for path, array in tree.items()}
    found |= {"step": step, "opt_state.count": n_updates}
    if moments:
        found["n_skipped"] = max(step - n_updates, 0)
    found["loss_scale.scale"] = LOSS_SCALE_INIT if config.train.dtype == "float16" else 1.0
    for path, value in found.items():
        assert np.shape(value) == leaves[path].shape, path
        leaves[path] = np.asarray(value, leaves[path].dtype)
    about = {"config": to_dict(config), "data_sha256": None, "tokenizer": None}
    return Saved(program, step, config, about, val_loss, leaves)


def write_foreign(
    form: str, out: Path, saved: Saved, tokenizer: Tokenizer | None, *, n_ranks: int, weights_only: bool
) -> str:
    """Writes a run for another program. Returns, in words, how to continue.

    Args:
      form: a key of `FOREIGN`.
      n_ranks: processes that nanochat will run.
      weights_only: leaves the optimizer out.

    Raises:
      InputError: the program has no such model or, unless weights_only, no such training; names each field.
    """
    write = {"nanochat": _write_nanochat, "nanogpt": _write_nanogpt}[form]
    return write(out, saved, tokenizer, n_ranks, weights_only)


def _moments_of(saved: Saved) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in MOMENTS:
        start = f"opt_state.{name}."
        tree = {path.removeprefix(start): leaf for path, leaf in saved.leaves.items() if path.startswith(start)}
        found |= {name: tree} if tree else {}
    return found


def _write_nanogpt(out: Path, saved: Saved, tokenizer: Tokenizer | None, n_ranks: int, weights_only: bool) -> str:
    count = int(saved.leaves["opt_state.count"])
    optim = None if weights_only else (count, _moments_of(saved))
    save_nanogpt(out / CHECKPOINT, saved.config, params_of(saved.leaves), saved.step, saved.val_loss, optim)
    if weights_only:
        return f"nanoGPT samples from it: python sample.py --out_dir={out}"
    return f"nanoGPT continues it: python train.py --init_from=resume --out_dir={out}"


def _write_nanochat(out: Path, saved: Saved, tokenizer: Tokenizer | None, n_ranks: int, weights_only: bool) -> str:
    config, model, params = saved.config, saved.config.model, params_of(saved.leaves)
    if not isinstance(model, NanochatConfig):
        raise InputError(f"--to=nanochat writes nanochat models, this one is of {model.family}; --to=nanogpt may fit")
    meta_model = model_settings(model, tokenizer.vocab_size if tokenizer else 0)
    user = user_settings(config)
    moments = {} if weights_only else _moments_of(saved)
    if moments:
        refuse_other_training(config, user)
    files = NanochatFiles(out, saved.step)
    narrow = narrow_paths(params, *(moments[name] for name in ("mu", "nu") if moments))
    if moments:
        split = OptimSplit(config, int(saved.leaves["opt_state.count"]), moments, narrow, n_ranks)
        for rank in range(n_ranks):
            save_torch(split.part(rank), files.optim(rank))
    meta = {
        "step": saved.step,
        "val_bpb": None,
        "model_config": meta_model,
        "user_config": user,
        "device_batch_size": config.train.micro_batch_size,
        "max_seq_len": model.seq_len,
        "total_batch_size": config.train.batch_tokens,
        "dataloader_state_dict": data_place(saved.about.get("cursors"), model.era),
        "loop_state": {"min_val_bpb": float("inf"), "smooth_train_loss": 0.0, "total_training_time": 0.0},
    }
    save_nanochat_model(files, meta, state_dict(model, params, narrow))
    where = f"base_checkpoints/d{model.depth}"
    if isinstance(tokenizer, BPETokenizer):
        save_tokenizer(out, tokenizer)
        where += ", its tokenizer.pkl and token_bytes.pt to tokenizer"
    if not moments:
        return f"nanochat loads it: copy {out} to {where}"
    arguments = user | {"resume_from_step": saved.step}
    dash = "-" if model.era == "2026" else "_"
    flags = " ".join(f"--{name.replace('_', dash)}={value}" for name, value in arguments.items())
    return f"nanochat continues it: copy {out} to {where}; next there: python -m scripts.base_train {flags}"
