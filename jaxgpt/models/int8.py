"""Weights of eight bits for decoding: a quarter of float32's bytes, which a row that decodes alone waits for.

A weight has a scale per output channel, its largest magnitude over 127. Activations get one per row, as they come, so
that the product is one of integers, exact and the same for a row whoever its neighbours are. Both roundings change
what the model says: logits by a few percent of their spread.

Reference: LLM.int8, arXiv:2208.07339, section 2.1 (vector-wise quantization), without its outliers.
"""

import functools

import jax
import jax.numpy as jnp

LEVELS = 127
MIN_ELEMENTS = 1 << 12
"""Smaller weights, such as those of gates, keep their dtype."""
MIN_ROWS = 2
"""XLA on CPU multiplies one row of int8 slowly, two and more fast."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values_OI", "scale_O"], meta_fields=[])
class Int8Weight:
    """A matrix in place of a float one.

    Attributes:
      values_OI: int8 in [-127, 127], a row per output channel, or per token of an embedding.
      scale_O: float32; a row's values times its scale are its weights.
    """

    def __init__(self, values_OI, scale_O):
        self.values_OI, self.scale_O = values_OI, scale_O

    def __getitem__(self, ids):
        """All of it for `...`; else rows by id, in float32."""
        if ids is Ellipsis:
            return self
        return self.values_OI[ids].astype(jnp.float32) * self.scale_O[ids][..., None]


def quantize(weight_OI) -> Int8Weight:
    """The nearest of 255 evenly spaced numbers for each weight."""
    values_OI, scale_O = _round_rows(weight_OI.astype(jnp.float32))
    return Int8Weight(values_OI, scale_O)


def int8_product(x_PI, weight: Int8Weight):
    """x @ weight, float32 [P, O]."""
    n_rows = x_PI.shape[0]
    x_PI = jnp.pad(x_PI.astype(jnp.float32), ((0, max(MIN_ROWS - n_rows, 0)), (0, 0)))
    values_PI, scale_P = _round_rows(x_PI)
    y_PO = jax.lax.dot_general(
        values_PI, weight.values_OI, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )  # fmt: skip
    return (y_PO.astype(jnp.float32) * scale_P[:, None] * weight.scale_O)[:n_rows]


def _round_rows(x_PI):
    """int8 values and a float32 scale per row; a row of zeros has scale 0."""
    scale_P = jnp.abs(x_PI).max(axis=1) / LEVELS
    values_PI = jnp.round(x_PI / jnp.where(scale_P > 0, scale_P, 1)[:, None])
    return values_PI.astype(jnp.int8), scale_P
