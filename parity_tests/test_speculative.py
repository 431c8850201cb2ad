"""Speculative decoding gives the target's distribution, greedy text equal to plain greedy, and saves forwards.

`python -m parity_tests.speculative_law` tries the distribution with all numbers of drafted tokens, which takes longer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.errors import InputError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.inference.sampling import Draw, choose_token, draw_of, token_probs, way_of
from jaxgpt.inference.speculative import SpeculativeRow, look_up
from parity_tests.helpers.speculation import HOT, chain_deviation, make_engine, model_deviation


def test_a_chain_keeps_its_distribution():
    found, limit = chain_deviation(2)
    assert found < limit


def test_a_replacement_that_counts_as_accepted_is_caught():
    found, limit = chain_deviation(1, is_faulty=True)
    assert found > 5 * limit


@pytest.fixture(scope="module")
def target():
    return make_engine(1)


@pytest.fixture(scope="module")
def other():
    return make_engine(2)


def test_models_keep_the_distribution(target, other):
    found, limit = model_deviation(target, other, 2, HOT, n_runs=5000)
    assert found < limit


def test_the_probabilities_are_those_of_choosing():
    """One-hot where greedy; else 0 exactly where `choose_token` never goes, with its frequencies."""
    logits_1V = jax.random.normal(jax.random.key(0), (1, 40)) * 2
    for request in (Request((0,), 1, temperature=1.3, top_k=6, top_p=0.8), Request((0,), 1, temperature=0)):
        way, draw = way_of(request), draw_of([request])
        probs_V = np.asarray(token_probs(logits_1V, draw, n_valid=37, way=way))[0]
        many = Draw(*(jnp.tile(part, 5000) for part in draw))
        lengths = np.arange(5000, dtype=np.int32)
        tokens = np.asarray(choose_token(jnp.tile(logits_1V, (5000, 1)), lengths, many, n_valid=37, way=way))
        counts = np.bincount(tokens, minlength=37)
        assert ((counts > 0) == (probs_V > 0)).all() and probs_V.sum() == pytest.approx(1)
        assert np.abs(counts / 5000 - probs_V).max() < 0.025


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
    """250 tokens, so the context of 96 is full several times; then a second request."""
    row = SpeculativeRow(target, other if draft == "model" else None, n_draft=3)
    text = prompt_of(30, 1) * 2
    for request in (
        Request(text, 250, temperature=0, tool=tool),
        Request([*text[:50], 7], 100, temperature=0, tool=tool, slides=False, stop_ids=(60,)),
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


def test_a_draft_that_is_the_target_is_always_accepted(other):
    """After a prompt of one token, which leaves nothing to prefill."""
    row = SpeculativeRow(other, other, n_draft=3)
    row.start(0, Request([5], 48, temperature=0.9, seed=4))
    assert len([*row]) == 48
    assert (row.n_rounds, row.n_drafted, row.n_accepted) == (12, 36, 36)


def test_a_second_turn_computes_only_what_is_new(target, other):
    row = SpeculativeRow(target, other, n_draft=3)
    prompt = prompt_of(40, 3)
    row.start(0, Request(prompt, 20, temperature=0))
    answer = [token for (token,) in row if token is not None]
    assert row.n_prefilled_tokens == 39
    second = Request([*prompt, *answer, 9, 9], 20, temperature=0)
    row.start(0, second)
    again = [*row]
    assert row.n_prefilled_tokens - 39 <= 3
    fresh = SpeculativeRow(target, other, n_draft=3)
    fresh.start(0, second)
    assert [*fresh] == again


def test_prompt_lookup_finds_the_longest_and_latest_match():
    assert look_up([1, 2, 3, 9, 8, 7, 2, 3, 5, 5, 5, 1, 2, 3], 2) == [9, 8]
    assert look_up([4, 3, 9, 8, 7, 3, 5, 5, 2, 3], 3) == [5, 5, 2]
    assert look_up([1, 2, 3, 4], 2) == [] and look_up([7, 7], 2) == [] and look_up([7, 7, 7], 2) == [7, 7]


def test_what_does_not_fit_is_refused(target):
    parts = target.model.config, target.params
    with pytest.raises(InputError, match="the draft has 60 ids, the model 61"):
        SpeculativeRow(target, Engine(*parts, dtype="float32", n_valid=60), n_draft=2)
    with pytest.raises(InputError, match="context of 16 tokens is shorter"):
        SpeculativeRow(target, Engine(*parts, dtype="float32", n_positions=16), n_draft=2)
    with pytest.raises(InputError, match=r"n_draft=0 is outside \[1, 16\]"):
        SpeculativeRow(target, None, n_draft=0)
    with pytest.raises(InputError, match="n_log_probs=0 is not for speculative"):
        SpeculativeRow(target, None, n_draft=1).start(0, Request((1,), 1, n_log_probs=0))
