"""jaxgpt/optim/optimizer.py in PyTorch, without torch.optim: the state is jaxgpt's, so a run can change framework.

`optax.partition` and the names of the state are a loop here: each transformation sees its parameters' part of the one
state, and the count of steps is written once, behind all of them.
"""

from typing import Any

import torch

from jaxgpt.config.optimizer import OptimConfig
from jaxgpt.config.param_groups import TIED, ParamSettings
from torch_ref.optim.adam import adam
from torch_ref.optim.adamw import adamw
from torch_ref.optim.muon import muon
from torch_ref.optim.tied import tied
from torch_ref.optim.transformation import Transformation, write


def optimizer(config: OptimConfig, groups: dict[str, ParamSettings]) -> Transformation:
    kinds = {path: (setting, config.tie_until > 0 and path in TIED) for path, setting in groups.items()}
    unique = list(dict.fromkeys(kinds.values()))
    parts = [(transformation(config, *kind), [path for path in kinds if kinds[path] == kind]) for kind in unique]

    def init(params):
        state: dict[str, Any] = {"count": torch.zeros((), dtype=torch.int32, device=next(iter(params.values())).device)}
        for transform, paths in parts:
            for name, leaves in transform.init(choose(params, paths)).items():
                state.setdefault(name, {}).update(leaves)
        return state

    def update(grads, state, params, *, hyper, is_finite):
        for transform, paths in parts:
            own = {name: leaf if name == "count" else choose(leaf, paths) for name, leaf in state.items()}
            transform.update(choose(grads, paths), own, choose(params, paths), hyper=hyper, is_finite=is_finite)
        write(state["count"], state["count"] + 1, is_finite)

    return Transformation(init, update)


def choose(tree: dict[str, torch.Tensor], paths: list[str]) -> dict[str, torch.Tensor]:
    """The part of a tree that belongs to these paths; a field of a state need not have all."""
    return {path: tree[path] for path in paths if path in tree}


def transformation(config: OptimConfig, setting: ParamSettings, is_tied: bool) -> Transformation:
    if is_tied:
        return tied(transformation(config, setting, False), config.tie_until)
    moments = {"beta1": setting.beta1, "beta2": setting.beta2, "eps": setting.eps}
    if setting.algorithm == "adamw":
        return adamw(setting.lr, **moments, weight_decay=setting.weight_decay)
    if setting.algorithm == "adam":
        return adam(setting.lr, **moments, weight_decay=setting.weight_decay, every=config.adam.every)
    return muon(setting.lr, weight_decay=setting.weight_decay, **config.muon.of_update())
