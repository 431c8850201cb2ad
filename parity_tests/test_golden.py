"""Golden losses: what both frameworks share (schedules, groups, readers, derivation) moves no curve unseen."""

import dataclasses

import jax
import pytest

from jaxgpt.compare import tolerances
from jaxgpt.config import schedule
from jaxgpt.config.steps import Plan
from jaxgpt.errors import InputError
from parity_tests import golden

SLOW = (
    "a100_40gb_d14", "a100_80gb_d16", "a100_80gb_d18", "eval_gpt2", "finetune_shakespeare", "gpt2_124m", "nanochat_d12",
    "rtx4090_d20", "shakespeare_char_cpu",
)  # fmt: skip
"""In miniature nearly one of the others."""
QUICK = golden.REPO / "configs" / "quickstart.py"


@pytest.fixture(autouse=True)
def narrow_again():
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    "config",
    [pytest.param(path, marks=pytest.mark.slow) if path.stem in SLOW else path for path in golden.CONFIGS],
    ids=lambda path: path.stem,
)
def test_a_smoke_run_gives_its_golden_losses(config):
    where, change = golden.largest_change(golden.run_smoke(config), golden.read_golden(config))
    assert change < tolerances.GOLDEN, f"{where}; if this is meant: python -m parity_tests.golden --write"


def test_each_config_has_a_file_and_each_file_a_config():
    assert {path.stem for path in golden.GOLDEN.glob("*.json")} == {path.stem for path in golden.CONFIGS}


@pytest.mark.parametrize("bug", ["schedule", "rows"])
def test_a_bug_in_what_both_frameworks_share_is_seen(bug, monkeypatch):
    """A learning rate one step late, and rows read twice: parity sees neither."""
    original, at = schedule.lr_scale_at, Plan.at
    if bug == "schedule":
        monkeypatch.setattr(schedule, "lr_scale_at", lambda config, step: original(config, max(step - 1, 0)))
    else:
        monkeypatch.setattr(Plan, "at", lambda self, step: dataclasses.replace(at(self, step), step=step // 2))
    if bug == "rows":
        monkeypatch.setattr("jaxgpt.train.make_feed", _with_true_numbers(at))
    change = golden.largest_change(golden.run_smoke(QUICK), golden.read_golden(QUICK))[1]
    assert change > 1e3 * tolerances.GOLDEN


def _with_true_numbers(at):
    """The training loop's feed, whose steps keep their number while the reader is given another."""
    from jaxgpt.training.feed import make_feed

    def feed(plan, reader, mesh, first_step, skips):
        for i, (_, batch, cursors) in enumerate(make_feed(plan, reader, mesh, first_step, skips), first_step):
            yield at(plan, i), batch, cursors

    return feed


def test_a_change_is_relative_and_names_its_place():
    golden_values = {"train_loss": [2.0, 4.0], "val_loss": [1.0]}
    assert golden.largest_change(golden_values, golden_values)[1] == 0
    where, change = golden.largest_change({"train_loss": [2.0, 4.4], "val_loss": [1.0]}, golden_values)
    assert where == "train_loss, record 2" and change == pytest.approx(0.1)
    assert golden.largest_change({"train_loss": [2.0]}, golden_values) == ("train_loss", float("inf"))
    with pytest.raises(InputError, match="unexpected argument --wrote"):
        golden.main(["--wrote"])
