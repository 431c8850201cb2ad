"""The toy family's math."""

import jax.numpy as jnp
from flax import nnx
from jaxgpt.config.families.toy import ToyConfig

from jaxgpt.models.cache import query_positions, write_rows
from jaxgpt.models.layers import Embedding, Linear, normal, rematerialise, rms_norm
from jaxgpt.parallel.sharding import shard_batch


class Block(nnx.Module):
    def __init__(self, config: ToyConfig, *, param_dtype, rngs):
        n_embd = config.n_embd
        self.c_fc = Linear(n_embd, 2 * n_embd, bias=False, init=normal(0.1), param_dtype=param_dtype, rngs=rngs)
        self.c_proj = Linear(2 * n_embd, n_embd, bias=False, init=normal(0.1), param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x_BTD):
        return shard_batch(x_BTD + self.c_proj(jnp.tanh(self.c_fc(rms_norm(x_BTD)))))


class Toy(nnx.Module):
    def __init__(self, config: ToyConfig, *, dtype, param_dtype, implementation, remat, rngs):
        self.config, self.dtype, self.remat = config, jnp.dtype(dtype), remat
        shape = (config.vocab_size, config.n_embd)
        self.wte = Embedding(*shape, init=normal(0.5), param_dtype=param_dtype, rngs=rngs)
        self.lm_head = Embedding(*shape, init=normal(0.1), param_dtype=param_dtype, rngs=rngs)
        self.look_back = nnx.Param(jnp.full((config.n_embd,), 0.5, param_dtype))
        self.h = nnx.List([Block(config, param_dtype=param_dtype, rngs=rngs) for _ in range(config.n_layer)])

    def __call__(self, tokens_BT, *, dropout_key=None):
        before_BT = jnp.pad(tokens_BT[:, :-1], ((0, 0), (1, 0)))
        return self.run(tokens_BT, before_BT, jnp.arange(tokens_BT.shape[1])[None] > 0)

    def run(self, tokens_BT, before_BT, has_before_BT):
        x_BTD, before_BTD = (self.wte(ids_BT).astype(self.dtype) for ids_BT in (tokens_BT, before_BT))
        weight = self.look_back[...].astype(self.dtype) * has_before_BT[..., None]
        x_BTD = shard_batch(x_BTD + weight * before_BTD)
        for block in self.h:
            x_BTD = rematerialise(block, self.remat)(x_BTD)
        return rms_norm(x_BTD)

    def head_weight(self):
        return self.lm_head.weight[...]

    def logits(self, x_BTD):
        wide = jnp.promote_types(x_BTD.dtype, jnp.float32)
        weight_VD = self.head_weight().astype(x_BTD.dtype)
        return jnp.einsum("BTD,VD->BTV", x_BTD, weight_VD, preferred_element_type=wide)

    def init_cache(self, n_rows, n_positions):
        return jnp.zeros((n_rows, n_positions), jnp.int32)

    def decode(self, tokens_BT, cache, offset_B):
        ids_BS = write_rows(cache, tokens_BT, offset_B)
        positions_BT = query_positions(tokens_BT, offset_B)
        before_BT = jnp.take_along_axis(ids_BS, jnp.maximum(positions_BT - 1, 0), axis=1)
        return self.run(tokens_BT, before_BT, positions_BT > 0), ids_BS
