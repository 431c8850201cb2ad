"""history.jsonl and evaluations/*.json: what a run and its evaluations write is what is read back."""

import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime

import pytest

import jaxgpt
from jaxgpt.errors import InputError
from jaxgpt.run import history
from jaxgpt.run.history import History, find_commit, read_history
from jaxgpt.run.results import read_results, write_result


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, in seconds."""
    now = [0.0]

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromtimestamp(1_000_000 + now[0], tz)

    monkeypatch.setattr(history.datetime, "datetime", Clock)
    monkeypatch.setattr(history.time, "monotonic", lambda: now[0])
    return now


def test_a_run_that_was_killed_and_resumed(tmp_path, clock):
    """A line at the beginning, one a minute, one at the end; a torn last line costs nothing else."""
    first = History(tmp_path / "history.jsonl", 0, "base", "2 x TPU", pytest.fail)
    for second in range(1, 151):
        clock[0] = float(second)
        first.write({"step": second, "train_loss": 1.0})
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 60, 120]
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 150, "ti')  # killed
    clock[0] = 1000.0
    second = History(tmp_path / "history.jsonl", 100, "base", "1 x CPU", pytest.fail)
    second.write({"step": 101})
    clock[0] = 1030.0
    second.close()
    sessions, faults = read_history(tmp_path)
    assert [(one.first_step, one.last_step, one.seconds, one.was_closed) for one in sessions] == [
        (0, 120, 120.0, False), (100, 101, 30.0, True),
    ]  # fmt: skip
    assert [one.about["devices"] for one in sessions] == ["2 x TPU", "1 x CPU"]
    assert sessions[0].began == datetime.fromtimestamp(1_000_000, UTC)
    assert sessions[0].about["versions"]["jaxgpt"] == jaxgpt.__version__
    assert len(faults) == 1 and "line 4" in faults[0]


def test_what_cannot_be_written_is_said_once_and_training_continues(tmp_path):
    said = []
    (tmp_path / "history.jsonl").mkdir()
    file = History(tmp_path / "history.jsonl", 0, "base", "", said.append)
    file.write({"step": 1})
    file.close()
    assert len(said) == 1 and "history.jsonl cannot be written" in said[0]
    assert read_history(tmp_path)[1][0].endswith("it is a directory, not a file")


def test_a_link_in_place_of_the_history_is_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_text("text")
    (tmp_path / "history.jsonl").symlink_to(other)
    History(tmp_path / "history.jsonl", 0, "base", "", pytest.fail).close()
    assert other.read_text() == "text" and len(read_history(tmp_path)[0]) == 1


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_the_commit_is_that_of_the_package(tmp_path, monkeypatch):
    """Of a working copy of jaxgpt alone, whatever GIT_DIR says; a tracked file that differs shows in it."""

    def git(*args):
        done = subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *args],
                              check=True, capture_output=True, text=True)  # fmt: skip
        return done.stdout.strip()

    package = tmp_path / "jaxgpt"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(jaxgpt, "__file__", str(package / "__init__.py"))
    assert find_commit.__wrapped__() == ""
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    git("tag", "v1")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    found = find_commit.__wrapped__()
    assert re.fullmatch(r"[0-9a-f]{40}", found)
    monkeypatch.delenv("GIT_DIR")
    assert found == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed")
    assert find_commit.__wrapped__() == f"{found}-dirty"


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    results = {"val": {"loss": 3.25, "n_tokens": 992, "bits_per_byte": None}}
    path = write_result(tmp_path, "loss", 200, 1.5, results, {"dtype": "float32"})
    (found,), faults = read_results(tmp_path)
    assert faults == [] and re.fullmatch(r"loss-200-[0-9a-f]{8}\.json", path.name)
    assert (found.kind, found.step, found.seconds, found.about) == ("loss", 200, 1.5, {"dtype": "float32"})
    assert found.results == {"val": {"loss": 3.25, "n_tokens": 992}}


def test_the_same_evaluation_replaces_its_record_and_another_does_not(tmp_path):
    for score, about, name in ((0.1, {"n": 1}, "MMLU"), (0.2, {"n": 1}, "MMLU"), (0.3, {"n": 2}, "MMLU"),
                               (0.4, {"n": 1}, "GSM8K")):  # fmt: skip
        write_result(tmp_path, "tasks", 5, 1.0, {name: {"score": score}}, about)
    found = {result.results[name]["score"] for result in read_results(tmp_path)[0] for name in result.results}
    assert found == {0.2, 0.3, 0.4}


@pytest.mark.parametrize(
    ("kind", "results"),
    [
        ("tasks", {"MMLU": {"score": float("nan")}}),
        ("tasks", {"MMLU": {"accuracy": 1.0}}),
        ("tasks", {}),
        ("speed", {"MMLU": {"score": 1.0}}),
    ],
    ids=["nan", "no score", "nothing", "kind"],
)
def test_what_is_no_record_is_not_written(tmp_path, kind, results):
    with pytest.raises(ValueError, match="the record of an evaluation has"):
        write_result(tmp_path, kind, 5, 1.0, results, {})
    assert not list(tmp_path.glob("evaluations/*"))


def test_evaluations_are_not_written_through_a_link(tmp_path):
    os.mkdir(tmp_path / "other")
    (tmp_path / "evaluations").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="is a symbolic link"):
        write_result(tmp_path, "tasks", 5, 1.0, {"MMLU": {"score": 1.0}}, {})
    assert not list((tmp_path / "other").iterdir())
