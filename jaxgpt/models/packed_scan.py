"""Attention over documents and windows in plain XLA: a loop over blocks of queries, on any device, in any float dtype.

A block of queries reads the keys that a window can reach before it, so memory and work grow with T x window instead of
T x T. The backward pass computes each block's probabilities again; of the forward pass only queries, keys and values
are kept. Heads stand before time inside the loop: XLA's products on a CPU are faster so.

References: Rabe and Staats, arXiv:2112.05682 (attention by blocks, with recomputation).
"""

import functools

import jax
import jax.numpy as jnp

MASKED = -1e30
"""Score of a key that must not be seen: finite, so that a row is never NaN; exp of it is exactly 0."""
BLOCK_SIZES = (16, 256)
"""Smallest and largest number of queries of a block."""


def packed_scan(q_BTNH, k_BTNH, v_BTNH, begin_BT, *, window, scale):
    """Causal softmax attention as `packed.packed_attention` has it; T may be any number."""
    n_rows, n_queries, n_heads, head_dim = q_BTNH.shape
    window = min(window, n_queries)
    block = choose_block(window)
    n_blocks = -(-n_queries // block)
    n_before = min(-(-(window - 1) // block), n_blocks - 1) * block
    n_after = n_blocks * block - n_queries
    q_BNTH, k_BNSH, v_BNSH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTNH, v_BTNH))
    k_BNSH, v_BNSH = (jnp.pad(x, ((0, 0), (0, 0), (n_before, n_after), (0, 0))) for x in (k_BNSH, v_BNSH))
    q_BNTH = jnp.pad(q_BNTH, ((0, 0), (0, 0), (0, n_after), (0, 0)))
    first_BT = jnp.pad(first_seen(begin_BT, window), ((0, 0), (0, n_after)))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def attend(inputs):
        i, q_BNTH, first_BT = inputs
        read_keys = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=n_before + block, axis=2)
        return _attend(q_BNTH, read_keys(k_BNSH, i * block), read_keys(v_BNSH, i * block), first_BT, i * block, scale)

    q_JBNTH = jnp.moveaxis(q_BNTH.reshape(n_rows, n_heads, n_blocks, block, head_dim), 2, 0)
    first_JBT = jnp.moveaxis(first_BT.reshape(n_rows, n_blocks, block), 1, 0)
    y_JBNTH = jax.lax.map(attend, (jnp.arange(n_blocks), q_JBNTH, first_JBT))
    y_BJTNH = y_JBNTH.transpose(1, 0, 3, 2, 4)
    return y_BJTNH.reshape(n_rows, n_blocks * block, n_heads, head_dim)[:, :n_queries]


def choose_block(window: int) -> int:
    """Queries of a block: the largest power of two up to half a window, inside BLOCK_SIZES."""
    smallest, largest = BLOCK_SIZES
    return min(max(1 << max(window // 2, 1).bit_length() - 1, smallest), largest)


def first_seen(begin_BT, window):
    """The first key that each query sees, int32 [B, T]; non-decreasing along T as `begin_BT` is."""
    return jnp.maximum(begin_BT, jnp.arange(begin_BT.shape[1], dtype=jnp.int32) - (window - 1))


def _attend(q_BNTH, k_BNSH, v_BNSH, first_BT, start, scale):
    """One block, whose first query stands at the position `start` and whose keys end with its last query."""
    n_queries, n_keys = q_BNTH.shape[2], k_BNSH.shape[2]
    queries_T1 = start + jnp.arange(n_queries)[:, None]
    keys_S = start + n_queries - n_keys + jnp.arange(n_keys)
    is_seen_BTS = (keys_S <= queries_T1) & (keys_S >= first_BT[..., None])
    wide = jnp.promote_types(q_BNTH.dtype, jnp.float32)
    scores_BNTS = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k_BNSH, preferred_element_type=wide)
    scores_BNTS = jnp.where(is_seen_BTS[:, None], scores_BNTS * scale, MASKED)
    probs_BNTS = jax.nn.softmax(scores_BNTS, axis=-1)
    return jnp.einsum("BNTS,BNSH->BNTH", probs_BNTS.astype(v_BNSH.dtype), v_BNSH)
