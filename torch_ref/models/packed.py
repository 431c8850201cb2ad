"""jaxgpt/models/packed.py in PyTorch: `math` writes the mask and the scores out, `flex` is FlexAttention on CUDA.

FlexAttention skips the blocks that a mask leaves empty, as jaxgpt's kernels do. On a CPU it has no backward pass.
"""

import functools

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from jaxgpt.config import Config
from jaxgpt.errors import InputError
from torch_ref.models.cache import query_positions

MASKED = -1e30


def choose_packed(config: Config, platform: str, device_kind: str = "") -> tuple[str, str]:
    """math or flex, and why. train.attention=xla asks for math, triton for flex; device_kind is not looked at."""
    model, wanted, dtype = config.model, config.train.attention, config.train.dtype
    is_power_of_two = model.head_dim & (model.head_dim - 1) == 0
    obstacles = {
        "cudnn": [(True, f"model.family={model.family} has documents, which it cannot tell apart")],
        "triton": [
            (platform != "gpu", f"the platform is {platform}, not gpu"),
            (dtype not in ("bfloat16", "float16"), f"train.dtype={dtype}; it takes bfloat16 or float16"),
            (not is_power_of_two or model.head_dim < 16, f"head_dim={model.head_dim}; it takes 16, 32, 64, 128, ..."),
        ],
        "splash": [(True, f"the platform is {platform}, not tpu")],
        "xla": [],
    }
    asked = "triton" if wanted == "auto" else wanted
    reasons = [reason for is_met, reason in obstacles[asked] if is_met]
    if wanted == "auto" and reasons:
        return "math", f"flex cannot: {reasons[0]}; memory grows with seq_len squared"
    if reasons:
        raise InputError(f"train.attention={wanted} cannot run: {reasons[0]}; --train.attention=xla can")
    if wanted == "auto":
        return "flex", "flash, by document"
    return "math" if wanted == "xla" else "flex", "as configured"


def document_begins(tokens_BT, bos_id: int):
    """As in jaxgpt; int32."""
    positions_T = torch.arange(tokens_BT.shape[1], dtype=torch.int32, device=tokens_BT.device)
    return torch.cummax(torch.where(tokens_BT == bos_id, positions_T, 0), dim=1).values


def packed_attention(q_BTNH, k_BTNH, v_BTNH, begin_BT, *, window, scale, implementation="math"):
    """As in jaxgpt; implementation is math or flex."""
    if implementation == "flex":
        positions_T = torch.arange(q_BTNH.shape[1], device=q_BTNH.device)
        return _flex(q_BTNH, k_BTNH, v_BTNH, torch.maximum(begin_BT, positions_T - (window - 1)), scale)
    assert implementation == "math", implementation
    return cached_attention(q_BTNH, k_BTNH, v_BTNH, begin_BT, offset_B=None, window=window, scale=scale)


def cached_attention(q_BTNH, k_BSNH, v_BSNH, begin_BT, *, offset_B, window, scale):
    """As in jaxgpt."""
    positions_BT = query_positions(q_BTNH, offset_B)
    first_BT = torch.maximum(begin_BT, positions_BT - (window - 1))
    keys_S = torch.arange(k_BSNH.shape[1], device=k_BSNH.device)
    is_seen_BTS = (keys_S <= positions_BT[..., None]) & (keys_S >= first_BT[..., None])
    wide = torch.promote_types(q_BTNH.dtype, torch.float32)
    scores_BNTS = torch.einsum("BTNH,BSNH->BNTS", q_BTNH.to(wide), k_BSNH.to(wide))
    probs_BNTS = torch.softmax(torch.where(is_seen_BTS[:, None], scores_BNTS * scale, MASKED), dim=-1)
    return torch.einsum("BNTS,BSNH->BTNH", probs_BNTS.to(v_BSNH.dtype), v_BSNH)


def _flex(q_BTNH, k_BSNH, v_BSNH, first_BT, scale):
    def is_seen(row, head, t, s):
        return (s <= t) & (s >= first_BT[row, t])

    n_rows, n_queries = first_BT.shape
    is_cuda = q_BTNH.is_cuda
    mask = create_block_mask(is_seen, n_rows, None, n_queries, n_queries, device=str(q_BTNH.device), _compile=is_cuda)
    heads_first = (x.transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    attend = _compiled_flex() if is_cuda else flex_attention
    y_BNTH = attend(*heads_first, block_mask=mask, scale=scale)
    return y_BNTH.transpose(1, 2)


@functools.cache
def _compiled_flex():
    """Only compiled is it a flash kernel; else it writes all scores out."""
    return torch.compile(flex_attention)
