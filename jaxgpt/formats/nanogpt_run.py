"""A nanoGPT run between ckpt.pt and ours: settings, and torch.optim.AdamW's state.

AdamW has two groups, of matrices (decayed) and of the rest, each in the order of nanoGPT's modules. Until June 2023
embeddings were not decayed, and each group was sorted by name.

References: nanoGPT train.py (005475c), model.py (configure_optimizers, now and as minGPT has it).
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.config import Config, DataConfig
from jaxgpt.config.families import GPT2Config
from jaxgpt.config.optimizer import GroupConfig, OptimConfig, ScheduleConfig
from jaxgpt.config.schedule import lr_scale_at
from jaxgpt.config.settings import TrainConfig
from jaxgpt.errors import InputError
from jaxgpt.formats.stored import DOUBLE, FLOAT_DTYPES, Params, linear_weights
from jaxgpt.formats.torch_file import import_torch, save_torch, store, to_number
from jaxgpt.models import param_shapes

Moments = dict[str, dict[str, np.ndarray]]
"""mu and nu -> path -> array, in our layout."""
EMBEDDINGS = GroupConfig(name="embeddings", match=r"^w[tp]e\.", weight_decay=0.0)
"""What nanoGPT before June 2023 did not decay."""
NO_LOSS = 1e9
"""nanoGPT's best_val_loss before the first evaluation."""


def module_paths(model: GPT2Config) -> list[str]:
    """Parameters in the order in which nanoGPT's modules hold them."""
    kinds = ("weight", "bias") if model.bias else ("weight",)
    blocks = [
        f"h.{layer}.{name}.{kind}"
        for layer in range(model.n_layer)
        for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in kinds
    ]
    return ["wte.weight", "wpe.weight", *blocks, *(f"ln_f.{kind}" for kind in kinds)]


def adamw_groups(model: GPT2Config, *, is_old: bool = False) -> list[list[str]]:
    """Paths of the decayed group and of the other, in their order.

    Args:
      is_old: as before June 2023.
    """
    shapes, paths = param_shapes(model), module_paths(model)
    decayed = [path for path in paths if len(shapes[path].shape) >= 2]
    if is_old:
        decayed = [path for path in decayed if path.startswith("h.")]
    rest = [path for path in paths if path not in decayed]
    return [sorted(group) if is_old else group for group in (decayed, rest)]


def read_moments(path: Path, model: GPT2Config, optimizer: Any) -> tuple[int, Moments, bool]:
    """AdamW's state in a checkpoint: updates made, moments, and whether its groups are those before June 2023.

    Raises:
      InputError: it is damaged, or of another model.
    """
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    if not isinstance(groups, list) or not isinstance(state, dict) or not all(isinstance(g, dict) for g in groups):
        raise InputError(f"{path} has no optimizer with param_groups and state; copy it again")
    ids = [group.get("params") if isinstance(group.get("params"), list) else [] for group in groups]
    for is_old in (False, True):
        wanted = adamw_groups(model, is_old=is_old)
        if [len(group) for group in ids] == [len(group) for group in wanted]:
            break
    else:
        found, needed = [len(group) for group in ids], [len(group) for group in adamw_groups(model)]
        raise InputError(f"{path}: its optimizer has groups of {found} parameters, nanoGPT's have {needed}")
    shapes, is_linear = param_shapes(model), linear_weights(model)
    moments: Moments = {"mu": {}, "nu": {}}
    steps: set[int] = set()
    for name, i in zip(itertools.chain(*wanted), itertools.chain(*ids), strict=True):
        held = state.get(i)
        if not isinstance(held, dict):
            raise InputError(f"{path}: its optimizer has no state of {name}; it was saved before the first update")
        for field, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
            moments[field][name] = _read(
                held.get(theirs), f"{path}: {theirs} of {name}", shapes[name].shape, is_linear(name)
            )
        step = to_number(held.get("step"))
        if not isinstance(step, int | float) or not 0 < step < 2**31:
            raise InputError(f"{path}: step of {name} is {step!r:.40}, not a count of updates; copy it again")
        steps.add(int(step))
    if len(steps) > 1:
        raise InputError(f"{path}: its parameters had {min(steps)} to {max(steps)} updates; here all have as many")
    return steps.pop(), moments, is_old


def _read(tensor: Any, place: str, shape: tuple[int, ...], is_linear: bool) -> np.ndarray:
    if not hasattr(tensor, "numpy"):
        raise InputError(f"{place} is no tensor; copy it again")
    stored = store(tensor, place)
    if stored.shape != (shape[::-1] if is_linear else shape) or stored.dtype not in (*FLOAT_DTYPES, DOUBLE):
        raise InputError(f"{place} is {stored.dtype} {stored.shape}, its weight is {shape}; copy it again")
    array = stored.read()
    if not np.isfinite(array).all():
        raise InputError(f"{place} is not finite; its training diverged, use another checkpoint")
    return np.ascontiguousarray(array.T if is_linear else array)


def read_settings(path: Path, checkpoint: Mapping[str, Any], model: GPT2Config, dtype: str, *, is_old: bool) -> Config:
    """A complete config that continues the run.

    Args:
      dtype: of the computation where the checkpoint does not say it.
      is_old: see `read_moments`.

    Raises:
      InputError: a setting is not of its type, or they make no run.
    """
    given = checkpoint.get("config", {})
    if not isinstance(given, dict):
        raise InputError(f"{path}: config is not a dict; nanoGPT's train.py writes one")

    def setting(name: str, default: Any) -> Any:
        value = given.get(name, default)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            raise InputError(f"{path}: config has {name}={value!r:.40}, not a {type(default).__name__}; copy it again")
        return value

    rows, lr, steps = setting("batch_size", 12), setting("learning_rate", 6e-4), setting("max_iters", 600_000)
    schedule = ScheduleConfig(kind="constant")
    if setting("decay_lr", True):
        low = _short(setting("min_lr", 6e-5) / lr) if lr else 0.0
        warmup, end = setting("warmup_iters", 2000), setting("lr_decay_iters", 600_000)
        schedule = ScheduleConfig(kind="cosine", warmup_steps=warmup, decay_steps=end, min_lr_frac=low)
    dropout = float(checkpoint["model_args"].get("dropout", 0.0))
    return Config(
        model=dataclasses.replace(model, dropout=dropout),
        data=DataConfig(dir=f"data/{setting('dataset', 'openwebtext')}"),
        train=TrainConfig(
            steps=steps, batch_tokens=setting("gradient_accumulation_steps", 40) * rows * model.seq_len,
            micro_batch_size=rows, dtype=dtype if dtype == "float64" else setting("dtype", dtype),
        ),
        optim=OptimConfig(
            lr=lr, beta1=setting("beta1", 0.9), beta2=setting("beta2", 0.95), grad_clip=setting("grad_clip", 1.0),
            weight_decay=setting("weight_decay", 0.1), schedule=schedule, groups=(EMBEDDINGS,) if is_old else (),
        ),
    )  # fmt: skip


# Out


def save_nanogpt(
    path: Path, config: Config, params: Params, step: int, val_loss: float | None, optim: tuple[int, Moments] | None
) -> None:
    """Writes ckpt.pt as nanoGPT's train.py does.

    Args:
      config: complete.
      optim: updates made, and moments; None leaves the optimizer out, which sampling does not need.

    Raises:
      InputError: nanoGPT has no such model or, with `optim`, no such training; names each field. Or torch is missing.
    """
    torch = import_torch("a ckpt.pt of nanoGPT's")
    model = config.model
    if not isinstance(model, GPT2Config):
        raise InputError(f"--to=nanogpt writes GPT-2 models, this one is of {model.family}; --to=nanochat may fit")
    if model.gelu != "erf":
        raise InputError(
            f"model.gelu={model.gelu}, nanoGPT computes erf; --to=hf keeps it, or train with it for a while"
        )
    if optim is not None:
        _refuse_other_training(config)
    is_linear = linear_weights(model)

    def tensor(name: str, array: np.ndarray) -> Any:
        return torch.from_numpy(np.array(array.T if is_linear(name) else array, order="C"))

    state = {f"transformer.{name}": tensor(name, params[name]) for name in module_paths(model)}
    checkpoint: dict[str, Any] = {
        "model": state | {"lm_head.weight": state["transformer.wte.weight"]},
        "model_args": {
            "n_layer": model.n_layer, "n_head": model.n_head, "n_embd": model.n_embd, "block_size": model.seq_len,
            "bias": model.bias, "vocab_size": model.vocab_size, "dropout": model.dropout,
        },
        "iter_num": step,
        "best_val_loss": NO_LOSS if val_loss is None else val_loss,
        "config": _settings(config),
    }  # fmt: skip
    if optim is not None:
        n_updates, moments = optim
        is_old = EMBEDDINGS in config.optim.groups
        groups, adamw = adamw_groups(model, is_old=is_old), config.optim
        rates = {"lr": adamw.lr * lr_scale_at(config, max(step - 1, 0)), "betas": (adamw.beta1, adamw.beta2)}
        blank = [torch.nn.Parameter(torch.zeros(1)) for _ in groups]
        like = torch.optim.AdamW([{"params": [p]} for p in blank], **rates, eps=adamw.eps).state_dict()["param_groups"]
        n, held = 0, {}
        for group, paths, decay in zip(like, groups, (adamw.weight_decay, 0.0), strict=True):
            group |= {"weight_decay": decay, "params": list(range(n, n + len(paths)))}
            for i, name in enumerate(paths, n):
                mu, nu = (tensor(name, moments[field][name]) for field in ("mu", "nu"))
                held[i] = {"step": torch.tensor(float(n_updates)), "exp_avg": mu, "exp_avg_sq": nu}
            n += len(paths)
        checkpoint["optimizer"] = {"state": held, "param_groups": like}
    save_torch(checkpoint, path)


def _settings(config: Config) -> dict[str, Any]:
    """nanoGPT's config dict: what its config files and arguments set."""
    model, train, optim, schedule = config.model, config.train, config.optim, config.optim.schedule
    rows = train.micro_batch_size
    return {
        "out_dir": "out", "init_from": "resume", "dataset": Path(config.data.dir).name,
        "gradient_accumulation_steps": train.batch_tokens // (rows * model.seq_len), "batch_size": rows,
        "block_size": model.seq_len, "n_layer": model.n_layer, "n_head": model.n_head, "n_embd": model.n_embd,
        "dropout": model.dropout, "bias": getattr(model, "bias", False),
        "learning_rate": optim.lr, "max_iters": train.steps, "weight_decay": optim.weight_decay,
        "beta1": optim.beta1, "beta2": optim.beta2, "grad_clip": optim.grad_clip,
        "decay_lr": schedule.kind != "constant", "warmup_iters": schedule.warmup_steps,
        "lr_decay_iters": schedule.decay_steps or train.steps, "min_lr": _short(schedule.min_lr_frac * optim.lr),
        "dtype": "float32" if train.dtype == "float64" else train.dtype,
    }  # fmt: skip


def _short(value: float) -> float:
    """Without the last digits, which a division and the multiplication that undoes it leave to chance."""
    return float(f"{value:.12g}")


def _refuse_other_training(config: Config) -> None:
    """Raises InputError for what nanoGPT's loop does otherwise."""
    optim, usual = config.optim, OptimConfig()
    found = [f"train.stages of {len(config.train.stages)}"] if config.train.stages else []
    found += [f"optim.algorithm={optim.algorithm}"] if optim.algorithm != "adamw" else []
    found += [f"optim.eps={optim.eps}"] if optim.eps != usual.eps else []
    found += [f"optim.groups: match={g.match!r}" for g in optim.groups if g != EMBEDDINGS]
    if optim.schedule.kind == "trapezoid" or (optim.schedule.kind == "constant" and optim.schedule.warmup_steps):
        found.append(f"optim.schedule.kind={optim.schedule.kind} with warmup_steps={optim.schedule.warmup_steps}")
    if found:
        raise InputError(
            f"nanoGPT cannot continue this run: it has no {', no '.join(found)}; "
            "--weights-only converts the model without its optimizer"
        )
