"""Cached generation agrees with the uncached model, sampling with its distribution, and little is compiled."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import GPT2Config
from jaxgpt.errors import InputError
from jaxgpt.inference.engine import Engine, choose_token, decode_step, prefill
from jaxgpt.models import Model, init_params

CONFIG = GPT2Config(seq_len=64, n_layer=2, n_head=4, n_embd=64, bias=True, gelu="tanh", vocab_size=96)
N_VOCAB = CONFIG.vocab_size
LOGIT_TOLERANCE = 1e-3
"""float32 forwards that sum in another order, through weights that amplify: 2e-4 was seen, at logits up to 8. One
position off gives 4 and more."""


@pytest.fixture(scope="module")
def model():
    return Model(CONFIG)


@pytest.fixture(scope="module")
def params():
    """Weights large enough that greedy text is not one token over and over."""

    @jax.jit
    def draw_params():
        fresh = init_params(CONFIG, seed=3)
        noise = iter(jax.random.split(jax.random.key(1), len(fresh)))
        scale = {path: 5 if path == "wpe.weight" else 1 if path == "wte.weight" else 12 for path in fresh}
        return {
            path: scale[path] * (leaf + 0.01 * jax.random.normal(next(noise), leaf.shape))
            for path, leaf in fresh.items()
        }

    return draw_params()


@pytest.fixture(scope="module")
def engine(model, params):
    return Engine(model, params, dtype="float32")


@pytest.fixture(scope="module")
def forward(model, params):
    """The uncached model: ids of at most 64 tokens -> logits [T, V]."""

    @jax.jit
    def full(tokens_BT):
        module = model.bind(params)
        return module.logits(module(tokens_BT, dtype=jnp.float32))[0]

    def call(ids):
        padded_BT = np.zeros((1, CONFIG.seq_len), np.int32)
        padded_BT[0, : len(ids)] = ids
        return np.asarray(full(padded_BT))[: len(ids)]

    return call


def prompt_of(n_tokens, seed=0):
    return np.random.default_rng(seed).integers(N_VOCAB, size=n_tokens).tolist()


def first_column(steps) -> list[Any]:
    return [ids[0] for ids in steps]


def uncached_greedy(forward, prompt, n_tokens, n_positions):
    """The ids by full forwards over the window that the engine documents: cut to its last half when it is full."""
    window, ids = list(prompt), []
    for _ in range(n_tokens):
        if len(window) > n_positions:
            window = window[-(n_positions // 2) :]
        ids.append(int(forward(window)[-1].argmax()))
        window.append(ids[-1])
    return ids


@pytest.mark.parametrize("n_prompt", [1, 15, 16, 17, 40, 63, 64])
def test_greedy_agrees_with_the_uncached_model(engine, forward, n_prompt):
    """150 tokens, so every prompt passes the end of the context of 64 several times."""
    prompt = prompt_of(n_prompt, seed=n_prompt)
    ids = first_column(engine.generate(prompt, max_tokens=150, temperature=0))
    assert ids == uncached_greedy(forward, prompt, 150, CONFIG.seq_len)
    assert len(set(ids)) > 20


def test_a_smaller_cache_slides_earlier(model, params, forward):
    engine = Engine(model, params, dtype="float32", n_positions=33)
    ids = first_column(engine.generate(prompt_of(20), max_tokens=70, temperature=0))
    assert ids == uncached_greedy(forward, prompt_of(20), 70, 33)
    assert ids != uncached_greedy(forward, prompt_of(20), 70, 64)


def test_cached_logits_agree_with_the_full_forward(model, params, forward):
    dtype = jnp.dtype("float32")
    tokens = np.array([prompt_of(40, seed=1), prompt_of(40, seed=2)], np.int32)
    full_BTV = np.stack([forward(row) for row in tokens])
    padded = np.full((2, 64), 7, np.int32)
    padded[:, :20] = tokens[:, :20]
    logits_BV, cache = prefill(model, params, padded, np.int32(20), n_positions=64, dtype=dtype)
    np.testing.assert_allclose(logits_BV, full_BTV[:, 19], atol=LOGIT_TOLERANCE)
    for position in range(20, 40):
        logits_BV, cache = decode_step(model, params, cache, tokens[:, position], np.int32(position), dtype=dtype)
        np.testing.assert_allclose(logits_BV, full_BTV[:, position], atol=LOGIT_TOLERANCE)


def n_compiled(function: Any) -> int:
    return function._cache_size()


def test_prompt_lengths_share_compiled_functions(params):
    model = Model(dataclasses.replace(CONFIG, seq_len=64, dropout=0.125))  # a key of its own in the caches
    engine = Engine(model, params, dtype="float32")
    n_prefills, n_decodes = n_compiled(prefill), n_compiled(decode_step)
    for n_prompt in range(1, 61, 3):
        list(engine.generate(prompt_of(n_prompt), max_tokens=3, temperature=n_prompt / 60, top_k=20))
    list(Engine(model, params, dtype="float32").generate(prompt_of(5), max_tokens=3))
    assert n_compiled(prefill) - n_prefills == 3  # 16, 32 and 64
    assert n_compiled(decode_step) - n_decodes == 1


def test_half_precision_runs(model, params):
    ids = first_column(Engine(model, params, dtype="bfloat16").generate([1, 2], max_tokens=70, temperature=0))
    assert len(ids) == 70 and all(0 <= i < N_VOCAB for i in ids)


# sampling


def draw(logits_V, n_rows=20_000, *, temperature=1.0, top_k=0, top_p=1.0, n_valid=None, seed=0, position=5):
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (n_rows, len(logits_V)))
    ids_B = choose_token(
        logits_BV, jax.random.key(seed), np.int32(position), np.float32(temperature), np.float32(top_p),
        n_valid=n_valid or len(logits_V), top_k=top_k, has_top_p=top_p < 1, is_greedy=temperature == 0,
    )  # fmt: skip
    return np.asarray(ids_B)


def assert_distribution(ids, probs_V):
    """Frequencies within five standard deviations; what has no probability never occurs."""
    n = len(ids)
    counts = np.bincount(ids, minlength=len(probs_V))
    assert not counts[probs_V == 0].any()
    deviation = np.abs(counts - n * probs_V) / np.sqrt(n * probs_V * (1 - probs_V) + 1e-9)
    assert deviation.max() < 5, deviation


PROBS = np.array([0.05, 0.4, 0.02, 0.25, 0.08, 0.2])


def renormalised(probs_V, kept):
    masked = np.where(np.isin(np.arange(len(probs_V)), kept), probs_V, 0)
    return masked / masked.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature):
    probs = PROBS ** (1 / temperature)
    assert_distribution(draw(np.log(PROBS) - 40, temperature=temperature), probs / probs.sum())


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (1, 1.0, [1]),
        (3, 1.0, [1, 3, 5]),
        (6, 1.0, [0, 1, 2, 3, 4, 5]),
        (0, 0.01, [1]),
        (0, 0.39, [1]),
        (0, 0.41, [1, 3]),
        (0, 0.64, [1, 3]),
        (0, 0.84, [1, 3, 5]),
        (0, 0.9999, [0, 1, 2, 3, 4, 5]),
        (2, 0.6, [1]),  # of the two, the first has 0.615
        (3, 0.7, [1, 3]),
    ],
)
def test_top_k_and_top_p(top_k, top_p, kept):
    assert_distribution(draw(np.log(PROBS), top_k=top_k, top_p=top_p), renormalised(PROBS, kept))


def test_temperature_comes_before_top_p():
    flat = PROBS**0.5 / (PROBS**0.5).sum()  # 0.29, 0.23, 0.21, ... : three ids reach 0.6, not two
    ids = draw(np.log(PROBS), temperature=2.0, top_p=0.6)
    assert_distribution(ids, renormalised(flat, [1, 3, 5]))


@pytest.mark.parametrize("settings", [{"temperature": 0}, {}, {"top_k": 2}, {"top_p": 0.9}, {"top_k": 6, "top_p": 0.5}])
def test_padded_ids_are_never_sampled(settings):
    logits = np.concatenate([np.log(PROBS), [50.0, 60.0]])
    assert draw(logits, n_valid=6, **settings).max() < 6


def test_extreme_temperatures_stay_finite(engine):
    cold = first_column(engine.generate([1], max_tokens=20, temperature=1e-45))
    assert cold == first_column(engine.generate([1], max_tokens=20, temperature=0))
    assert_distribution(draw(np.log(PROBS), temperature=1e30), np.full(6, 1 / 6))


def test_seeds_rows_and_positions(engine):
    def sample(seed, n_samples=1):
        return list(engine.generate([5, 6, 7], max_tokens=80, temperature=2.0, seed=seed, n_samples=n_samples))

    alone, three = sample(1), sample(1, n_samples=3)
    assert alone == sample(1) and alone != sample(2)
    assert [ids[0] for ids in three] == first_column(alone)
    assert len({tuple(ids[row] for ids in three) for row in range(3)}) == 3
    uniform = np.zeros(1000)
    draws = [draw(uniform, 1, position=position)[0] for position in range(20)]
    assert len(set(draws)) > 15


def test_samples_that_slide_keep_to_their_own_text(engine, forward):
    """The first token after the cut, by hand: the row's own last 32 tokens, its position and its row."""
    steps = list(engine.generate(prompt_of(10), max_tokens=120, temperature=1.5, seed=4, n_samples=2))
    for row in range(2):
        text = prompt_of(10) + [ids[row] for ids in steps]
        logits_V = forward(text[65 - 32 : 65])[-1]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(4), 65), row)
        assert text[65] == int(jax.random.categorical(key, logits_V / 1.5))


def test_stop_ids_end_each_sample(engine):
    free = list(engine.generate([3], max_tokens=60, temperature=2.0, seed=9, n_samples=2))
    rows = [[ids[row] for ids in free] for row in range(2)]
    stop_id = rows[0][4]
    ends = [row.index(stop_id) if stop_id in row else 59 for row in rows]
    steps = list(engine.generate([3], max_tokens=60, temperature=2.0, seed=9, n_samples=2, stop_ids=[stop_id]))
    assert len(steps) == max(ends) + 1
    for row, end in enumerate(ends):
        column = [ids[row] for ids in steps]
        assert column == rows[row][: end + 1] + [None] * (len(steps) - end - 1)


def test_broken_weights_are_reported(model, params):
    broken = params | {"h.1.mlp.c_fc.weight": params["h.1.mlp.c_fc.weight"].at[0, 0].set(jnp.nan)}
    with pytest.raises(InputError, match="not finite"):
        next(Engine(model, broken, dtype="float32").generate([1], max_tokens=5))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"prompt_ids": []}, "prompt is empty"),
        ({"prompt_ids": [1] * 65}, "prompt has 65 tokens, more than model.seq_len=64"),
        ({"prompt_ids": [1, 90]}, "token 90, outside the vocabulary of 90"),
        ({"prompt_ids": [-1]}, "token -1"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_k": 91}, "top_k=91 is above the vocabulary of 90"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.01}, "top_p=1.01"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"n_samples": 0}, "samples=0"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(model, params, changes, wanted):
    engine = Engine(model, params, dtype="float32", n_valid=90)
    with pytest.raises(InputError) as caught:
        engine.generate(**({"prompt_ids": [1], "max_tokens": 1} | changes))
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
