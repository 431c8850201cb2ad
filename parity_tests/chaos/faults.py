"""The faults, one function each: it does the damage at a random moment, and judges what came of it.

A function returns what was right, in words, or raises `Wrong`. Right is one of three: the run resumed and ended with
the losses of the uninterrupted run, bit for bit; or one line refused and said what to do; or a warning was printed and
training continued. Repairing the cause (room on the disk, the old data) must always lead back to the first.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxgpt.errors import EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from parity_tests.chaos.rig import EVERY, N_STEPS, Ended, can_mount, list_checkpoints, read_losses
from parity_tests.chaos.trial import Trial, Wrong, check_calm, check_refused, find_resumed_step

LEAVE_S = 10.0
"""A process that was told to leave must be gone after so long, here, where a step takes milliseconds and other work may
have the processors; or after what an uninterrupted run took, where that is longer."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# Ends from outside


def kill(trial: Trial) -> str:
    """SIGKILL at any moment, or within a step: soon after another was logged."""
    running = trial.start()
    at = trial.wait_for_a_moment(running)
    running.send(signal.SIGKILL)
    running.wait()
    return f"{at}; {trial.finish()}"


def stop(trial: Trial) -> str:
    """SIGINT, SIGTERM or SIGHUP at any moment."""
    number = trial.random.choice(SIGNALS)
    running = trial.start()
    at = trial.wait_for_a_moment(running)
    is_early = max(read_losses(trial.run_dir), default=0) < N_STEPS - EVERY
    sent = time.monotonic()
    running.send(number)
    ended = running.wait()
    left = time.monotonic() - sent
    check_stopped(trial, ended, number)
    if is_early and ended.code == EXIT_DONE:
        raise Wrong("silent", f"{number.name} had no effect", ended)
    if left > max(LEAVE_S, trial.straight.seconds):
        raise Wrong("hung", f"it left {left:.1f} s after {number.name}", ended)
    return f"{number.name} {at}: left in {left:.1f} s with {ended.code}; {trial.finish()}"


def stop_twice(trial: Trial) -> str:
    """A second signal soon after the first: it leaves at once, and what was saved before is there."""
    first, second = trial.random.choice(SIGNALS), trial.random.choice(SIGNALS)
    running = trial.start()
    at = trial.sleep()
    running.send(first)
    time.sleep(trial.random.uniform(0.02, 0.4))
    sent = time.monotonic()
    running.send(second)
    ended = running.wait()
    left = time.monotonic() - sent
    before_ours = () if ended.text or trial.run_dir.exists() else (-first, -second)
    check_calm(ended, EXIT_DONE, EXIT_STOPPED, 128 + first, 128 + second, *before_ours)
    if left > max(LEAVE_S, trial.straight.seconds) / 2:
        raise Wrong("hung", f"it left {left:.1f} s after the second signal", ended)
    names = f"{first.name}, {second.name} after {at:.1f} s"
    return f"{names}: left in {left:.1f} s with {ended.code}; {trial.finish()}"


def check_stopped(trial: Trial, ended: Ended, number: signal.Signals) -> None:
    """One signal loses no step: what was logged is in a checkpoint."""
    if ended.code == -number and not ended.text and not trial.run_dir.exists():
        return  # before the interpreter ran the first line of jaxgpt
    if ended.code == -number:
        raise Wrong("lost", f"{number.name} had its default effect", ended)
    check_calm(ended, EXIT_DONE, EXIT_STOPPED, 128 + number)
    logged, saved = max(read_losses(trial.run_dir), default=0), max(list_checkpoints(trial.run_dir), default=0)
    if logged > saved:
        raise Wrong("lost", f"step {logged} was logged, checkpoint {saved} is the last", ended)


def second_trainer(trial: Trial) -> str:
    """Another process trains into the same directory: one of the two is refused, whichever comes second."""
    first = trial.start()
    trial.sleep(0.6)
    second = trial.start()
    ended = sorted((running.wait() for running in (first, second)), key=lambda one: one.code or 0)
    check_calm(ended[0], EXIT_DONE)
    trial.check_losses(0, ended[0])
    return check_refused(ended[1])


# The disk, and what is printed


def no_room_in_files(trial: Trial) -> str:
    """No file may be larger than so much: saves fail, or lines of metrics.jsonl do."""
    file_kb = int(2 ** trial.random.uniform(0, 8))
    ended = trial.start(file_kb=file_kb).wait()
    return f"{file_kb} KB: {check_no_room(trial, ended)}"


def full_disk(trial: Trial) -> str:
    """A file system of a few hundred kilobytes, which grows before the run resumes."""
    size_kb = trial.random.randint(48, 1500)
    trial.run_dir = trial.directory / "disk" / "run"
    with mounted(trial.directory / "disk", size_kb) as disk:
        ended = trial.start().wait()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        return f"{size_kb} KB: {check_no_room(trial, ended)}"


@contextlib.contextmanager
def mounted(path: Path, size_kb: int) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def check_no_room(trial: Trial, ended: Ended) -> str:
    check_calm(ended, EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT)
    saved = list_checkpoints(trial.run_dir)
    if ended.code == EXIT_DONE and saved[-1:] != [N_STEPS]:
        raise Wrong("lost", f"exit code 0, but the checkpoints are {saved}", ended)
    if ended.code != EXIT_DONE and not ended.error_lines:
        raise Wrong("silent", "it failed without a line", ended)
    return f"exit code {ended.code}; {trial.finish(has_all_lines=False)}"


def closed_pipe(trial: Trial) -> str:
    """Whoever reads standard output leaves after a few lines."""
    n_lines = trial.random.randint(0, 40)
    ended = trial.start(n_lines=n_lines).wait()
    check_calm(ended, EXIT_DONE)
    trial.check_losses(0, ended)
    return f"after {n_lines} lines; trained to the end"


def full_output(trial: Trial) -> str:
    """Standard output goes to a full disk, or cannot show what is printed."""
    if trial.random.random() < 0.5:
        ended, how = trial.start(env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}).wait(), "ascii"
    else:
        with open("/dev/full", "w") as full:
            ended, how = trial.start(stdout=full.fileno()).wait(), "/dev/full"
    check_calm(ended, EXIT_DONE)
    trial.check_losses(0, ended)
    return f"{how}; trained to the end"


def records_vanish(trial: Trial) -> str:
    """A file of the run's records is deleted while it trains, or something else takes its place."""
    running = trial.start()
    trial.wait_for_step(running, trial.random.randint(1, N_STEPS - 2))
    path = trial.run_dir / trial.random.choice(("metrics.jsonl", "config.py", "loss.png"))
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    is_blocked = trial.random.random() < 0.5
    if is_blocked:
        with contextlib.suppress(FileExistsError):
            path.mkdir()
    ended = running.wait()
    check_calm(ended, EXIT_DONE)
    if list_checkpoints(trial.run_dir)[-1:] != [N_STEPS]:
        raise Wrong("lost", f"checkpoints {list_checkpoints(trial.run_dir)}", ended)
    return f"{path.name} {'is a directory' if is_blocked else 'deleted'}; trained to the end"


def directory_vanishes(trial: Trial) -> str:
    """The run directory is deleted while it trains."""
    running = trial.start()
    trial.wait_for_step(running, trial.random.randint(1, N_STEPS - 2))
    shutil.rmtree(trial.run_dir, ignore_errors=True)
    ended = running.wait()
    check_calm(ended, EXIT_DONE, EXIT_FAILED)
    if ended.code == EXIT_DONE and list_checkpoints(trial.run_dir)[-1:] != [N_STEPS]:
        raise Wrong("lost", f"exit code 0, but the checkpoints are {list_checkpoints(trial.run_dir)}", ended)
    shutil.rmtree(trial.run_dir, ignore_errors=True)
    return f"exit code {ended.code}; {trial.finish()}"


# Files that are not what they were


def damaged_run(trial: Trial) -> str:
    """A file of a run that was killed is damaged before it resumes."""
    trial.take_half_way()
    files = sorted(path for path in trial.run_dir.rglob("*") if path.is_file())
    path = trial.random.choice(files)
    how, target = damage(path, trial)
    name = path.relative_to(trial.run_dir)
    ended = trial.start("--resume").wait()
    check_calm(ended, EXIT_DONE, EXIT_BAD_INPUT)
    if target.read_bytes() != b"not of this run":
        raise Wrong("silent", f"{name} {how}: what it links to was written", ended)
    if ended.code == EXIT_BAD_INPUT:
        if name.parts[0] == "checkpoints":
            raise Wrong("lost", f"{name} {how}: refused, though two more checkpoints are whole", ended)
        return f"{name} {how}: {check_refused(ended)}"
    step = find_resumed_step(ended)
    if name.parts[:2] == ("checkpoints", "15") and (step != 10 or "checkpoints/15" not in ended.text):
        raise Wrong("silent", f"{name} {how}: resumed from {step}", ended)
    trial.check_losses(step, ended)
    return f"{name} {how}: resumed from {step}"


def damage(path: Path, trial: Trial) -> tuple[str, Path]:
    """Damages a file in a random way. Returns the way, and a file outside the run that a link would point to."""
    target = trial.directory / "outside"
    target.write_bytes(b"not of this run")
    content = bytearray(path.read_bytes())
    ways: list[str] = ["deleted", "emptied", "made a directory", "made a link", "made a pipe"]
    way: str = trial.random.choice([*ways, *(["flipped", "flipped", "cut", "zeroed"] if content else [])])
    if way == "flipped":
        at = trial.random.randrange(8 * len(content))
        content[at // 8] ^= 1 << at % 8
        path.write_bytes(content)
        return f"flipped at bit {at}", target
    if way == "cut":
        path.write_bytes(content[: trial.random.randrange(len(content))])
        return way, target
    if way == "zeroed":
        at = trial.random.randrange(len(content))
        path.write_bytes(content[:at] + bytes(len(content) - at))
        return way, target
    path.unlink()
    if way == "emptied":
        path.touch()
    elif way == "made a directory":
        path.mkdir()
    elif way == "made a link":
        path.symlink_to(target)
    elif way == "made a pipe":
        os.mkfifo(path)
    return way, target


def changed_data(trial: Trial) -> str:
    """One bit of the data changes between two parts of a run."""
    trial.take_half_way()
    path = trial.random.choice(sorted(path for path in trial.data.rglob("*") if path.is_file()))
    content = path.read_bytes()
    at = trial.random.randrange(8 * len(content))
    changed = bytearray(content)
    changed[at // 8] ^= 1 << at % 8
    path.write_bytes(changed)
    ended = trial.start("--resume").wait()
    check_calm(ended, EXIT_DONE, EXIT_BAD_INPUT)
    if ended.code == EXIT_DONE:
        trial.check_losses(find_resumed_step(ended), ended)
        return f"{path.name}, bit {at}: changed nothing"
    line = check_refused(ended)
    path.write_bytes(content)
    return f"{path.name}, bit {at}: {line[:100]}; {trial.finish()}"


def data_vanish(trial: Trial) -> str:
    """A file of the data is cut short or deleted while a run reads it."""
    path = trial.random.choice(sorted(path for path in trial.data.rglob("*") if path.is_file()))
    content = path.read_bytes()
    running = trial.start()
    at = trial.sleep()
    is_cut = trial.random.random() < 0.5
    if is_cut:
        os.truncate(path, trial.random.randrange(len(content)))
    else:
        path.unlink()
    ended = running.wait()
    check_calm(ended, EXIT_DONE, EXIT_BAD_INPUT, EXIT_FAILED)
    if ended.code == EXIT_DONE:
        trial.check_losses(0, ended)
    elif len(ended.error_lines) != 1:
        raise Wrong("code", f"{len(ended.error_lines)} lines of error, not one", ended)
    path.write_bytes(content)
    return f"{path.name} {'cut' if is_cut else 'deleted'} after {at:.1f} s: exit code {ended.code}; {trial.finish()}"


def diverge(trial: Trial) -> str:
    """A learning rate far too high: the good checkpoints stay, and going back to the old rate is exact."""
    trial.take_half_way()
    rate = trial.random.choice(("1e38", "1e30", "1e15"))
    ended = trial.start("--resume", f"--optim.lr={rate}", "--train.max_skips=2").wait()
    check_calm(ended, EXIT_DONE, EXIT_DIVERGED)
    if ended.code == EXIT_DONE:  # finite throughout: a bad run, but one that its owner chose
        return f"rate {rate}: stayed finite"
    return f"rate {rate}: exit code {ended.code}; {trial.finish()}"


# Several processes


def peers_differ(trial: Trial) -> str:
    """Two processes are started with other settings or other data: both refuse, and name what differs."""
    settings = ("--optim.lr=0.02", "--run.seed=7", "--optim.beta2=0.9", "data")
    setting = trial.random.choice(settings)
    other = setting
    if setting == "data":
        copy = trial.rig.copy_data(trial.kind, trial.directory / "other")
        largest = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
        other = f"--data.dir={copy}"
    pair = trial.rig.start_pair(trial.framework, trial.config, trial.run_dir, other=(other,))
    ended = trial.rig.wait_for_pair(pair)
    for one in ended:
        check_calm(one)
    if any(one.code == EXIT_DONE for one in ended) or list_checkpoints(trial.run_dir):
        raise Wrong("silent", f"{setting}: exit codes {[one.code for one in ended]}", ended[1])
    lines = [line for one in ended for line in one.error_lines]
    field = "" if setting == "data" else setting.strip("-").partition("=")[0]  # its own check names a changed file
    if not any(field in line for line in lines):
        raise Wrong("silent", f"{setting}: no line names it", ended[0])
    return f"{setting}: {lines[0][:120]}"


def peer_dies(trial: Trial) -> str:
    """One of two processes is killed: the other ends, and both resume."""
    straight = trial.rig.straight(trial.framework, trial.kind, is_pair=True)
    pair = trial.rig.start_pair(trial.framework, trial.config, trial.run_dir)
    trial.wait_for_step(pair[0], trial.random.randint(1, N_STEPS - 5))
    victim = trial.random.randrange(2)
    pair[victim].send(signal.SIGKILL)
    killed = time.monotonic()
    other = pair[1 - victim].wait()
    pair[victim].wait()
    left = time.monotonic() - killed
    if other.code is None:
        raise Wrong("hung", "the other process did not end", other)
    steps = list_checkpoints(trial.run_dir)
    if steps[-1:] == [N_STEPS]:
        return f"process {victim} was killed when all was done"
    resumed = trial.rig.start_pair(trial.framework, trial.config, trial.run_dir, *(["--resume"] if steps else []))
    ended = [running.wait() for running in resumed]
    for one in ended:
        check_calm(one, EXIT_DONE)
    trial.check_losses(0, ended[0], straight=straight.losses)
    return f"process {victim} killed: the other left after {left:.1f} s with {other.code}; resumed from {steps[-1:]}"


FAULTS: dict[str, Callable[[Trial], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        kill, stop, stop_twice, second_trainer, no_room_in_files, full_disk, closed_pipe, full_output, records_vanish,
        directory_vanishes, damaged_run, changed_data, data_vanish, diverge, peers_differ, peer_dies,
    )
}  # fmt: skip
NEEDS_MOUNT = {"full-disk"}


def available() -> dict[str, Callable[[Trial], str]]:
    """The faults that this user can cause: not all may mount a file system."""
    return {name: fault for name, fault in FAULTS.items() if name not in NEEDS_MOUNT or can_mount()}
