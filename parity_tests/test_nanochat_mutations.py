"""Every bug planted in nanochat's model or optimizer is outside of a gate, far."""

import pytest

from jaxgpt.compare.gates import compare, find_loudest
from jaxgpt.compare.tolerances import PARITY
from parity_tests.helpers.tiers import one_in
from parity_tests.mutation_trials import make_trials
from parity_tests.mutations import Mutation
from parity_tests.nanochat_mutations import NANOCHAT_MUTATIONS

pytestmark = pytest.mark.usefixtures("one_thread")

N_STEPS = 8


@pytest.mark.parametrize("name", one_in(80, NANOCHAT_MUTATIONS))
def test_every_mutation_is_seen(name):
    mutation = NANOCHAT_MUTATIONS[name]
    trials = make_trials(mutation.recipe, mutation.is_masked, "float64", N_STEPS)
    loudest = find_loudest(trials.try_mutant(mutation, is_brief=True))
    assert loudest is not None and not loudest.margin < 100, "seen by no gate, or only just"


@pytest.mark.parametrize("recipe", ("nanochat2025", "nanochat2026"))
def test_without_a_bug_all_gates_hold(recipe):
    """Trained, and in brief: the first batch and the optimizer alone."""
    trials = make_trials(recipe, False, "float64", N_STEPS)
    rows = compare(trials.unmutated, trials.reference, PARITY["float64"])
    rows += trials.try_mutant(Mutation(lambda plan: plan, recipe, is_update=True), is_brief=True)
    rows += trials.try_mutant(Mutation(lambda plan: plan, recipe, is_early=True), is_brief=True)
    assert len(rows) >= 24 and all(row.is_inside for row in rows)
