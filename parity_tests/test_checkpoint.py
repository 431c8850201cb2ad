"""A checkpoint that is read equals the one that was saved, bit for bit; what cannot be saved is told."""

import json
import os
import shutil
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from jaxgpt.errors import InputError
from jaxgpt.run import checkpoints as run_checkpoints
from jaxgpt.run import manifest as manifests
from jaxgpt.training.checkpoint import CheckpointError, Checkpoints
from parity_tests.helpers.saved_states import (
    ABOUT,
    assert_is_one_line,
    assert_same_bits,
    fail_to_hash,
    files_may_not_grow_past,
    flip_bit,
    join_background,
    list_tree,
    make_state,
    names_in,
    on_one_device,
    payload,
    restore,
    restore_newest,
    write_steps,
)

# What comes back


def test_round_trip(tmp_path):
    write_steps(tmp_path, 3)
    with Checkpoints(tmp_path) as checkpoints:
        chosen, state = restore(checkpoints, on_one_device(make_state(0)))
    assert (chosen.step, chosen.about) == (3, ABOUT)
    assert_same_bits(state, make_state(3))
    sharding = SingleDeviceSharding(jax.devices()[0])
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(state))


def test_round_trip_in_float64(tmp_path):
    with jax.enable_x64(True), Checkpoints(tmp_path) as checkpoints:
        state = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)))}
        assert state["w"].dtype == jnp.float64
        checkpoints.save(0, state, {})
        assert_same_bits(restore(checkpoints, on_one_device(state))[1], state)


def test_manifest_says_what_was_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(3), ABOUT, val_loss=2.5)
    manifest = json.loads((tmp_path / "3" / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert manifest["val_loss"] == 2.5
    assert manifest["about"] == ABOUT
    assert manifest["state"]["params.h.0.attn.c_q"] == ["bfloat16", [16, 32]]
    assert manifest["versions"]["jax"] == jax.__version__
    on_disk = {str(path.relative_to(tmp_path / "3")) for path in (tmp_path / "3").rglob("*") if path.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}


def test_all_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """Every file and every directory of a step is flushed before the rename, and its parent after it."""
    events = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_ino), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda *args: (events.append("rename"), rename(*args)))
    write_steps(tmp_path, 1)
    rename_at = len(events) - 1 - events[::-1].index("rename")
    inside = {path.stat().st_ino for path in [tmp_path / "1", *(tmp_path / "1").rglob("*")]}
    assert set(events[:rename_at]) >= inside
    assert events[rename_at + 1 :] == [tmp_path.stat().st_ino]


def test_orbax_alone_can_read_it(tmp_path):
    import orbax.checkpoint as ocp

    write_steps(tmp_path, 1)
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(tmp_path / "1", on_one_device(make_state(0)))
    assert_same_bits(state, make_state(1))


def test_saved_state_may_be_donated_at_once(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2 + 1, tree), donate_argnums=0)
    rng = np.random.default_rng(0)
    wanted = {f"w{i}": rng.standard_normal((512, 512)).astype(np.float32) for i in range(8)}
    state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), wanted)
    jax.block_until_ready(overwrite(jax.tree.map(jnp.copy, state)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(20):
            state = overwrite(state)
        jax.block_until_ready(state)
        _, restored = restore(checkpoints, on_one_device(wanted))
    assert_same_bits(restored, wanted)


def test_restored_state_may_be_donated(tmp_path):
    write_steps(tmp_path, 1)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        _, first = restore(checkpoints, on_one_device(make_state(0)))
        _, second = restore(checkpoints, on_one_device(make_state(0)))
    jax.block_until_ready(overwrite(first))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert_same_bits(second, make_state(1))


def test_a_part_of_the_state(tmp_path):
    write_steps(tmp_path, 1)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        wanted = {"params": on_one_device(make_state(0).params)}
        chosen = checkpoints.choose()
        assert chosen
        state = checkpoints.restore(wanted, chosen, is_part=True)
        with pytest.raises(InputError, match=r"opt_state\.\S+ is extra in it"):
            checkpoints.restore(wanted, chosen)
    assert_same_bits(state, {"params": make_state(1).params})


def test_empty_parts_of_a_state_may_come_and_go(tmp_path):
    """Older checkpoints hold an empty dict for each moment that their optimizer did not have."""
    leaf = jnp.arange(6.0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"opt_state": {"mu": {"w": leaf}, "momentum": {}}}, {})
        wanted: Any = {"opt_state": {"mu": {"w": leaf}}}
        assert_same_bits(restore(checkpoints, on_one_device(wanted))[1], wanted)
        checkpoints.save(2, wanted, {})
        wanted["opt_state"]["square"] = {}
        assert_same_bits(restore(checkpoints, on_one_device(wanted))[1], wanted)


# What is saved, what is refused, what is kept


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_is_refused(tmp_path, value):
    write_steps(tmp_path, 1)
    state = make_state(2)
    layer = state.params["h"][0]
    layer["attn.c_q"] = layer["attn.c_q"].at[3, 5].set(value)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=r"2 is not saved: params\.h\.0\.attn\.c_q is not finite"):
            checkpoints.save(2, state, ABOUT)
        checkpoints.save(3, make_state(3), ABOUT)
    assert names_in(tmp_path) == {"1", "3"}


def test_too_little_room_is_refused(tmp_path, monkeypatch):
    write_steps(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=11_000))
            with pytest.raises(CheckpointError, match=r"GB free, a save of 0\.000 GB needs 1\.2 times"):
                checkpoints.save(2, make_state(2), ABOUT)
        checkpoints.save(2, make_state(2), ABOUT)
    assert names_in(tmp_path) == {"1", "2"}


def test_a_removed_directory_is_one_line(tmp_path):
    """Faults: F6, C66."""
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(CheckpointError, match=r"checkpoint 1 is not saved: .*No such file or directory$"):
            checkpoints.save(1, make_state(1), ABOUT)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("step", [5, 4])
def test_step_must_rise(tmp_path, step):
    """Faults: C70."""
    write_steps(tmp_path, 5)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=f"checkpoint {step} is not saved: .*5 already exists"):
            checkpoints.save(step, make_state(step), ABOUT)
        checkpoints.save(6, make_state(6), ABOUT)
        with pytest.raises(CheckpointError, match="6 already exists"):
            checkpoints.save(6, make_state(6), ABOUT)
    assert restore_newest(tmp_path) == (6, [])


@pytest.mark.parametrize(
    ("keep", "keep_best", "left"),
    [(1, False, {5}), (2, False, {4, 5}), (1, True, {2, 5}), (2, True, {2, 4, 5}), (9, True, {1, 2, 3, 4, 5})],
)
def test_what_is_kept(tmp_path, keep, keep_best, left):
    losses = {1: 2.0, 2: 1.0, 3: None, 4: np.nan, 5: 1.5}
    for step, loss in losses.items():  # a new object each time: a resumed run continues counting
        with Checkpoints(tmp_path, keep=keep, keep_best=keep_best) as checkpoints:
            checkpoints.save(step, make_state(step), ABOUT, val_loss=loss)
    assert names_in(tmp_path) == set(map(str, left))
    assert restore_newest(tmp_path) == (5, [])


def test_an_unproven_checkpoint_replaces_no_good_one(tmp_path):
    """Until a step that began with it was finite. Faults: F3, C71."""
    with Checkpoints(tmp_path, keep=2, keep_best=False) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), ABOUT)
        for step, left in ((3, {"1", "2", "3"}), (4, {"2", "3", "4"})):
            checkpoints.save(step, make_state(step), ABOUT, is_proven=False)
            checkpoints.wait()
            assert names_in(tmp_path) == left
            checkpoints.confirm(step)  # the step that made it
            checkpoints.wait()
            assert names_in(tmp_path) == left
            checkpoints.confirm(step + 1)
            checkpoints.wait()
            assert names_in(tmp_path) == {str(step - 1), str(step)}
        checkpoints.save(5, make_state(5), ABOUT, is_proven=False)
        assert checkpoints.reject_from(5) == 4
    assert names_in(tmp_path) == {"3", "4", "5.rejected"}


def test_nothing_is_deleted_before_a_newer_one_counts(tmp_path, monkeypatch):
    seen = []
    real = run_checkpoints.write_manifest
    monkeypatch.setattr(run_checkpoints, "write_manifest", lambda *args: (seen.append(names_in(tmp_path)), real(*args)))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), ABOUT)
    assert seen == [{"1.saving"}, {"1", "2.saving"}, {"2", "3.saving"}]
    assert names_in(tmp_path) == {"3"}


# Failures in the background


@pytest.mark.parametrize("told_by", ["raise_if_failed", "save", "wait", "close", "choose"])
def test_failed_save_is_told(tmp_path, monkeypatch, told_by):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), ABOUT)
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "hash_file", fail_to_hash)
        checkpoints.save(2, make_state(2), ABOUT)
        join_background()
    call = {"save": lambda: checkpoints.save(3, make_state(3), ABOUT)}.get(told_by) or getattr(checkpoints, told_by)
    with pytest.raises(CheckpointError, match=r"checkpoint 2 is not saved: .*No space left") as caught:
        call()
    assert_is_one_line(caught.value)
    checkpoints.raise_if_failed()  # told once
    if told_by == "save":  # the failure of 2 is no reason to lose 3
        checkpoints.wait()
    left = {"1", "3"} if told_by == "save" else {"1"}
    assert names_in(tmp_path) == left
    assert restore_newest(tmp_path) == (int(max(left)), [])
    checkpoints.save(4, make_state(4), ABOUT)
    checkpoints.close()
    assert restore_newest(tmp_path) == (4, [])


def test_disk_refuses_the_arrays(tmp_path):
    """It is orbax's own writer that fails, in its own thread."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), ABOUT)
        checkpoints.wait()
        with files_may_not_grow_past(2048):
            checkpoints.save(2, {"w": jnp.arange(10_000.0) ** 1.5}, ABOUT)
            join_background()
        with pytest.raises(CheckpointError, match=r"checkpoint 2 is not saved: .*File too large") as caught:
            checkpoints.raise_if_failed()
        assert_is_one_line(caught.value)
        assert names_in(tmp_path) == {"1"}
        checkpoints.save(3, make_state(3), ABOUT)
    assert restore_newest(tmp_path) == (3, [])


def test_failure_does_not_hide_the_error_that_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "hash_file", fail_to_hash)
    warnings: list[str] = []
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path, warn=warnings.append) as checkpoints:
        checkpoints.save(1, make_state(1), ABOUT)
        raise KeyboardInterrupt
    assert len(warnings) == 1
    assert "checkpoint 1 is not saved" in warnings[0]


def test_error_in_the_run_lets_the_save_finish(tmp_path):
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), ABOUT)
        raise KeyboardInterrupt
    assert restore_newest(tmp_path) == (1, [])


def test_leftovers_go_when_training_starts(tmp_path):
    """Faults: C53."""
    write_steps(tmp_path, 1)
    leftovers = {"2.saving", "2.saving.orbax-checkpoint-tmp", "0.deleting"}
    for name in leftovers:
        (tmp_path / name / "d").mkdir(parents=True)
    for name in ("notes.saving", "2.rejected"):
        (tmp_path / name).mkdir()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert restore(checkpoints, on_one_device(make_state(0)))[0].step == 1
    assert names_in(tmp_path) >= leftovers
    with Checkpoints(tmp_path):
        pass
    assert names_in(tmp_path) == {"1", "notes.saving", "2.rejected"}


def test_read_only_changes_nothing(tmp_path):
    write_steps(tmp_path, 1, 2, 3)
    flip_bit(payload(tmp_path / "3"))
    (tmp_path / "4.saving").mkdir()
    before = list_tree(tmp_path)
    warnings: list[str] = []
    with Checkpoints(tmp_path, read_only=True, warn=warnings.append) as checkpoints:
        chosen, _ = restore(checkpoints, on_one_device(make_state(0)))
        assert (chosen.step, chosen.about) == (2, ABOUT)
        with pytest.raises(AssertionError, match="read_only"):
            checkpoints.save(5, make_state(5), ABOUT)
    assert list_tree(tmp_path) == before
    with Checkpoints(tmp_path / "not there", read_only=True) as checkpoints:
        assert checkpoints.choose() is None
    assert list_tree(tmp_path) == before
