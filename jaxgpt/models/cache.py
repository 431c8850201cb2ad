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


def write_rows(old_BS, new_BT, offset_B):
    """Puts the new entries of each row at its own offset. Both arrays may have more axes.

    The caller keeps offset + T within S: XLA would shift a write that runs over the end.
    """
    return jax.vmap(jax.lax.dynamic_update_slice_in_dim, in_axes=(0, 0, 0, None))(old_BS, new_BT, offset_B, 0)
