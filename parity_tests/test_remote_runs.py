"""Runs at an object store: as on a disk, whatever is killed, damaged, cut or started twice."""

import contextlib
import json
import shutil

import pytest

from jaxgpt.errors import Failure, InputError
from jaxgpt.run import remote as remotes
from jaxgpt.run.checkpoints import CheckpointError, list_steps
from jaxgpt.run.manifest import write_manifest
from jaxgpt.run.remote import RemoteRun, has_steps, hold_run, opened_run, run_directory
from jaxgpt.run.results import read_results, write_result
from jaxgpt.stores import Store
from jaxgpt.training.checkpoint import Checkpoints
from parity_tests import store_kills
from parity_tests.helpers.object_store import content
from parity_tests.helpers.saved_states import ABOUT, assert_same_bits, make_state, on_one_device


@pytest.fixture
def location(request, tmp_path, monkeypatch):
    """A place in memory at which nothing is, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"memory://tests/{request.node.name}"


def alone(text):
    return [text]


@contextlib.contextmanager
def training(location, *, is_new=False, **options):
    """What a training does with its run: the checkpoints, and the warnings."""
    warnings = []
    held = hold_run(location, 0, alone, is_new=is_new, warn=warnings.append)
    with (
        held as (directory, remote),
        Checkpoints(directory / "checkpoints", remote=remote, warn=warnings.append, **options) as saved,
    ):
        yield saved, warnings


def forget_copies(location):
    """As on another machine."""
    shutil.rmtree(run_directory(location).parents[1])


def steps_at(location):
    """Names of checkpoints' directories at the store, and whether each has a manifest."""
    names = [name.split("/")[1:] for name in content(location) if name.startswith("checkpoints/")]
    return {step: ["manifest.json"] in [rest for other, *rest in names if other == step] for step, *_ in names}


def save(saved, step, **options):
    saved.save(step, make_state(step), ABOUT, **options)
    saved.wait()


def test_a_run_that_has_steps_is_told_from_one_that_has_none(location, tmp_path):
    """What --auto-resume asks, on a machine that has no copy yet."""
    for place in (location, str(tmp_path / "run")):
        assert not has_steps(place)
        with training(place, is_new=True) as (saved, _):
            save(saved, 3)
    forget_copies(location)
    assert has_steps(location) and has_steps(str(tmp_path / "run"))
    Store(location).delete(["checkpoints/3/manifest.json"])
    assert not has_steps(location)


def restore(saved):
    chosen = saved.choose()
    return chosen.step, saved.restore(on_one_device(make_state(0)), chosen)


def flip(location, step):
    """Changes a byte of a data file at the store."""
    store = Store(location)
    sizes = {name: size for name, size in content(location).items() if f"checkpoints/{step}/" in name and "/d/" in name}
    name = max(sizes, key=lambda name: sizes[name])
    damaged = bytearray(store.read(name, 2**30) or b"")
    damaged[len(damaged) // 2] ^= 1
    store.write(name, bytes(damaged))


def test_steps_as_on_a_disk(location, tmp_path):
    """The same saves leave the same steps at a store and on a disk; another machine reads them bit for bit."""
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}
    with training(location, is_new=True, keep=2) as (saved, _), Checkpoints(tmp_path / "disk", keep=2) as on_disk:
        for step, loss in losses.items():
            save(saved, step, val_loss=loss)
            save(on_disk, step, val_loss=loss)
        assert list_steps(saved.directory) == list_steps(on_disk.directory) == [4, 3, 2]
        assert steps_at(location) == {"2": True, "3": True, "4": True}
    forget_copies(location)
    with training(location) as (saved, warnings):
        assert list_steps(saved.directory) == [4, 3, 2]
        step, state = restore(saved)
        assert_same_bits(state, make_state(step))
        assert saved.reject_from(4) == 3
        save(saved, 5)
    assert steps_at(location) == {"3": True, "4.rejected": True, "5": True, "2": True}
    assert ["4 is renamed to 4.rejected" in warning for warning in warnings] == [True]


def test_damaged_steps(location):
    """A step that is damaged at the store is skipped; a copy that is damaged is fetched again."""
    with training(location, is_new=True, keep=3) as (saved, _):
        save(saved, 1)
        save(saved, 2)
    copies = [path for path in (saved.directory / "2").rglob("*") if path.is_file() and "/d/" in str(path)]
    for path in copies:
        path.write_bytes(path.read_bytes()[::-1])
    with training(location) as (saved, warnings):
        assert restore(saved)[0] == 2
        assert warnings == []
    flip(location, 2)
    forget_copies(location)
    with training(location) as (saved, warnings):
        step, state = restore(saved)
        assert_same_bits(state, make_state(1))
        assert step == 1
    assert "2 is not a checkpoint: its file" in warnings[0]
    assert steps_at(location) == {"1": True, "2.rejected": True}


def test_leftovers(location):
    """Objects without a manifest are no step, and are deleted by the next run that writes; a reader leaves them."""
    with training(location, is_new=True) as (saved, _):
        save(saved, 1)
    store = Store(location)
    store.write("checkpoints/2/d/x", b"1")
    store.write("checkpoints/0.rejected/d/x", b"1")
    with opened_run(location, "--run") as (directory, _):
        assert list_steps(directory / "checkpoints") == [1]
    assert steps_at(location) == {"0.rejected": False, "1": True, "2": False}
    with training(location) as (saved, _):
        assert steps_at(location) == {"1": True}


def test_what_only_the_copy_has_is_forgotten(location):
    """The store is the truth: a save that a kill cut before its commit is none, and records are those of the store."""
    with training(location, is_new=True) as (saved, _):
        save(saved, 1)
        (run_directory(location) / "metrics.jsonl").write_text("at the store\n")
        write_result(run_directory(location), "loss", 1, 1.0, {"val": {"loss": 1.0}}, {})
        (run_directory(location) / "history.jsonl").write_text("at the store\n")
    shutil.rmtree(run_directory(location) / "evaluations")
    (run_directory(location) / "history.jsonl").unlink()
    shutil.copytree(saved.directory / "1", saved.directory / "2")
    (run_directory(location) / "metrics.jsonl").write_text("later\n")
    (run_directory(location) / "skipped.json").write_text("[]")
    with training(location) as (saved, _):
        assert list_steps(saved.directory) == [1]
        assert (run_directory(location) / "metrics.jsonl").read_text() == "at the store\n"
        assert not (run_directory(location) / "skipped.json").exists()
        assert (run_directory(location) / "history.jsonl").read_text() == "at the store\n"
        assert len(read_results(run_directory(location))[0]) == 1


def test_records_are_at_the_store_before_a_checkpoint(location, monkeypatch):
    order = []
    upload, write = Store.upload, Store.write
    monkeypatch.setattr(Store, "upload", lambda self, files: (order.extend(files), upload(self, files))[1])
    monkeypatch.setattr(Store, "write", lambda self, name, what: (order.append(name), write(self, name, what))[1])
    with training(location, is_new=True) as (saved, _):
        (run_directory(location) / "metrics.jsonl").write_text("1\n")
        save(saved, 1)
        (run_directory(location) / "loss.png").write_bytes(b"2")
    assert order[0] == "writer.json"
    places = [order.index(name) for name in ("metrics.jsonl", "checkpoints/1/_METADATA", "checkpoints/1/manifest.json")]
    assert places == sorted(places)
    assert order[-1] == "loss.png"
    assert order.count("metrics.jsonl") == 1


def test_the_last_to_start_is_the_writer(location):
    """An earlier one finds out before its next commit; a command that is refused takes nothing over."""
    with training(location, is_new=True) as (saved, warnings):
        save(saved, 1)
        with pytest.raises(InputError, match="already contains a run"), _elsewhere(location, is_new=True):
            pass
        save(saved, 2)
        with _elsewhere(location):
            pass
        with pytest.raises(
            CheckpointError, match=r"not saved: another process has taken over mem.*: process"
        ) as caught:
            save(saved, 3)
        assert caught.value.is_final
        (run_directory(location) / "metrics.jsonl").write_text("of the one that lost it\n")
    assert steps_at(location) == {"1": True, "2": True}
    assert "metrics.jsonl" not in content(location)
    assert any("records are not at the store: another process has taken over" in warning for warning in warnings)


def test_taken_over_during_a_save(location, monkeypatch):
    with training(location, is_new=True) as (saved, _):
        save(saved, 1)
        upload = Store.upload

        def upload_slowly(self, files):
            upload(self, files)
            Store(location).write("writer.json", b'{"token": "other", "owner": "process 1 on host x"}')

        monkeypatch.setattr(Store, "upload", upload_slowly)
        with pytest.raises(
            CheckpointError, match=r"checkpoint 2 is not saved: another process .*: process 1 on host x"
        ):
            save(saved, 2)
    assert steps_at(location) == {"1": True, "2": False}
    assert list_steps(saved.directory) == [1]


@contextlib.contextmanager
def _elsewhere(location, *, is_new=False):
    """A training on another machine, which has another cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(run_directory(location).parent / "elsewhere"))
        with hold_run(location, 0, alone, is_new=is_new, warn=lambda _: None) as remote:
            yield remote


def test_one_machine_has_one_training(location):
    with training(location, is_new=True), pytest.raises(InputError, match="is in use by process"), training(location):
        pass


def test_a_process_that_cannot_upload_its_part(location, tmp_path, monkeypatch):
    """The first one hears of it at once; else it would wait for half an hour."""
    ours, theirs = tmp_path / "staging" / "0", tmp_path / "staging" / "1"
    for path in (ours, theirs):
        path.mkdir(parents=True)
        (path / path.name).write_text("a part")
    other = RemoteRun(location, theirs, "run.dir")
    with hold_run(location, 0, alone, is_new=True) as (_, remote):
        assert remote
        other.token = remote.token
        write_manifest(ours, {"step": 1})
        with monkeypatch.context() as patch, pytest.raises(Failure, match="no more room"):
            patch.setattr(other.store, "upload", raise_failure)
            other.publish(1, theirs, 1, 2)
        with pytest.raises(Failure, match="process 1: no more room"):
            remote.publish(1, ours, 0, 2)
        assert steps_at(location) == {"1": False}
        other.publish(1, theirs, 1, 2)
        remote.publish(1, ours, 0, 2)
        assert steps_at(location) == {"1": True}
        found = json.loads(Store(location).read("checkpoints/1/manifest.json", 2**20) or b"")["files"]
    assert set(found) == {"0", "1"}
    assert found["0"] == found["1"]


def raise_failure(*_args, **_options):
    raise Failure("no more room")


def test_a_failed_upload_is_one_line(location, monkeypatch):
    """The save fails, the step before it stays, the next save succeeds; records are reported once."""

    def fail(self, files):
        raise Failure("the store cannot be reached")

    with training(location, is_new=True) as (saved, warnings):
        save(saved, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "upload", fail)
            with pytest.raises(CheckpointError, match=r"^checkpoint 2 is not saved: the store cannot be reached$"):
                save(saved, 2)
            assert list_steps(saved.directory) == [1]
        with monkeypatch.context() as patch:
            patch.setattr(Store, "read", raise_failure)  # of writer.json, which is asked for first
            with pytest.raises(CheckpointError, match="checkpoint 3 is not saved: no more room"):
                save(saved, 3)
        save(saved, 3)
    assert {"1", "3"} <= {step for step, is_whole in steps_at(location).items() if is_whole}
    assert warnings == []


def test_an_unreachable_store_is_no_damaged_checkpoint(location, monkeypatch):
    """No older step is taken because the newest could not be fetched."""
    with training(location, is_new=True) as (saved, _):
        save(saved, 1)
        save(saved, 2)
    forget_copies(location)

    def fail(self, step, **options):
        raise Failure("the store cannot be reached")

    monkeypatch.setattr(RemoteRun, "fetch", fail)
    with pytest.raises(Failure, match="cannot be reached"), training(location) as (saved, _):
        saved.choose()


def test_a_reader_leaves_the_training_alone(location):
    with training(location, is_new=True) as (saved, _):
        save(saved, 1)
        with opened_run(location, "--run") as (directory, remote):
            theirs = Checkpoints(directory / "checkpoints", read_only=True, remote=remote)
            chosen = theirs.choose()
            assert chosen
            assert_same_bits(theirs.restore(on_one_device(make_state(0)), chosen), make_state(1))
            assert directory != run_directory(location)
        save(saved, 2)


def test_a_run_on_a_disk_asks_no_store(tmp_path, monkeypatch):
    monkeypatch.setattr(remotes, "RemoteRun", None)
    with hold_run(str(tmp_path / "x"), 0, alone, is_new=True) as held:
        assert held == (tmp_path / "x", None)
    assert run_directory(str(tmp_path / "x")) == tmp_path / "x"


@pytest.mark.slow
def test_kills_between_requests(tmp_path):
    """Three kills: after the first commit, in a resumed run's upload, and in its download.

    In the end the store has what an uninterrupted run leaves, bit for bit.
    """
    with store_kills.open_trials(tmp_path) as trials:
        killed = []
        trials.kill_and_continue("killed", iter([(30, True), (33, False), (12, False)]), killed.append)
    assert sum("request" in line for line in killed) == 3
