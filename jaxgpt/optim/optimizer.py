"""The optimizer of a run: AdamW, Adam and Muon, each parameter's by its path, with schedules as arrays.

`jaxgpt.config.param_groups` decides on the host, once, what happens to each parameter. Parameters with the same
settings are updated by one transformation, and `optax.partition` joins these.
"""

from collections.abc import Hashable
from typing import Any

import optax

from jaxgpt.config.optimizer import OptimConfig
from jaxgpt.config.param_groups import TIED, ParamSettings
from jaxgpt.optim.adam import adam
from jaxgpt.optim.adamw import adamw
from jaxgpt.optim.muon import muon
from jaxgpt.optim.state_names import with_names
from jaxgpt.optim.tied import tied


def optimizer(config: OptimConfig, groups: dict[str, ParamSettings]) -> optax.GradientTransformationExtraArgs:
    """The update of a flat dict of parameters; its state is by name (`state_names`).

    Clipping comes before it: see `clip_by_global_norm`. `update` takes the step's schedules as `hyper`.
    """
    kinds = {path: (setting, config.tie_until > 0 and path in TIED) for path, setting in groups.items()}
    unique = list(dict.fromkeys(kinds.values()))
    labels = {path: unique.index(kind) for path, kind in kinds.items()}
    transforms: dict[Hashable, Any] = {i: transformation(config, *kind) for i, kind in enumerate(unique)}
    return with_names(optax.partition(transforms, labels))


def transformation(config: OptimConfig, setting: ParamSettings, is_tied: bool) -> optax.GradientTransformationExtraArgs:
    """The update of the parameters that have these settings; `is_tied`: of embedding and head."""
    if is_tied:
        return tied(transformation(config, setting, False), config.tie_until)
    moments = {"beta1": setting.beta1, "beta2": setting.beta2, "eps": setting.eps}
    if setting.algorithm == "adamw":
        return adamw(setting.lr, **moments, weight_decay=setting.weight_decay)
    if setting.algorithm == "adam":
        return adam(setting.lr, **moments, weight_decay=setting.weight_decay, every=config.adam.every)
    return muon(setting.lr, weight_decay=setting.weight_decay, **config.muon.of_update())
