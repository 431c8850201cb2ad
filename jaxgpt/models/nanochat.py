"""nanochat's model, top to bottom, in both eras: that of November 2025 and that of July 2026 (`config.era`).

Both: rotary positions, parameterless RMSNorm before each sublayer and on queries and keys, relu^2, no biases, an
untied head whose logits are capped by a tanh. 2026 adds value embeddings mixed in by gates, short attention windows,
smear (a little of the token before), residual and x0 lambdas, and backout (a little of the middle layer, taken off).

Paths of parameters are nanochat's without the leading `transformer.` (`h.0.attn.c_q.weight`). Linear weights are
[in, out]; `lm_head.weight` is [V, D], a row per token, as the embedding. nanochat keeps embeddings in bfloat16; here
all parameters are float32. Its rotary embedding turns by minus the angle, which the code below keeps.

References: https://github.com/karpathy/nanochat gpt.py (c6abcdf, 92d63d4); RoPE, arXiv:2104.09864; RMSNorm,
arXiv:1910.07467; relu^2, arXiv:2109.08668; value residuals, arXiv:2410.17897.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.config.families import NanochatConfig
from jaxgpt.config.families.nanochat import GATE_CHANNELS
from jaxgpt.models.attention import attention
from jaxgpt.models.cache import init_heads, query_positions, write_heads, write_rows
from jaxgpt.models.layers import (
    Embedding,
    Linear,
    add_scaled,
    head_logits,
    normal,
    rematerialise,
    rms_norm,
    rotary,
    scaled,
    uniform,
    zeros,
)
from jaxgpt.parallel.sharding import shard_batch

HEAD_STD = 0.001
VALUE_GATE_SCALE = 3.0
"""A gate is this times a sigmoid."""
GATE_INIT = 0.02
"""Gates start uniform in [0, GATE_INIT)."""
C_FC_INIT_SCALE = 0.4
BACKOUT_INIT = 0.2
RESID_LAMBDAS_INIT = (1.15, 1.05)
X0_LAMBDAS_INIT = (0.20, 0.05)
"""Values of the first and of the last layer, in a straight line between."""


def matrix_init(config: NanochatConfig, n_in: int, n_out: int):
    """What a matrix that is neither zero nor an embedding starts from."""
    if config.init == "uniform":
        bound = (3 / config.n_embd) ** 0.5
        return uniform(-bound, bound)
    return normal(n_in**-0.5 * min(1.0, (n_out / n_in) ** 0.5))


class CausalSelfAttention(nnx.Module):
    """Projections for q, k and v, a value embedding where the layer has one, attention in a window."""

    def __init__(self, config: NanochatConfig, layer: int, *, param_dtype, implementation, rngs):
        n_embd, kv_dim = config.n_embd, config.n_kv_head * config.head_dim
        self.config, self.layer, self.implementation = config, layer, implementation
        linear = functools.partial(Linear, bias=False, param_dtype=param_dtype, rngs=rngs)
        self.c_q = linear(n_embd, n_embd, init=matrix_init(config, n_embd, n_embd))
        self.c_k = linear(n_embd, kv_dim, init=matrix_init(config, n_embd, kv_dim))
        self.c_v = linear(n_embd, kv_dim, init=matrix_init(config, n_embd, kv_dim))
        self.c_proj = linear(n_embd, n_embd, init=zeros)
        if config.has_value_embed(layer):
            self.ve_gate = linear(GATE_CHANNELS["value_embed"], config.n_kv_head, init=uniform(0.0, GATE_INIT))

    def __call__(self, x_BTD, value_embed_BTD=None, cache=None, offset_B=None):
        """Returns the output and, when a cache (k, v) is given, the cache with this call's keys and values."""
        config = self.config
        n_rows, n_queries, n_embd = x_BTD.shape
        kv_heads = (n_rows, n_queries, config.n_kv_head, config.head_dim)
        q_BTNH = self.c_q(x_BTD).reshape(n_rows, n_queries, config.n_head, config.head_dim)
        k_BTKH, v_BTKH = self.c_k(x_BTD).reshape(kv_heads), self.c_v(x_BTD).reshape(kv_heads)
        if value_embed_BTD is not None:
            gate_BTK = VALUE_GATE_SCALE * jax.nn.sigmoid(self.ve_gate(x_BTD[..., : GATE_CHANNELS["value_embed"]]))
            v_BTKH = v_BTKH + gate_BTK[..., None] * value_embed_BTD.reshape(kv_heads)
        positions_BT = query_positions(x_BTD, offset_B)
        q_BTNH, k_BTKH = (
            rms_norm(rotary(x, positions_BT, config.rope_base), config.qk_scale) for x in (q_BTNH, k_BTKH)
        )
        k_BSKH, v_BSKH = k_BTKH, v_BTKH
        if cache is not None:
            k_BKSH, k_BSKH = write_heads(cache[0], k_BTKH, offset_B)
            v_BKSH, v_BSKH = write_heads(cache[1], v_BTKH, offset_B)
            cache = (k_BKSH, v_BKSH)
        window = config.window(self.layer)
        y_BTNH = attention(
            q_BTNH, k_BSKH, v_BSKH,
            implementation=self.implementation, offset_B=offset_B, window=window if window < config.seq_len else None,
        )  # fmt: skip
        return self.c_proj(y_BTNH.reshape(n_rows, n_queries, n_embd)), cache


class MLP(nnx.Module):
    """Four times as wide, relu squared, and back."""

    def __init__(self, config: NanochatConfig, *, param_dtype, rngs):
        n_embd = config.n_embd
        scale = C_FC_INIT_SCALE if config.init == "uniform" else 1.0
        init = scaled(scale, matrix_init(config, n_embd, 4 * n_embd))
        self.c_fc = Linear(n_embd, 4 * n_embd, bias=False, init=init, param_dtype=param_dtype, rngs=rngs)
        self.c_proj = Linear(4 * n_embd, n_embd, bias=False, init=zeros, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x_BTD):
        h_BTF = jax.nn.relu(self.c_fc(x_BTD))
        return self.c_proj(h_BTF * h_BTF)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: NanochatConfig, layer: int, *, param_dtype, implementation, rngs):
        self.attn = CausalSelfAttention(
            config, layer, param_dtype=param_dtype, implementation=implementation, rngs=rngs
        )
        self.mlp = MLP(config, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x_BTD, value_embed_BTD=None, cache=None, offset_B=None):
        y_BTD, cache = self.attn(rms_norm(x_BTD), value_embed_BTD, cache, offset_B)
        x_BTD = x_BTD + y_BTD
        x_BTD = x_BTD + self.mlp(rms_norm(x_BTD))
        return shard_batch(x_BTD), cache


class Nanochat(nnx.Module):
    """The model from token ids to last hidden states; `loss.cross_entropy` and `logits` apply head and softcap.

    Args:
      dtype: of the computation.
      param_dtype: of the stored weights.
      implementation: of attention; with a cache xla.
      remat: none, dots or block; what the backward pass finds instead of recomputing.
    """

    def __init__(self, config: NanochatConfig, *, dtype, param_dtype, implementation, remat, rngs):
        assert config.n_embd and config.vocab_size, "config.complete(n_ids) fills in width and vocabulary"
        n_embd, n_layer = config.n_embd, config.n_layer
        self.config, self.dtype, self.remat = config, jnp.dtype(dtype), remat
        table = functools.partial(Embedding, config.vocab_size, param_dtype=param_dtype, rngs=rngs)
        self.wte = table(n_embd, init=normal(0.8 if config.init == "uniform" else 1.0))
        self.lm_head = table(n_embd, init=normal(HEAD_STD) if config.init == "uniform" else zeros)
        self.h = nnx.List(
            [
                Block(config, i, param_dtype=param_dtype, implementation=implementation, rngs=rngs)
                for i in range(n_layer)
            ]
        )
        if config.value_embeds:
            kv_dim = config.n_kv_head * config.head_dim
            layers = [i for i in range(n_layer) if config.has_value_embed(i)]
            init = matrix_init(config, n_embd, kv_dim)
            self.value_embeds = nnx.Dict({str(i): table(kv_dim, init=init) for i in layers})
        if config.layer_lambdas:
            self.resid_lambdas = nnx.Param(jnp.linspace(*RESID_LAMBDAS_INIT, n_layer, dtype=param_dtype))
            self.x0_lambdas = nnx.Param(jnp.linspace(*X0_LAMBDAS_INIT, n_layer, dtype=param_dtype))
        if config.smear:
            self.smear_gate = Linear(
                GATE_CHANNELS["smear"],
                1,
                bias=False,
                init=uniform(0.0, GATE_INIT),
                param_dtype=param_dtype,
                rngs=rngs,
            )
            self.smear_lambda = nnx.Param(jnp.zeros((1,), param_dtype))
        if config.backout:
            self.backout_lambda = nnx.Param(jnp.full((1,), BACKOUT_INIT, param_dtype))

    def __call__(self, tokens_BT, *, dropout_key=None):
        """Hidden states after the last norm, [B, T, D].

        Args:
          tokens_BT: ids in [0, V), T at most seq_len.
          dropout_key: None; the family has no dropout.
        """
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
        """Normed token embeddings; 2026: each with some of the one before it.

        Args:
          before_B1: the id before each row's first one; -1 where there is none. None: there is none.
        """
        x_BTD = rms_norm(self.wte(tokens_BT, self.dtype))
        if not self.config.smear:
            return shard_batch(x_BTD)
        before_B1D = jnp.zeros_like(x_BTD[:, :1])
        if before_B1 is not None:
            before_B1D = rms_norm(self.wte(jnp.maximum(before_B1, 0), self.dtype))
            before_B1D = jnp.where(before_B1[..., None] >= 0, before_B1D, 0)
        previous_BTD = jnp.concatenate([before_B1D, x_BTD[:, :-1]], axis=1)
        gate_BT1 = jax.nn.sigmoid(self.smear_gate(x_BTD[..., : GATE_CHANNELS["smear"]]))
        return shard_batch(add_scaled((1.0, x_BTD), (self.smear_lambda[...] * gate_BT1, previous_BTD)))

    def mix(self, layer: int, x_BTD, x0_BTD):
        """What a layer starts from: the residual stream, and in 2026 some of its beginning."""
        if not self.config.layer_lambdas:
            return x_BTD
        return add_scaled((self.resid_lambdas[...][layer], x_BTD), (self.x0_lambdas[...][layer], x0_BTD))

    def value_embed(self, layer: int, tokens_BT):
        """The layer's own embedding of the tokens, [B, T, K x H]; None where it has none."""
        if not self.config.has_value_embed(layer):
            return None
        return shard_batch(self.value_embeds[str(layer)](tokens_BT, self.dtype))

    def finish(self, x_BTD, middle_BTD):
        """The last norm; in 2026 after some of the middle layer's output is taken off."""
        if self.config.backout:
            x_BTD = add_scaled((1.0, x_BTD), (-self.backout_lambda[...], middle_BTD))
        return rms_norm(x_BTD)

    def head_weight(self):
        """The output head, [V, D]."""
        return self.lm_head.weight[...]

    def logits(self, x_BTD):
        """Capped scores over the vocabulary, float32 or wider."""
        return head_logits(x_BTD, self.head_weight(), self.config.logit_cap)

    def init_cache(self, n_rows: int, n_positions: int):
        """For `decode`: the ids so far, which smear looks back at, and keys and values, one pair per layer."""
        shape = (n_rows, self.config.n_kv_head, n_positions, self.config.head_dim)
        pairs = [(init_heads(*shape, self.dtype), init_heads(*shape, self.dtype)) for _ in self.h]
        return jnp.zeros((n_rows, n_positions), jnp.int32), pairs

    def decode(self, tokens_BT, cache, offset_B):
        """Hidden states of new tokens, given the cache of all before.

        Args:
          tokens_BT: the next ids of each row; of a shorter row padded at its end.
          offset_B: tokens of each row that the cache holds. The caller keeps offset + T within the cache.

        Returns:
          [B, T, D] hidden states and the cache with the new ids, keys and values.
        """
        ids_BS, pairs = cache
        before_B1 = jnp.take_along_axis(ids_BS, jnp.maximum(offset_B - 1, 0)[:, None], axis=1)
        before_B1 = jnp.where(offset_B[:, None] > 0, before_B1, -1)
        ids_BS = write_rows(ids_BS, tokens_BT, offset_B)
        x0_BTD = x_BTD = self.embed(tokens_BT, before_B1)
        middle_BTD, new_pairs = None, []
        for i, (block, pair) in enumerate(zip(self.h, pairs, strict=True)):
            x_BTD = self.mix(i, x_BTD, x0_BTD)
            x_BTD, pair = block(x_BTD, self.value_embed(i, tokens_BT), pair, offset_B)
            new_pairs.append(pair)
            middle_BTD = x_BTD if i == self.config.n_layer // 2 else middle_BTD
        return self.finish(x_BTD, middle_BTD), (ids_BS, new_pairs)
