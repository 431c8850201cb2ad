"""Random faults at random moments, against short runs of both frameworks; says of each whether the outcome was right.

    python -m parity_tests.chaos --runs 200 --seed 0
    python -m parity_tests.chaos --seed 0 --trial 17
    python -m parity_tests.chaos --runs 20 --only kill stop --kinds modded

Right is: resumed and ended with the losses of the uninterrupted run, bit for bit; or refused in one line; or warned and
trained on. Wrong is: silent, lost, traceback, hung, another exit code. The exit code is 1 if any outcome was wrong.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from parity_tests.chaos.faults import NEEDS_MOUNT, available
from parity_tests.chaos.rig import KINDS, Rig, can_mount, runs_of
from parity_tests.chaos.trial import Trial, Wrong

RUNS = tuple(runs_of(KINDS))
"""Frameworks and kinds of data that trials choose among."""


def run_trial(
    rig: Rig, seed: int, number: int, only: Sequence[str] = (), runs: Sequence[tuple[str, str]] = RUNS
) -> tuple[str, str, Wrong | None]:
    """One trial, the same each time for the same seed and number.

    Returns:
      what was tried, what came of it, and what was wrong about it.
    """
    choices = random.Random(f"{seed} {number}")
    faults = [name for name in available() if not only or name in only]
    name = faults[number % len(faults)] if number < len(faults) else choices.choice(faults)
    framework, kind = choices.choice(runs)
    directory = rig.directory / f"trial_{number}"
    what = f"{name} ({framework}, {kind})"
    try:
        return what, available()[name](Trial(rig, choices, framework, kind, directory)), None
    except Wrong as wrong:
        return what, str(wrong), wrong
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m parity_tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=20, metavar="N", help="trials; each fault comes once, then at random"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all choices")
    parser.add_argument("--trial", type=int, metavar="K", help="only this one")
    parser.add_argument("--only", nargs="+", default=[], choices=list(available()), help="only these faults")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="only runs on these kinds of data")
    given = parser.parse_args(args)
    numbers = range(given.runs) if given.trial is None else [given.trial]
    if not can_mount():
        print(f"nothing can be mounted here; left out: {', '.join(sorted(NEEDS_MOUNT))}")
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored in what runs in the background; children would inherit it
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    begin, wrong = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="jaxgpt-chaos-") as scratch:
        rig, runs = Rig(Path(scratch), given.kinds), runs_of(given.kinds)
        for n_done, number in enumerate(numbers, start=1):
            what, outcome, fault = run_trial(rig, given.seed, number, given.only, runs)
            left_s = (time.monotonic() - begin) / n_done * (len(numbers) - n_done)
            print(f"{number}: {what}: {outcome}  [{left_s / 60:.0f} min left]", flush=True)
            if fault:
                wrong.append((number, what, fault.kind))
    print(f"{len(numbers)} trials in {(time.monotonic() - begin) / 60:.1f} min, {len(wrong)} wrong")
    for number, what, kind in wrong:
        print(f"  --seed {given.seed} --trial {number}: {kind}, {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
