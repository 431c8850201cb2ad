"""The state of any optimizer by names that last: `{"count": ..., "mu": {path: ...}, "momentum": {path: ...}}`.

optax nests a state as its transformations are nested. Checkpoints, shardings and torch_ref must not depend on that, so
the names come from the leaves: the field that a leaf is in, then the path of its parameter.
"""

from typing import Any

import jax
import optax

Named = dict[str, Any]


def to_names(state: optax.OptState, params: Any) -> Named:
    """Field -> leaf, or field -> {path of a parameter -> leaf}.

    A leaf that belongs to no parameter, such as a count of steps, is kept once by its field's name: every
    transformation has counted the same steps.
    """
    paths = param_paths(params)
    named: Named = {}
    for keys, leaf in jax.tree.leaves_with_path(state):
        field, path = name_leaf(keys, paths)
        if path is None:
            assert field not in named or named[field].shape == leaf.shape, f"two states have a leaf {field}"
            named[field] = leaf
        else:
            leaves = named.setdefault(field, {})
            assert path not in leaves, f"two states have a leaf {field}.{path}"
            leaves[path] = leaf
    return named


def from_names(named: Named, like: optax.OptState, params: Any) -> optax.OptState:
    """The inverse of `to_names`.

    Args:
      like: a state of the wanted form, such as jax.eval_shape of `init`; its leaves are not read.
    """
    paths = param_paths(params)

    def find(keys, _):
        field, path = name_leaf(keys, paths)
        return named[field] if path is None else named[field][path]

    return jax.tree.map_with_path(find, like)


def with_names(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same transformation, whose state is by name."""
    transform = optax.with_extra_args_support(transform)

    def init(params):
        return to_names(transform.init(params), params)

    def update(updates, state, params=None, **extra):
        like = jax.eval_shape(transform.init, params)
        updates, state = transform.update(updates, from_names(state, like, params), params, **extra)
        return updates, to_names(state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def param_paths(params: Any) -> dict[tuple, str]:
    """Keys of each parameter in its tree -> its path, such as h.0.attn.c_q.weight."""
    keys = [keys for keys, _ in jax.tree.leaves_with_path(params)]
    return {key: jax.tree_util.keystr(key, simple=True, separator=".") for key in keys}


def name_leaf(keys: tuple, paths: dict[tuple, str]) -> tuple[str, str | None]:
    """The last field before the parameter's path, and that path, of a leaf of a state; None if it has no parameter."""
    start = next((i for i in range(len(keys)) if keys[i:] in paths), len(keys))
    fields = [key.name for key in keys[:start] if isinstance(key, jax.tree_util.GetAttrKey)]
    return fields[-1], paths.get(keys[start:])
