"""NorMuon: the orthogonalized update divided by a running root mean square of each output (arXiv:2510.05491)."""

import jax
import jax.numpy as jnp

NORMUON_EPS = 1e-10
"""Smallest mean square, and smallest norm, that NorMuon divides by."""


def mean_square(direction_IO, axis_if_square="inputs"):
    """Mean of squares over the shorter axis, `inputs` or `outputs` if they are equal: [1, O] or [I, 1]."""
    n_in, n_out = direction_IO.shape
    is_over_inputs = n_out > n_in or (n_out == n_in and axis_if_square == "inputs")
    return (direction_IO * direction_IO).mean(axis=0 if is_over_inputs else 1, keepdims=True)


def normuon(direction_IO, square, beta2, axis_if_square="inputs"):
    """Divides each output (each input of a wide matrix) by its running root mean square; the matrix keeps its norm.

    Args:
      square: running mean of `mean_square`, not corrected for its start at zero.

    Returns:
      direction, square.
    """
    now = mean_square(direction_IO, axis_if_square)
    square = square + (1 - beta2) * (now - square)
    n_averaged = direction_IO.size // now.size
    step = jax.lax.rsqrt(jnp.maximum(square, NORMUON_EPS))
    norm, new_norm = (jnp.sqrt(n_averaged * s.sum()) for s in (now, now * step * step))
    return direction_IO * (step * (norm / jnp.maximum(new_norm, NORMUON_EPS))), square
