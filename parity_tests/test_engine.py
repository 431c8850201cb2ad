"""Cached generation agrees with the uncached model, sampling with its distribution, and little is compiled."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import GPT2Config
from jaxgpt.errors import InputError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.inference.row_cache import decode_step, make_cache, prefill
from jaxgpt.inference.sampling import choose_token, draw_of, way_of
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
def engine(params):
    return Engine(CONFIG, params, dtype="float32")


@pytest.fixture(scope="module")
def forward(model, params):
    """The uncached model: ids of at most 64 tokens -> logits [T, V]."""

    @jax.jit
    def full(tokens_BT):
        module = model.bind(params)
        return module.logits(module(tokens_BT))[0]

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


def test_a_smaller_cache_slides_earlier(params, forward):
    """Faults: C95."""
    engine = Engine(CONFIG, params, dtype="float32", n_positions=33)
    ids = first_column(engine.generate(prompt_of(20), max_tokens=70, temperature=0))
    assert ids == uncached_greedy(forward, prompt_of(20), 70, 33)
    assert ids != uncached_greedy(forward, prompt_of(20), 70, 64)


def test_cached_logits_agree_with_the_full_forward(model, params, forward):
    """Rows of 20 and of 3 tokens, then 20 more of each."""
    tokens, lengths = np.array([prompt_of(40, seed=1), prompt_of(40, seed=2)], np.int32), np.array([20, 3], np.int32)
    full_BTV, rows = np.stack([forward(row) for row in tokens]), np.arange(2)
    filled = []
    for row, n in zip(tokens, lengths, strict=True):
        padded_1T = np.full((1, 64), 7, np.int32)
        padded_1T[0, :n] = row[:n]
        filled.append(prefill(model, params, make_cache(model, params, n_positions=64), padded_1T, n, 0))
    logits_BV, cache = jax.tree.map(lambda *parts: jnp.concatenate(parts), *filled)
    np.testing.assert_allclose(logits_BV, full_BTV[rows, lengths - 1], atol=LOGIT_TOLERANCE)
    for offset_B in lengths + np.arange(20, dtype=np.int32)[:, None]:
        logits_BV, cache = decode_step(model, params, cache, tokens[rows, offset_B], offset_B)
        np.testing.assert_allclose(logits_BV, full_BTV[rows, offset_B], atol=LOGIT_TOLERANCE)


def n_compiled(function: Any) -> int:
    return function._cache_size()


def test_prompt_lengths_share_compiled_functions(params):
    config = dataclasses.replace(CONFIG, seq_len=64, dropout=0.125)  # a key of its own in the caches
    engine = Engine(config, params, dtype="float32")
    n_prefills, n_decodes = n_compiled(prefill), n_compiled(decode_step)
    for n_prompt in range(1, 61, 3):
        list(engine.generate(prompt_of(n_prompt), max_tokens=3, temperature=n_prompt / 60, top_k=20))
    list(Engine(config, params, dtype="float32").generate(prompt_of(5), max_tokens=3))
    assert n_compiled(prefill) - n_prefills == 3  # 16, 32 and 64
    assert n_compiled(decode_step) - n_decodes == 1
    for n_prompt in range(1, 30, 3):
        requests = [Request(prompt_of(i * n_prompt), max_tokens=70, top_k=i) for i in (1, 2)]
        list(engine.rows(requests))
    assert n_compiled(prefill) - n_prefills == 3
    assert n_compiled(decode_step) - n_decodes == 2  # of one row and of two


def test_half_precision_runs(params):
    ids = first_column(Engine(CONFIG, params, dtype="bfloat16").generate([1, 2], max_tokens=70, temperature=0))
    assert len(ids) == 70 and all(0 <= i < N_VOCAB for i in ids)


# sampling


def draw(logits_V, n_rows=20_000, *, temperature=1.0, top_k=0, top_p=1.0, n_valid=None, seed=0, position=5):
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (n_rows, len(logits_V)))
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    requests = [Request([0], 1, sample=i, **settings) for i in range(n_rows)]
    length_B = np.full(n_rows, position, np.int32)
    way = way_of(requests[0])
    return np.asarray(choose_token(logits_BV, length_B, draw_of(requests), n_valid=n_valid or len(logits_V), way=way))


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


# rows


SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"top_k": 5},
    {"temperature": 2.0, "top_p": 0.9},
    {"top_k": 40, "seed": 7},
)
REQUESTS = [
    Request(prompt_of(n_prompt, seed=n_prompt), n_tokens, **settings)
    for n_prompt, n_tokens, settings in zip((3, 64, 17, 30), (150, 90, 140, 20), SETTINGS, strict=True)
]
"""Lengths, numbers of tokens, contexts full at different steps, ways to sample: all differ."""


def columns(steps, n_rows):
    """The ids of each row, up to its end."""
    table = list(steps)
    rows = [[ids[row] for ids in table] for row in range(n_rows)]
    ends = [row.index(None) if None in row else len(row) for row in rows]
    assert all(row[end:] == [None] * (len(row) - end) for row, end in zip(rows, ends, strict=True))
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


@pytest.fixture(scope="module")
def alone(engine):
    """What each of REQUESTS gets without the others."""
    return [columns(engine.rows([request]), 1)[0] for request in REQUESTS]


def test_rows_of_different_lengths_agree_with_the_uncached_model(engine, forward):
    requests = [Request(prompt_of(n, seed=n), max_tokens=120, temperature=0) for n in (1, 16, 33, 64)]
    for request, ids in zip(requests, columns(engine.rows(requests), 4), strict=True):
        assert ids == uncached_greedy(forward, request.prompt_ids, 120, CONFIG.seq_len)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1), (2, 2, 0)], ids=str)
def test_a_row_gets_the_same_whoever_its_neighbours_are(engine, alone, order):
    assert [len(ids) for ids in alone] == [150, 90, 140, 20]
    found = columns(engine.rows([REQUESTS[i] for i in order]), len(order))
    assert found == [alone[i] for i in order]


def test_a_row_can_be_given_away(engine, alone):
    """Row 1 ends early and begins another request; row 0, at work, loses its place at step 5."""
    rows, seen = engine.rows([REQUESTS[0], REQUESTS[3], REQUESTS[1]]), []
    for ids in rows:
        seen.append(ids)
        if len(seen) == 5:
            rows.start(0, REQUESTS[3])
        if len(seen) == 30:
            rows.start(1, REQUESTS[2])
    first, second, third = ([ids[row] for ids in seen] for row in range(3))
    assert first[:25] == alone[0][:5] + alone[3] and set(first[25:]) == {None}
    assert second == [*alone[3], *[None] * 10, *alone[2]]
    assert third[:90] == alone[1] and set(third[90:]) == {None}


def test_stop_ids_are_a_rows_own(engine, alone):
    stop_id = alone[2][10]
    end = alone[2].index(stop_id) + 1
    stopping = dataclasses.replace(REQUESTS[2], stop_ids=[stop_id])
    first, second = columns(engine.rows([REQUESTS[2], stopping]), 2)
    assert first == alone[2] and second == alone[2][:end] and end < 140


@pytest.mark.parametrize("n_prompt", [8, 58])
def test_forced_tokens_are_what_the_row_continues_from(engine, forward, alone, n_prompt):
    """A tool's answer of five tokens behind the third, two more while it is read; 58: the context is full meanwhile."""
    prompt, answer, more = prompt_of(n_prompt, seed=8), [9, 8, 7, 6, 5], [1, 2]
    rows, found = engine.rows([REQUESTS[1], Request(prompt, max_tokens=100, temperature=0)]), []
    for ids in rows:
        found.append(ids)
        if len(found) in (3, 5):
            rows.force(1, answer if len(found) == 3 else more)
    neighbour, ids = columns(found, 2)
    assert neighbour == alone[1] and len(ids) == 100
    assert ids[:10] == uncached_greedy(forward, prompt, 3, 64) + answer + more
    window = prompt + ids[:10] if n_prompt == 8 else (prompt + ids)[65 - 32 : n_prompt + 10]
    assert ids[10:] == uncached_greedy(forward, window, 90, 64)


def test_a_forced_stop_id_ends_its_row(engine):
    request, found = Request([1], max_tokens=12, stop_ids=[90], seed=3), []
    rows = engine.rows([request, request])
    for ids in rows:
        found.append(ids)
        if len(found) == 3:
            rows.force(0, [5, 90, 6])
    first, second = columns(found, 2)
    assert first == [*second[:3], 5, 90] and len(second) == 12


def test_forced_tokens_outside_the_vocabulary_are_refused(engine):
    with pytest.raises(InputError, match="forced token 96 is outside the vocabulary of 96"):
        engine.rows([Request([1], max_tokens=5)]).force(0, [3, 96])


def test_broken_weights_are_reported(params):
    broken = params | {"h.1.mlp.c_fc.weight": params["h.1.mlp.c_fc.weight"].at[0, 0].set(jnp.nan)}
    with pytest.raises(InputError, match="not finite"):
        next(Engine(CONFIG, broken, dtype="float32").generate([1], max_tokens=5))


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
def test_bad_arguments_are_refused_at_the_call(params, changes, wanted):
    """Faults: C96, C97, C98."""
    engine = Engine(CONFIG, params, dtype="float32", n_valid=90)
    with pytest.raises(InputError) as caught:
        engine.generate(**({"prompt_ids": [1], "max_tokens": 1} | changes))
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
