"""Weights in fewer bits for decoding: bfloat16, or int8 with a scale per output channel."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxgpt.config.families import ModdedConfig
from jaxgpt.errors import InputError
from jaxgpt.inference.trained import Trained
from jaxgpt.models.int8 import MIN_ELEMENTS, quantize

Kind = Literal["bfloat16", "int8"]

TABLES = ("wte.weight", "lm_head.weight")
"""Stored with a row per token; linear weights are [in, out]."""
KEPT = ("wpe.weight", "value_embeds")
"""Tables that are only looked up in: few of their bytes are read per token."""


def with_weights(trained: Trained, kind: Kind) -> Trained:
    """The model with lighter weights; it computes in the dtype it did.

    Raises:
      InputError: the family scales its weights while it runs, which int8 has no place for.
    """
    if kind == "int8" and isinstance(trained.model, ModdedConfig):
        raise InputError(f"--weights=int8 cannot serve model.family={trained.model.family}; bfloat16 can")
    params = {path: _convert(path, leaf, kind) for path, leaf in trained.params.items()}
    return dataclasses.replace(trained, params=params, origin=f"{trained.origin} ({kind} weights)")


def _convert(path: str, leaf: jax.Array, kind: Kind):
    if leaf.ndim != 2 or leaf.size < MIN_ELEMENTS:
        return leaf
    if kind == "bfloat16":
        return leaf.astype(jnp.bfloat16)
    if path.startswith(KEPT):
        return leaf
    return _quantize(leaf, is_table=path in TABLES)


@functools.partial(jax.jit, static_argnames="is_table")
def _quantize(weight, *, is_table: bool):
    return quantize(weight if is_table else weight.T)
