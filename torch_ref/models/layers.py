"""jaxgpt/layers.py in PyTorch. Linear weights are [out, in], as torch.nn.Linear stores them.

Here the fused kernels have the arithmetic that jaxgpt spells out: two-pass or Welford variance, erf.
`key` and `dropout_key` are None or not: the numbers come from torch's generator, seeded in step.py.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

LAYER_NORM_EPS = 1e-5
LARGEST_EXPONENT = 64.0


def linear(x, weight_OI, bias_O=None):
    y = x @ weight_OI.to(x.dtype).mT
    if bias_O is not None:
        y = y + bias_O.to(x.dtype)
    return y


def layer_norm(x, weight, bias=None, eps=LAYER_NORM_EPS):
    wide = torch.promote_types(x.dtype, torch.float32)
    bias = None if bias is None else bias.to(wide)
    return F.layer_norm(x.to(wide), x.shape[-1:], weight.to(wide), bias, eps).to(x.dtype)


def rms_norm(x, scale: Any = 1.0, eps=None):
    wide = torch.promote_types(x.dtype, torch.float32)
    return (F.rms_norm(x.to(wide), x.shape[-1:], eps=eps) * scale).to(x.dtype)


def rotary(x_BTNH, positions_BT, base):
    half = x_BTNH.shape[-1] // 2
    wide = torch.promote_types(x_BTNH.dtype, torch.float32)
    frequencies_R = base ** (-torch.arange(half, dtype=wide, device=x_BTNH.device) / half)
    angles_BTR = positions_BT[..., None].to(wide) * frequencies_R
    cos_BT1R, sin_BT1R = (f(angles_BTR)[:, :, None].to(x_BTNH.dtype) for f in (torch.cos, torch.sin))
    a_BTNR, b_BTNR = x_BTNH[..., :half], x_BTNH[..., half:]
    return torch.cat([a_BTNR * cos_BT1R + b_BTNR * sin_BT1R, b_BTNR * cos_BT1R - a_BTNR * sin_BT1R], dim=-1)


def add_scaled(*terms):
    dtype = terms[0][1].dtype
    wide = torch.promote_types(dtype, torch.float32)
    first, *rest = (scale * x.to(wide) for scale, x in terms)
    return sum(rest, first).to(dtype)


def softcap(logits, cap):
    if not cap:
        return logits
    if cap.kind == "tanh":
        return cap.scale * torch.tanh(logits / cap.scale)
    if cap.kind == "rsqrt":
        return cap.scale * logits * torch.rsqrt(logits * logits + cap.scale**2)
    assert cap.kind == "sigmoid", cap
    return cap.scale * torch.sigmoid((logits + cap.shift) / cap.width)


def head_logits(x_BTD, weight_VD, cap):
    wide = torch.promote_types(x_BTD.dtype, torch.float32)
    weight_VD = weight_VD.to(x_BTD.dtype)
    return softcap(torch.einsum("BTD,VD->BTV", x_BTD.to(wide), weight_VD.to(wide)), cap)


def softcap_slope(capped, cap):
    part = capped / cap.scale
    if cap.kind == "tanh":
        return 1 - torch.square(part)
    if cap.kind == "rsqrt":
        return torch.clamp(1 - torch.square(part), min=0) ** 1.5
    return capped * (1 - part) / cap.width


def log_sum_exp(capped, cap):
    if not cap or cap.scale > LARGEST_EXPONENT:
        return torch.logsumexp(capped, dim=-1)
    return torch.log(torch.exp(capped).sum(dim=-1))


def gelu(x, kind="erf"):
    return F.gelu(x, approximate="tanh" if kind == "tanh" else "none")


def dropout(x, rate, key):
    if key is None or rate == 0:
        return x
    return F.dropout(x, rate)


def rematerialise(function, policy):
    if policy == "none":
        return function
    if policy == "block":
        return functools.partial(checkpoint, function, use_reentrant=False)
    dots = [torch.ops.aten.mm.default]  # of linear layers; attention's are batched and so bmm
    keep = functools.partial(create_selective_checkpoint_contexts, dots)
    return functools.partial(checkpoint, function, use_reentrant=False, context_fn=keep)


def normal(std):
    """key: a generator of the CPU, here and below."""
    return lambda key, shape, dtype: std * torch.randn(shape, generator=key, dtype=dtype)


def uniform(low, high):
    return lambda key, shape, dtype: low + (high - low) * torch.rand(shape, generator=key, dtype=dtype)


def zeros(key, shape, dtype):
    return torch.zeros(shape, dtype=dtype)


class Linear(nn.Module):
    def __init__(self, n_in, n_out, *, bias, init, param_dtype, rngs):
        """rngs: a CPU generator, so that a seed means the same weights on any device."""
        super().__init__()
        self.weight = nn.Parameter(init(rngs, (n_out, n_in), param_dtype))
        self.bias = nn.Parameter(torch.zeros(n_out, dtype=param_dtype)) if bias else None

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    def __init__(self, n_embd, *, bias, param_dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd, dtype=param_dtype))
        self.bias = nn.Parameter(torch.zeros(n_embd, dtype=param_dtype)) if bias else None

    def forward(self, x):
        return layer_norm(x, self.weight, self.bias)


class Embedding(nn.Module):
    def __init__(self, n_rows, n_embd, *, init, param_dtype, rngs):
        super().__init__()
        self.weight = nn.Parameter(init(rngs, (n_rows, n_embd), param_dtype))

    def forward(self, ids, dtype=None):
        return F.embedding(ids, self.weight).to(dtype or self.weight.dtype)
