"""Files written in one step: the old content or the new, whatever happens in between."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxgpt.errors import InputError
from jaxgpt.files import lock_run, open_in_place, open_regular, put_in_place, read_bounded, write_atomically
from jaxgpt.run.checkpoints import choose_checkpoint
from jaxgpt.training.checkpoint import Checkpoints
from parity_tests.helpers.saved_states import files_may_not_grow_past, list_tree, write_steps

REPO = Path(__file__).parents[1]
SIZE = 2_000_000


REWRITE_FOR_EVER = """
import itertools, pathlib, sys
from jaxgpt.files import write_atomically
for letter in itertools.cycle(b"abcd"):
    write_atomically(pathlib.Path(sys.argv[1]), bytes([letter]) * int(sys.argv[2]))
"""


def test_killed_while_writing(tmp_path):
    """At 12 instants of a seeded generator: the file holds one letter, all of it."""
    rng, seen = random.Random(0), set()
    for trial in range(12):
        path = tmp_path / f"{trial}.bin"
        process = subprocess.Popen([sys.executable, "-c", REWRITE_FOR_EVER, str(path), str(SIZE)], cwd=REPO)
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = path.read_bytes()
        assert len(content) == SIZE and len(set(content)) == 1
        seen |= set(content)
    assert len(seen) > 1  # the kills came at different writes


def fail(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None])
def test_failure_keeps_the_old_and_leaves_nothing(tmp_path, monkeypatch, failing, old):
    path = tmp_path / "x.json"
    if old is not None:
        path.write_bytes(old)
    if failing == "write":
        with files_may_not_grow_past(1000), pytest.raises(OSError, match="File too large"):
            write_atomically(path, bytes(100_000))
    else:
        monkeypatch.setattr(os, failing, fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new")
    assert os.listdir(tmp_path) == ([] if old is None else ["x.json"])
    assert old is None or path.read_bytes() == old


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, events = tmp_path / "x", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_size), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    write_atomically(path, "änderung")
    with open(tmp_path / "part", "wb") as file:
        file.write(b"12345")
        put_in_place(file, path)
    assert events == [9, "replace", 5, "replace"] and path.read_bytes() == b"12345"


def test_threads_that_write_one_path_do_not_meet(tmp_path):
    path, errors = tmp_path / "x", []
    barrier = threading.Barrier(4)

    def write(letter):
        barrier.wait()
        try:
            for _ in range(20):
                write_atomically(path, letter * 100_000)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and os.listdir(tmp_path) == ["x"]
    assert path.read_text() in [letter * 100_000 for letter in "abcd"]


def test_nothing_is_written_through_a_link(tmp_path):
    """Faults: F17, C76."""
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("precious")
    before = victim.stat()
    for name in ("lock", "config.py", "stacks.txt", f"config.py.{threading.get_native_id()}.tmp"):
        (run / name).symlink_to(victim)
    with lock_run(run):
        assert "process" in (run / "lock").read_text()
    write_atomically(run / "config.py", "new")
    with open_in_place(run / "stacks.txt") as file:
        file.truncate(0)
    assert victim.read_text() == "precious" and victim.stat().st_mtime_ns == before.st_mtime_ns
    assert not any(path.is_symlink() for path in run.iterdir())


def test_no_checkpoint_is_written_or_deleted_through_a_link(tmp_path):
    """Faults: F17, C76."""
    theirs, run = tmp_path / "theirs", tmp_path / "run"
    theirs.mkdir()
    write_steps(theirs, 1)
    (theirs / "7.saving").mkdir()
    run.mkdir()
    (run / "checkpoints").symlink_to(theirs)
    before = list_tree(theirs)
    with pytest.raises(InputError, match=r"checkpoints is a symbolic link to .*theirs, and is not written through"):
        Checkpoints(run / "checkpoints")
    (run / "checkpoints").unlink()
    (run / "checkpoints").mkdir()
    for name in ("7.saving", "8.deleting", "1"):
        (run / "checkpoints" / name).symlink_to(theirs / "7.saving" if "." in name else theirs / name)
    write_steps(run / "checkpoints", 2)
    assert list_tree(theirs) == before
    chosen = choose_checkpoint(run / "checkpoints")
    assert chosen is not None and chosen.step == 2


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_file_neither_hangs_nor_is_read(tmp_path, kind):
    """Faults: F13, C58."""
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError, match=f"it is a {kind}, not a file"):
        open_regular(path)
    if kind == "directory":
        with pytest.raises(InputError, match="cannot be written"), lock_run(path.rename(tmp_path / "lock").parent):
            pass
        return
    with open_in_place(path) as file:
        file.write("x")
    assert read_bounded(path, 1) == b"x"
    with pytest.raises(OSError, match="it has more than 0 bytes"):
        read_bounded(path, 0)
