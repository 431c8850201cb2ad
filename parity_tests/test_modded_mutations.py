"""Some bugs planted in record 62's optimizers are outside of a gate, far; `parity_tests.report` tries all there are.

Those of its model the rest of the suite sees by the originals' figures: test_modded_digests, test_modded_readings.
"""

import pytest

from jaxgpt.compare.gates import find_loudest
from parity_tests.helpers.tiers import one_in
from parity_tests.modded_update_mutations import MODDED_UPDATE_MUTATIONS
from parity_tests.mutation_trials import make_brief_trials
from parity_tests.mutations import Mutation

pytestmark = pytest.mark.usefixtures("one_thread")

N_STEPS = 4
"""The split is before the third."""
TRIED = [
    "62: Adam decays by the rate, not its square",
    "62: Adam forgets the gradients of even steps",
    "62: head gets both gradients after the split",
    "62: NorMuon's cautious mask left out",
]


def try_brief(mutation):
    return make_brief_trials("modded62", "float64", N_STEPS).try_mutant(mutation, is_brief=True)


@pytest.mark.parametrize("name", one_in(2, TRIED))
def test_every_mutation_is_seen(name):
    loudest = find_loudest(try_brief(MODDED_UPDATE_MUTATIONS[name]))
    assert loudest is not None and not loudest.margin < 100, "seen by no gate, or only just"


def test_without_a_bug_all_gates_hold():
    """The optimizers alone, with the split in their steps."""
    rows = try_brief(Mutation(lambda plan: plan, "modded62", is_update=True))
    assert {f"parameters, step {N_STEPS}", "optimizer state"} <= {row.quantity for row in rows if row.figure > 0}
    assert all(row.is_inside for row in rows)
