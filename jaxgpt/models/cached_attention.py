"""Attention of new queries over a cache of keys and values, within documents and windows."""

import jax
import jax.numpy as jnp

from jaxgpt.models.cache import query_positions

MASKED = -1e30
"""Score of a key that must not be seen: finite, so that a row is never NaN; exp of it is exactly 0."""


def cached_attention(q_BTNH, k_BSNH, v_BSNH, begin_BT, offset_B, *, window, scale):
    """Softmax attention: the query at position p of its row sees the keys max(begin, p - window + 1) .. p.

    Args:
      q_BTNH, k_BSNH, v_BSNH: one dtype; the softmax runs in float32 or wider.
      begin_BT: first position of each query's document.
      offset_B: position of each row's first query; None: 0.
      window: keys that a query sees, itself included.
      scale: what scores are multiplied with.
    """
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH, preferred_element_type=wide) * scale
    keys_S = jnp.arange(k_BSNH.shape[1])
    distance_BTS = query_positions(q_BTNH, offset_B)[..., None] - keys_S
    is_seen_BTS = (distance_BTS >= 0) & (distance_BTS < window) & (keys_S >= begin_BT[..., None])
    probs_BNTS = jax.nn.softmax(jnp.where(is_seen_BTS[:, None], scores_BNTS, MASKED), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", probs_BNTS.astype(v_BSNH.dtype), v_BSNH)
