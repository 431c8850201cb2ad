"""modded-nanogpt's model, top to bottom: records 62 and 46 of its speedrun, and the benchmark model of its track 3.

The records train on packed documents: a row is one sequence of many, each begun by BOS, and attention alone stays
within them; positions, smear, the bigram hash and the offset of keys cross their borders. Rotary positions of half the
channels, RMSNorm with a fixed epsilon before each sublayer and on queries and keys, relu^2, an embedding that starts as
the head's copy (the optimizer ties them), value embeddings, gates of 12 channels, a skip around the layer without
attention, lambdas, backout. `config.families.modded` says which record has what.

Paired heads: a layer's heads j and j + N/2 share one sequence of two rows a token, in which the later row sees the
earlier. A head's rotation goes by its own parity, which for odd N/2 differs from its row in some heads; the originals
do so.

Otherwise than in the originals:
- Parameters and sums of gradients are float32, so that the number of devices does not change how they are rounded.
  Theirs are bfloat16, with 16 more bits of mantissa where NorMuon updates them.
- Matrices are one per layer and kind, [in, out]. Theirs are banks, which their optimizer splits among GPUs. So that 8
  GPUs divide it, the bank of MLPs has a twelfth one, of 4,718,592 parameters, that no layer reads, and the lambdas have
  four more numbers. These do not exist here, nor does record 46's first block, which is empty.
- Documents begin where a BOS stands, and a row may have any number. Theirs are lists of a fixed length, 128 to 896,
  because flash attention's programs need one.
- Cosines and sines are computed from the positions in each step. Theirs are tables of 524,288 rows, overwritten when
  the windows grow: state that a checkpoint would have to keep. Here a stage's `yarn` is part of the config.
- The head's bias of track 3 is a row of weights on a channel that is always 1, so that the loss needs no second form.
- Left out: their kernels for relu^2 with its product, for X X^T and for the capped loss, which run on NVIDIA's cards
  alone, so that some values are rounded elsewhere; and the steps that they take and undo before training, since every
  stage is compiled before step 0 without any.

Multi-token targets belong to the loss, the float8 head to `fp8_head`, the tie of embedding and head to `optim.tied`,
rows to `data.bos_batches`; how NorMuon and Adam differ stands in `optim.muon` and `optim.adam`.

References: https://github.com/KellerJordan/modded-nanogpt (93f0e6b, 25500ab; track 3: f411b3d); value residuals,
arXiv:2410.17897; relu^2, arXiv:2109.08668; YaRN, arXiv:2309.00071.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.config.families import ModdedConfig
from jaxgpt.config.families.modded import GATE_CHANNELS
from jaxgpt.config.yarn import rotary_frequencies
from jaxgpt.models.bigram import bigram_ids
from jaxgpt.models.cache import query_positions, write_rows
from jaxgpt.models.layers import (
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
from jaxgpt.models.packed import cached_attention, document_begins, packed_attention
from jaxgpt.models.rope import rotary_tables, rotate
from jaxgpt.parallel.sharding import shard_batch

RMS_EPS = 2.0**-23
"""float32's machine epsilon, whatever the computation's type."""
HEAD_STD = 0.005
"""Of record 62's head, whose copy its embedding starts as."""
ATTENTION_INIT = {"62": 1.0, "46": 0.5}
MLP_INIT = {"62": 0.5, "46": 0.5}
"""Matrices start uniform within this times sqrt(3 / n_embd)."""
TRACK3_GAIN = 0.33**0.5
"""Standard deviation of track 3's matrices, times the root of their inputs."""
VALUE_GATE_SCALE = SKIP_GATE_SCALE = 2.0
"""Such a gate is this times a sigmoid."""
RESID_INIT, BIGRAM_INIT, BACKOUT_INIT, SKIP_INIT = 1.1, 0.1, 0.5, -1.5
ATTN_LAMBDAS_INIT = {"weights": (0.5, 1.0), "values": (0.5, 0.5)}


def matrix_init(config: ModdedConfig, n_in: int, part: dict[str, float]):
    """What a matrix that is neither zero nor an embedding starts from; part: ATTENTION_INIT or MLP_INIT."""
    if config.record == "track3":
        return normal(TRACK3_GAIN * n_in**-0.5)
    bound = part[config.record] * (3 / n_in) ** 0.5
    return uniform(-bound, bound)


def pair_heads(x_BTNH):
    """[B, T, N, H] -> [B, 2T, N/2, H]: row 2 t + s holds the heads s N/2 .. of token t. The memory stays as it is."""
    n_rows, n_tokens, n_head, head_dim = x_BTNH.shape
    return x_BTNH.reshape(n_rows, 2 * n_tokens, n_head // 2, head_dim)


def offset_keys(k_BSNH):
    """Each key's channels that do not rotate, the upper half, come from the key before it; the first keeps its own."""
    half = k_BSNH.shape[-1] // 2
    upper_BSNR = k_BSNH[..., half:]
    before_BSNR = jnp.concatenate([upper_BSNR[:, :1], upper_BSNR[:, :-1]], axis=1)
    return jnp.concatenate([k_BSNH[..., :half], before_BSNR], axis=-1)


def gate(module, x_BTD):
    """A sigmoid of the leading channels' products, [B, T, outputs]."""
    return jax.nn.sigmoid(module(x_BTD[..., :GATE_CHANNELS]))


class Norm(nnx.Module):
    """RMSNorm, in track 3 with gains."""

    def __init__(self, config: ModdedConfig, *, param_dtype):
        self.gains = nnx.Param(jnp.ones((config.n_embd,), param_dtype)) if config.norm_gains else None

    def __call__(self, x_BTD):
        return rms_norm(x_BTD, 1.0 if self.gains is None else self.gains[...], RMS_EPS)


class Head(Embedding):
    """Output rows, [V, D], in track 3 with a bias."""

    def __init__(self, config: ModdedConfig, *, init, param_dtype, rngs):
        super().__init__(config.vocab_size, config.n_embd, init=init, param_dtype=param_dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), param_dtype)) if config.bias else None


class CausalSelfAttention(nnx.Module):
    """Attention within a document and a window."""

    def __init__(self, config: ModdedConfig, layer: int, *, param_dtype, implementation, rngs):
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

    def __call__(self, x_BTD, value_embed_BTD, lambdas, tables, begin_BT, cache=None, offset_B=None):
        """Returns the output and, when a cache (k, v) is given, the cache with this call's keys and values.

        Args:
          value_embed_BTD: None where the layer has none.
          lambdas: the layer's two numbers; None where the model has none.
          tables: of rotary positions, for this kind of layer.
          begin_BT: first position of each token's document.
          offset_B: tokens of each row that the cache holds.
        """
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
            begin_BT = jnp.repeat(2 * begin_BT, 2, axis=1)
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
    """A linear layer whose weights are multiplied with a number, or None, before they are rounded to x's dtype."""
    weight_IO = module.weight[...] if scale is None else scale * module.weight[...]
    return linear(x_BTD, weight_IO, None if module.bias is None else module.bias[...])


class MLP(nnx.Module):
    """Four times as wide, relu squared, and back."""

    def __init__(self, config: ModdedConfig, *, param_dtype, rngs):
        n_embd = config.n_embd
        new = functools.partial(Linear, bias=config.bias, param_dtype=param_dtype, rngs=rngs)
        self.c_fc = new(n_embd, 4 * n_embd, init=matrix_init(config, n_embd, MLP_INIT))
        self.c_proj = new(4 * n_embd, n_embd, init=zeros)

    def __call__(self, x_BTD):
        h_BTF = jax.nn.relu(self.c_fc(x_BTD))
        return self.c_proj(h_BTF * h_BTF)


class Block(nnx.Module):
    """x + attention(norm(x)), where the layer has attention, then x + mlp(norm(x))."""

    def __init__(self, config: ModdedConfig, layer: int, *, param_dtype, implementation, rngs):
        if config.has_attention(layer):
            self.attn = CausalSelfAttention(
                config, layer, param_dtype=param_dtype, implementation=implementation, rngs=rngs
            )
        self.has_attention = config.has_attention(layer)
        self.mlp = MLP(config, param_dtype=param_dtype, rngs=rngs)
        self.norm1, self.norm2 = Norm(config, param_dtype=param_dtype), Norm(config, param_dtype=param_dtype)

    def __call__(self, x_BTD, value_embed_BTD, lambdas, tables, begin_BT, cache=None, offset_B=None):
        if self.has_attention:
            y_BTD, cache = self.attn(self.norm1(x_BTD), value_embed_BTD, lambdas, tables, begin_BT, cache, offset_B)
            x_BTD = x_BTD + y_BTD
        x_BTD = x_BTD + self.mlp(self.norm2(x_BTD))
        return shard_batch(x_BTD), cache


class Modded(nnx.Module):
    """The model from token ids to last hidden states; `loss.cross_entropy` and `logits` apply head and softcap.

    Args:
      dtype: of the computation.
      param_dtype: of the stored weights.
      implementation: of `packed_attention`; a cache has one of its own.
      remat: none, dots or block; what the backward pass finds instead of recomputing.
    """

    def __init__(self, config: ModdedConfig, *, dtype, param_dtype, implementation, remat, rngs):
        assert config.n_layer and config.vocab_size, "config.complete(n_ids) fills in layers and vocabulary"
        n_embd, n_layer = config.n_embd, config.n_layer
        self.config, self.dtype, self.remat = config, jnp.dtype(dtype), remat
        table = functools.partial(Embedding, n_embd=n_embd, param_dtype=param_dtype, rngs=rngs)
        is_tied = config.record == "62"
        init = normal(HEAD_STD) if is_tied else zeros
        self.lm_head = Head(config, init=init, param_dtype=param_dtype, rngs=rngs)
        self.wte = table(
            config.vocab_size, init=(lambda *_: jnp.copy(self.lm_head.weight[...])) if is_tied else normal(1.0)
        )
        self.h = nnx.List(
            [
                Block(config, i, param_dtype=param_dtype, implementation=implementation, rngs=rngs)
                for i in range(n_layer)
            ]
        )
        self.norm1, self.norm2 = Norm(config, param_dtype=param_dtype), Norm(config, param_dtype=param_dtype)
        if config.n_value_tables:
            init = zeros if is_tied else normal(1.0)
            self.value_embeds = nnx.List([table(config.vocab_size, init=init) for _ in range(config.n_value_tables)])
        if config.bigram:
            self.bigram_embed = table(config.bigram_rows, init=zeros)
            self.bigram_lambdas = nnx.Param(jnp.full((n_layer,), BIGRAM_INIT, param_dtype))
        if config.layer_lambdas:
            self.resid_lambdas = nnx.Param(jnp.full((n_layer,), RESID_INIT, param_dtype))
            self.x0_lambdas = nnx.Param(jnp.zeros((n_layer,), param_dtype))
        if config.attn_lambdas != "none":
            row = jnp.array(ATTN_LAMBDAS_INIT[config.attn_lambdas], param_dtype)
            self.attn_lambdas = nnx.Param(jnp.tile(row, (n_layer, 1)))
        to_one = functools.partial(Linear, GATE_CHANNELS, 1, bias=False, init=zeros, param_dtype=param_dtype, rngs=rngs)
        if config.smear:
            self.smear_gate = to_one()
            self.smear_lambda = nnx.Param(jnp.zeros((1,), param_dtype))
        if config.skip_to != -1:
            self.skip_lambda = nnx.Param(jnp.full((1,), SKIP_INIT, param_dtype))
        if config.skip_gate:
            self.skip_gate = to_one()
        if config.backout_from != -1:
            self.backout_lambda = nnx.Param(jnp.full((1,), BACKOUT_INIT, param_dtype))

    def __call__(self, tokens_BT, *, dropout_key=None):
        """Hidden states after the last norm, [B, T, n_head_channels].

        Args:
          tokens_BT: ids in [0, V), T at most seq_len. Documents begin at each BOS.
          dropout_key: None; the family has no dropout.
        """
        assert dropout_key is None
        before_B1 = jnp.full_like(tokens_BT[:, :1], -1)
        return self.run(tokens_BT, before_B1, self.begins(tokens_BT))[0]

    def run(self, tokens_BT, before_B1, begin_BT, pairs=None, offset_B=None):
        """All layers: last hidden states, and with a cache (k, v) per layer the caches after them.

        Args:
          before_B1: the id before each row's first one; -1 where there is none.
          begin_BT: first position of each token's document.
        """
        config = self.config
        positions_BT = query_positions(tokens_BT, offset_B)
        before_BT = jnp.concatenate([before_B1.astype(tokens_BT.dtype), tokens_BT[:, :-1]], axis=1)
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
                None if config.attn_lambdas == "none" else self.attn_lambdas[...][i],
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
        """First position of each token's document; of a row that is not packed, 0."""
        if not self.config.is_packed:
            return jnp.zeros(tokens_BT.shape, jnp.int32)
        return document_begins(tokens_BT, self.config.bos_id)

    def embed(self, tokens_BT, before_B1):
        """Normed token embeddings, each with some of the one before it where the model smears."""
        x_BTD = self.wte(tokens_BT, self.dtype)
        if self.config.smear:
            before_B1D = self.wte(jnp.maximum(before_B1, 0), self.dtype)
            before_B1D = jnp.where(before_B1[..., None] >= 0, before_B1D, 0)
            previous_BTD = jnp.concatenate([before_B1D, x_BTD[:, :-1]], axis=1)
            scale_BT1 = self.smear_lambda[...] * gate(self.smear_gate, x_BTD)
            x_BTD = add_scaled((1.0, x_BTD), (scale_BT1, previous_BTD))
        return shard_batch(self.norm1(x_BTD))

    def embed_bigrams(self, tokens_BT, before_BT, positions_BT):
        """Rows of the table of pairs, [B, T, D]; None where the model has none."""
        if not self.config.bigram:
            return None
        ids_BT = bigram_ids(tokens_BT, before_BT, positions_BT, self.config.bigram_rows)
        return shard_batch(self.bigram_embed(ids_BT, self.dtype))

    def rotary_tables(self, positions_BT):
        """Cosines and sines by whether a layer's heads are paired: head n of token t is then at 2 t + n mod 2."""
        config = self.config
        wide = jnp.promote_types(self.dtype, jnp.float32)
        frequencies_R = jnp.asarray(rotary_frequencies(config.head_dim, config.yarn, config.block_tokens, wide))
        dtype = self.dtype if config.has_rounded_tables else wide
        plain_BT1 = positions_BT[..., None]
        tables = {False: rotary_tables(plain_BT1, frequencies_R, dtype)}
        if "P" in config.paired_heads:
            paired_BTN = 2 * plain_BT1 + jnp.arange(config.n_head) % 2
            tables[True] = rotary_tables(paired_BTN, frequencies_R, dtype)
        return tables

    def skip(self, x_BTD, x0_BTD, kept_BTD):
        """The stream with a part of an earlier layer's output."""
        scale = jax.nn.sigmoid(self.skip_lambda[...])
        if self.config.skip_gate:
            scale = scale * SKIP_GATE_SCALE * gate(self.skip_gate, x0_BTD)
        return add_scaled((1.0, x_BTD), (scale, kept_BTD))

    def mix(self, layer: int, x_BTD, x0_BTD, bigram_BTD):
        """What a layer starts from: the residual stream, some of its beginning, some of the bigrams."""
        terms: list[tuple[Any, Any]] = [(1.0, x_BTD)]
        if self.config.layer_lambdas:
            terms = [(self.resid_lambdas[...][layer], x_BTD), (self.x0_lambdas[...][layer], x0_BTD)]
        if bigram_BTD is not None:
            terms.append((self.bigram_lambdas[...][layer], bigram_BTD))
        return add_scaled(*terms) if len(terms) > 1 else x_BTD

    def value_embed(self, layer: int, tokens_BT):
        """The rows that a layer adds to its values, [B, T, D]; None where it adds none."""
        number = self.config.value_table(layer)
        if number is None:
            return None
        return shard_batch(self.value_embeds[number](tokens_BT, self.dtype))

    def finish(self, x_BTD, kept_BTD):
        """The last norm, after a part of a middle layer's output is taken off; then the bias's channel."""
        if self.config.backout_from != -1:
            x_BTD = add_scaled((1.0, x_BTD), (-self.backout_lambda[...], kept_BTD))
        x_BTD = self.norm2(x_BTD)
        if not self.config.bias:
            return x_BTD
        extra_BTD = jnp.zeros((*x_BTD.shape[:2], self.config.n_head_channels - x_BTD.shape[2]), x_BTD.dtype)
        return jnp.concatenate([x_BTD, extra_BTD.at[..., 0].set(1)], axis=-1)

    def head_weight(self):
        """The output head, [V, n_head_channels]."""
        weight_VD = self.lm_head.weight[...]
        if self.lm_head.bias is None:
            return weight_VD
        extra_VD = jnp.zeros((weight_VD.shape[0], self.config.n_head_channels - weight_VD.shape[1]), weight_VD.dtype)
        return jnp.concatenate([weight_VD, extra_VD.at[:, 0].set(self.lm_head.bias[...])], axis=-1)

    def logits(self, x_BTD):
        """Capped scores over the vocabulary, float32 or wider."""
        return head_logits(x_BTD, self.head_weight(), self.config.logit_cap)

    def init_cache(self, n_rows: int, n_positions: int):
        """For `decode`: the ids so far, and keys and values, one pair per layer with attention."""
        shape = (n_rows, n_positions, self.config.n_head, self.config.head_dim)
        pairs = [
            (jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)) if block.has_attention else None
            for block in self.h
        ]
        return jnp.zeros((n_rows, n_positions), jnp.int32), pairs

    def decode(self, tokens_BT, cache, offset_B):
        """Hidden states of new tokens, given the cache of all before.

        Keys are cached as each token gives them; the offset of keys is made when they are read.

        Args:
          tokens_BT: the next ids of each row; of a shorter row padded at its end.
          offset_B: tokens of each row that the cache holds. The caller keeps offset + T within the cache.

        Returns:
          [B, T, n_head_channels] hidden states and the cache with the new ids, keys and values.
        """
        ids_BS, pairs = cache
        before_B1 = jnp.take_along_axis(ids_BS, jnp.maximum(offset_B - 1, 0)[:, None], axis=1)
        before_B1 = jnp.where(offset_B[:, None] > 0, before_B1, -1)
        ids_BS = write_rows(ids_BS, tokens_BT, offset_B)
        begin_BT = jnp.take_along_axis(self.begins(ids_BS), query_positions(tokens_BT, offset_B), axis=1)
        x_BTD, new_pairs = self.run(tokens_BT, before_B1, begin_BT, pairs, offset_B)
        return x_BTD, (ids_BS, new_pairs)
