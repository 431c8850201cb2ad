"""jaxgpt/models/modded.py in PyTorch. `forward` is what is `__call__` there; the cache is written in place."""

import functools
from typing import Any

import torch
from torch import nn

from jaxgpt.config.families import ModdedConfig
from jaxgpt.config.families.modded import GATE_CHANNELS
from jaxgpt.config.yarn import rotary_frequencies
from torch_ref.models.bigram import bigram_ids
from torch_ref.models.cache import query_positions, write_rows
from torch_ref.models.layers import (
    Embedding,
    Linear,
    add_scaled,
    head_logits,
    linear,
    normal,
    rematerialise,
    rms_norm,
    uniform,
    zeros,
)
from torch_ref.models.packed import cached_attention, document_begins, packed_attention
from torch_ref.models.rope import rotary_tables, rotate

RMS_EPS = 2.0**-23
HEAD_STD = 0.005
ATTENTION_INIT = {"62": 1.0, "46": 0.5}
MLP_INIT = {"62": 0.5, "46": 0.5}
TRACK3_GAIN = 0.33**0.5
VALUE_GATE_SCALE = SKIP_GATE_SCALE = 2.0
RESID_INIT, BIGRAM_INIT, BACKOUT_INIT, SKIP_INIT = 1.1, 0.1, 0.5, -1.5
ATTN_LAMBDAS_INIT = {"weights": (0.5, 1.0), "values": (0.5, 0.5)}


def matrix_init(config: ModdedConfig, n_in: int, part: dict[str, float]):
    if config.record == "track3":
        return normal(TRACK3_GAIN * n_in**-0.5)
    bound = part[config.record] * (3 / n_in) ** 0.5
    return uniform(-bound, bound)


def pair_heads(x_BTNH):
    n_rows, n_tokens, n_head, head_dim = x_BTNH.shape
    return x_BTNH.reshape(n_rows, 2 * n_tokens, n_head // 2, head_dim)


def offset_keys(k_BSNH):
    half = k_BSNH.shape[-1] // 2
    upper_BSNR = k_BSNH[..., half:]
    before_BSNR = torch.cat([upper_BSNR[:, :1], upper_BSNR[:, :-1]], dim=1)
    return torch.cat([k_BSNH[..., :half], before_BSNR], dim=-1)


def gate(module, x_BTD):
    return torch.sigmoid(module(x_BTD[..., :GATE_CHANNELS]))


class Norm(nn.Module):
    def __init__(self, config: ModdedConfig, *, param_dtype):
        super().__init__()
        self.gains = nn.Parameter(torch.ones(config.n_embd, dtype=param_dtype)) if config.norm_gains else None

    def forward(self, x_BTD):
        return rms_norm(x_BTD, 1.0 if self.gains is None else self.gains, RMS_EPS)


class Head(Embedding):
    def __init__(self, config: ModdedConfig, *, init, param_dtype, rngs):
        super().__init__(config.vocab_size, config.n_embd, init=init, param_dtype=param_dtype, rngs=rngs)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size, dtype=param_dtype)) if config.bias else None


class CausalSelfAttention(nn.Module):
    def __init__(self, config: ModdedConfig, layer: int, *, param_dtype, implementation, rngs):
        super().__init__()
        n_embd = config.n_embd
        self.config, self.layer, self.implementation = config, layer, implementation
        square = functools.partial(Linear, n_embd, n_embd, bias=config.bias, param_dtype=param_dtype, rngs=rngs)
        init = matrix_init(config, n_embd, ATTENTION_INIT)
        self.c_q, self.c_k, self.c_v = square(init=init), square(init=init), square(init=init)
        self.c_proj = square(init=zeros)
        to_heads = functools.partial(
            Linear, GATE_CHANNELS, config.n_head, bias=False, init=zeros, param_dtype=param_dtype, rngs=rngs
        )
        if config.attn_gates:
            self.gate = to_heads()
        if config.value_gates and config.value_table(layer) is not None:
            self.ve_gate = to_heads()

    def forward(self, x_BTD, value_embed_BTD, lambdas, tables, begin_BT, cache=None, offset_B=None):
        config, layer = self.config, self.layer
        n_rows, n_tokens, n_embd = x_BTD.shape
        heads = (n_rows, n_tokens, config.n_head, config.head_dim)
        on_input, on_output = lambdas if config.attn_lambdas == "weights" else (None, None)
        q_BTNH, k_BTNH, v_BTNH = (
            scaled_linear(module, x_BTD, on_input).reshape(heads) for module in (self.c_q, self.c_k, self.c_v)
        )
        q_BTNH, k_BTNH = (rotate(rms_norm(x, eps=RMS_EPS), tables, config.rotary) for x in (q_BTNH, k_BTNH))
        terms = [(lambdas[0] if config.attn_lambdas == "values" else 1.0, v_BTNH)]
        if value_embed_BTD is not None:
            scale = VALUE_GATE_SCALE * gate(self.ve_gate, x_BTD)[..., None] if config.value_gates else 1.0
            scale = scale * lambdas[1] if config.attn_lambdas == "values" else scale
            terms.append((scale, value_embed_BTD.reshape(heads)))
        v_BTNH = add_scaled(*terms)
        if cache is not None:
            cache = tuple(write_rows(*pair, offset_B) for pair in zip(cache, (k_BTNH, v_BTNH), strict=True))
        k_BSNH, v_BSNH = cache or (k_BTNH, v_BTNH)
        if config.has_key_offset(layer):
            k_BSNH = offset_keys(k_BSNH)
        if config.is_paired(layer):
            q_BTNH, k_BSNH, v_BSNH = (pair_heads(x) for x in (q_BTNH, k_BSNH, v_BSNH))
            begin_BT = (2 * begin_BT).repeat_interleave(2, dim=1)
            offset_B = None if offset_B is None else 2 * offset_B
        settings = {"window": config.row_window(layer), "scale": config.scale}
        if cache is None:
            y_BTNH = packed_attention(q_BTNH, k_BSNH, v_BSNH, begin_BT, **settings, implementation=self.implementation)
        else:
            y_BTNH = cached_attention(q_BTNH, k_BSNH, v_BSNH, begin_BT, offset_B=offset_B, **settings)
        y_BTNH = y_BTNH.reshape(heads)
        if config.attn_gates:
            y_BTNH = y_BTNH * gate(self.gate, x_BTD)[..., None]
        return scaled_linear(self.c_proj, y_BTNH.reshape(n_rows, n_tokens, n_embd), on_output), cache


def scaled_linear(module, x_BTD, scale):
    weight_OI = module.weight if scale is None else scale * module.weight
    return linear(x_BTD, weight_OI, None if module.bias is None else module.bias)


class MLP(nn.Module):
    def __init__(self, config: ModdedConfig, *, param_dtype, rngs):
        super().__init__()
        n_embd = config.n_embd
        new = functools.partial(Linear, bias=config.bias, param_dtype=param_dtype, rngs=rngs)
        self.c_fc = new(n_embd, 4 * n_embd, init=matrix_init(config, n_embd, MLP_INIT))
        self.c_proj = new(4 * n_embd, n_embd, init=zeros)

    def forward(self, x_BTD):
        h_BTF = torch.relu(self.c_fc(x_BTD))
        return self.c_proj(h_BTF * h_BTF)


class Block(nn.Module):
    def __init__(self, config: ModdedConfig, layer: int, *, param_dtype, implementation, rngs):
        super().__init__()
        if config.has_attention(layer):
            self.attn = CausalSelfAttention(
                config, layer, param_dtype=param_dtype, implementation=implementation, rngs=rngs
            )
        self.has_attention = config.has_attention(layer)
        self.mlp = MLP(config, param_dtype=param_dtype, rngs=rngs)
        self.norm1, self.norm2 = Norm(config, param_dtype=param_dtype), Norm(config, param_dtype=param_dtype)

    def forward(self, x_BTD, value_embed_BTD, lambdas, tables, begin_BT, cache=None, offset_B=None):
        if self.has_attention:
            y_BTD, cache = self.attn(self.norm1(x_BTD), value_embed_BTD, lambdas, tables, begin_BT, cache, offset_B)
            x_BTD = x_BTD + y_BTD
        x_BTD = x_BTD + self.mlp(self.norm2(x_BTD))
        return x_BTD, cache


class Modded(nn.Module):
    def __init__(self, config: ModdedConfig, *, dtype, param_dtype, implementation, remat, rngs):
        super().__init__()
        assert config.n_layer and config.vocab_size, "config.complete(n_ids) fills in layers and vocabulary"
        n_embd, n_layer = config.n_embd, config.n_layer
        self.config, self.dtype, self.remat = config, dtype, remat
        table = functools.partial(Embedding, n_embd=n_embd, param_dtype=param_dtype, rngs=rngs)
        is_tied = config.record == "62"
        init = normal(HEAD_STD) if is_tied else zeros
        self.lm_head = Head(config, init=init, param_dtype=param_dtype, rngs=rngs)
        self.wte = table(
            config.vocab_size, init=(lambda *_: self.lm_head.weight.detach().clone()) if is_tied else normal(1.0)
        )
        self.h = nn.ModuleList(
            [
                Block(config, i, param_dtype=param_dtype, implementation=implementation, rngs=rngs)
                for i in range(n_layer)
            ]
        )
        self.norm1, self.norm2 = Norm(config, param_dtype=param_dtype), Norm(config, param_dtype=param_dtype)
        if config.n_value_tables:
            init = zeros if is_tied else normal(1.0)
            self.value_embeds = nn.ModuleList(
                [table(config.vocab_size, init=init) for _ in range(config.n_value_tables)]
            )
        if config.bigram:
            self.bigram_embed = table(config.bigram_rows, init=zeros)
            self.bigram_lambdas = nn.Parameter(torch.full((n_layer,), BIGRAM_INIT, dtype=param_dtype))
        if config.layer_lambdas:
            self.resid_lambdas = nn.Parameter(torch.full((n_layer,), RESID_INIT, dtype=param_dtype))
            self.x0_lambdas = nn.Parameter(torch.zeros(n_layer, dtype=param_dtype))
        if config.attn_lambdas != "none":
            row = torch.tensor(ATTN_LAMBDAS_INIT[config.attn_lambdas], dtype=param_dtype)
            self.attn_lambdas = nn.Parameter(row.repeat(n_layer, 1))
        to_one = functools.partial(Linear, GATE_CHANNELS, 1, bias=False, init=zeros, param_dtype=param_dtype, rngs=rngs)
        if config.smear:
            self.smear_gate = to_one()
            self.smear_lambda = nn.Parameter(torch.zeros(1, dtype=param_dtype))
        if config.skip_to != -1:
            self.skip_lambda = nn.Parameter(torch.full((1,), SKIP_INIT, dtype=param_dtype))
        if config.skip_gate:
            self.skip_gate = to_one()
        if config.backout_from != -1:
            self.backout_lambda = nn.Parameter(torch.full((1,), BACKOUT_INIT, dtype=param_dtype))

    def forward(self, tokens_BT, *, dropout_key=None):
        assert dropout_key is None
        before_B1 = torch.full_like(tokens_BT[:, :1], -1)
        return self.run(tokens_BT, before_B1, self.begins(tokens_BT))[0]

    def run(self, tokens_BT, before_B1, begin_BT, pairs=None, offset_B=None):
        config = self.config
        positions_BT = query_positions(tokens_BT, offset_B)
        before_BT = torch.cat([before_B1.to(tokens_BT.dtype), tokens_BT[:, :-1]], dim=1)
        x0_BTD = x_BTD = self.embed(tokens_BT, before_B1)
        bigram_BTD = self.embed_bigrams(tokens_BT, before_BT, positions_BT)
        tables = self.rotary_tables(positions_BT)
        kept, new_pairs = {}, []
        for i, block in enumerate(self.h):
            if i == config.skip_to:
                x_BTD = self.skip(x_BTD, x0_BTD, kept[config.skip_from])
            x_BTD = self.mix(i, x_BTD, x0_BTD, bigram_BTD)
            inputs = (
                self.value_embed(i, tokens_BT),
                None if config.attn_lambdas == "none" else self.attn_lambdas[i],
                tables[config.is_paired(i)],
                begin_BT,
            )
            if pairs is None:
                x_BTD = rematerialise(lambda x, *args, block=block: block(x, *args)[0], self.remat)(x_BTD, *inputs)
            else:
                x_BTD, pair = block(x_BTD, *inputs, pairs[i], offset_B)
                new_pairs.append(pair)
            if i in (config.skip_from, config.backout_from):
                kept[i] = x_BTD
        return self.finish(x_BTD, kept.get(config.backout_from)), new_pairs

    def begins(self, tokens_BT):
        if not self.config.is_packed:
            return torch.zeros_like(tokens_BT, dtype=torch.int32)
        return document_begins(tokens_BT, self.config.bos_id)

    def embed(self, tokens_BT, before_B1):
        x_BTD = self.wte(tokens_BT, self.dtype)
        if self.config.smear:
            before_B1D = self.wte(before_B1.clamp(min=0), self.dtype)
            before_B1D = torch.where(before_B1[..., None] >= 0, before_B1D, 0)
            previous_BTD = torch.cat([before_B1D, x_BTD[:, :-1]], dim=1)
            scale_BT1 = self.smear_lambda * gate(self.smear_gate, x_BTD)
            x_BTD = add_scaled((1.0, x_BTD), (scale_BT1, previous_BTD))
        return self.norm1(x_BTD)

    def embed_bigrams(self, tokens_BT, before_BT, positions_BT):
        if not self.config.bigram:
            return None
        ids_BT = bigram_ids(tokens_BT, before_BT, positions_BT, self.config.bigram_rows)
        return self.bigram_embed(ids_BT, self.dtype)

    def rotary_tables(self, positions_BT):
        config = self.config
        wide = torch.promote_types(self.dtype, torch.float32)
        name = str(wide).removeprefix("torch.")
        frequencies_R = torch.from_numpy(
            rotary_frequencies(config.head_dim, config.yarn, config.block_tokens, name)
        ).to(positions_BT.device)
        dtype = self.dtype if config.has_rounded_tables else wide
        plain_BT1 = positions_BT[..., None]
        tables = {False: rotary_tables(plain_BT1, frequencies_R, dtype)}
        if "P" in config.paired_heads:
            paired_BTN = 2 * plain_BT1 + torch.arange(config.n_head, device=positions_BT.device) % 2
            tables[True] = rotary_tables(paired_BTN, frequencies_R, dtype)
        return tables

    def skip(self, x_BTD, x0_BTD, kept_BTD):
        scale = torch.sigmoid(self.skip_lambda)
        if self.config.skip_gate:
            scale = scale * SKIP_GATE_SCALE * gate(self.skip_gate, x0_BTD)
        return add_scaled((1.0, x_BTD), (scale, kept_BTD))

    def mix(self, layer: int, x_BTD, x0_BTD, bigram_BTD):
        terms: list[tuple[Any, Any]] = [(1.0, x_BTD)]
        if self.config.layer_lambdas:
            terms = [(self.resid_lambdas[layer], x_BTD), (self.x0_lambdas[layer], x0_BTD)]
        if bigram_BTD is not None:
            terms.append((self.bigram_lambdas[layer], bigram_BTD))
        return add_scaled(*terms) if len(terms) > 1 else x_BTD

    def value_embed(self, layer: int, tokens_BT):
        number = self.config.value_table(layer)
        if number is None:
            return None
        return self.value_embeds[number](tokens_BT, self.dtype)

    def finish(self, x_BTD, kept_BTD):
        if self.config.backout_from != -1:
            x_BTD = add_scaled((1.0, x_BTD), (-self.backout_lambda, kept_BTD))
        x_BTD = self.norm2(x_BTD)
        if not self.config.bias:
            return x_BTD
        extra_BTD = x_BTD.new_zeros((*x_BTD.shape[:2], self.config.n_head_channels - x_BTD.shape[2]))
        extra_BTD[..., 0] = 1
        return torch.cat([x_BTD, extra_BTD], dim=-1)

    def head_weight(self):
        weight_VD = self.lm_head.weight
        if self.lm_head.bias is None:
            return weight_VD
        n_zeros = self.config.n_head_channels - weight_VD.shape[1] - 1
        extra_VD = weight_VD.new_zeros((weight_VD.shape[0], n_zeros))
        return torch.cat([weight_VD, self.lm_head.bias[:, None], extra_VD], dim=-1)

    def logits(self, x_BTD):
        return head_logits(x_BTD, self.head_weight(), self.config.logit_cap)

    def init_cache(self, n_rows: int, n_positions: int):
        shape = (n_rows, n_positions, self.config.n_head, self.config.head_dim)
        device = self.wte.weight.device
        new = functools.partial(torch.zeros, shape, dtype=self.dtype, device=device)
        pairs = [(new(), new()) if block.has_attention else None for block in self.h]
        return torch.zeros((n_rows, n_positions), dtype=torch.int32, device=device), pairs

    def decode(self, tokens_BT, cache, offset_B):
        ids_BS, pairs = cache
        before_B1 = torch.gather(ids_BS, 1, torch.clamp(offset_B - 1, min=0)[:, None])
        before_B1 = torch.where(offset_B[:, None] > 0, before_B1, -1)
        ids_BS = write_rows(ids_BS, tokens_BT, offset_B)
        begin_BT = torch.gather(self.begins(ids_BS), 1, query_positions(tokens_BT, offset_B))
        x_BTD, new_pairs = self.run(tokens_BT, before_B1, begin_BT, pairs, offset_B)
        return x_BTD, (ids_BS, new_pairs)
