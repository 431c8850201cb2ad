"""Where documents begin in rows of packed ones: at each BOS, as the tokens themselves say."""

import jax
import jax.numpy as jnp


def document_begins(tokens_BT, bos_id):
    """Position of the last BOS at or before each token, int32 [B, T]; 0 before the first. It never decreases."""
    positions_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(tokens_BT == bos_id, positions_T, 0), axis=1)
