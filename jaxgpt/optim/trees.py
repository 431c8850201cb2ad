"""Any pytree of parameters, in and out of an optimizer that works on lists of arrays."""

from collections.abc import Sequence
from typing import Any

import jax


def refuse_all_but_matrices(tree: Any) -> None:
    """Raises ValueError, which names the path, where a leaf is not a matrix."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if leaf.ndim != 2:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"muon: {name} has shape {leaf.shape}; Muon updates matrices [in, out], "
                "so give this parameter to another optimizer with optax.partition"
            )


def unflatten_like(tree: Any, leaves: Sequence[jax.Array]) -> Any:
    """These leaves in the form and the dtypes of a tree."""
    old, form = jax.tree.flatten(tree)
    return form.unflatten([new.astype(leaf.dtype) for leaf, new in zip(old, leaves, strict=True)])
