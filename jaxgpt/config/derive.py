"""Fills in what a config leaves open: the model's shape, the batch, the horizon, learning rates, weight decay.

nanochat has one dial, the depth. From it follow the width, the tokens to train on, the batch that suits so many tokens
(Power Lines, arXiv:2505.13738), learning rates for that batch and width, and a weight decay that forgets at the same
rate over the whole run (T_epoch rule, arXiv:2405.13698). Each of these is a field of the config: 0, an empty string or
a `..._follows_...` asks for the rule, a value replaces it.
"""

import dataclasses
import math
from dataclasses import dataclass

from jaxgpt.config.families import ModelConfig
from jaxgpt.config.flops import flops_per_token
from jaxgpt.config.optimizer import OptimConfig
from jaxgpt.config.settings import Config, TrainConfig
from jaxgpt.errors import InputError

REFERENCE_BATCH_TOKENS = 2**19
REFERENCE_N_EMBD = 768
BATCH_EXPONENT = 0.383
"""The best batch grows with the horizon to this power."""
MAX_WEIGHT_DECAY = 0.6
"""nanochat's rule gives 0.52 at depth 8 and 1.89 at depth 4, where each step would take 2.7 % off the weights."""


@dataclass(frozen=True)
class Derivation:
    """A config in which nothing is left open.

    Attributes:
      config: all fields have values.
      facts: what was derived, as name -> in words.
      warnings: where a rule was not followed.
    """

    config: Config
    facts: dict[str, str]
    warnings: tuple[str, ...]


def derive(config: Config, n_ids: int = 0, n_epoch_steps: int = 0) -> Derivation:
    """Applies the rules. A config without open fields is returned unchanged.

    Args:
      n_ids: ids of the data's tokenizer, for model.vocab_size=0; 0: unknown.
      n_epoch_steps: that data.epochs come to, for train.steps=0 on conversations; 0: unknown.

    Raises:
      InputError: a value is open that no rule gives, or the values do not fit together.
    """
    facts: dict[str, str] = {}
    warnings: list[str] = []
    model = config.model.complete(n_ids)
    if not model.vocab_size:
        raise InputError(
            f"model.vocab_size=0 means the tokenizer's size, but {config.data.dir} has no tokenizer; "
            "set --model.vocab_size=50304 for GPT-2 tokens"
        )
    changed = {name: value for name, value in vars(model).items() if value != getattr(config.model, name)}
    if changed.keys() - {"vocab_size"}:
        facts["model"] = ", ".join(f"{name} {value}" for name, value in changed.items() if name != "vocab_size")
    train = config.train
    if config.data.is_chat and not train.steps:
        train = _derive_epochs(config, n_epoch_steps, facts)
    train = _derive_train(train, model, facts)
    optim = _derive_optim(config.optim, train, model, facts, warnings)
    config = dataclasses.replace(config, model=model, train=train, optim=optim)
    if optim.schedule.warmup_steps > train.steps:  # no error: --train.steps=20 is how one tries a config
        warnings.append(
            f"optim.schedule.warmup_steps={optim.schedule.warmup_steps} is above train.steps={train.steps}: the "
            "learning rate never reaches its peak; --optim.schedule.warmup_steps=0 leaves the warm-up out"
        )
    return Derivation(config, facts, tuple(warnings))


def horizon_tokens(train: TrainConfig, model: ModelConfig) -> float:
    """Tokens per parameter times the parameters that scaling laws count."""
    ratio = train.target_param_data_ratio or model.tokens_per_param()
    assert ratio, f"{model.family} has no rule"
    return ratio * model.count_params().scaling


def _derive_epochs(config: Config, n_epoch_steps: int, facts: dict[str, str]) -> TrainConfig:
    if not n_epoch_steps:
        raise InputError(
            f"train.steps=0 asks for data.epochs={config.data.epochs} of the conversations in {config.data.dir}, which "
            "only a run counts; give a number of steps"
        )
    facts["steps"] = f"{n_epoch_steps:,} ({config.data.epochs} epochs of the conversations)"
    return dataclasses.replace(config.train, steps=n_epoch_steps)


def _derive_train(train: TrainConfig, model: ModelConfig, facts: dict[str, str]) -> TrainConfig:
    if not train.batch_tokens:
        reference = model.reference()
        if reference is None:
            raise InputError(f"train.batch_tokens=0 has no rule for model.family={model.family}; give a number")
        batch_tokens = REFERENCE_BATCH_TOKENS
        if model.batch_follows_horizon():
            growth = horizon_tokens(train, model) / horizon_tokens(train, reference)
            batch_tokens = 2 ** round(math.log2(REFERENCE_BATCH_TOKENS * growth**BATCH_EXPONENT))
        facts["batch"] = f"{batch_tokens:,} tokens"
        train = dataclasses.replace(train, batch_tokens=batch_tokens)
    if train.steps:
        return train
    if train.target_flops:
        flops = flops_per_token(model)
        steps = round(train.target_flops / (flops * train.batch_tokens))
        reason = f"{train.target_flops:.3g} FLOPs at {flops:.3g} per token"
    elif ratio := train.target_param_data_ratio or model.tokens_per_param():
        steps = int(horizon_tokens(train, model)) // train.batch_tokens
        reason = f"{ratio:g} tokens for each of {model.count_params().scaling:,} parameters"
    else:
        raise InputError("train.steps=0 needs train.target_flops or train.target_param_data_ratio; or give a number")
    if steps < 1:
        raise InputError(
            f"train.steps=0: {reason} are less than one step of train.batch_tokens={train.batch_tokens}; give a number"
        )
    facts["steps"] = f"{steps:,} ({reason})"
    return dataclasses.replace(train, steps=steps)


def _derive_optim(
    optim: OptimConfig,
    train: TrainConfig,
    model: ModelConfig,
    facts: dict[str, str],
    warnings: list[str],
) -> OptimConfig:
    for_batch = math.sqrt(train.batch_tokens / REFERENCE_BATCH_TOKENS)
    for_width = math.sqrt(REFERENCE_N_EMBD / model.n_embd)
    groups, muon, factors = [], optim.muon, set()
    for group in optim.groups:
        factor = 1.0
        if group.lr_follows_batch:
            factor *= for_batch
            factors.add(f"{for_batch:.4g} for the batch")
        if group.lr_follows_width:
            factor *= for_width
            factors.add(f"{for_width:.4g} for the width")
        if factor != 1.0 and group.lr is not None:
            group = dataclasses.replace(group, lr=group.lr * factor)
        groups.append(dataclasses.replace(group, lr_follows_batch=False, lr_follows_width=False))
    if muon.lr_follows_batch:
        factors.add(f"{for_batch:.4g} for the batch")
        muon = dataclasses.replace(muon, lr=muon.lr * for_batch, lr_follows_batch=False)
    if factors:
        facts["learning rates"] = "times " + ", ".join(sorted(factors))
    if muon.decay_follows_horizon:
        muon = dataclasses.replace(
            muon, weight_decay=_scale_decay(muon.weight_decay, for_batch, train, model, facts, warnings),
            decay_follows_horizon=False,
        )  # fmt: skip
    if muon.ns_dtype == "auto":
        dtype = "float32" if train.dtype == "float16" else train.dtype
        muon = dataclasses.replace(muon, ns_dtype=dtype)
    return dataclasses.replace(optim, groups=tuple(groups), muon=muon)


def _scale_decay(weight_decay, for_batch, train, model, facts, warnings) -> float:
    reference = model.reference()
    if reference is None:
        raise InputError(
            f"optim.muon.decay_follows_horizon=True has no rule for model.family={model.family}; set it to false"
        )
    by_rule = weight_decay * for_batch * horizon_tokens(train, reference) / horizon_tokens(train, model)
    used = min(by_rule, max(MAX_WEIGHT_DECAY, weight_decay))
    facts["weight decay"] = f"{by_rule:.4g} for Muon's matrices"
    if used < by_rule:
        warnings.append(
            f"weight decay {by_rule:.3g} by nanochat's rule is capped at {used:g}: the rule was made for depth 8 and "
            "more; --optim.muon.decay_follows_horizon=false --optim.muon.weight_decay=X overrides it"
        )
    return used
