"""Rotary positions from a table of frequencies, with a position per head.

References: arXiv:2104.09864; half-truncated, as in https://github.com/KellerJordan/modded-nanogpt (93f0e6b).
"""

import jax.numpy as jnp


def rotary_tables(positions_BTN, frequencies_R, dtype):
    """Cosines and sines of positions x frequencies, [B, T, N, R] each.

    Args:
      positions_BTN: integers; axes of size 1 stand for all rows, or all heads.
      frequencies_R: radians per position, in the type that the angles are computed in. 0: no rotation.
      dtype: what the tables are rounded to. Products of cosines, or bfloat16 angles, are no substitute: positions go to
        262,144.
    """
    angles_BTNR = positions_BTN[..., None].astype(frequencies_R.dtype) * frequencies_R
    return jnp.cos(angles_BTNR).astype(dtype), jnp.sin(angles_BTNR).astype(dtype)


def rotate(x_BTNH, tables, layout):
    """Turns pairs of channels by minus the angle, in float32 or wider, and rounds once.

    Args:
      tables: of `rotary_tables`.
      layout: pairs are the channels 2 r and 2 r + 1, halves are r and r + R, where R is half of H.
    """
    cos_BTNR, sin_BTNR = (table.astype(jnp.promote_types(x_BTNH.dtype, jnp.float32)) for table in tables)
    half = x_BTNH.shape[-1] // 2
    if layout == "pairs":
        a_BTNR, b_BTNR = x_BTNH[..., 0::2], x_BTNH[..., 1::2]
    else:
        a_BTNR, b_BTNR = x_BTNH[..., :half], x_BTNH[..., half:]
    turned = (a_BTNR * cos_BTNR + b_BTNR * sin_BTNR, b_BTNR * cos_BTNR - a_BTNR * sin_BTNR)
    if layout == "pairs":
        return jnp.stack(turned, axis=-1).reshape(x_BTNH.shape).astype(x_BTNH.dtype)
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)
