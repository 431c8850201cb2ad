"""Runs the pipelines in scripts/ with SMOKE=1 as they are, and kills them in the middle of each stage.

    python -m parity_tests.pipelines                       all scripts, from beginning to end
    python -m parity_tests.pipelines chat_cpu --kill       each stage of one is killed once (SIGKILL), then continued

It takes minutes for each script, so the suite has test_pipelines.py instead. Prints a line for each script, and what it
found wrong; exit code 1 if anything was.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parity_tests.helpers.environment import REPO, environment

SCRIPTS = ("chat_cpu", "single_a100", "speedrun_8xh100", "speedrun_rtx4090")
STAGES = ("data", "tokenizer", "base", "mid", "sft", "rl", "evaluation", "report")
SHORT, SHORT_S, LONG_S = ("data", "tokenizer", "report"), 1.5, 8.0
"""Stages that end soon, and seconds after which a stage is killed at the latest: one that ended was not killed."""
JAXGPT = f'#!/bin/sh\nexec {sys.executable} -m jaxgpt "$@"\n'


def start(script: str, directory: Path, out: Path) -> subprocess.Popen[bytes]:
    given = {"JAXGPT": str(directory / "jaxgpt"), "PYTHON": sys.executable, "PYTHONPATH": str(REPO), "SMOKE": "1"}
    with out.open("ab") as file:
        return subprocess.Popen(
            ["bash", str(REPO / "scripts" / f"{script}.sh")], cwd=directory, env=environment() | given,
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def descendants(pid: int) -> list[int]:
    """Processes that it started, and theirs."""
    try:
        children = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []
    return [*children, *(more for child in children for more in descendants(child))]


def kill_in(stage: str, process: subprocess.Popen[bytes], out: Path, wait_s: float) -> bool:
    """Kills the script and what it runs `wait_s` after a stage began; whether the stage was still under way."""
    while process.poll() is None and f"  {stage}: " not in out.read_text():
        time.sleep(0.05)
    time.sleep(wait_s)
    is_there = process.poll() is None
    for pid in [process.pid, *descendants(process.pid)]:
        if is_there:
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return is_there


def check(script: str, directory: Path, *, kills: bool, seed: int) -> str:
    """What is wrong, in words; empty: nothing."""
    draw, n_killed, out = random.Random(seed), 0, directory / "out.txt"
    wrapper = directory / "jaxgpt"
    wrapper.write_text(JAXGPT)
    wrapper.chmod(0o755)
    stages = [stage for stage in STAGES if stage != "rl" or script == "chat_cpu"]
    for stage in stages if kills else ():
        out.write_text("")
        n_killed += kill_in(
            stage, start(script, directory, out), out, draw.uniform(0.5, SHORT_S if stage in SHORT else LONG_S)
        )
    out.write_text("")
    began_s = time.monotonic()
    code = start(script, directory, out).wait()
    shown = out.read_text()
    ended = [line[21:].partition(":")[0] for line in shown.splitlines() if ": done" in line and line[:2] == "20"]
    page = directory / "pipelines" / script / "report" / "report.html"
    print(f"{script}: exit code {code}, {time.monotonic() - began_s:.0f} s, {n_killed} kills", flush=True)
    if code or ended != stages or not page.is_file():
        return f"{script}: {shown[-3000:]}"
    return ""


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("scripts", nargs="*", default=SCRIPTS)
    parser.add_argument("--kill", action="store_true", help="kill each stage once, then continue")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    given = parser.parse_args(args)
    faults = []
    for script in given.scripts:
        with tempfile.TemporaryDirectory() as directory:
            faults.append(check(script, Path(directory), kills=given.kill, seed=given.seed))
    print("\n".join(filter(None, faults)) or "all pipelines end as they should")
    return int(any(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
