"""jaxgpt/models/packed.py in PyTorch."""

from torch_ref.models.cached_attention import cached_attention


def packed_attention(q_BTNH, k_BTNH, v_BTNH, begin_BT, *, window, scale, implementation="math"):
    assert implementation == "math", implementation
    return cached_attention(q_BTNH, k_BTNH, v_BTNH, begin_BT, None, window=window, scale=scale)
