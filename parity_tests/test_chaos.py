"""Random faults against short runs, each with the outcome it must have; and that wrong outcomes are seen."""

import random
import signal

import pytest

from parity_tests.chaos.__main__ import run_trial
from parity_tests.chaos.faults import check_stopped
from parity_tests.chaos.rig import N_STEPS, Ended, Rig
from parity_tests.chaos.trial import Trial, Wrong, check_calm, check_refused, find_resumed_step
from parity_tests.helpers.tiers import one_in

SEED = 0
RUNS = (("jaxgpt", "documents"), ("torch_ref", "nanogpt"))
"""Fewer than the command's: each needs its own uninterrupted run."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    return Rig(tmp_path_factory.mktemp("chaos"), [kind for _, kind in RUNS])


@pytest.mark.parametrize("number", one_in(12, range(12)))
def test_a_random_fault(rig, number):
    """Faults: C35, C65, C66, C67, C69, C82, C84, C85, C86, C88, C89, C90, F2, F5, F6, F11."""
    what, outcome, wrong = run_trial(rig, SEED, number, runs=RUNS)
    assert wrong is None, f"{what}: {outcome}"


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (Ended(None, "", "", 1.0), "hung"),
        (Ended(0, "", "Traceback (most recent call last):\n", 1.0), "traceback"),
        (Ended(0, "", "Exception ignored in: <function>\n", 1.0), "traceback"),
        (Ended(1, "", "", 1.0), "code"),
        (Ended(2, "", "", 1.0), "code"),
        (Ended(2, "", "error: a\nerror: b\n", 1.0), "code"),
    ],
)
def test_wrong_outcomes_are_seen(ended, kind):
    with pytest.raises(Wrong) as caught:
        check_calm(ended, 0, 2)
        check_refused(ended)
    assert caught.value.kind == kind


def test_lost_and_changed_steps_are_seen(rig, tmp_path):
    """A default signal, a step that is missing in metrics.jsonl, a loss that differs in its last bit."""
    trial = Trial(rig, random.Random(0), "torch_ref", "nanogpt", tmp_path / "trial")
    ended = Ended(0, "", "", 1.0)
    with pytest.raises(Wrong, match="LOST: SIGTERM had its default effect"):
        check_stopped(trial, Ended(-signal.SIGTERM, "header\n", "", 1.0), signal.SIGTERM)
    trial.start().wait()
    trial.check_losses(0, ended)
    other = trial.straight.losses | {N_STEPS: (trial.straight.losses[N_STEPS][0] + 1e-15, None)}
    with pytest.raises(Wrong, match=f"SILENT: losses of step {N_STEPS}"):
        trial.check_losses(0, ended, straight=other)
    (trial.run_dir / "metrics.jsonl").write_text("")
    with pytest.raises(Wrong, match=r"LOST: metrics.jsonl has no step 1\b"):
        trial.check_losses(0, ended)


def test_the_resumed_step_is_read():
    assert find_resumed_step(Ended(0, "header\nresuming from step 15; changed: run.seed 1 -> 2\n", "", 1.0)) == 15
    assert find_resumed_step(Ended(0, "header\n", "", 1.0)) == 0
