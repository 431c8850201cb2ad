"""Weights and optimizer state between jaxgpt and torch_ref: each family's rules say which are transposed.

Both sides name every leaf of a state alike (`params.wte.weight`, `opt_state.mu.h.0.attn.c_attn.weight`, `step`), and
values are moved, never computed: there and back is the identity, bit for bit. numpy stands for jaxgpt here.
"""

import re
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch

from jaxgpt.config.families import ModelConfig
from jaxgpt.errors import InputError

SCALARS = r"step|n_skipped|n_skipped_in_row|loss_scale\.(scale|n_good)|opt_state\.count"
"""Leaves of a state that belong to no parameter."""

TREES = r"(params|opt_state\.(mu|nu|grad_sum|momentum|square))\."
"""Prefixes of a state's trees by parameter; each leaf follows its parameter's rule."""


def is_transposed(path: str) -> bool:
    """Whether torch_ref stores this leaf the other way round: linear weights are [in, out] there, [out, in] here.

    Raises:
      InputError: neither framework uses the name.
    """
    name = re.sub(f"^{TREES}", "", path)
    if re.fullmatch(SCALARS, name):
        return False
    for family in get_args(ModelConfig):
        for rule in family.RULES:
            if re.fullmatch(rule.pattern, name):
                return rule.is_transposed
    raise InputError(f"weights: {path} is no parameter of these models; check where the weights come from")


def to_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Parameters or leaves of a state, jaxgpt's -> torch_ref's, in memory of their own on the CPU."""
    return {
        path: torch.from_numpy(np.array(np.transpose(array) if is_transposed(path) else array, order="C"))
        for path, array in arrays.items()
    }


def to_numpy(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The inverse of `to_torch`, from any device."""
    arrays = {path: tensor.detach().cpu().numpy() for path, tensor in tensors.items()}
    return {
        path: np.array(np.transpose(array) if is_transposed(path) else array, order="C")
        for path, array in arrays.items()
    }


def by_path(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts and NamedTuples by the names that jaxgpt gives them."""
    children = _children(tree)
    if children is None:
        return {prefix: tree}
    parts = [by_path(child, _join(prefix, name)) for name, child in children.items()]
    return {path: leaf for part in parts for path, leaf in part.items()}


def with_leaves(tree: Any, leaves: Mapping[str, Any], prefix: str = "") -> Any:
    """A tree of the same form with other leaves: the inverse of `by_path`."""
    children = _children(tree)
    if children is None:
        return leaves[prefix]
    built = {name: with_leaves(child, leaves, _join(prefix, name)) for name, child in children.items()}
    return built if isinstance(tree, Mapping) else type(tree)(**built)


def _children(tree: Any) -> Mapping[str, Any] | None:
    if isinstance(tree, Mapping):
        return tree
    return tree._asdict() if hasattr(tree, "_asdict") else None


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def refuse_foreign(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Any], source: str) -> None:
    """Raises InputError, which names the tensor, unless names and shapes are those of `shapes`."""
    for path in shapes:
        if path not in tensors:
            raise InputError(f"{source} lacks {path}; it is another model, or not all of it")
    for path, tensor in tensors.items():
        if path not in shapes:
            raise InputError(f"{source} holds {path}, which this model does not have; check model.* of the config")
        found, wanted = tuple(tensor.shape), tuple(shapes[path].shape)
        if found != wanted:
            hint = "transpose it" if found == wanted[::-1] else "check model.* of the config"
            raise InputError(f"{source}: {path} is {found}, this model has {wanted}; {hint}")
