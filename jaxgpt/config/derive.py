"""What a config leaves open, filled in: the shape of the model, the batch, the horizon, learning rates, weight decay.

nanochat has one dial, the depth. From it follow the width, the tokens to train on, the batch that suits so many tokens
(Power Lines, arXiv:2505.13738), learning rates for that batch and width, and a weight decay that forgets at the same
rate over the whole run (T_epoch rule, arXiv:2405.13698). Each of these is a field of the config: 0, an empty string or
a `..._follows_...` asks for the rule, a value replaces it.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import TypeVar

from jaxgpt.config.families import ModelConfig, NanochatConfig
from jaxgpt.config.flops import count_params, flops_per_token
from jaxgpt.config.optimizer import OptimConfig
from jaxgpt.config.settings import Config, TrainConfig
from jaxgpt.errors import InputError

REFERENCE_DEPTH = 12
"""Model at which nanochat's batch, learning rates and weight decay were tuned."""
REFERENCE_BATCH_TOKENS = 2**19
REFERENCE_N_EMBD = 768
BATCH_EXPONENT = 0.383
"""The best batch grows with the horizon to this power."""
PARAM_DATA_RATIO = {"2025": 20.0, "2026": 12.0}
WINDOW_ROUNDING = 128
MAX_WEIGHT_DECAY = 0.6
"""nanochat's rule gives 0.52 at depth 8 and 1.89 at depth 4, where each step would take 2.7 % off the weights."""

Model = TypeVar("Model", bound=ModelConfig)


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


def derive(config: Config, vocab_size: int) -> Derivation:
    """Applies the rules. A config without open fields comes back as it is.

    Args:
      vocab_size: rows of the embedding.

    Raises:
      InputError: a value is open that no rule gives, or the values do not fit together.
    """
    facts: dict[str, str] = {}
    warnings: list[str] = []
    model = derive_model(config.model)
    if model != config.model:
        facts["model"] = ", ".join(
            f"{name} {value}" for name, value in vars(model).items() if value != getattr(config.model, name)
        )
    train = _derive_train(config.train, model, vocab_size, facts)
    optim = _derive_optim(config.optim, train, model, vocab_size, facts, warnings)
    config = dataclasses.replace(config, model=model, train=train, optim=optim)
    return Derivation(config, facts, tuple(warnings))


def derive_model(model: Model) -> Model:
    """The model with its width, windows and constants; GPT-2 has nothing open."""
    if not isinstance(model, NanochatConfig):
        return model
    width = model.depth * model.aspect_ratio
    if model.is_2026:
        width = math.ceil(width / model.head_dim) * model.head_dim
    elif not model.n_embd and width % model.head_dim:
        raise InputError(
            f"model.depth={model.depth} x model.aspect_ratio={model.aspect_ratio} = {width} is not a multiple of "
            f"model.head_dim={model.head_dim}; set model.n_embd, or choose another depth"
        )
    short_window = math.ceil(model.seq_len / 4 / WINDOW_ROUNDING) * WINDOW_ROUNDING + 1
    model = dataclasses.replace(model, n_embd=model.n_embd or width)
    return dataclasses.replace(
        model,
        n_kv_head=model.n_kv_head or model.n_head,
        window_pattern=(model.window_pattern or ("SSSL" if model.is_2026 else "L")).upper(),
        short_window=model.short_window or min(short_window, model.seq_len),
        rope_base=model.rope_base or (100_000.0 if model.is_2026 else 10_000.0),
        qk_scale=model.qk_scale or (1.2 if model.is_2026 else 1.0),
    )


def horizon_tokens(train: TrainConfig, model: NanochatConfig, vocab_size: int) -> float:
    """Tokens per parameter times the parameters that scaling laws count."""
    ratio = train.target_param_data_ratio or PARAM_DATA_RATIO[model.era]
    return ratio * count_params(model, vocab_size).scaling


def reference_tokens(train: TrainConfig, model: NanochatConfig, vocab_size: int) -> float:
    """The horizon of the same model at depth 12."""
    reference = dataclasses.replace(model, depth=REFERENCE_DEPTH, n_embd=0, n_kv_head=0)
    return horizon_tokens(train, derive_model(reference), vocab_size)


def _derive_train(train: TrainConfig, model: ModelConfig, vocab_size: int, facts: dict[str, str]) -> TrainConfig:
    if not train.batch_tokens:
        if not isinstance(model, NanochatConfig):
            raise InputError(f"train.batch_tokens=0 has no rule for model.family={model.family}; give a number")
        batch_tokens = REFERENCE_BATCH_TOKENS
        if model.is_2026:
            growth = horizon_tokens(train, model, vocab_size) / reference_tokens(train, model, vocab_size)
            batch_tokens = 2 ** round(math.log2(REFERENCE_BATCH_TOKENS * growth**BATCH_EXPONENT))
        facts["batch"] = f"{batch_tokens:,} tokens"
        train = dataclasses.replace(train, batch_tokens=batch_tokens)
    if train.steps:
        return train
    if train.target_flops:
        flops = flops_per_token(model, vocab_size)
        steps = round(train.target_flops / (flops * train.batch_tokens))
        reason = f"{train.target_flops:.3g} FLOPs at {flops:.3g} per token"
    elif isinstance(model, NanochatConfig) or train.target_param_data_ratio:
        params = count_params(model, vocab_size).scaling
        ratio = train.target_param_data_ratio or PARAM_DATA_RATIO[getattr(model, "era", "2025")]
        steps = int(ratio * params) // train.batch_tokens
        reason = f"{ratio:g} tokens for each of {params:,} parameters"
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
    vocab_size: int,
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
            muon, weight_decay=_scale_decay(muon.weight_decay, for_batch, train, model, vocab_size, facts, warnings),
            decay_follows_horizon=False,
        )  # fmt: skip
    if muon.ns_dtype == "auto":
        dtype = "float32" if train.dtype == "float16" else train.dtype
        muon = dataclasses.replace(muon, ns_dtype=dtype)
    return dataclasses.replace(optim, groups=tuple(groups), muon=muon)


def _scale_decay(weight_decay, for_batch, train, model, vocab_size, facts, warnings) -> float:
    if not isinstance(model, NanochatConfig):
        raise InputError(
            f"optim.muon.decay_follows_horizon=True has no rule for model.family={model.family}; set it to false"
        )
    horizon = horizon_tokens(train, model, vocab_size)
    by_rule = weight_decay * for_batch * reference_tokens(train, model, vocab_size) / horizon
    used = min(by_rule, max(MAX_WEIGHT_DECAY, weight_decay))
    facts["weight decay"] = f"{by_rule:.4g} for Muon's matrices"
    if used < by_rule:
        warnings.append(
            f"weight decay {by_rule:.3g} by nanochat's rule is held at {used:g}: the rule was made for depth 8 and "
            "more; --optim.muon.decay_follows_horizon=false --optim.muon.weight_decay=X sets your own"
        )
    return used
