"""Bugs planted in record 62, one of each kind, are outside of a gate, far; `parity_tests.report` tries all there are.

The rest of the suite sees many of them too: test_modded_readings by the originals' figures, test_modded_optim.
"""

import pytest

from jaxgpt.compare.gates import compare, find_loudest
from jaxgpt.compare.tolerances import PARITY
from parity_tests.modded_mutations import MODDED_MUTATIONS
from parity_tests.modded_update_mutations import MODDED_UPDATE_MUTATIONS
from parity_tests.mutation_trials import make_brief_trials
from parity_tests.mutations import Mutation

pytestmark = pytest.mark.usefixtures("one_thread")

N_STEPS = 8
UNCHANGED = Mutation(lambda plan: plan, "modded62", is_update=True)
TRIED = (
    "62: a document sees the last token before it",
    "62: YaRN leaves the attention's scale",
    "62: smear stops at documents",
    "62: skip gate without its factor 2",
    "62: later targets one token further",
    *(name for name in MODDED_UPDATE_MUTATIONS if name.startswith("62: ")),
)


@pytest.fixture(scope="module")
def trials():
    return make_brief_trials("modded62", "float64", N_STEPS)


@pytest.mark.parametrize("name", TRIED)
def test_every_mutation_is_seen(name, trials):
    mutation = {**MODDED_MUTATIONS, **MODDED_UPDATE_MUTATIONS}[name]
    loudest = find_loudest(trials.try_mutant(mutation, is_brief=True))
    assert loudest is not None and not loudest.margin < 100, "seen by no gate, or only just"


def test_without_a_bug_all_gates_hold(trials):
    """The first batch and the optimizer alone, with the split in its steps."""
    rows = trials.try_mutant(UNCHANGED, is_brief=True)
    rows += compare(trials.unmutated, trials.reference, PARITY["float64"])
    assert len(rows) >= 16 and all(row.is_inside for row in rows)
