"""Causal attention of whole rows on a CPU, in a few blocks of queries: each takes only the keys that it can see.

Four blocks leave out three eighths of a row's scores, and shorter rows of scores stay in a core's cache. Memory still
grows with T squared: `packed_scan` goes by windows and computes scores again.
"""

import jax
import jax.numpy as jnp

from jaxgpt.models.packed_scan import MASKED

N_BLOCKS, SMALLEST = 4, 64
"""Blocks of a row, and queries of a block at least: shorter products use a core badly (docs/log.md)."""


def causal_blocks(q_BTNH, k_BTNH, v_BTNH, *, window=None):
    """Softmax attention of rows to themselves, in one dtype; the softmax runs in float32 or wider.

    Args:
      window: keys that a query sees, itself included; None: all before it.

    Returns:
      An array like q_BTNH, scaled by 1 / sqrt(H) before the softmax.
    """
    n_queries, head_dim = q_BTNH.shape[1], q_BTNH.shape[-1]
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    block = max(-(-n_queries // N_BLOCKS), SMALLEST)
    q_BNTH, k_BNSH, v_BNSH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTNH, v_BTNH))
    parts = []
    for begin in range(0, n_queries, block):
        end = min(begin + block, n_queries)
        first = 0 if window is None else max(0, begin - window + 1)
        scores_BNTS = jnp.einsum(
            "BNTH,BNSH->BNTS", q_BNTH[:, :, begin:end], k_BNSH[:, :, first:end], preferred_element_type=wide
        )
        distance_TS = jnp.arange(begin, end)[:, None] - jnp.arange(first, end)
        is_seen_TS = distance_TS >= 0 if window is None else (distance_TS >= 0) & (distance_TS < window)
        probs_BNTS = jax.nn.softmax(jnp.where(is_seen_TS, scores_BNTS * head_dim**-0.5, MASKED), axis=-1)
        parts.append(jnp.einsum("BNTS,BNSH->BTNH", probs_BNTS.astype(v_BNSH.dtype), v_BNSH[:, :, first:end]))
    return jnp.concatenate(parts, axis=1)
