"""Rows of a cache: where the new tokens of each row stand, and how they are written.

Rows of one batch have different lengths. `offset_B` [B] says how many tokens of a row are cached already: its new
tokens stand at the positions offset .. offset + T, in the cache as in the text. Slots behind a row's last token hold
anything: no query looks there before they are overwritten.
"""

import jax
import jax.numpy as jnp


def query_positions(x_BT, offset_B=None):
    """Positions of the new tokens of each row, [B, T]; without a cache [1, T], from 0 in all rows.

    Args:
      x_BT: an array with such leading axes.
    """
    positions_1T = jnp.arange(x_BT.shape[1])[None]
    return positions_1T if offset_B is None else offset_B[:, None] + positions_1T


def init_heads(n_rows: int, n_heads: int, n_positions: int, head_dim: int, dtype):
    """Empty keys or values, [B, K, S, H]: a head's positions are neighbours in memory, as products with them want it.

    With [B, S, K, H], as they are computed, XLA on CPU would copy all of a cache at each step.
    """
    return jnp.zeros((n_rows, n_heads, n_positions, head_dim), dtype)


def write_heads(old_BKSH, new_BTKH, offset_B):
    """Puts new keys or values at each row's own offset.

    Returns:
      The cache, and a view of it as [B, S, K, H], which `attention` takes.
    """
    write = jax.vmap(jax.lax.dynamic_update_slice_in_dim, in_axes=(0, 0, 0, None))
    new_BKSH = write(old_BKSH, new_BTKH.swapaxes(1, 2), offset_B, 1)
    return new_BKSH, new_BKSH.swapaxes(1, 2)


def write_rows(old_BS, new_BT, offset_B):
    """Puts the new entries of each row at its own offset. Both arrays may have more axes.

    The caller keeps offset + T within S: XLA would shift a write that runs over the end.
    """
    return jax.vmap(jax.lax.dynamic_update_slice_in_dim, in_axes=(0, 0, 0, None))(old_BS, new_BT, offset_B, 0)
