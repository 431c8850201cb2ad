"""A signal, at any moment: one line, the right exit code, and the process leaves."""

import signal
import subprocess
import sys
import time

import pytest

from jaxgpt import signals
from parity_tests.helpers.environment import REPO, environment
from parity_tests.interrupts import disturb

BEGIN = """
import sys, time, hashlib
from jaxgpt import signals
from jaxgpt.errors import run_verb
def computes_in_c():  # as XLA does: no Python handler runs for minutes
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
def begun():
    print("begun", flush=True)
DEFER = signals.Phase("finishing; {again} to quit", is_deferred=True)
def main(args):
"""


PROMPT_S = 8.0
"""What computes in C takes minutes; a loaded machine takes a second or two to end a process."""


def begin(body, wrapper=()):
    """A command; returns when it calls `begun`."""
    script = BEGIN + "".join(f"    {line}\n" for line in body.splitlines()) + "run_verb(main)"
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-c", script], cwd=REPO, env=environment() | {"PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def end(process):
    """Exit code, stderr, and seconds until then."""
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_a_command_that_computes_in_c(number):
    """Faults: F9, F11, C82."""
    process = begin("begun(); computes_in_c()")
    process.send_signal(number)
    code, errors, leave_s = end(process)
    assert (code, errors) == (128 + number, f"{number.name}: interrupted\n")
    assert leave_s < PROMPT_S


def test_the_second_signal_leaves_at_once():
    """Faults: F10, C83."""
    process = begin("signals.enter(DEFER); begun(); computes_in_c()")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None and process.stderr.readline() == "SIGINT: finishing; press again to quit\n"
    time.sleep(5 * signals.SAME_S)
    process.send_signal(signal.SIGINT)
    code, errors, leave_s = end(process)
    assert (code, errors) == (130, "SIGINT: quit at once\n")
    assert leave_s < PROMPT_S


def test_a_closed_terminal_that_says_so_twice_is_one_signal():
    """Faults: F11."""
    process = begin("signals.enter(DEFER); begun(); time.sleep(2); return 75")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    assert end(process)[:2] == (75, "SIGHUP: finishing; send it again to quit\n")


def test_what_nohup_switched_off_stays_off():
    process = begin("begun(); time.sleep(2); return 0", ["nohup"])
    process.send_signal(signal.SIGHUP)
    code, errors, _ = end(process)
    assert code == 0 and "SIGHUP" not in errors


def test_cleaning_up_runs_and_says_nothing_more():
    """Also where a library swallows what a signal raises, and where something else is raised meanwhile."""
    for after in ("return 0", "raise ValueError('as a library would')", "computes_in_c()"):
        process = begin(f"try: begun(); time.sleep(9)\nexcept BaseException: print('cleaned', flush=True)\n{after}")
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out, errors) == (143, "cleaned\n", "SIGTERM: interrupted\n"), after


def test_a_signal_after_the_end_changes_nothing():
    """Faults: C84."""
    body = "begun(); import atexit\natexit.register(lambda: (print('closing', flush=True), time.sleep(2)))\nreturn 3"
    process = begin(body)
    assert process.stdout is not None and process.stdout.readline() == "closing\n"
    process.send_signal(signal.SIGINT)
    assert end(process)[:2] == (3, "")


def test_importing_the_packages_changes_no_handler():
    code = "import signal, jaxgpt, torch_ref, parity_tests; print(signal.getsignal(signal.SIGTERM).name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "SIG_DFL\n"


def test_a_verb_interrupted_at_random_moments(tmp_path):
    """Faults: F9, C82, C83."""
    assert not any(disturb("prepare", 3, 0, signal.SIGINT, tmp_path))
