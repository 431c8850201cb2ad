"""One run to be damaged, and what is expected of it: calm, one line, or the losses of the uninterrupted run."""

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.errors import EXIT_BAD_INPUT, EXIT_DONE
from parity_tests.chaos.rig import N_STEPS, Ended, Rig, Running, list_checkpoints, read_losses

STEP_S = 0.1
"""About the time of a step, rollouts and all."""


class Wrong(AssertionError):
    """An outcome that must not be. `kind` is silent, lost, traceback, hung or code."""

    def __init__(self, kind: str, what: str, ended: Ended | None = None):
        shown = f"\n--- exit code {ended.code}, the end of what it printed:\n{ended.text[-3000:]}" if ended else ""
        super().__init__(f"{kind.upper()}: {what}{shown}")
        self.kind = kind


def check_calm(ended: Ended, *codes: int) -> None:
    """Raises Wrong where a process hung, printed a traceback, or ended with another exit code."""
    if ended.code is None:
        raise Wrong("hung", "it had to be killed", ended)
    if "Traceback" in ended.text or "Exception ignored" in ended.text:
        raise Wrong("traceback", "it printed a traceback", ended)
    if codes and ended.code not in codes:
        raise Wrong("code", f"exit code {ended.code}, not one of {codes}", ended)


def check_refused(ended: Ended) -> str:
    """One line that names the fault, and exit code 2. Returns the line."""
    check_calm(ended, EXIT_BAD_INPUT)
    if len(ended.error_lines) != 1:
        raise Wrong("code", f"{len(ended.error_lines)} lines of error, not one", ended)
    return ended.error_lines[0]


@dataclass
class Trial:
    """One run to be damaged: a framework, a kind of data, a directory of its own.

    Args:
      random: makes every choice, so that a trial can be repeated.
    """

    rig: Rig
    random: random.Random
    framework: str
    kind: str
    directory: Path

    def __post_init__(self):
        self.directory.mkdir()
        self.run_dir = self.directory / "run"
        self.data = self.rig.copy_data(self.kind, self.directory / "data")
        self.config = self.rig.write_config(self.directory / "config.py", self.data, self.kind)
        self.straight = self.rig.straight(self.framework, self.kind)

    def start(self, *more: str, **observed) -> Running:
        return self.rig.start(self.framework, self.config, self.run_dir, *more, **observed)

    def sleep(self, share: float = 1.05) -> float:
        """Waits for a random part of the time that an uninterrupted run takes. Returns the seconds."""
        seconds = self.random.uniform(0, share * self.straight.seconds)
        time.sleep(seconds)
        return seconds

    def wait_for_a_moment(self, running: Running) -> str:
        """Waits as `sleep` does, or, as often, until a random step was logged: to start may take longer than all steps.

        Returns:
          when that is, and the last step that was logged by then.
        """
        begin = time.monotonic()
        if self.random.random() < 0.5:
            self.sleep()
        else:
            self.wait_for_step(running, self.random.randint(1, N_STEPS))
            time.sleep(self.random.uniform(0, STEP_S))
        step = max(read_losses(self.run_dir), default=0)
        return f"after {time.monotonic() - begin:.1f} s and step {step}"

    def wait_for_step(self, running: Running, step: int) -> None:
        while running.is_alive and max(read_losses(self.run_dir), default=0) < step:
            time.sleep(0.005)

    def take_half_way(self) -> None:
        """Takes a copy of a run that was killed after step 17."""
        shutil.copytree(self.rig.half_way(self.framework, self.kind), self.run_dir)

    def check_losses(self, first_step: int, ended: Ended, *, straight: dict[int, tuple] | None = None) -> None:
        """Every step above `first_step` was logged, with the losses of the uninterrupted run."""
        expected, found = straight or self.straight.losses, read_losses(self.run_dir)
        for step in range(first_step + 1, N_STEPS + 1):
            if step not in found:
                raise Wrong("lost", f"metrics.jsonl has no step {step}", ended)
            if found[step] != expected[step]:
                raise Wrong("silent", f"losses of step {step}: {found[step]}, not {expected[step]}", ended)
        if list_checkpoints(self.run_dir)[-1:] != [N_STEPS]:
            raise Wrong("lost", f"checkpoints {list_checkpoints(self.run_dir)}, without the last step", ended)

    def finish(self, *, has_all_lines: bool = True) -> str:
        """Runs again with the cause repaired; the end must be that of the uninterrupted run. Returns what happened.

        Args:
          has_all_lines: whether metrics.jsonl must have each step; where it was damaged, only those trained now.
        """
        steps = list_checkpoints(self.run_dir)
        ended = self.start(*(["--resume"] if steps else [])).wait()
        check_calm(ended, EXIT_DONE)
        if "already at step" in ended.shown:
            first_step = N_STEPS
        else:
            first_step = find_resumed_step(ended)
        self.check_losses(0 if has_all_lines else first_step, ended)
        return f"resumed from {first_step}" if steps else "started again"


def find_resumed_step(ended: Ended) -> int:
    """The step that a run says it resumes from; 0 where it says nothing."""
    for line in ended.shown.splitlines():
        if line.startswith("resuming from step "):
            return int(line.split()[3].strip(";,."))
    return 0
