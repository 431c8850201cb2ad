"""jaxgpt/models/attention.py in PyTorch: `math` is xla's order of operations, `sdpa` is PyTorch's fused attention.

`sdpa` is flash attention on CUDA (bfloat16, float16) and on a CPU. It takes dropout on CUDA, where cudnn does not.
A window it knows only as a mask of T x S booleans: with one, PyTorch takes its memory-efficient kernel on CUDA.
"""

import torch
import torch.nn.functional as F

from jaxgpt.config import Config
from jaxgpt.errors import InputError
from torch_ref.models.cache import query_positions
from torch_ref.models.packed import MASKED, choose_packed


def choose_attention(config: Config, platform: str, device_kind: str = "") -> tuple[str, str]:
    """math or sdpa, and why. train.attention=xla asks for math, cudnn for sdpa; on a CPU auto takes sdpa too."""
    model, wanted, dtype = config.model, config.train.attention, config.train.dtype
    head_dim = model.head_dim
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    if model.HAS_PACKED_ATTENTION:
        return choose_packed(config, platform, device_kind)
    is_half = dtype in ("bfloat16", "float16")
    obstacles = {
        "cudnn": [
            (platform != "gpu", f"the platform is {platform}, not gpu"),
            (not is_half, f"train.dtype={dtype}; it takes bfloat16 or float16"),
            (head_dim > 256, f"head_dim={head_dim}; it takes up to 256"),
        ],
        "triton": [(True, f"model.family={model.family} has no documents to tell apart")],
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


def attention(
    q_BTNH, k_BSKH, v_BSKH, *, implementation="math", offset_B=None, window=None, dropout_rate=0.0, dropout_key=None
):
    """As in jaxgpt; implementation is math or sdpa, and dropout_key only says whether to drop."""
    assert offset_B is None or implementation == "math", "queries after a cache take math"
    if implementation == "sdpa":
        return _sdpa(q_BTNH, k_BSKH, v_BSKH, window, dropout_rate, dropout_key)
    assert implementation == "math", implementation
    return _math(q_BTNH, k_BSKH, v_BSKH, offset_B, window, dropout_rate, dropout_key)


def _math(q_BTNH, k_BSKH, v_BSKH, offset_B, window, dropout_rate, dropout_key):
    # No einsum of half precision gives float32: casting before is the same product, for float32 holds each exactly.
    wide = torch.promote_types(q_BTNH.dtype, torch.float32)
    k_BSNH, v_BSNH = (_repeat_heads(x, q_BTNH.shape[2]) for x in (k_BSKH, v_BSKH))
    scores_BNTS = torch.einsum("BTNH,BSNH->BNTS", q_BTNH.to(wide), k_BSNH.to(wide))
    is_seen_BTS = _is_seen(q_BTNH, k_BSKH, offset_B, window)
    scores_BNTS = torch.where(is_seen_BTS[:, None], scores_BNTS * q_BTNH.shape[-1] ** -0.5, MASKED)
    probs_BNTS = torch.softmax(scores_BNTS, dim=-1)
    if dropout_key is not None and dropout_rate > 0:
        probs_BNTS = F.dropout(probs_BNTS, dropout_rate)
    return torch.einsum("BNTS,BSNH->BTNH", probs_BNTS.to(v_BSNH.dtype), v_BSNH)


def _is_seen(q_BTNH, k_BSKH, offset_B, window):
    keys_S = torch.arange(k_BSKH.shape[1], device=k_BSKH.device)
    distance_BTS = query_positions(q_BTNH, offset_B)[..., None] - keys_S
    is_seen_BTS = distance_BTS >= 0
    if window is not None:
        is_seen_BTS &= distance_BTS < window
    return is_seen_BTS


def _repeat_heads(x_BSKH, n_heads):
    n_repeats = n_heads // x_BSKH.shape[2]
    return x_BSKH if n_repeats == 1 else x_BSKH.repeat_interleave(n_repeats, dim=2)


def _sdpa(q_BTNH, k_BSKH, v_BSKH, window, dropout_rate, dropout_key):
    # Heads are repeated here: with enable_gqa, PyTorch's memory-efficient kernel declines.
    n_heads = q_BTNH.shape[2]
    heads = (q_BTNH, _repeat_heads(k_BSKH, n_heads), _repeat_heads(v_BSKH, n_heads))
    q_BNTH, k_BNSH, v_BNSH = (x.transpose(1, 2) for x in heads)
    rate = 0.0 if dropout_key is None else dropout_rate
    is_seen_1TS = None if window is None else _is_seen(q_BTNH, k_BSKH, None, window)
    y_BNTH = F.scaled_dot_product_attention(
        q_BNTH, k_BNSH, v_BNSH, attn_mask=is_seen_1TS, dropout_p=rate, is_causal=window is None
    )
    return y_BNTH.transpose(1, 2)
