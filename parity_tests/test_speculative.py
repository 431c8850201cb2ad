"""Speculative decoding gives the target's distribution, greedy text equal to plain greedy, and saves forwards."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.inference.acceptance import accept, check_tokens, draft_tokens
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.inference.row_cache import make_cache
from jaxgpt.inference.sampling import Draw, choose_token, draw_of, token_probs, way_of
from jaxgpt.inference.speculative import SpeculativeRow, look_up
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


CHAIN = np.array([P_SS[0, a] * P_SS[a, b] * P_SS[b, c] for a, b, c in itertools.product(range(3), repeat=3)])


@pytest.mark.parametrize("n_draft", [1, 2, 3, 4])
def test_a_chain_keeps_its_distribution(n_draft):
    found, limit = deviation(run_chain(n_draft), CHAIN)
    assert found < limit


def test_a_replacement_that_counts_as_accepted_is_caught():
    found, limit = deviation(run_chain(1, is_faulty=True), CHAIN)
    assert found > 5 * limit


# Models


def make_engine(depth, seed, *, n_vocab=61, n_positions=96, era="2026"):
    """Windows shorter than the text, value embeddings, smear; noise on everything, some of it shared by all."""
    config = NanochatConfig(
        era=era, depth=depth, head_dim=16, n_embd=32, n_kv_head=1, seq_len=n_positions, short_window=8,
        window_pattern="SL", vocab_size=n_vocab,
    ).complete(0)  # fmt: skip
    rng = np.random.default_rng(seed)
    params = {
        path: leaf + (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
        for path, leaf in init_params(config).items()
    }
    return Engine(config, params, dtype="float32")


@pytest.fixture(scope="module")
def target():
    return make_engine(2, 1)


@pytest.fixture(scope="module")
def other():
    return make_engine(1, 2)


HOT, NARROW = {"temperature": 0.8}, {"temperature": 1.5, "top_k": 4, "top_p": 0.9}


@pytest.mark.parametrize(
    ("n_draft", "settings"), [(1, NARROW), (2, HOT), (3, NARROW), (4, HOT)], ids=["1", "2", "3", "4"]
)
def test_models_keep_the_distribution(n_draft, settings):
    """The first three tokens after a prompt of two, at once for all runs; in the order of a round of the row."""
    n_vocab, prompt = 5, (3, 1)
    big, small = (make_engine(1, seed, n_vocab=n_vocab, n_positions=16) for seed in (3, 4))
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

    seeds_R1 = jnp.arange(N_RUNS, dtype=jnp.uint32)[:, None]
    tokens_RT = np.asarray(jax.jit(lambda seeds_R1: jax.lax.map(run, seeds_R1, batch_size=10_000))(seeds_R1))

    texts = np.array([(*prompt, *text) for text in itertools.product(range(n_vocab), repeat=3)], np.int32)
    module = big.model.bind(big.params)
    logits_XTV = module.logits(module(texts))[:, 1:4]
    probs_XTV = np.asarray(jax.vmap(lambda logits_TV: token_probs(logits_TV, one, **statics))(logits_XTV))
    expected_X = np.take_along_axis(probs_XTV, texts[:, 2:, None], axis=2)[..., 0].prod(axis=1)
    assert expected_X.sum() == pytest.approx(1, abs=1e-5)
    found, limit = deviation(tokens_RT, expected_X)
    assert found < limit


def test_the_probabilities_are_those_of_choosing():
    """One-hot where greedy; else 0 exactly where `choose_token` never goes, with its frequencies."""
    logits_1V = jax.random.normal(jax.random.key(0), (1, 40)) * 2
    for settings in ({"temperature": 0.7, "top_k": 5}, {"temperature": 1.3, "top_p": 0.8}, {"temperature": 0}):
        request = Request((0,), 1, **settings)
        way, draw = way_of(request), draw_of([request])
        probs_V = np.asarray(token_probs(logits_1V, draw, n_valid=37, way=way))[0]
        many = Draw(*(jnp.tile(part, 20_000) for part in draw))
        lengths = np.arange(20_000, dtype=np.int32)
        tokens = np.asarray(choose_token(jnp.tile(logits_1V, (20_000, 1)), lengths, many, n_valid=37, way=way))
        counts = np.bincount(tokens, minlength=37)
        assert ((counts > 0) <= (probs_V > 0)).all() and probs_V.sum() == pytest.approx(1)
        assert np.abs(counts / 20_000 - probs_V).max() < 0.015


class EveryNinth:
    """A tool that forces three ids after every ninth token that it reads."""

    def __init__(self):
        self.n_seen = 0

    def feed(self, token_id):
        self.n_seen += 1
        return [3, 1, 4] if self.n_seen % 9 == 5 else []


def prompt_of(n_tokens, seed):
    return np.random.default_rng(seed).integers(61, size=n_tokens).tolist()


@pytest.mark.parametrize("draft", ["model", "lookup"])
@pytest.mark.parametrize("tool", [None, EveryNinth], ids=["plain", "tool"])
def test_greedy_text_is_that_of_plain_decoding(target, other, draft, tool):
    """250 tokens, so the context of 96 is full several times; then a second request, whose prompt is partly cached."""
    row = SpeculativeRow(target, other if draft == "model" else None, n_draft=3)
    text = prompt_of(30, 1) * 2
    for request in (
        Request(text, 250, temperature=0, tool=tool),
        Request([*text[:50], 7], 100, temperature=0, tool=tool, slides=False, stop_ids=(60,)),
        Request([5], 40, temperature=0),
    ):
        plain, rows = [], target.rows([request])
        while not rows.free:
            plain += rows.step()
        found = []
        row.start(0, request)
        while (token := row.step()[0]) is not None:
            found.append(token)
        assert found == plain
    assert row.n_accepted < row.n_drafted
    assert draft == "model" or row.n_accepted > 0


def test_a_draft_that_is_the_target_is_always_accepted(target):
    row = SpeculativeRow(target, target, n_draft=4)
    row.start(0, Request(prompt_of(20, 2), 50, temperature=0.9, seed=4))
    assert len([*row]) == 50
    assert (row.n_rounds, row.n_drafted, row.n_accepted) == (10, 40, 40)


def test_a_second_turn_computes_only_what_is_new(target, other):
    row = SpeculativeRow(target, other, n_draft=2)
    prompt = prompt_of(40, 3)
    row.start(0, Request(prompt, 20, seed=1))
    answer = [token for (token,) in row]
    assert row.n_prefilled_tokens == 39
    second = Request([*prompt, *answer, 9, 9], 20, seed=1)
    row.start(0, second)
    again = [*row]
    assert row.n_prefilled_tokens - 39 <= 3
    fresh = SpeculativeRow(target, other, n_draft=2)
    fresh.start(0, second)
    assert [*fresh] == again


def test_prompt_lookup_finds_the_longest_and_latest_match():
    assert look_up([1, 2, 3, 9, 8, 7, 2, 3, 5, 5, 5, 1, 2, 3], 2) == [9, 8]
    assert look_up([4, 3, 9, 8, 7, 3, 5, 5, 2, 3], 3) == [5, 5, 2]
    assert look_up([1, 2, 3, 4], 2) == [] and look_up([7, 7], 2) == [] and look_up([7, 7, 7], 2) == [7, 7]


def test_what_does_not_fit_is_refused(target):
    with pytest.raises(InputError, match="the draft has 60 ids, the model 61"):
        SpeculativeRow(target, make_engine(1, 1, n_vocab=60), n_draft=2)
    with pytest.raises(InputError, match="context of 16 tokens is shorter"):
        SpeculativeRow(target, make_engine(1, 1, n_positions=16), n_draft=2)
    with pytest.raises(InputError, match=r"n_draft=0 is outside \[1, 16\]"):
        SpeculativeRow(target, None, n_draft=0)
    with pytest.raises(InputError, match="n_log_probs=0 is not for speculative"):
        SpeculativeRow(target, None, n_draft=1).start(0, Request((1,), 1, n_log_probs=0))
