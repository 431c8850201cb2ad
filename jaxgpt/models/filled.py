"""Attention over a cache that reads only what each row has filled, for one CPU.

A cache has room for a whole context, of which a short text fills little. Each row is read in blocks of BLOCK positions,
from the first that its window sees to its last token, and the softmax is carried from block to block (largest score,
sum, weighted values). The blocks of a row follow from its own length, and all run through one compiled loop. So a row
gets the same to the bit whoever its neighbours are, and no length has a program of its own. Blocks are copied before
they are multiplied: XLA on CPU turns a row's keys around for its product, and would do so with the whole cache.

Where eight rows are all nearly full, one product over the whole cache is faster, by about a third of the attention.

Reference: the online softmax of Milakov and Gimelshein, arXiv:1805.02867.
"""

import jax
import jax.numpy as jnp

from jaxgpt.models.packed_scan import MASKED

BLOCK = 64


def filled_attention(q_BTNH, k_BSKH, v_BSKH, offset_B, window):
    """What `attention` computes for queries after a cache. The number of blocks is not known when it is compiled, so
    it has no gradient.

    Args:
      k_BSKH, v_BSKH: views of [B, K, S, H], as `write_heads` returns them.
      offset_B: position of each row's first query; the caller keeps offset + T within S.
      window: keys that a query sees, itself included; None: all.
    """
    n_rows, n_queries, n_heads, head_dim = q_BTNH.shape
    n_slots, n_kv_heads = k_BSKH.shape[1:3]
    n_shared = n_heads // n_kv_heads  # query heads that see the same keys: further queries of that head
    size = min(BLOCK, n_slots)
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    heads = (n_rows, n_queries, n_kv_heads, n_shared, head_dim)
    q_BKTH = q_BTNH.reshape(heads).transpose(0, 2, 3, 1, 4).reshape(n_rows, n_kv_heads, -1, head_dim)

    def attend(row):
        q_KTH = q_BKTH[row]
        position_T = offset_B[row] + jnp.tile(jnp.arange(n_queries), n_shared)

        def add_block(i, carry):
            largest_KT, sum_KT, y_KTH = carry
            begin = jnp.minimum(i * size, n_slots - size)  # the last block may begin within the one before it
            where = [jnp.asarray(index, jnp.int32) for index in (row, 0, begin, 0)]  # of one type under x64 too
            block = (where, (1, n_kv_heads, size, head_dim))
            k_KSH, v_KSH = (jax.lax.dynamic_slice(x, *block)[0] for x in (k_BKSH, v_BKSH))
            key_S = begin + jnp.arange(size)
            distance_TS = position_T[:, None] - key_S
            is_seen_TS = (distance_TS >= 0) & (key_S >= i * size)
            if window is not None:
                is_seen_TS &= distance_TS < window
            scores_KTS = jnp.einsum("KTH,KSH->KTS", q_KTH, k_KSH, preferred_element_type=wide)
            scores_KTS = jnp.where(is_seen_TS, scores_KTS * head_dim**-0.5, MASKED)
            new_KT = jnp.maximum(largest_KT, scores_KTS.max(axis=-1))
            weights_KTS = jnp.where(is_seen_TS, jnp.exp(scores_KTS - new_KT[..., None]), 0)
            kept_KT = jnp.exp(largest_KT - new_KT)
            added_KTH = jnp.einsum("KTS,KSH->KTH", weights_KTS.astype(v_KSH.dtype), v_KSH, preferred_element_type=wide)
            return new_KT, sum_KT * kept_KT + weights_KTS.sum(axis=-1), y_KTH * kept_KT[..., None] + added_KTH

        first = 0 if window is None else jnp.maximum(offset_B[row] - (window - 1), 0) // size
        last = (offset_B[row] + n_queries - 1) // size
        nothing_KT = jnp.zeros(q_KTH.shape[:2], wide)
        nothing = (nothing_KT + MASKED, nothing_KT, jnp.zeros(q_KTH.shape, wide))
        _, sum_KT, y_KTH = jax.lax.fori_loop(first, last + 1, add_block, nothing)
        return (y_KTH / sum_KT[..., None]).astype(q_KTH.dtype)

    y_BKTH = jax.lax.map(attend, jnp.arange(n_rows))
    y_BTNH = y_BKTH.reshape(n_rows, n_kv_heads, n_shared, n_queries, head_dim).transpose(0, 3, 1, 2, 4)
    return y_BTNH.reshape(q_BTNH.shape)
