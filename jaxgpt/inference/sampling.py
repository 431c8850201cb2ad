"""Sampling: the next token of each row, from its logits: greedy, or sampled under temperature, top-k and top-p.

Reference for top-p: Holtzman et al., arXiv:1904.09751.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.inference.request import Request

MIN_TEMPERATURE = 1e-20
"""Lower ones, except 0, count as this: logits divided by it stay finite in float32."""


class Way(NamedTuple):
    """What of a request's settings is compiled into `choose_token`."""

    top_k: int
    has_top_p: bool
    is_greedy: bool


def way_of(request: Request) -> Way:
    is_greedy = request.temperature == 0
    return Way(0 if is_greedy else request.top_k, not is_greedy and request.top_p < 1, is_greedy)


class Draw(NamedTuple):
    """The rest, an array each with one number per row."""

    temperature: jax.Array
    top_p: jax.Array
    seed: jax.Array
    sample: jax.Array


def draw_of(requests: list[Request]) -> Draw:
    """On the device, since they stay the same for many steps."""
    return Draw(
        jnp.array([max(request.temperature, MIN_TEMPERATURE) for request in requests], jnp.float32),
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
        scaled_BV = logits_BV / draw.temperature[:, None]
        ids_BV = None
        if way.top_k or way.has_top_p:
            scaled_BV, ids_BV = jax.lax.top_k(scaled_BV, way.top_k or n_valid)
        if way.has_top_p:
            probs_BV = jax.nn.softmax(scaled_BV, axis=-1)
            mass_before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
            scaled_BV = jnp.where(mass_before_BV < draw.top_p[:, None], scaled_BV, -jnp.inf)
        keys_B = jax.vmap(_make_key)(draw.seed, length_B, draw.sample)
        token_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV)
        if ids_BV is not None:
            token_B = jnp.take_along_axis(ids_BV, token_B[:, None], axis=-1)[:, 0]
    return jnp.where(jnp.isfinite(logits_BV.max(axis=-1)), token_B, -1).astype(jnp.int32)


def _make_key(seed, length, sample):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), length), sample)
