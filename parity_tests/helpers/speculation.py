"""How far speculative decoding is from its target's distribution: many runs of a chain, and of two small models."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import NanochatConfig
from jaxgpt.inference.acceptance import accept, check_tokens, draft_tokens
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.inference.row_cache import make_cache
from jaxgpt.inference.sampling import Draw, draw_of, token_probs, way_of
from jaxgpt.models import init_params

N_RUNS = 50_000
P_SS = np.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.4, 0.5, 0.1]], np.float32)
Q_SS = np.array([[0.2, 0.3, 0.5], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]], np.float32)
"""A target and a draft, of which the next of three states depends on the last."""


def draws_of(n_runs):
    """Each run has its seed."""
    one = draw_of([Request((0,), 1)])
    return Draw(*(jnp.tile(part, (n_runs, 1)) for part in one))._replace(
        seed=jnp.arange(n_runs, dtype=jnp.uint32)[:, None]
    )


def deviation(tokens_RT, expected_X):
    """Total variation between texts of runs and their probabilities, and what chance gives: mean + 3 standard errors.

    One run moves the variation by at most 1 / n, so its standard error is at most 1 / (2 sqrt(n)).
    """
    n_runs, n_vocab = len(tokens_RT), round(len(expected_X) ** (1 / tokens_RT.shape[1]))
    index_R = functools.reduce(lambda index, column: index * n_vocab + column, tokens_RT.T)
    found_X = np.bincount(index_R, minlength=len(expected_X)) / n_runs
    chance = np.sqrt(expected_X * (1 - expected_X) * 2 / np.pi / n_runs).sum() / 2
    return np.abs(found_X - expected_X).sum() / 2, chance + 3 / (2 * np.sqrt(n_runs))


def run_chain(n_draft, *, is_faulty=False):
    """Three states of many runs that begin in state 0.

    Args:
      is_faulty: counts the replacement of a rejected token as accepted, as flaxchat did: where the last drafted token
        is rejected, another token follows, drawn as if it had been accepted.
    """

    def go_round(carry, _):
        last, n_done, out_T, draw = carry
        keys_K = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(draw.seed[0] + 1_000_000), n_done + k))(
            jnp.arange(n_draft)
        )
        state, drafted, q = last, [], []
        for k in range(n_draft):
            q.append(jnp.asarray(Q_SS)[state])
            state = jax.random.categorical(keys_K[k], jnp.log(q[-1]))
            drafted.append(state)
        draft_K = jnp.stack(drafted)
        p_TV = jnp.asarray(P_SS)[jnp.concatenate([last[None], draft_K])]
        n_accepted, token = accept(p_TV, jnp.stack(q), draft_K, n_done, draw)
        round_T = jnp.where(jnp.arange(n_draft + 1) < n_accepted, jnp.append(draft_K, 0), token)
        n_new = n_accepted + 1
        if is_faulty:
            bonus = jax.random.categorical(jax.random.fold_in(keys_K[0], 7), jnp.log(p_TV[-1]))
            is_last = n_accepted == n_draft - 1
            round_T, n_new = jnp.where(is_last, round_T.at[n_draft].set(bonus), round_T), n_new + is_last
        out_T = jax.lax.dynamic_update_slice(out_T, round_T, (n_done,))
        return (round_T[n_new - 1], n_done + n_new, out_T, draw), None

    def run(draw):
        start = (jnp.int32(0), jnp.int32(0), jnp.zeros(3 * (n_draft + 2), jnp.int32), draw)
        (_, _, out_T, _), _ = jax.lax.scan(go_round, start, length=3)
        return out_T[:3]

    return np.asarray(jax.jit(jax.vmap(run))(draws_of(N_RUNS)))


CHAIN_X = np.array([P_SS[0, a] * P_SS[a, b] * P_SS[b, c] for a, b, c in itertools.product(range(3), repeat=3)])


def chain_deviation(n_draft, *, is_faulty=False):
    """Of the chain, as `deviation`."""
    return deviation(run_chain(n_draft, is_faulty=is_faulty), CHAIN_X)


@functools.cache
def _fresh():
    config = NanochatConfig(
        era="2026", depth=1, head_dim=16, n_embd=32, n_kv_head=1, seq_len=96, window_pattern="L", vocab_size=61
    ).complete(0)
    return config, init_params(config)


def make_engine(seed):
    """Smear, value embeddings, and noise on everything. All have one config, so that they share their programs."""
    config, fresh = _fresh()
    rng = np.random.default_rng(seed)
    params = {path: leaf + (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32) for path, leaf in fresh.items()}
    return Engine(config, params, dtype="float32")


HOT, NARROW = {"temperature": 0.8}, {"temperature": 1.5, "top_k": 4, "top_p": 0.9}


def model_deviation(big, small, n_draft, settings, *, n_runs=N_RUNS):
    """Of two engines: the first three tokens after a prompt of two, all runs at once, by the steps of a row."""
    n_vocab, prompt = 5, (3, 1)  # of the vocabulary only the first five ids are sampled
    request = Request(prompt, 3, **settings)
    way, one = way_of(request), draw_of([request])
    statics = {"n_valid": n_vocab, "way": way}

    def run(seed):
        draw = one._replace(seed=seed)
        caches = [make_cache(engine.model, engine.params, n_positions=16) for engine in (big, small)]
        caches = [
            engine.model.bind(engine.params).decode(jnp.array([prompt[:1]]), cache, jnp.zeros(1, jnp.int32))[1]
            for engine, cache in zip((big, small), caches, strict=True)
        ]

        def go_round(carry, _):
            last_1, n_done, out_T, big_cache, small_cache = carry
            draft_K, q_KV, small_cache = draft_tokens(
                small.model, small.params, small_cache, last_1, n_done + 1, n_done + 2, draw, n_draft=n_draft, **statics
            )
            checked, big_cache = check_tokens(
                big.model, big.params, big_cache, last_1, draft_K, q_KV, n_done + 1, n_done + 2, draw, **statics
            )
            n_accepted, token = checked[0], checked[-1]
            round_T = jnp.where(jnp.arange(n_draft + 1) < n_accepted, checked[1:], token)
            out_T = jax.lax.dynamic_update_slice(out_T, round_T, (n_done,))
            return (token[None], n_done + n_accepted + 1, out_T, big_cache, small_cache), None

        start = (jnp.array(prompt[1:]), jnp.int32(0), jnp.zeros(3 * (n_draft + 1), jnp.int32), *caches)
        (_, _, out_T, *_), _ = jax.lax.scan(go_round, start, length=3)
        return out_T[:3]

    seeds_R1 = jnp.arange(n_runs, dtype=jnp.uint32)[:, None]
    tokens_RT = np.asarray(jax.jit(lambda seeds_R1: jax.lax.map(run, seeds_R1, batch_size=5000))(seeds_R1))

    texts = np.array([(*prompt, *text) for text in itertools.product(range(n_vocab), repeat=3)], np.int32)

    @jax.jit
    def uncached(texts):
        module = big.model.bind(big.params)
        return jax.vmap(lambda logits_TV: token_probs(logits_TV, one, **statics))(module.logits(module(texts))[:, 1:4])

    probs_XTV = np.asarray(uncached(texts))
    expected_X = np.take_along_axis(probs_XTV, texts[:, 2:, None], axis=2)[..., 0].prod(axis=1)
    assert abs(expected_X.sum() - 1) < 1e-5
    return deviation(tokens_RT, expected_X)
