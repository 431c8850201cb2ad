"""Causal attention over rows of packed documents, in windows."""

from jaxgpt.models.cached_attention import cached_attention


def packed_attention(q_BTNH, k_BTNH, v_BTNH, begin_BT, *, window, scale, implementation="xla"):
    """Softmax attention: query t sees the keys max(begin_t, t - window + 1) .. t of its row.

    Args:
      q_BTNH, k_BTNH, v_BTNH: one dtype; the softmax runs in float32 or wider.
      begin_BT: int32, first position of each query's document; never decreases along a row.
      window: keys that a query sees, itself included.
      scale: what scores are multiplied with.
      implementation: xla, which writes the T x T scores out.
    """
    assert implementation == "xla", implementation
    return cached_attention(q_BTNH, k_BTNH, v_BTNH, begin_BT, None, window=window, scale=scale)
