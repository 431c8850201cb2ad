"""GPT-2 as nanoGPT trains it, top to bottom: embeddings, blocks of attention and MLP, final norm, tied head.

Paths and shapes of parameters are nanoGPT's without the leading `transformer.` (`h.0.attn.c_attn.weight`), with
linear weights stored [in, out], as OpenAI's are.

References: Radford et al. 2019; https://github.com/karpathy/nanoGPT model.py.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.config.families import GPT2Config
from jaxgpt.models.attention import attention
from jaxgpt.models.cache import init_heads, query_positions, write_heads
from jaxgpt.models.layers import Embedding, LayerNorm, Linear, dropout, gelu, head_logits, normal, rematerialise, split
from jaxgpt.parallel.sharding import shard_batch

INIT_STD = 0.02


class CausalSelfAttention(nnx.Module):
    """One projection for q, k and v, causal attention, one projection back."""

    def __init__(self, config: GPT2Config, *, param_dtype, implementation, rngs):
        n_embd = config.n_embd
        self.config, self.implementation = config, implementation
        self.c_attn = Linear(
            n_embd, 3 * n_embd, bias=config.bias, init=normal(INIT_STD), param_dtype=param_dtype, rngs=rngs
        )
        std = INIT_STD * (2 * config.n_layer) ** -0.5
        self.c_proj = Linear(n_embd, n_embd, bias=config.bias, init=normal(std), param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x_BTD, cache=None, offset_B=None, *, dropout_key=None):
        """Returns the output and, when a cache (k, v) is given, the cache with this call's keys and values."""
        config = self.config
        n_rows, n_queries, n_embd = x_BTD.shape
        heads = (n_rows, n_queries, config.n_head, config.head_dim)
        q_BTNH, k_BTNH, v_BTNH = (part.reshape(heads) for part in split(self.c_attn(x_BTD), 3))
        k_BSNH, v_BSNH = k_BTNH, v_BTNH
        if cache is not None:
            k_BNSH, k_BSNH = write_heads(cache[0], k_BTNH, offset_B)
            v_BNSH, v_BSNH = write_heads(cache[1], v_BTNH, offset_B)
            cache = (k_BNSH, v_BNSH)
        attn_key, resid_key = split_key(dropout_key)
        y_BTNH = attention(
            q_BTNH, k_BSNH, v_BSNH,
            implementation=self.implementation, offset_B=offset_B, dropout_rate=config.dropout, dropout_key=attn_key,
        )  # fmt: skip
        y_BTD = self.c_proj(y_BTNH.reshape(n_rows, n_queries, n_embd))
        return dropout(y_BTD, config.dropout, resid_key), cache


class MLP(nnx.Module):
    """Four times as wide, GELU, and back."""

    def __init__(self, config: GPT2Config, *, param_dtype, rngs):
        n_embd = config.n_embd
        self.config = config
        self.c_fc = Linear(
            n_embd, 4 * n_embd, bias=config.bias, init=normal(INIT_STD), param_dtype=param_dtype, rngs=rngs
        )
        std = INIT_STD * (2 * config.n_layer) ** -0.5
        self.c_proj = Linear(4 * n_embd, n_embd, bias=config.bias, init=normal(std), param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x_BTD, *, dropout_key=None):
        h_BTF = gelu(self.c_fc(x_BTD), self.config.gelu)
        return dropout(self.c_proj(h_BTF), self.config.dropout, dropout_key)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPT2Config, *, param_dtype, implementation, rngs):
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias, param_dtype=param_dtype)
        self.attn = CausalSelfAttention(config, param_dtype=param_dtype, implementation=implementation, rngs=rngs)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias, param_dtype=param_dtype)
        self.mlp = MLP(config, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x_BTD, cache=None, offset_B=None, *, dropout_key=None):
        attn_key, mlp_key = split_key(dropout_key)
        y_BTD, cache = self.attn(self.ln_1(x_BTD), cache, offset_B, dropout_key=attn_key)
        x_BTD = x_BTD + y_BTD
        x_BTD = x_BTD + self.mlp(self.ln_2(x_BTD), dropout_key=mlp_key)
        return shard_batch(x_BTD), cache


class GPT2(nnx.Module):
    """The model from token ids to last hidden states; `loss.cross_entropy` and `logits` apply the tied head.

    Args:
      dtype: of the computation.
      param_dtype: of the stored weights.
      implementation: of attention; with a cache xla.
      remat: none, dots or block; what the backward pass finds instead of recomputing.
    """

    def __init__(self, config: GPT2Config, *, dtype, param_dtype, implementation, remat, rngs):
        self.config, self.dtype, self.remat = config, jnp.dtype(dtype), remat
        self.wte = Embedding(
            config.vocab_size, config.n_embd, init=normal(INIT_STD), param_dtype=param_dtype, rngs=rngs
        )
        self.wpe = Embedding(config.seq_len, config.n_embd, init=normal(INIT_STD), param_dtype=param_dtype, rngs=rngs)
        self.h = nnx.List(
            [
                Block(config, param_dtype=param_dtype, implementation=implementation, rngs=rngs)
                for _ in range(config.n_layer)
            ]
        )
        self.ln_f = LayerNorm(config.n_embd, bias=config.bias, param_dtype=param_dtype)

    def __call__(self, tokens_BT, *, dropout_key=None):
        """Hidden states after the last norm, [B, T, D].

        Args:
          tokens_BT: ids in [0, V), T at most seq_len.
          dropout_key: None turns dropout off.
        """
        x_BTD = self.embed(tokens_BT, dropout_key=fold(dropout_key, self.config.n_layer))
        for i, block in enumerate(self.h):
            run = functools.partial(block, dropout_key=fold(dropout_key, i))
            x_BTD = rematerialise(lambda x, run=run: run(x)[0], self.remat)(x_BTD)
        return self.ln_f(x_BTD)

    def embed(self, tokens_BT, offset_B=None, dropout_key=None):
        """Token plus position embedding, for positions offset .. offset + T of each row."""
        x_BTD = (self.wte(tokens_BT) + self.wpe(query_positions(tokens_BT, offset_B))).astype(self.dtype)
        return shard_batch(dropout(x_BTD, self.config.dropout, dropout_key))

    def head_weight(self):
        """The output head, [V, D]: the token embedding itself."""
        return self.wte.weight[...]

    def logits(self, x_BTD):
        """Scores over the vocabulary, float32 or wider."""
        return head_logits(x_BTD, self.head_weight(), self.config.logit_cap)

    def init_cache(self, n_rows: int, n_positions: int):
        """Empty keys and values for `decode`, one pair per layer."""
        shape = (n_rows, self.config.n_head, n_positions, self.config.head_dim)
        return [(init_heads(*shape, self.dtype), init_heads(*shape, self.dtype)) for _ in self.h]

    def decode(self, tokens_BT, cache, offset_B):
        """Hidden states of new tokens, given the cache of all before.

        Args:
          tokens_BT: the next ids of each row; of a shorter row padded at its end.
          offset_B: tokens of each row that the cache holds. The caller keeps offset + T within the cache.

        Returns:
          [B, T, D] hidden states and the cache with the new keys and values.
        """
        x_BTD = self.embed(tokens_BT, offset_B)
        new_cache = []
        for block, layer_cache in zip(self.h, cache, strict=True):
            x_BTD, layer_cache = block(x_BTD, layer_cache, offset_B)
            new_cache.append(layer_cache)
        return self.ln_f(x_BTD), new_cache


def fold(key, i):
    return None if key is None else jax.random.fold_in(key, i)


def split_key(key):
    return (None, None) if key is None else jax.random.split(key)
