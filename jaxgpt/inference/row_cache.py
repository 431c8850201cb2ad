"""What the device does for rows: fills the cache of one, moves one in and out of the state of all, and takes a step.

A state is the logits after the last cached token of each row, [B, V], and a cache of B rows. Under a mesh whose batch
axes divide B each device has its part of the rows, and works on it alone. Each function is compiled
once for its shapes: `prefill` for a few lengths, the others for a number of rows.
"""

import functools

import jax
import jax.numpy as jnp

from jaxgpt.models import Model
from jaxgpt.parallel.sharding import shard_rows

MIN_PREFILL_TOKENS = 16
"""Shorter pieces are padded to this."""


def padded_tokens(n_tokens: int) -> int:
    """How long a prompt is where it is computed, so that prompts of all lengths share a few programs."""
    return max(MIN_PREFILL_TOKENS, 1 << (n_tokens - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("model", "n_positions"))
def make_cache(model: Model, params, *, n_positions: int):
    """An empty cache of one row."""
    return model.bind(params).init_cache(1, n_positions)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill(model: Model, params, cache, tokens_1T, n_tokens, offset):
    """A row after `n_tokens` more tokens: its logits [1, V], and its cache.

    Args:
      cache: of one row; what it holds from `offset` on is not looked at.
      tokens_1T: the tokens, and padding.
      offset: where the first of them stands. The caller keeps offset + T within the cache.
    """
    module = model.bind(params)
    x_1TD, cache = module.decode(tokens_1T, cache, jnp.full(1, offset, jnp.int32))
    last_11D = jax.lax.dynamic_slice_in_dim(x_1TD, n_tokens - 1, 1, axis=1)
    return module.logits(last_11D)[:, 0], cache


@functools.partial(jax.jit, static_argnames="n_rows")
def make_state(filled, *, n_rows: int):
    """Room for `n_rows` rows like `filled`."""
    return shard_rows(jax.tree.map(lambda leaf: jnp.zeros((n_rows, *leaf.shape[1:]), leaf.dtype), filled))


@functools.partial(jax.jit, donate_argnames="state")
def put_row(state, filled, row):
    """A state with `filled` as its row number `row`; the other rows are not touched."""
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=row, axis=0)
    return shard_rows(jax.tree.map(put, state, filled))


@functools.partial(jax.jit, static_argnames="model")
def take_row(model: Model, params, cache, row, n_tokens):
    """A copy of one row of a cache, as a cache of one row that holds its first `n_tokens`, and zeros after them.

    Zeros, because a query gives the keys and values that it does not see no weight, and none of what is not finite is
    still not finite: a row that broke would break whoever continues its text.
    """
    shapes = (jax.eval_shape(lambda n=n: model.bind(params).init_cache(1, n)) for n in (1, 2))

    def take(leaf, one, two):
        axis = next(i for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b)
        is_held_S = jnp.arange(leaf.shape[axis]) < n_tokens
        is_held = jnp.expand_dims(is_held_S, [i for i in range(leaf.ndim) if i != axis])
        return jnp.where(is_held, jax.lax.dynamic_slice_in_dim(leaf, row, 1, axis=0), 0)

    return jax.tree.map(take, cache, *shapes)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def decode_step(model: Model, params, cache, token_B, offset_B):
    """Logits after one more token per row, which stands at its offset, [B, V]; the cache is updated in place."""
    module = model.bind(params)
    x_B1D, cache = module.decode(token_B[:, None], cache, offset_B)
    return shard_rows((module.logits(x_B1D)[:, 0], cache))
