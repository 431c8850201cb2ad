"""Signals at random moments: python -m parity_tests.interrupts VERB [--times 50] [--seed 0] [--signal SIGINT]

Runs a small case of a verb once to its end, then again and again with a signal at a random moment between its start and
its end, and says of each run: the exit code, how long it took to leave, what it printed, and what is wrong with that.
Right is: one line that begins with the signal's name, no traceback, under 2 s to leave, exit code 75 with a checkpoint
or 128 + the signal's number without; and a command that was over already ends as if nothing had come.

The parts (`start`, `wait_for`, `interrupt`, `find_faults`) serve other tests that disturb a process from outside.
"""

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, InputError, run_verb
from jaxgpt.prepare.__main__ import main as prepare
from parity_tests.helpers.environment import REPO, environment

SETTINGS = [
    "--model.n_layer=1", "--model.n_head=1", "--model.n_embd=16", "--model.seq_len=16", "--train.batch_tokens=64",
    "--train.micro_batch_size=4", "--train.dtype=float32", "--eval.tokens=64", "--log.every=100",
]  # fmt: skip
TRAIN = ["--config", "configs/quickstart.py", *SETTINGS, "--data.dir={data}"]
VERBS = {
    "train": ["jaxgpt.train", *TRAIN, "--train.steps=400", "--run.dir={place}/run"],
    "torch": ["torch_ref.train", *TRAIN, "--train.steps=400", "--run.dir={place}/run"],
    "sample": ["jaxgpt.sample", "--run", "{run}", "--max-tokens", "200"],
    "evaluate": ["jaxgpt.evaluate", "--run", "{run}"],
    "prepare": ["jaxgpt.prepare", "x", "--input", "{text}", "--out", "{place}/data"],
    "train_tokenizer": ["jaxgpt.train_tokenizer", "--data", "{texts}", "--out", "{place}/t.json", "--vocab-size=300"],
    "plan": ["jaxgpt.plan", *TRAIN, "--device", "a100-40gb", "--estimate"],
    "bench": ["jaxgpt.bench", *TRAIN, "--rounds", "1", "--steps", "2"],
    "compare": ["jaxgpt.compare", *TRAIN, "--steps", "3", "--out", "{place}/compared"],
}
"""A short command of every verb."""
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
MOST_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """What a process did after a signal.

    Attributes:
      code: as `subprocess` counts it: -N where signal N killed it; None where it had to be killed.
      leave_s: from the (last) signal to the end.
      is_late: it had ended before the signal came.
      text: stdout and stderr.
    """

    code: int | None
    leave_s: float
    is_late: bool
    text: str


def start(module: str, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """`python -m module`, stdout and stderr to a file, SIGINT as in a terminal."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPO, env=environment() | ENVIRONMENT,
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip


def wait_for(marker: str, process: subprocess.Popen[bytes], log: Path, limit_s: float = MOST_S) -> bool:
    """Waits until the process has printed a text; False where it ended without it."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        is_over = process.poll() is not None
        if marker in log.read_text(errors="replace"):
            return True
        if is_over:
            return False
        time.sleep(0.01)
    raise TimeoutError(f"{marker!r} did not come in {limit_s} s")


def interrupt(
    process: subprocess.Popen[bytes], log: Path, number: int, after_s: float, again_s: float | None = None,
    limit_s: float = MOST_S,
) -> Outcome:  # fmt: skip
    """Sends a signal after so many seconds, perhaps once more, and waits for the end."""
    time.sleep(after_s)
    is_late = process.poll() is not None
    process.send_signal(number)
    if again_s is not None:
        time.sleep(again_s)
        process.send_signal(number)
    sent = time.monotonic()
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    return Outcome(code, time.monotonic() - sent, is_late, log.read_text(errors="replace"))


def find_faults(outcome: Outcome, number: int, *, has_checkpoint: bool, most_s: float = 2.0) -> list[str]:
    """What is wrong with how a process took a signal; empty: nothing."""
    name = signal.Signals(number).name
    said = [line for line in outcome.text.splitlines() if f"{name}: " in line]  # after a text without a line end, too
    faults = [word for word in ("Traceback", "Exception ignored", "Fatal Python error") if word in outcome.text]
    if outcome.code is None:
        return [*faults, "it did not end"]
    if outcome.leave_s > most_s and not outcome.is_late:
        faults.append(f"{outcome.leave_s:.1f} s to leave")
    if len(said) > 1:
        faults.append(f"{len(said)} lines")
    right = (EXIT_DONE,) if not said else (128 + number, EXIT_DONE)
    if said and "finishing" in said[0]:
        right = (EXIT_STOPPED, EXIT_DONE)
    if outcome.code not in right:
        faults.append(f"exit code {outcome.code}")
    if outcome.code == EXIT_STOPPED and not has_checkpoint:
        faults.append("exit code 75 without a checkpoint")
    return faults


def is_before_us(outcome: Outcome, number: int) -> bool:
    """Whether the interpreter was still starting, and no file of this repository had been run."""
    files = re.findall(r'File "([^"]+)"', outcome.text)
    is_ours = any(str(REPO) in file and "site-packages" not in file for file in files)
    is_silent = outcome.text == "" or "KeyboardInterrupt" in outcome.text
    return outcome.code in (-number, EXIT_FAILED) and not is_ours and is_silent


def find_leftovers(place: Path) -> list[str]:
    """Temporary files below a directory that no later run removes."""
    swept = re.compile(r"checkpoints/\d+\.(saving|deleting)|/data/\.tmp")
    paths = [str(path) for path in place.rglob("*") if re.search(r"\.(tmp|saving|deleting)", path.name)]
    return [path for path in paths if not swept.search(path)]


def make_inputs(place: Path, needs: str) -> dict[str, Path]:
    """What the commands read: a text, prepared as tokens and as text shards, and a run where one is needed."""
    text = place / "text.txt"
    text.write_text("".join(f"{i} green bottles, hanging on the wall; {i * 7 % 13} fell.\n" for i in range(2000)))
    made = {"text": text, "data": place / "tokens", "texts": place / "texts", "run": place / "trained"}
    options = ["x", "--input", str(text), "--out"]
    prepare([*options, str(made["data"]), "--tokenizer", "char"])
    if "{texts}" in needs:
        prepare([*options, str(made["texts"]), "--format", "text"])
    if "{run}" in needs:
        command = fill([*TRAIN, "--train.steps=5", "--run.dir={run}"], made)
        subprocess.run([sys.executable, "-m", "jaxgpt.train", *command], cwd=REPO, env=environment(), check=True)
    return made


def fill(arguments: list[str], values: dict[str, Path]) -> list[str]:
    for name, path in values.items():
        arguments = [argument.replace(f"{{{name}}}", str(path)) for argument in arguments]
    return arguments


def disturb(verb: str, times: int, seed: int, number: int, work: Path) -> list[list[str]]:
    """Interrupts a verb so many times; gives the faults of each run, and prints a line about it."""
    module, *arguments = VERBS[verb]
    inputs = make_inputs(work, " ".join(arguments))
    log, place = work / "log", work / "place"

    def begin() -> subprocess.Popen[bytes]:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return start(module, fill(arguments, inputs | {"place": place}), log)

    began = time.monotonic()
    if code := begin().wait(MOST_S):
        raise InputError(f"{verb} ends with {code} when nothing disturbs it: {log.read_text()[-500:]}")
    whole_s = time.monotonic() - began
    print(f"{verb} takes {whole_s:.1f} s")
    rng, found = random.Random(seed), []
    for i in range(times):
        at_s = rng.uniform(0, whole_s)
        outcome = interrupt(begin(), log, number, at_s)
        has_checkpoint = any(place.rglob("checkpoints/*/manifest.json"))
        faults = find_faults(outcome, number, has_checkpoint=has_checkpoint)
        faults += [f"left {path}" for path in find_leftovers(place)]
        note = "over already" if outcome.is_late else ""
        if is_before_us(outcome, number):
            faults, note = [], "the interpreter was starting"
        found.append(faults)
        said = [line for line in outcome.text.splitlines() if line.startswith("SIG")]
        words = "; ".join(faults) or "right"
        print(
            f"{i + 1:3d}  at {at_s:5.2f} s  code {outcome.code}  left in {outcome.leave_s:4.2f} s  {words}"
            f"  {note} {' | '.join(said)}",
            flush=True,
        )
        if faults:
            print(outcome.text[-3000:])
    return found


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m parity_tests.interrupts", description=__doc__)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=["SIGINT", "SIGTERM", "SIGHUP"], default="SIGINT")
    given = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as work:
        found = disturb(given.verb, given.times, given.seed, signal.Signals[given.signal], Path(work))
    n_wrong = sum(1 for faults in found if faults)
    print(f"{given.verb}: {len(found)} interrupted, {n_wrong} not as they should be")
    return EXIT_FAILED if n_wrong else EXIT_DONE


if __name__ == "__main__":
    run_verb(main)
