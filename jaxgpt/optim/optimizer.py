"""The optimizer of a run: AdamW and Muon, each parameter's by its path, with schedules as arrays.

`jaxgpt.config.param_groups` decides on the host, once, what happens to each parameter. Parameters with the same
settings are updated by one transformation, and `optax.partition` joins these.
"""

from collections.abc import Hashable
from typing import Any

import optax

from jaxgpt.config.optimizer import OptimConfig
from jaxgpt.config.param_groups import ParamSettings
from jaxgpt.optim.adamw import adamw
from jaxgpt.optim.muon import muon
from jaxgpt.optim.state_names import with_names


def optimizer(config: OptimConfig, groups: dict[str, ParamSettings]) -> optax.GradientTransformationExtraArgs:
    """The update of a flat dict of parameters; its state is by name (`state_names`).

    Clipping comes before it: see `clip_by_global_norm`. `update` takes the step's schedules as `hyper`.
    """
    settings = list(dict.fromkeys(groups.values()))
    labels = {path: settings.index(setting) for path, setting in groups.items()}
    transforms: dict[Hashable, Any] = {i: transformation(config, setting) for i, setting in enumerate(settings)}
    return with_names(optax.partition(transforms, labels))


def transformation(config: OptimConfig, setting: ParamSettings) -> optax.GradientTransformationExtraArgs:
    """The update of the parameters that have these settings."""
    if setting.algorithm == "adamw":
        return adamw(
            setting.lr, beta1=setting.beta1, beta2=setting.beta2, eps=setting.eps, weight_decay=setting.weight_decay
        )
    return muon(setting.lr, weight_decay=setting.weight_decay, **config.muon.of_update())
