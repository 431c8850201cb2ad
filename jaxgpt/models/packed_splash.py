"""Flash attention over documents and windows on a TPU: JAX's splash kernel, with documents as segments.

The kernel leaves out what no window reaches, block by block and when it is built; documents it masks inside the blocks
that remain. Building it evaluates the mask of all T x T / block^2 blocks on the host, once per length and window:
rows are therefore at most LONGEST_ROW tokens, and longer batches have more rows.
"""

import jax

from jaxgpt.models.splash import one_pass, splash_kernel

ROW_MULTIPLE = 128
"""A row is a multiple of so many tokens: the smallest block."""
LONGEST_ROW = 16_384


def packed_splash(q_BTNH, k_BTNH, v_BTNH, begin_BT, *, window, scale, interpret=False):
    """Causal softmax attention as `packed.packed_attention` has it; T a multiple of ROW_MULTIPLE.

    Args:
      interpret: runs the kernel's own steps one by one, on any machine.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    seq_len, n_heads = q_BTNH.shape[1:3]
    assert seq_len % ROW_MULTIPLE == 0, q_BTNH.shape
    kernel = splash_kernel(seq_len, n_heads, min(window, seq_len), interpret)

    def attend(q_BNTH, k_BNSH, v_BNSH, begin_BT):
        return jax.vmap(kernel)(q_BNTH, k_BNSH, v_BNSH, SegmentIds(q=begin_BT, kv=begin_BT))

    heads_first = [x.swapaxes(1, 2) for x in (q_BTNH * scale, k_BTNH, v_BTNH)]
    y_BNTH: jax.Array = one_pass(attend, *heads_first, begin_BT)  # pyright: ignore[reportAssignmentType]
    return y_BNTH.swapaxes(1, 2)
