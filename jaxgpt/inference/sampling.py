"""Sampling: the next token of each row, from its logits: greedy, or sampled under temperature, top-k and top-p.

Reference for top-p: Holtzman et al., arXiv:1904.09751.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.inference.request import Request
from jaxgpt.parallel.sharding import share

MIN_TEMPERATURE = 1e-20
"""Lower ones, except 0, count as this: logits divided by it stay finite in float32."""


MIN_SORTED = 64


class Way(NamedTuple):
    """What of a request's settings is compiled into `choose_token`.

    Attributes:
      n_sorted: top_k rounded up to a power of two, so that requests share a few programs; 0: no top_k.
    """

    n_sorted: int
    has_top_p: bool
    is_greedy: bool


def way_of(request: Request) -> Way:
    if request.temperature == 0:
        return Way(0, False, True)
    n_sorted = max(MIN_SORTED, 1 << (request.top_k - 1).bit_length()) if request.top_k else 0
    return Way(n_sorted, request.top_p < 1, False)


class Draw(NamedTuple):
    """The rest, an array each with one number per row."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    seed: jax.Array
    sample: jax.Array


def draw_of(requests: list[Request]) -> Draw:
    """On the device, since they stay the same for many steps."""
    return Draw(
        jnp.array([max(request.temperature, MIN_TEMPERATURE) for request in requests], jnp.float32),
        jnp.array([request.top_k for request in requests], jnp.int32),
        jnp.array([request.top_p for request in requests], jnp.float32),
        jnp.array(np.array([request.seed for request in requests], np.uint32)),
        jnp.array([request.sample for request in requests], jnp.uint32),
    )


@functools.partial(jax.jit, static_argnames=("n_valid", "way"))
def choose_token(logits_BV, length_B, draw: Draw, *, n_valid: int, way: Way):
    """The next id of each row, int32; -1 where the largest logit is not finite.

    Args:
      length_B: tokens of each row so far. With seed and sample they make its randomness: nothing else does, so a row
        gets the same whoever its neighbours are.
      n_valid: ids from here on are never chosen.
    """
    logits_BV = logits_BV[:, :n_valid]
    if way.is_greedy:
        token_B = logits_BV.argmax(axis=-1)
    else:
        kept_BV, ids_BV = _keep(logits_BV, draw, way)
        keys_B = jax.vmap(_make_key)(draw.seed, length_B, draw.sample)
        token_B = jax.vmap(jax.random.categorical)(keys_B, kept_BV)
        if ids_BV is not None:
            token_B = jnp.take_along_axis(ids_BV, token_B[:, None], axis=-1)[:, 0]
    return share(jnp.where(jnp.isfinite(logits_BV.max(axis=-1)), token_B, -1).astype(jnp.int32))


def token_probs(logits_TV, draw: Draw, *, n_valid: int, way: Way):
    """The distribution that `choose_token` draws from, [T, n_valid], float32 or wider.

    Args:
      draw: of one row, for all T.
    """
    logits_TV = logits_TV[:, :n_valid]
    if way.is_greedy:
        return jax.nn.one_hot(logits_TV.argmax(axis=-1), n_valid)
    kept_TV, ids_TV = _keep(logits_TV, draw, way)
    probs_TV = jax.nn.softmax(kept_TV.astype(jnp.promote_types(kept_TV.dtype, jnp.float32)), axis=-1)
    if ids_TV is None:
        return probs_TV
    return jnp.put_along_axis(jnp.zeros(logits_TV.shape, probs_TV.dtype), ids_TV, probs_TV, axis=-1, inplace=False)


def _keep(logits_BV, draw: Draw, way: Way):
    """Logits over temperature, -inf where top_k and top_p leave a token out; and whose they are, None: 0, 1, 2, ..."""
    scaled_BV = logits_BV / draw.temperature[:, None]
    ids_BV = None
    if way.n_sorted or way.has_top_p:
        n_valid = logits_BV.shape[1]
        scaled_BV, ids_BV = jax.lax.top_k(scaled_BV, min(way.n_sorted, n_valid) or n_valid)
    if way.n_sorted:
        rank_V = jnp.arange(scaled_BV.shape[1])
        scaled_BV = jnp.where(rank_V < draw.top_k[:, None], scaled_BV, -jnp.inf)
    if way.has_top_p:
        probs_BV = jax.nn.softmax(scaled_BV, axis=-1)
        mass_before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
        scaled_BV = jnp.where(mass_before_BV < draw.top_p[:, None], scaled_BV, -jnp.inf)
    return scaled_BV, ids_BV


@functools.partial(jax.jit, static_argnames=("n_valid", "n_likeliest"))
def score_token(logits_BV, token_B, *, n_valid: int, n_likeliest: int):
    """Natural logarithms of the model's own probabilities: whatever temperature, top_k and top_p, as a loss has them.

    Args:
      token_B: ids; a negative one counts as 0.
      n_valid: ids from here on have their part of the probability, but are not among the most likely.

    Returns:
      That of each row's token, [B]; and the ids and values, [B, n_likeliest], of the most likely tokens, most likely
      first. float32 or wider.
    """
    wide = jnp.promote_types(logits_BV.dtype, jnp.float32)
    log_probs_BV = jax.nn.log_softmax(logits_BV.astype(wide), axis=-1)
    chosen_B = jnp.take_along_axis(log_probs_BV, jnp.maximum(token_B, 0)[:, None], axis=1)[:, 0]
    values_BK, ids_BK = jax.lax.top_k(log_probs_BV[:, :n_valid], min(n_likeliest, n_valid))
    return share(chosen_B), share(ids_BK), share(values_BK)


def _make_key(seed, length, sample):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), length), sample)
