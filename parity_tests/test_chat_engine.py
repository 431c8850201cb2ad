"""nanochat's models in the engine: cached = uncached far past their windows, with a tool and without; samples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgpt.config import NanochatConfig
from jaxgpt.inference.completions import complete
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.inference.sampling import Draw, choose_token, draw_of, score_token, way_of
from jaxgpt.models import Model, init_params

N_VOCAB, WINDOW, N_POSITIONS = 97, 40, 256
TOLERANCE = 1e-5
"""Log-probabilities in float32, at logits up to 15; 4e-6 was seen."""


def make_model(era, n_kv_head, depth):
    """Short windows in all blocks but the last. Noise on everything: nanochat starts half of its weights at zero."""
    config = NanochatConfig(
        era=era, depth=depth, head_dim=16, n_embd=64, n_kv_head=n_kv_head, seq_len=N_POSITIONS, short_window=WINDOW,
        window_pattern="SSSL", vocab_size=N_VOCAB,
    ).complete(0)  # fmt: skip
    rng = np.random.default_rng(5)
    params = {
        path: leaf + (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
        for path, leaf in init_params(config).items()
    }
    return config, params


def prompt_of(n_tokens, seed):
    return np.random.default_rng(seed).integers(N_VOCAB, size=n_tokens).tolist()


def _log_probs(tokens):
    """NaN where a token has none, which no tolerance accepts."""
    return np.array([token.log_prob for token in tokens], np.float64)


class EverySeventh:
    """A tool that forces five ids after every seventh token that it did not force."""

    def __init__(self):
        self.n_seen = 0

    def feed(self, token_id):
        self.n_seen += 1
        return [3, 1, 4, 1, 5] if self.n_seen % 12 == 7 else []


@pytest.mark.parametrize(
    ("era", "depth", "n_kv_head"), [("2026", 4, 2), pytest.param("2025", 2, 4, marks=pytest.mark.slow)]
)
def test_cached_text_is_that_of_the_uncached_model(era, depth, n_kv_head):
    """120 tokens after prompts longer than two windows: each is the uncached argmax after those before it."""
    config, params = make_model(era, n_kv_head, depth)
    settings: dict[str, Any] = {"max_tokens": 120, "temperature": 0, "n_log_probs": 20}
    requests = [Request(prompt_of(85, 1), **settings), Request(prompt_of(101, 2), tool=EverySeventh, **settings)]
    engine = Engine(config, params, dtype="float32")
    rows, steps = engine.rows(requests), []
    while len(rows.free) < 2:
        steps.append(rows.step())
    model = Model(config)

    @jax.jit
    def full(tokens_BT):
        module = model.bind(params)
        return jax.nn.log_softmax(module.logits(module(tokens_BT)))

    tokens_BT = np.zeros((2, N_POSITIONS), np.int32)
    for row, request in enumerate(requests):
        text = [*request.prompt_ids, *(step[row].id for step in steps)]
        tokens_BT[row, : len(text)] = text
    log_probs_BTV = np.asarray(full(tokens_BT))
    for row, request in enumerate(requests):
        begin, tokens = len(request.prompt_ids) - 1, [step[row] for step in steps]
        expected = log_probs_BTV[row, begin : begin + 120]
        forced = np.array([token.is_forced for token in tokens])
        ids = np.array([token.id for token in tokens])
        assert len(tokens) == 120 and forced.sum() == 50 * row
        assert (ids == expected.argmax(axis=1))[~forced].all() and len(set(ids)) > 10
        assert np.abs(_log_probs(tokens) - expected[np.arange(120), ids]).max() < TOLERANCE
        likeliest = np.array([[value for _, value in token.likeliest] for token in tokens])
        assert np.abs(likeliest - np.sort(expected)[:, :-21:-1]).max() < TOLERANCE
        assert [token.likeliest[0][0] for token in tokens] == expected.argmax(axis=1).tolist()


@pytest.fixture(scope="module")
def engine():
    return Engine(*make_model("2025", 4, 1), dtype="float32")


def samples_of(engine, n_samples, **settings):
    requests = [Request(prompt_of(30, 7), 24, seed=42, sample=i, **settings) for i in range(n_samples)]
    return [found.ids for _, found in sorted(complete(engine, requests, n_rows=n_samples), key=lambda pair: pair[0])]


def test_a_sample_is_the_same_however_many_are_drawn(engine):
    sixteen = samples_of(engine, 16, top_k=50)
    assert samples_of(engine, 4, top_k=50) == sixteen[:4] and samples_of(engine, 1, top_k=50) == sixteen[:1]
    assert len({ids[0] for ids in sixteen}) > 1, "nanochat's samples once shared their first token"
    assert len(set(sixteen)) == 16


def test_a_row_ends_where_its_context_does(engine):
    """The last token needs no place in the cache."""
    requests = [Request(prompt_of(250, 3), 20, slides=slides, seed=1) for slides in (True, False, True, False)]
    sliding, ending, *again = (found for _, found in sorted(complete(engine, requests), key=lambda pair: pair[0]))
    assert len(sliding.ids) == 20 and ending.ids == sliding.ids[:7] and ending.end == "length"
    assert again == [sliding, ending]


def test_slots_take_and_give_up_requests(engine):
    """What a row gets does not depend on when it starts; rows that wait, and rows that are stopped, give None."""
    alone = samples_of(engine, 4)
    rows = engine.rows([None] * 4)
    assert rows.free == [0, 1, 2, 3] and rows.step() == [None] * 4
    rows.start(1, Request(prompt_of(30, 7), 24, seed=42))
    found = [rows.step() for _ in range(5)]
    rows.start(2, Request(prompt_of(30, 7), 24, seed=42, sample=1))
    found += [rows.step() for _ in range(5)]
    rows.stop(1)
    assert rows.free == [0, 1, 3]
    found += [rows.step() for _ in range(20)]
    columns = [[step[row].id for step in found if step[row]] for row in range(4)]
    assert columns == [[], list(alone[0][:10]), list(alone[1]), []] and rows.free == [0, 1, 2, 3]


PROBS = np.array([0.05, 0.3, 0.02, 0.25, 0.08, 0.2, 0.1])
N_DRAWS = 20_000


def draw(logits_V, **settings):
    """The choices of samples 0, 1, 2, ... of one request, all at position 9."""
    request = Request([0], 1, seed=11, **settings)
    rows = Draw(*(jnp.repeat(leaf, N_DRAWS) for leaf in draw_of([request])))
    rows = rows._replace(sample=jnp.arange(N_DRAWS, dtype=jnp.uint32))
    logits_BV = np.tile(np.asarray(logits_V, np.float32), (N_DRAWS, 1))
    length_B = np.full(N_DRAWS, 9, np.int32)
    return np.asarray(choose_token(logits_BV, length_B, rows, n_valid=len(logits_V), way=way_of(request)))


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize(("top_k", "top_p", "kept"), [(0, 1.0, 7), (4, 1.0, 4), (0, 0.7, 3), (5, 0.8, 3)])
def test_frequencies_are_those_of_the_settings(temperature, top_k, top_p, kept):
    """Chi-square at the level of 1 in 1,000, and nothing outside the kept tokens."""
    powered = PROBS ** (1 / temperature)
    order = np.argsort(-powered)
    top = order[: top_k or len(PROBS)]
    before = np.cumsum(powered[top] / powered[top].sum()) - powered[top] / powered[top].sum()
    top = top[before < top_p]
    assert temperature < 1 or len(top) == kept
    counts = np.bincount(
        draw(np.log(PROBS) + 3, temperature=temperature, top_k=top_k, top_p=top_p), minlength=len(PROBS)
    )
    assert counts[top].sum() == N_DRAWS
    assert stats.chisquare(counts[top], N_DRAWS * powered[top] / powered[top].sum()).pvalue > 1e-3


def test_ties_go_to_the_lowest_id():
    assert set(draw([1.0, 2.0, 2.0, 2.0], temperature=0)) == {1}
    assert set(draw([1.0, 2.0, 2.0, 2.0], top_k=1)) == {1}
    assert set(draw([2.0, 1.0, 2.0, 2.0], top_k=2)) == {0, 2}


def test_padded_ids_have_probability_and_are_no_alternatives():
    """As in a loss over all rows of the head."""
    probs = np.array([[0.2, 0.1, 0.3, 0.4]])
    chosen, ids, values = score_token(jnp.log(probs), jnp.array([1]), n_valid=3, n_likeliest=20)
    np.testing.assert_allclose(chosen, np.log([0.1]), rtol=1e-6)
    assert ids.tolist() == [[2, 0, 1]]
    np.testing.assert_allclose(values, np.log([[0.3, 0.2, 0.1]]), rtol=1e-6)


def test_top_k_draws_as_if_only_so_many_were_sorted():
    """Rounding top_k up to share programs changes no draw."""
    logits = np.random.default_rng(1).standard_normal(200)
    order = np.argsort(-logits)[:5]
    key_of = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(11), 9), i))
    ranks = jax.vmap(jax.random.categorical, in_axes=(0, None))(
        key_of(np.arange(N_DRAWS)), logits[order].astype(np.float32)
    )
    assert (draw(logits, top_k=5) == order[np.asarray(ranks)]).all()
