"""jaxgpt/models/cached_attention.py in PyTorch."""

import torch

from torch_ref.models.cache import query_positions

MASKED = -1e30


def cached_attention(q_BTNH, k_BSNH, v_BSNH, begin_BT, offset_B, *, window, scale):
    # No einsum of half precision gives float32: casting before is the same product, for float32 holds each exactly.
    wide = torch.promote_types(q_BTNH.dtype, torch.float32)
    scores_BNTS = torch.einsum("BTNH,BSNH->BNTS", q_BTNH.to(wide), k_BSNH.to(wide)) * scale
    keys_S = torch.arange(k_BSNH.shape[1], device=k_BSNH.device)
    distance_BTS = query_positions(q_BTNH, offset_B)[..., None] - keys_S
    is_seen_BTS = (distance_BTS >= 0) & (distance_BTS < window) & (keys_S >= begin_BT[..., None])
    probs_BNTS = torch.softmax(torch.where(is_seen_BTS[:, None], scores_BNTS, MASKED), dim=-1)
    return torch.einsum("BNTS,BSNH->BTNH", probs_BNTS.to(v_BSNH.dtype), v_BSNH)
