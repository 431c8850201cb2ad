"""jaxgpt/models/nanochat.py in PyTorch. `forward` is what is `__call__` there; the cache is written in place."""

import functools

import torch
from torch import nn

from jaxgpt.config.families import NanochatConfig
from jaxgpt.config.families.nanochat import GATE_CHANNELS
from torch_ref.models.attention import attention
from torch_ref.models.cache import query_positions, write_rows
from torch_ref.models.layers import (
    Embedding,
    Linear,
    add_scaled,
    head_logits,
    normal,
    rematerialise,
    rms_norm,
    rotary,
    uniform,
    zeros,
)

HEAD_STD = 0.001
VALUE_GATE_SCALE = 3.0
GATE_INIT = 0.02
C_FC_INIT_SCALE = 0.4
BACKOUT_INIT = 0.2
RESID_LAMBDAS_INIT = (1.15, 1.05)
X0_LAMBDAS_INIT = (0.20, 0.05)


def matrix_init(config: NanochatConfig, n_in: int, n_out: int):
    if config.init == "uniform":
        bound = (3 / config.n_embd) ** 0.5
        return uniform(-bound, bound)
    return normal(n_in**-0.5 * min(1.0, (n_out / n_in) ** 0.5))


class CausalSelfAttention(nn.Module):
    def __init__(self, config: NanochatConfig, layer: int, *, param_dtype, implementation, rngs):
        super().__init__()
        n_embd, kv_dim = config.n_embd, config.n_kv_head * config.head_dim
        self.config, self.layer, self.implementation = config, layer, implementation
        linear = functools.partial(Linear, bias=False, param_dtype=param_dtype, rngs=rngs)
        self.c_q = linear(n_embd, n_embd, init=matrix_init(config, n_embd, n_embd))
        self.c_k = linear(n_embd, kv_dim, init=matrix_init(config, n_embd, kv_dim))
        self.c_v = linear(n_embd, kv_dim, init=matrix_init(config, n_embd, kv_dim))
        self.c_proj = linear(n_embd, n_embd, init=zeros)
        if config.has_value_embed(layer):
            self.ve_gate = linear(GATE_CHANNELS["value_embed"], config.n_kv_head, init=uniform(0.0, GATE_INIT))

    def forward(self, x_BTD, value_embed_BTD=None, cache=None, offset_B=None):
        config = self.config
        n_rows, n_queries, n_embd = x_BTD.shape
        kv_heads = (n_rows, n_queries, config.n_kv_head, config.head_dim)
        q_BTNH = self.c_q(x_BTD).reshape(n_rows, n_queries, config.n_head, config.head_dim)
        k_BTKH, v_BTKH = self.c_k(x_BTD).reshape(kv_heads), self.c_v(x_BTD).reshape(kv_heads)
        if value_embed_BTD is not None:
            gate_BTK = VALUE_GATE_SCALE * torch.sigmoid(self.ve_gate(x_BTD[..., : GATE_CHANNELS["value_embed"]]))
            v_BTKH = v_BTKH + gate_BTK[..., None] * value_embed_BTD.reshape(kv_heads)
        positions_BT = query_positions(x_BTD, offset_B)
        q_BTNH, k_BTKH = (
            rms_norm(rotary(x, positions_BT, config.rope_base), config.qk_scale) for x in (q_BTNH, k_BTKH)
        )
        if cache is not None:
            cache = tuple(write_rows(*pair, offset_B) for pair in zip(cache, (k_BTKH, v_BTKH), strict=True))
        k_BSKH, v_BSKH = cache or (k_BTKH, v_BTKH)
        window = config.window(self.layer)
        y_BTNH = attention(
            q_BTNH, k_BSKH, v_BSKH,
            implementation=self.implementation, offset_B=offset_B, window=window if window < config.seq_len else None,
        )  # fmt: skip
        return self.c_proj(y_BTNH.reshape(n_rows, n_queries, n_embd)), cache


class MLP(nn.Module):
    def __init__(self, config: NanochatConfig, *, param_dtype, rngs):
        super().__init__()
        n_embd = config.n_embd
        scale = C_FC_INIT_SCALE if config.init == "uniform" else 1.0
        init = matrix_init(config, n_embd, 4 * n_embd)
        self.c_fc = Linear(
            n_embd, 4 * n_embd, bias=False, init=lambda *args: scale * init(*args), param_dtype=param_dtype, rngs=rngs
        )
        self.c_proj = Linear(4 * n_embd, n_embd, bias=False, init=zeros, param_dtype=param_dtype, rngs=rngs)

    def forward(self, x_BTD):
        h_BTF = torch.relu(self.c_fc(x_BTD))
        return self.c_proj(h_BTF * h_BTF)


class Block(nn.Module):
    def __init__(self, config: NanochatConfig, layer: int, *, param_dtype, implementation, rngs):
        super().__init__()
        self.attn = CausalSelfAttention(
            config, layer, param_dtype=param_dtype, implementation=implementation, rngs=rngs
        )
        self.mlp = MLP(config, param_dtype=param_dtype, rngs=rngs)

    def forward(self, x_BTD, value_embed_BTD=None, cache=None, offset_B=None):
        y_BTD, cache = self.attn(rms_norm(x_BTD), value_embed_BTD, cache, offset_B)
        x_BTD = x_BTD + y_BTD
        x_BTD = x_BTD + self.mlp(rms_norm(x_BTD))
        return x_BTD, cache


class Nanochat(nn.Module):
    def __init__(self, config: NanochatConfig, *, dtype, param_dtype, implementation, remat, rngs):
        super().__init__()
        assert config.n_embd and config.vocab_size, "config.complete(n_ids) fills in width and vocabulary"
        n_embd, n_layer = config.n_embd, config.n_layer
        self.config, self.dtype, self.remat = config, dtype, remat
        table = functools.partial(Embedding, config.vocab_size, param_dtype=param_dtype, rngs=rngs)
        self.wte = table(n_embd, init=normal(0.8 if config.init == "uniform" else 1.0))
        self.lm_head = table(n_embd, init=normal(HEAD_STD) if config.init == "uniform" else zeros)
        self.h = nn.ModuleList(
            [
                Block(config, i, param_dtype=param_dtype, implementation=implementation, rngs=rngs)
                for i in range(n_layer)
            ]
        )
        if config.value_embeds:
            kv_dim = config.n_kv_head * config.head_dim
            layers = [i for i in range(n_layer) if config.has_value_embed(i)]
            init = matrix_init(config, n_embd, kv_dim)
            self.value_embeds = nn.ModuleDict({str(i): table(kv_dim, init=init) for i in layers})
        if config.layer_lambdas:
            self.resid_lambdas = nn.Parameter(torch.linspace(*RESID_LAMBDAS_INIT, n_layer, dtype=param_dtype))
            self.x0_lambdas = nn.Parameter(torch.linspace(*X0_LAMBDAS_INIT, n_layer, dtype=param_dtype))
        if config.smear:
            self.smear_gate = Linear(
                GATE_CHANNELS["smear"], 1, bias=False, init=uniform(0.0, GATE_INIT), param_dtype=param_dtype, rngs=rngs
            )
            self.smear_lambda = nn.Parameter(torch.zeros(1, dtype=param_dtype))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.full((1,), BACKOUT_INIT, dtype=param_dtype))

    def forward(self, tokens_BT, *, dropout_key=None):
        assert dropout_key is None
        x0_BTD = x_BTD = self.embed(tokens_BT)
        middle_BTD = None
        for i, block in enumerate(self.h):
            x_BTD = self.mix(i, x_BTD, x0_BTD)
            value_embed_BTD = self.value_embed(i, tokens_BT)
            x_BTD = rematerialise(lambda x, v, block=block: block(x, v)[0], self.remat)(x_BTD, value_embed_BTD)
            middle_BTD = x_BTD if i == self.config.n_layer // 2 else middle_BTD
        return self.finish(x_BTD, middle_BTD)

    def embed(self, tokens_BT, before_B1=None):
        x_BTD = rms_norm(self.wte(tokens_BT, self.dtype))
        if not self.config.smear:
            return x_BTD
        before_B1D = torch.zeros_like(x_BTD[:, :1])
        if before_B1 is not None:
            before_B1D = rms_norm(self.wte(before_B1.clamp(min=0), self.dtype))
            before_B1D = torch.where(before_B1[..., None] >= 0, before_B1D, 0)
        previous_BTD = torch.cat([before_B1D, x_BTD[:, :-1]], dim=1)
        gate_BT1 = torch.sigmoid(self.smear_gate(x_BTD[..., : GATE_CHANNELS["smear"]]))
        return add_scaled((1.0, x_BTD), (self.smear_lambda * gate_BT1, previous_BTD))

    def mix(self, layer: int, x_BTD, x0_BTD):
        if not self.config.layer_lambdas:
            return x_BTD
        return add_scaled((self.resid_lambdas[layer], x_BTD), (self.x0_lambdas[layer], x0_BTD))

    def value_embed(self, layer: int, tokens_BT):
        if not self.config.has_value_embed(layer):
            return None
        return self.value_embeds[str(layer)](tokens_BT, self.dtype)

    def finish(self, x_BTD, middle_BTD):
        if self.config.backout:
            x_BTD = add_scaled((1.0, x_BTD), (-self.backout_lambda, middle_BTD))
        return rms_norm(x_BTD)

    def head_weight(self):
        return self.lm_head.weight

    def logits(self, x_BTD):
        return head_logits(x_BTD, self.head_weight(), self.config.logit_cap)

    def init_cache(self, n_rows: int, n_positions: int):
        shape = (n_rows, n_positions, self.config.n_kv_head, self.config.head_dim)
        device = self.wte.weight.device
        pairs = [
            (torch.zeros(shape, dtype=self.dtype, device=device), torch.zeros(shape, dtype=self.dtype, device=device))
            for _ in self.h
        ]
        return torch.zeros((n_rows, n_positions), dtype=torch.int32, device=device), pairs

    def decode(self, tokens_BT, cache, offset_B):
        ids_BS, pairs = cache
        before_B1 = torch.gather(ids_BS, 1, torch.clamp(offset_B - 1, min=0)[:, None])
        before_B1 = torch.where(offset_B[:, None] > 0, before_B1, -1)
        ids_BS = write_rows(ids_BS, tokens_BT, offset_B)
        x0_BTD = x_BTD = self.embed(tokens_BT, before_B1)
        middle_BTD, new_pairs = None, []
        for i, (block, pair) in enumerate(zip(self.h, pairs, strict=True)):
            x_BTD = self.mix(i, x_BTD, x0_BTD)
            x_BTD, pair = block(x_BTD, self.value_embed(i, tokens_BT), pair, offset_B)
            new_pairs.append(pair)
            middle_BTD = x_BTD if i == self.config.n_layer // 2 else middle_BTD
        return self.finish(x_BTD, middle_BTD), (ids_BS, new_pairs)
