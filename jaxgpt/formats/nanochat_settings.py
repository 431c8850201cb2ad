"""The settings of a nanochat run, between its meta file and our config.

meta_NNNNNN.json says how nanochat's base_train was called (user_config) and the batch; the rest is fixed in its code,
by era, as in `jaxgpt.config.presets`. Where the optimizer's groups are saved, their rates are those that count.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxgpt.config import Config, flatten, to_dict
from jaxgpt.config.derive import REFERENCE_BATCH_TOKENS, REFERENCE_N_EMBD, derive
from jaxgpt.config.families import NanochatConfig
from jaxgpt.config.optimizer import GroupConfig, OptimConfig
from jaxgpt.config.presets import nanochat_2025, nanochat_2026
from jaxgpt.data.cursors import place_cursor
from jaxgpt.errors import InputError

_RATES = {
    "lm_head": ("unembedding_lr", 1.0), "wte": ("embedding_lr", 1.0), "value_embeds": ("embedding_lr", 0.5),
    "resid_lambdas": ("scalar_lr", 0.01), "x0_lambdas": ("scalar_lr", 1.0),
}  # fmt: skip
"""Group -> the argument that its learning rate follows, and the factor."""
_MAX_STEPS = 2**31


def read_settings(
    meta: Mapping[str, Any], model: NanochatConfig, groups: Mapping[str, Mapping[str, Any]], dtype: str, place: str
) -> Config:
    """A complete config that continues the run.

    Args:
      meta: of the checkpoint.
      model: of the checkpoint.
      groups: of its optimizer (`OptimState.groups`); empty where it has none.
      dtype: of the computation; nanochat's depends on the machine.
      place: the meta file, for messages.

    Raises:
      InputError: a value in meta is not of its type, or makes no run.
    """
    user = meta.get("user_config", {})
    if not isinstance(user, dict):
        raise InputError(f"{place}: user_config is not a JSON object; copy it again")

    def number(name: str, default: float) -> float:
        value = meta.get(name, user.get(name, default))
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{place}: {name}={value!r:.40} is not a number; copy it again")
        return value

    def whole(name: str, default: int) -> int:
        value = number(name, default)
        if value != int(value) or value >= _MAX_STEPS:
            raise InputError(f"{place}: {name}={value} is not a whole number below {_MAX_STEPS}; copy it again")
        return max(int(value), 0)

    batch_tokens, rows = whole("total_batch_size", 0), max(whole("device_batch_size", 1), 1)
    if model.era == "2025":
        preset = nanochat_2025(depth=model.depth, seq_len=model.seq_len, batch_tokens=0, micro_batch_size=rows)
    else:
        preset = nanochat_2026(depth=model.depth, seq_len=model.seq_len, micro_batch_size=rows)
    model = dataclasses.replace(model, aspect_ratio=max(whole("aspect_ratio", model.aspect_ratio), 1))
    train = dataclasses.replace(
        preset.train, dtype=dtype, steps=whole("num_iterations", 0), target_flops=max(number("target_flops", 0), 0.0),
        target_param_data_ratio=float(max(number("target_param_data_ratio", 0), 0)), batch_tokens=batch_tokens,
    )  # fmt: skip
    config = derive(dataclasses.replace(preset, model=model, train=train, optim=OptimConfig())).config
    optim = _read_optim(preset.optim, number, config)
    config = derive(dataclasses.replace(config, optim=optim)).config
    return dataclasses.replace(config, optim=_with_saved_rates(config.optim, groups, place))


def _read_optim(optim: OptimConfig, number: Any, config: Config) -> OptimConfig:
    """The preset with what the user changed; learning rates still follow width and batch."""
    given = {g.name: g for g in optim.groups}
    for name, (argument, factor) in _RATES.items():
        if name in given:
            lr = given[name].lr or 0.0
            given[name] = dataclasses.replace(given[name], lr=number(argument, lr / factor) * factor)
    muon = dataclasses.replace(optim.muon, lr=number("matrix_lr", optim.muon.lr), decay_follows_horizon=False)
    schedule = optim.schedule
    if config.model.family == "nanochat" and config.model.era == "2025":
        optim = dataclasses.replace(
            optim,
            weight_decay=number("weight_decay", optim.weight_decay),
            grad_clip=number("grad_clip", optim.grad_clip),
        )
        warmup_steps = round(number("warmup_ratio", 0.0) * config.train.steps)
    else:
        weight_decay = number("weight_decay", optim.muon.weight_decay) * decay_factor(config)
        muon = dataclasses.replace(muon, weight_decay=weight_decay)
        warmup_steps = round(number("warmup_steps", schedule.warmup_steps))
    schedule = dataclasses.replace(
        schedule, warmup_steps=warmup_steps, warmdown_frac=number("warmdown_ratio", schedule.warmdown_frac),
        min_lr_frac=number("final_lr_frac", schedule.min_lr_frac),
    )  # fmt: skip
    return dataclasses.replace(optim, groups=tuple(given.values()), muon=muon, schedule=schedule)


def read_place(meta: Mapping[str, Any], config: Config, place: str) -> dict[str, Any] | None:
    """Cursors that begin with the row group that nanochat was in; None where meta does not say it.

    Raises:
      InputError: meta says it, but not in numbers.
    """
    found = meta.get("dataloader_state_dict")
    if found is None:
        return None
    values = [found.get(name, 1) for name in ("epoch", "pq_idx", "rg_idx")] if isinstance(found, dict) else []
    if not values or any(type(value) is not int or not 0 <= value < _MAX_STEPS for value in values):
        raise InputError(f"{place}: dataloader_state_dict={found!r:.60} is not pq_idx and rg_idx; copy it again")
    epoch, file, row_group = values
    return place_cursor(config.data.sampling, config.model.seq_len, max(epoch - 1, 0), file, row_group)


def data_place(cursors: Any, era: str) -> dict[str, int] | None:
    """dataloader_state_dict: the row group that the first lane is in; None where a run reads no text."""
    if not isinstance(cursors, dict) or "0" not in cursors:
        return None
    following = cursors["0"]["next"]
    state = {"pq_idx": following["file"], "rg_idx": following["row_group"]}
    return state | ({"epoch": following["epoch"] + 1} if era == "2026" else {})


def decay_factor(config: Config) -> float:
    """What nanochat of 2026 multiplies the weight decay of depth 12 with; unlike in `derive` without a limit."""
    reference = config.model.reference()
    assert reference is not None
    horizon = reference.count_params().scaling / config.model.count_params().scaling
    return math.sqrt(config.train.batch_tokens / REFERENCE_BATCH_TOKENS) * horizon


def _with_saved_rates(optim: OptimConfig, groups: Mapping[str, Mapping[str, Any]], place: str) -> OptimConfig:
    """Learning rates, betas, epsilon and AdamW's decay as the optimizer's groups have them."""

    def value(name: str, field: str) -> float:
        found = groups[name].get(field)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise InputError(f"{place}: the optimizer's group {name} has no number {field}; copy its optim files again")
        return float(found)

    def saved(group: GroupConfig) -> GroupConfig:
        if group.name not in groups:
            return group
        betas = groups[group.name].get("betas")
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise InputError(f"{place}: the optimizer's group {group.name} has no betas; copy its optim files again")
        read = {
            "lr": value(group.name, "initial_lr"), "beta1": float(betas[0]), "beta2": float(betas[1]),
            "eps": value(group.name, "eps"), "weight_decay": value(group.name, "weight_decay"),
        }  # fmt: skip
        usual = {"beta1": optim.beta1, "beta2": optim.beta2, "eps": optim.eps, "weight_decay": optim.weight_decay}
        changed = {
            field: found for field, found in read.items()
            if getattr(group, field) is not None or found != usual.get(field)
        }  # fmt: skip
        return dataclasses.replace(group, **changed)

    if not groups:
        return optim
    muon = dataclasses.replace(optim.muon, lr=value("muon", "initial_lr"), ns_steps=int(value("muon", "ns_steps")))
    if "beta2" in groups["muon"]:
        muon = dataclasses.replace(muon, norm_beta2=value("muon", "beta2"))
    return dataclasses.replace(optim, groups=tuple(map(saved, optim.groups)), muon=muon)


# Out


def user_settings(config: Config) -> dict[str, Any]:
    """user_config of a meta file: the arguments of base_train that ask for this run.

    Args:
      config: complete.
    """
    model, train, optim = config.model, config.train, config.optim
    assert isinstance(model, NanochatConfig)
    for_width = math.sqrt(REFERENCE_N_EMBD / model.n_embd)
    for_batch = math.sqrt(train.batch_tokens / REFERENCE_BATCH_TOKENS) if model.era == "2026" else 1.0
    rates: dict[str, float] = {}
    for group in optim.groups:
        argument, factor = _RATES.get(group.name, ("", 1.0))
        if argument and argument not in rates:
            scale = for_batch * factor * (1.0 if argument == "scalar_lr" else for_width)
            rates[argument] = _short((group.lr or 0.0) / scale)
    shape = {"aspect_ratio": model.aspect_ratio, "head_dim": model.head_dim, "window_pattern": model.window_pattern}
    schedule = {"warmdown_ratio": optim.schedule.warmdown_frac, "final_lr_frac": optim.schedule.min_lr_frac}
    if model.era == "2025":
        shape = {}
        schedule |= {"warmup_ratio": optim.schedule.warmup_steps / train.steps, "grad_clip": optim.grad_clip}
        weight_decay = optim.weight_decay
    else:
        schedule |= {"warmup_steps": optim.schedule.warmup_steps}
        weight_decay = _short(optim.muon.weight_decay / decay_factor(config))
    return {
        "run": "dummy", "depth": model.depth, "max_seq_len": model.seq_len, **shape,
        "num_iterations": train.steps, "target_flops": -1.0,
        "target_param_data_ratio": train.target_param_data_ratio or model.tokens_per_param(),
        "device_batch_size": train.micro_batch_size, "total_batch_size": train.batch_tokens, **rates,
        "matrix_lr": _short(optim.muon.lr / for_batch), "weight_decay": weight_decay, **schedule,
        "resume_from_step": -1,
    }  # fmt: skip


def _short(value: float) -> float:
    """Without the last digits, which a division and the multiplication that undoes it leave to chance."""
    return float(f"{value:.12g}")


def refuse_other_training(config: Config, user: Mapping[str, Any]) -> None:
    """Raises InputError unless `read_settings` gives back what decides the next steps; names each field."""
    assert isinstance(config.model, NanochatConfig)
    theirs = read_settings({"user_config": user}, config.model, {}, config.train.dtype, "")
    ours, back = _deciding(config), _deciding(theirs)
    differing = [
        f"{name}={show(value)} (it has {show(back.get(name))})"
        for name, value in ours.items()
        if not _is_same(value, back.get(name))
    ]
    differing += [f"{name}=none (it has {show(value)})" for name, value in back.items() if name not in ours]
    if differing:
        raise InputError(
            f"nanochat of {config.model.era} cannot continue this run: it has no {', no '.join(differing[:4])}; "
            "--weights-only converts the model without its optimizer"
        )


def _deciding(config: Config) -> dict[str, Any]:
    values = to_dict(config)
    optim = flatten({name: value for name, value in values["optim"].items() if name != "groups"}, "optim.")
    del optim["optim.muon.ns_dtype"]  # nanochat computes in what the machine is fast at
    groups = {group["match"]: group for group in values["optim"]["groups"]}
    fields = flatten({match: {k: v for k, v in g.items() if k not in ("name", "match")} for match, g in groups.items()})
    train = {f"train.{name}": values["train"][name] for name in ("steps", "batch_tokens", "stages")}
    return optim | {f"optim.groups {name}": value for name, value in fields.items()} | train


def _is_same(a: Any, b: Any) -> bool:
    are_numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    return math.isclose(a, b, rel_tol=1e-9) if are_numbers else a == b


def show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
