"""Speculative decoding on the device: drafts tokens with one model, and tests them with another in one forward.

The rule keeps the target's distribution exactly. With p of the target and q of the draft, both after temperature,
top_k and top_p, a drafted token x is accepted with probability min(1, p(x) / q(x)). The first rejection ends the round:
its token is drawn from max(p - q, 0), normalised. Where none is rejected, one more token is drawn from p. Greedy p and
q are one-hot, so a token is accepted where it is the target's own.

A cache needs no rollback: slots behind a row's last token are overwritten before any query sees them, and smear looks
back at the ids that the cache holds. The caller says from which offset to go on.

Randomness belongs to a position in the text. A position that is drafted again, because one before it was rejected,
draws the same numbers again; what was kept does not depend on them.

References: Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318.
"""

import functools

import jax
import jax.numpy as jnp

from jaxgpt.inference.sampling import Draw, Way, token_probs
from jaxgpt.models import Model

DRAFT, TEST, NEXT = 1, 2, 3
"""What the randomness of a position is for."""


@functools.partial(jax.jit, static_argnames=("model", "n_draft", "n_valid", "way"), donate_argnames="cache")
def draft_tokens(
    model: Model, params, cache, last_1, offset, length, draw: Draw, *, n_draft: int, n_valid: int, way: Way
):
    """Samples the tokens that a model would go on with, and puts them into its cache.

    Args:
      cache: of one row; it has room for n_draft + 1 tokens from `offset` on.
      last_1: the text's last token, which is not cached.
      offset: where it stands.
      length: tokens of the text, for the randomness.
      draw: of the row.

    Returns:
      the tokens [K], the distributions that they were drawn from [K, n_valid], and the cache.
    """
    module = model.bind(params)

    def step(carry, k):
        token_1, cache = carry
        x_11D, cache = module.decode(token_1[:, None], cache, jnp.full(1, offset + k, jnp.int32))
        probs_1V = token_probs(module.logits(x_11D)[:, 0], draw, n_valid=n_valid, way=way)
        token = jax.random.categorical(_key(draw, length + k, DRAFT), jnp.log(probs_1V[0])).astype(jnp.int32)
        return (token[None], cache), (token, probs_1V[0])

    (_, cache), (tokens_K, q_KV) = jax.lax.scan(step, (last_1, cache), jnp.arange(n_draft + 1))
    return tokens_K[:n_draft], q_KV[:n_draft], cache  # the last step only caches the last token


@functools.partial(jax.jit, static_argnames=("model", "n_valid", "way"), donate_argnames="cache")
def check_tokens(model: Model, params, cache, last_1, draft_K, q_KV, offset, length, draw: Draw, *, n_valid, way: Way):
    """One forward over the last token and the drafted ones, and the rule.

    Args:
      draft_K: drafted ids; K may be 0.
      q_KV: what they were drawn from, [K, n_valid]; None: nothing was drawn, each was certain.
      cache, last_1, offset, length, draw: of the target, as in `draft_tokens`.

    Returns:
      [K + 2] int32: how many were accepted, the drafted tokens, and the token that follows the accepted ones, -1 where
      the logits are not finite; and the cache.
    """
    module = model.bind(params)
    tokens_1T = jnp.concatenate([last_1, draft_K])[None]
    x_1TD, cache = module.decode(tokens_1T, cache, jnp.full(1, offset, jnp.int32))
    logits_TV = module.logits(x_1TD)[0]
    p_TV = token_probs(logits_TV, draw, n_valid=n_valid, way=way)
    if q_KV is None:
        q_KV = jax.nn.one_hot(draft_K, n_valid, dtype=p_TV.dtype)
    n_accepted, token = accept(p_TV, q_KV, draft_K, length, draw)
    is_finite_T = jnp.isfinite(logits_TV[:, :n_valid].max(axis=-1))
    token = jnp.where(is_finite_T[n_accepted], token, -1)
    return jnp.concatenate([n_accepted[None], draft_K, token[None]]).astype(jnp.int32), cache


def accept(p_TV, q_KV, draft_K, length, draw: Draw):
    """How many of the drafted tokens are accepted, and the token that follows them.

    Args:
      p_TV: the target's distributions, [K + 1, V]: row k is that of the token which draft k is for.
      q_KV: those that the tokens were drawn from.
    """
    n_draft = draft_K.shape[0]
    places_K = jnp.arange(n_draft)
    uniform_K = jax.vmap(lambda k: jax.random.uniform(_key(draw, length + k, TEST)))(places_K)
    is_accepted_K = uniform_K * q_KV[places_K, draft_K] < p_TV[places_K, draft_K]
    n_accepted = jnp.cumprod(is_accepted_K.astype(jnp.int32)).sum()
    p_V = p_TV[n_accepted]
    q_V = jnp.where(n_accepted < n_draft, jnp.concatenate([q_KV, jnp.zeros_like(p_TV[:1])])[n_accepted], 0)
    rest_V = jnp.maximum(p_V - q_V, 0)
    rest_V = jnp.where(rest_V.sum() > 0, rest_V, p_V)  # p and q equal up to rounding
    return n_accepted, jax.random.categorical(_key(draw, length + n_accepted, NEXT), jnp.log(rest_V))


def _key(draw: Draw, length, purpose: int):
    key = jax.random.fold_in(jax.random.key(draw.seed[0]), length)
    return jax.random.fold_in(jax.random.fold_in(key, draw.sample[0]), purpose)
