"""Runs of `python -m jaxgpt.train` on a small text, in processes of their own, and what they leave behind."""

import json
import subprocess
import sys
import time

from jaxgpt.prepare.__main__ import main as prepare
from parity_tests.helpers.environment import REPO, environment

TEXT = "".join(f"{i} green bottles, hanging on the wall; {i * 7 % 13} fell.\n" for i in range(400))


def write_text(directory, text):
    """A prepared character-level directory."""
    (directory / "text.txt").write_text(text)
    arguments = ["bottles", "--input", str(directory / "text.txt"), "--out", str(directory / "bottles")]
    assert prepare([*arguments, "--tokenizer", "char"]) == 0
    return directory / "bottles"


def command(config, run_dir, *more):
    return [sys.executable, "-m", "jaxgpt.train", f"--config={config}", f"--run.dir={run_dir}", *more]


def start(config, run_dir, *more, n_devices=1, stderr=subprocess.STDOUT):
    return subprocess.Popen(
        command(config, run_dir, *more),
        env=environment(n_devices),
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def run(config, run_dir, *more, n_devices=1, expect=0):
    process = start(config, run_dir, *more, n_devices=n_devices, stderr=subprocess.PIPE)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == expect, shown + errors
    return shown, errors


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir):
    return {r["step"]: (r["train_loss"], r.get("val_loss")) for r in records(run_dir)}


def wait_for_step(process, run_dir, step):
    """Until metrics.jsonl has the step; the process must not end before."""
    path = run_dir / "metrics.jsonl"
    for _ in range(6000):
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError(f"step {step} did not come")
