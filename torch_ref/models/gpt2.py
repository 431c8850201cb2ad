"""jaxgpt/models/gpt2.py in PyTorch. `forward` is what is `__call__` there.

A dropout key is handed down whole and not split: torch's generator moves on by itself. The cache is written in place.
"""

import functools

import torch
from torch import nn

from jaxgpt.config.families import GPT2Config
from torch_ref.models.attention import attention
from torch_ref.models.cache import query_positions, write_rows
from torch_ref.models.layers import Embedding, LayerNorm, Linear, dropout, gelu, head_logits, normal, rematerialise

INIT_STD = 0.02


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPT2Config, *, param_dtype, implementation, rngs):
        super().__init__()
        n_embd = config.n_embd
        self.config, self.implementation = config, implementation
        self.c_attn = Linear(
            n_embd, 3 * n_embd, bias=config.bias, init=normal(INIT_STD), param_dtype=param_dtype, rngs=rngs
        )
        std = INIT_STD * (2 * config.n_layer) ** -0.5
        self.c_proj = Linear(n_embd, n_embd, bias=config.bias, init=normal(std), param_dtype=param_dtype, rngs=rngs)

    def forward(self, x_BTD, cache=None, offset_B=None, *, dropout_key=None):
        config = self.config
        n_rows, n_queries, n_embd = x_BTD.shape
        heads = (n_rows, n_queries, config.n_head, config.head_dim)
        q_BTNH, k_BTNH, v_BTNH = (part.reshape(heads) for part in self.c_attn(x_BTD).split(n_embd, dim=-1))
        if cache is not None:
            cache = tuple(write_rows(*pair, offset_B) for pair in zip(cache, (k_BTNH, v_BTNH), strict=True))
        k_BSNH, v_BSNH = cache or (k_BTNH, v_BTNH)
        y_BTNH = attention(
            q_BTNH, k_BSNH, v_BSNH,
            implementation=self.implementation, offset_B=offset_B, dropout_rate=config.dropout, dropout_key=dropout_key,
        )  # fmt: skip
        y_BTD = self.c_proj(y_BTNH.reshape(n_rows, n_queries, n_embd))
        return dropout(y_BTD, config.dropout, dropout_key), cache


class MLP(nn.Module):
    def __init__(self, config: GPT2Config, *, param_dtype, rngs):
        super().__init__()
        n_embd = config.n_embd
        self.config = config
        self.c_fc = Linear(
            n_embd, 4 * n_embd, bias=config.bias, init=normal(INIT_STD), param_dtype=param_dtype, rngs=rngs
        )
        std = INIT_STD * (2 * config.n_layer) ** -0.5
        self.c_proj = Linear(4 * n_embd, n_embd, bias=config.bias, init=normal(std), param_dtype=param_dtype, rngs=rngs)

    def forward(self, x_BTD, *, dropout_key=None):
        h_BTF = gelu(self.c_fc(x_BTD), self.config.gelu)
        return dropout(self.c_proj(h_BTF), self.config.dropout, dropout_key)


class Block(nn.Module):
    def __init__(self, config: GPT2Config, *, param_dtype, implementation, rngs):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias, param_dtype=param_dtype)
        self.attn = CausalSelfAttention(config, param_dtype=param_dtype, implementation=implementation, rngs=rngs)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias, param_dtype=param_dtype)
        self.mlp = MLP(config, param_dtype=param_dtype, rngs=rngs)

    def forward(self, x_BTD, cache=None, offset_B=None, *, dropout_key=None):
        y_BTD, cache = self.attn(self.ln_1(x_BTD), cache, offset_B, dropout_key=dropout_key)
        x_BTD = x_BTD + y_BTD
        x_BTD = x_BTD + self.mlp(self.ln_2(x_BTD), dropout_key=dropout_key)
        return x_BTD, cache


class GPT2(nn.Module):
    def __init__(self, config: GPT2Config, *, dtype, param_dtype, implementation, remat, rngs):
        super().__init__()
        self.config, self.dtype, self.remat = config, dtype, remat
        self.wte = Embedding(
            config.vocab_size, config.n_embd, init=normal(INIT_STD), param_dtype=param_dtype, rngs=rngs
        )
        self.wpe = Embedding(config.seq_len, config.n_embd, init=normal(INIT_STD), param_dtype=param_dtype, rngs=rngs)
        self.h = nn.ModuleList(
            [
                Block(config, param_dtype=param_dtype, implementation=implementation, rngs=rngs)
                for _ in range(config.n_layer)
            ]
        )
        self.ln_f = LayerNorm(config.n_embd, bias=config.bias, param_dtype=param_dtype)

    def forward(self, tokens_BT, *, dropout_key=None):
        x_BTD = self.embed(tokens_BT, dropout_key=dropout_key)
        for block in self.h:
            run = functools.partial(block, dropout_key=dropout_key)
            x_BTD = rematerialise(lambda x, run=run: run(x)[0], self.remat)(x_BTD)
        return self.ln_f(x_BTD)

    def embed(self, tokens_BT, offset_B=None, dropout_key=None):
        x_BTD = (self.wte(tokens_BT) + self.wpe(query_positions(tokens_BT, offset_B))).to(self.dtype)
        return dropout(x_BTD, self.config.dropout, dropout_key)

    def head_weight(self):
        return self.wte.weight

    def logits(self, x_BTD):
        return head_logits(x_BTD, self.head_weight(), self.config.logit_cap)

    def init_cache(self, n_rows: int, n_positions: int):
        shape = (n_rows, n_positions, self.config.n_head, self.config.head_dim)
        device = self.wte.weight.device
        return [
            (torch.zeros(shape, dtype=self.dtype, device=device), torch.zeros(shape, dtype=self.dtype, device=device))
            for _ in self.h
        ]

    def decode(self, tokens_BT, cache, offset_B):
        x_BTD = self.embed(tokens_BT, offset_B)
        new_cache = []
        for block, layer_cache in zip(self.h, cache, strict=True):
            x_BTD, layer_cache = block(x_BTD, layer_cache, offset_B)
            new_cache.append(layer_cache)
        return self.ln_f(x_BTD), new_cache
