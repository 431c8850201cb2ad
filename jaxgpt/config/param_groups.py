"""What happens to each parameter: optimizer, learning rate, decay. Decided once, on the host, for both frameworks."""

import re
from dataclasses import dataclass

from jaxgpt.config.optimizer import GroupConfig, OptimConfig
from jaxgpt.errors import InputError, require


@dataclass(frozen=True)
class ParamSettings:
    """Settings of one parameter's update."""

    algorithm: str
    lr: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float


OVERRIDES = ("algorithm", "lr", "weight_decay", "beta1", "beta2", "eps")
"""What a group can override."""
TIED = ("wte.weight", "lm_head.weight")
"""What optim.tie_until ties: the embedding and the head, a row per token in both."""


def param_groups(config: OptimConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, ParamSettings]:
    """Path -> settings.

    AdamW decays parameters of rank two and more (nanoGPT). With algorithm=muon, matrices inside the blocks
    (`h.`) go to Muon. Then the first of `optim.groups` that matches a path overrides what it sets.

    Raises:
      InputError: a group matches no parameter, or sends one to Muon that is not a matrix; or optim.tie_until cannot
        tie embedding and head.
    """
    follows = [group.match for group in config.groups if group.lr_follows_width or group.lr_follows_batch]
    assert not follows and not config.muon.lr_follows_batch and config.muon.ns_dtype != "auto", "derive(config) first"
    settings, unused = {}, {group.match for group in config.groups}
    for path, shape in shapes.items():
        is_matrix = len(shape) >= 2
        group = next((g for g in config.groups if re.search(g.match, path)), GroupConfig(match=""))
        overrides = {name: getattr(group, name) for name in OVERRIDES if getattr(group, name) is not None}
        unused.discard(group.match)
        use_muon = config.algorithm == "muon" and is_matrix and path.startswith("h.")
        algorithm = overrides.pop("algorithm", "muon" if use_muon else "adamw")
        if algorithm == "muon" and len(shape) != 2:
            raise InputError(
                f"optim.groups: match={group.match!r} sends {path} of shape {shape} to muon; it updates matrices only"
            )
        moments = config.adam if algorithm == "adam" else config
        base = config.muon if algorithm == "muon" else moments
        settings[path] = ParamSettings(
            algorithm=algorithm,
            **{
                "lr": base.lr,
                "weight_decay": base.weight_decay if is_matrix else 0.0,
                "beta1": moments.beta1,
                "beta2": moments.beta2,
                "eps": moments.eps,
                **overrides,
            },
        )
    if unused:
        raise InputError(
            f"optim.groups: match={sorted(unused)[0]!r} matches no parameter; "
            f"parameters are {', '.join(list(shapes)[:3])} and so on"
        )
    if config.tie_until:
        _check_tied(config, shapes, settings)
    return settings


def _check_tied(config: OptimConfig, shapes: dict[str, tuple[int, ...]], settings: dict[str, ParamSettings]) -> None:
    tie = f"optim.tie_until={config.tie_until}"
    for path in TIED:
        require(path in shapes, f"{tie} ties {' and '.join(TIED)}, and the model has no {path}; set it to 0")
    wte, lm_head = TIED
    require(shapes[wte] == shapes[lm_head], f"{tie} ties {wte} {shapes[wte]} and {lm_head} {shapes[lm_head]}; set 0")
    require(
        settings[wte] == settings[lm_head],
        f"{tie} ties {wte} and {lm_head}, whose settings differ; let one of optim.groups match both",
    )
    every = config.adam.every if settings[wte].algorithm == "adam" else 1
    require(
        config.tie_until % every == 0,
        f"{tie} is not a multiple of optim.adam.every={every}; nearest: "
        f"{config.tie_until // every * every}, {(config.tie_until // every + 1) * every}",
    )
