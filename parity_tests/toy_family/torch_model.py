"""The toy family's math in PyTorch."""

import torch
from jaxgpt.config.families.toy import ToyConfig
from torch import nn

from torch_ref.models.layers import Embedding, Linear, normal, rematerialise, rms_norm


class Block(nn.Module):
    def __init__(self, config: ToyConfig, *, param_dtype, rngs):
        super().__init__()
        n_embd = config.n_embd
        self.c_fc = Linear(n_embd, 2 * n_embd, bias=False, init=normal(0.1), param_dtype=param_dtype, rngs=rngs)
        self.c_proj = Linear(2 * n_embd, n_embd, bias=False, init=normal(0.1), param_dtype=param_dtype, rngs=rngs)

    def forward(self, x_BTD):
        return x_BTD + self.c_proj(torch.tanh(self.c_fc(rms_norm(x_BTD))))


class Toy(nn.Module):
    def __init__(self, config: ToyConfig, *, dtype, param_dtype, implementation, remat, rngs):
        super().__init__()
        self.config, self.dtype, self.remat = config, dtype, remat
        shape = (config.vocab_size, config.n_embd)
        self.wte = Embedding(*shape, init=normal(0.5), param_dtype=param_dtype, rngs=rngs)
        self.lm_head = Embedding(*shape, init=normal(0.1), param_dtype=param_dtype, rngs=rngs)
        self.look_back = nn.Parameter(torch.full((config.n_embd,), 0.5, dtype=param_dtype))
        self.h = nn.ModuleList([Block(config, param_dtype=param_dtype, rngs=rngs) for _ in range(config.n_layer)])

    def forward(self, tokens_BT, *, dropout_key=None):
        before_BT = nn.functional.pad(tokens_BT[:, :-1], (1, 0))
        x_BTD, before_BTD = (self.wte(ids_BT).to(self.dtype) for ids_BT in (tokens_BT, before_BT))
        has_before_1T1 = (torch.arange(tokens_BT.shape[1])[None, :, None] > 0).to(self.dtype)
        x_BTD = x_BTD + self.look_back.to(self.dtype) * has_before_1T1 * before_BTD
        for block in self.h:
            x_BTD = rematerialise(block, self.remat)(x_BTD)
        return rms_norm(x_BTD)

    def head_weight(self):
        return self.lm_head.weight

    def logits(self, x_BTD):
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        return torch.einsum("BTD,VD->BTV", x_BTD.to(wide), self.head_weight().to(x_BTD.dtype).to(wide))
