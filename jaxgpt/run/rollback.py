"""Going back before a loss spike, and leaving out the data that it came with.

`skipped.json` in a run's directory says what was left out: [[100, 28]] means that from step 100 on the data are those
of 28 steps later. A run that is killed and resumed reads it, so it trains on the same batches as one that was not.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgpt.config.steps import Plan, PlannedStep
from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded, write_atomically
from jaxgpt.run.checkpoints import CheckpointDirectory
from jaxgpt.run.console import console

MOST = 3
"""Rollbacks to one checkpoint. After them it is not the data."""


class RolledBack(Exception):
    """The run continues from the checkpoint of `step`."""

    def __init__(self, step: int):
        super().__init__(f"continue from step {step}")
        self.step = step


@dataclass(frozen=True)
class Skips:
    """Pairs (step, n): from this step on, data are those of n steps later."""

    pairs: tuple[tuple[int, int], ...] = ()

    def move(self, plan: Plan, planned: PlannedStep) -> PlannedStep:
        """The step whose data a step reads, where data are a function of the step."""
        past = [(step, n) for step, n in self.pairs if step <= planned.step]
        if not past:
            return planned
        rows, tokens = (
            sum(getattr(plan.at(step + n), name) - getattr(plan.at(step), name) for step, n in past)
            for name in ("rows_before", "tokens_before")
        )
        return replace(
            planned,
            step=planned.step + sum(n for _, n in past),
            rows_before=planned.rows_before + rows,
            tokens_before=planned.tokens_before + tokens,
        )

    def n_at(self, step: int) -> int:
        """Steps whose data are left out just before this one."""
        return sum(n for at, n in self.pairs if at == step)


def read_skips(run_dir: Path, first_step: int) -> Skips:
    """What a run that begins at a step has left out before it; what was left out later is forgotten.

    Raises:
      InputError: the file is damaged.
    """
    path = run_dir / "skipped.json"
    try:
        pairs = json.loads(read_bounded(path, 2**20))
        is_good = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 <= n < 2**40 for n in pair)
            for pair in pairs
        )
    except FileNotFoundError:
        return Skips()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; restore it, or delete it") from error
    except (ValueError, RecursionError):
        is_good, pairs = False, []
    if not is_good:
        raise InputError(f"{path} is damaged; restore it, or delete it to train on data that was left out")
    past = tuple((step, n) for step, n in pairs if step <= first_step)
    if len(past) < len(pairs):
        write_atomically(path, json.dumps(past))
    return Skips(past)


def roll_back(saved: CheckpointDirectory, run_dir: Path, skips: Skips, spike_step: int, n_processes: int) -> None:
    """Notes that the data up to a spike's step are left out, and raises RolledBack; or says why not, and returns.

    Args:
      spike_step: whose loss, of the parameters before it, stands out. Their step is suspect too.
    """
    done = [step for step, _ in skips.pairs]
    good = next((step for step in saved.steps() if step < spike_step - 1), None)
    why = ""
    if n_processes > 1:
        why = "train.spike_rollback needs one process"
    elif good is None:
        why = "there is no checkpoint before it"
    elif done.count(good) >= MOST:
        why = f"it came back after {MOST} rollbacks"
    if good is None or why:
        console.say(f"the run continues through the spike: {why}")
        return
    saved.reject_from(spike_step - 1, f"a loss spike began at step {spike_step}")
    n_steps = spike_step - good
    write_atomically(run_dir / "skipped.json", json.dumps([*skips.pairs, [good, n_steps]]))
    console.say(f"going back to step {good}; the data of {n_steps} steps are left out")
    raise RolledBack(good)
