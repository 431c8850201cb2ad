"""jaxgpt/attention.py in PyTorch: `math` is xla's order of operations, `sdpa` is PyTorch's fused attention.

`sdpa` is flash attention on CUDA (bfloat16, float16) and on a CPU. It takes dropout on CUDA, where cudnn does not.
"""

import torch
import torch.nn.functional as F

from jaxgpt.config import Config
from jaxgpt.errors import InputError

MASKED = -1e30


def choose_attention(config: Config, platform: str) -> tuple[str, str]:
    """math or sdpa, and why. train.attention=xla asks for math, cudnn for sdpa; on a CPU auto takes sdpa too."""
    model, wanted, dtype = config.model, config.train.attention, config.train.dtype
    head_dim = model.head_dim
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    is_half = dtype in ("bfloat16", "float16")
    obstacles = {
        "cudnn": [
            (platform != "gpu", f"the platform is {platform}, not gpu"),
            (not is_half, f"train.dtype={dtype}; it takes bfloat16 or float16"),
            (head_dim > 256, f"head_dim={head_dim}; it takes up to 256"),
        ],
        "splash": [(True, f"the platform is {platform}, not tpu")],
        "auto": [
            (platform == "gpu" and not is_half, f"train.dtype={dtype}; it takes bfloat16 or float16"),
            (dtype == "float64", f"train.dtype={dtype}; it takes float32 at most"),
            (head_dim > 256, f"head_dim={head_dim}; it takes up to 256"),
            (platform == "cpu" and model.dropout > 0, f"model.dropout={model.dropout} is not fused on a CPU"),
        ],
        "xla": [],
    }
    reasons = [reason for is_met, reason in obstacles[wanted] if is_met]
    if wanted == "auto" and reasons:
        return "math", f"sdpa cannot: {reasons[0]}; memory grows with seq_len squared"
    if reasons:
        raise InputError(f"train.attention={wanted} cannot run: {reasons[0]}; --train.attention=xla can")
    if wanted == "auto":
        return "sdpa", "flash"
    return "math" if wanted == "xla" else "sdpa", "as configured"


def attention(q_BTNH, k_BSNH, v_BSNH, *, implementation="math", offset=0, dropout_rate=0.0, dropout_key=None):
    """As in jaxgpt; implementation is math or sdpa, and dropout_key only says whether to drop."""
    if implementation == "sdpa":
        assert offset == 0, "queries after a cache take math"
        return _sdpa(q_BTNH, k_BSNH, v_BSNH, dropout_rate, dropout_key)
    assert implementation == "math", implementation
    return _math(q_BTNH, k_BSNH, v_BSNH, offset, dropout_rate, dropout_key)


def _math(q_BTNH, k_BSNH, v_BSNH, offset, dropout_rate, dropout_key):
    # No einsum of half precision gives float32: casting before is the same product, for float32 holds each exactly.
    wide = torch.promote_types(q_BTNH.dtype, torch.float32)
    n_queries, n_keys, head_dim = q_BTNH.shape[1], k_BSNH.shape[1], q_BTNH.shape[-1]
    scores_BNTS = torch.einsum("BTNH,BSNH->BNTS", q_BTNH.to(wide), k_BSNH.to(wide))
    positions_T, positions_S = (torch.arange(n, device=q_BTNH.device) for n in (n_queries, n_keys))
    is_seen_TS = offset + positions_T[:, None] >= positions_S[None, :]
    scores_BNTS = torch.where(is_seen_TS, scores_BNTS * head_dim**-0.5, MASKED)
    probs_BNTS = torch.softmax(scores_BNTS, dim=-1)
    if dropout_key is not None and dropout_rate > 0:
        probs_BNTS = F.dropout(probs_BNTS, dropout_rate)
    return torch.einsum("BNTS,BSNH->BTNH", probs_BNTS.to(v_BSNH.dtype), v_BSNH)


def _sdpa(q_BTNH, k_BSNH, v_BSNH, dropout_rate, dropout_key):
    q_BNTH, k_BNSH, v_BNSH = (x.transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    rate = 0.0 if dropout_key is None else dropout_rate
    y_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, dropout_p=rate, is_causal=True)
    return y_BNTH.transpose(1, 2)
