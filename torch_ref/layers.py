"""jaxgpt/layers.py in PyTorch. Linear weights are [out, in], as torch.nn.Linear stores them.

Here the fused kernels have the arithmetic that jaxgpt spells out: two-pass or Welford variance, erf.
`key` and `dropout_key` are None or not: the numbers come from torch's generator, seeded in step.py.
"""

import torch
import torch.nn.functional as F
from torch import nn

LAYER_NORM_EPS = 1e-5


def linear(x, weight_OI, bias_O=None):
    y = x @ weight_OI.to(x.dtype).mT
    if bias_O is not None:
        y = y + bias_O.to(x.dtype)
    return y


def layer_norm(x, weight, bias=None, eps=LAYER_NORM_EPS):
    wide = torch.promote_types(x.dtype, torch.float32)
    bias = None if bias is None else bias.to(wide)
    return F.layer_norm(x.to(wide), x.shape[-1:], weight.to(wide), bias, eps).to(x.dtype)


def gelu(x, kind="erf"):
    return F.gelu(x, approximate="tanh" if kind == "tanh" else "none")


def dropout(x, rate, key):
    if key is None or rate == 0:
        return x
    return F.dropout(x, rate)


class Linear(nn.Module):
    def __init__(self, n_in, n_out, *, bias, std, dtype, rngs):
        """rngs: a CPU generator, so that a seed means the same weights on any device."""
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn((n_out, n_in), generator=rngs, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(n_out, dtype=dtype)) if bias else None

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    def __init__(self, n_embd, *, bias, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(n_embd, dtype=dtype)) if bias else None

    def forward(self, x):
        return layer_norm(x, self.weight, self.bias)


class Embedding(nn.Module):
    def __init__(self, n_rows, n_embd, *, std, dtype, rngs):
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn((n_rows, n_embd), generator=rngs, dtype=dtype))

    def forward(self, ids):
        return F.embedding(ids, self.weight)
