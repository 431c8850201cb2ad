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

from jaxgpt.files import put_in_place, write_atomically
from parity_tests.helpers.saved_states import files_may_not_grow_past

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
