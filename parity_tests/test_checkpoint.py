"""A checkpoint that is read equals the one that was saved, bit for bit, or it is not read at all.

What needs other devices, other processes or a death runs this file as a program (`start`): its first argument
names a function here.
"""

import contextlib
import errno
import functools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxgpt import checkpoint, sealed
from jaxgpt.checkpoint import CheckpointError, Checkpoints
from jaxgpt.errors import InputError
from jaxgpt.run_lock import lock_run

ABOUT = {"config": {"model": {"n_layer": 2}}, "data_sha256": "00ff", "lr": 3e-4, "note": None}


class State(NamedTuple):
    params: Any
    opt_state: Any
    step: jax.Array


def make_state(seed: int) -> State:
    """Every dtype and container that a run keeps; another seed gives other bits in every float."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return rng.standard_normal(leaf.shape).astype(leaf.dtype) if leaf.dtype != np.int32 else np.int32(seed)

    params = {
        "wte": {"embedding": np.empty((64, 16), np.float32)},
        "h": {0: {"attn.c_q": np.empty((16, 32), jnp.bfloat16)}},
        "scale": np.empty((16,), np.float32),
    }
    mask = functools.partial(jax.tree.map, lambda leaf: leaf.ndim == 2)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.scale_by_adam(), mask), optax.scale(-1.0))
    drawn = jax.tree.map(draw, (params, jax.eval_shape(tx.init, params)))
    extra = {"count": np.uint32(2**32 - 1 - seed), "none": None, "empty": {}}
    return jax.tree.map(jnp.asarray, State(drawn[0], (drawn[1], extra), jnp.int32(seed)))


def on_one_device(state: Any) -> Any:
    """What to ask `restore` for: the state's shapes and dtypes on the first device."""
    sharding = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def assert_same_bits(got: Any, wanted: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def assert_is_one_line(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 2000


def write_steps(directory: Path, *steps: int, **options) -> None:
    with Checkpoints(directory, keep=100, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), ABOUT)


def list_tree(directory: Path) -> dict[str, tuple]:
    """Every path below a directory with its size and its times of change."""
    stats = {str(path): path.stat() for path in [directory, *directory.rglob("*")]}
    return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats.items()}


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@contextlib.contextmanager
def files_may_not_grow_past(n_bytes: int):
    """Lets the kernel refuse what is written beyond, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def join_background() -> None:
    """Returns when the save under way is over, without asking how it went."""
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint "):
            thread.join()


def restore_newest(directory: Path, **options) -> tuple[int, list[str]]:
    """Restores without changing the disk: the step, its bits checked, and what was warned of."""
    warnings: list[str] = []
    with Checkpoints(directory, read_only=True, warn=warnings.append) as checkpoints:
        step, state, about = checkpoints.restore(on_one_device(make_state(0)), **options)
    assert_same_bits(state, make_state(step))
    assert about == ABOUT
    return step, warnings


def start(function: str, *args, n_devices: int = 1) -> subprocess.Popen:
    """Runs a function of this file in a process of its own, where warnings are errors too."""
    flags = f"--xla_force_host_platform_device_count={n_devices}"
    root = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-W", "error", __file__, function, *map(str, args)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """What a process printed, once it has ended well."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


# What comes back


def test_round_trip(tmp_path):
    write_steps(tmp_path, 3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        assert checkpoints.about(3) == ABOUT
        step, state, about = checkpoints.restore(on_one_device(make_state(0)))
    assert (step, about) == (3, ABOUT)
    assert_same_bits(state, make_state(3))
    sharding = SingleDeviceSharding(jax.devices()[0])
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(state))


def test_round_trip_in_float64(tmp_path):
    with jax.enable_x64(True), Checkpoints(tmp_path) as checkpoints:
        state = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)))}
        assert state["w"].dtype == jnp.float64
        checkpoints.save(0, state, {})
        assert_same_bits(checkpoints.restore(on_one_device(state))[1], state)


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
        _, restored, _ = checkpoints.restore(on_one_device(wanted))
    assert_same_bits(restored, wanted)


def test_restored_state_may_be_donated(tmp_path):
    write_steps(tmp_path, 1)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        _, first, _ = checkpoints.restore(on_one_device(make_state(0)))
        _, second, _ = checkpoints.restore(on_one_device(make_state(0)))
    jax.block_until_ready(overwrite(first))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert_same_bits(second, make_state(1))


def test_a_part_of_the_state(tmp_path):
    write_steps(tmp_path, 1)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        wanted = {"params": on_one_device(make_state(0).params)}
        _, state, _ = checkpoints.restore(wanted, is_part=True)
        with pytest.raises(InputError, match=r"opt_state\.\S+ is extra in it"):
            checkpoints.restore(wanted)
    assert_same_bits(state, {"params": make_state(1).params})


def save_restore_and_fail(directory: str) -> None:
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, make_state(1), ABOUT)
    checkpoints.restore(on_one_device(make_state(0)))
    for _ in range(8):  # nothing of one failure may come up in the save after it
        with pytest.raises(CheckpointError, match="zero size"):
            checkpoints.save(2, {"w": jnp.zeros((0, 4))}, ABOUT)
    with files_may_not_grow_past(2048):
        checkpoints.save(3, {"w": jnp.arange(10_000.0) ** 1.5}, ABOUT)
        with pytest.raises(CheckpointError, match="File too large"):
            checkpoints.wait()
    assert names_in(Path(directory)) == {"1"}
    shutil.rmtree(directory)
    Path(directory).write_text("in the way of a new directory")
    with pytest.raises(CheckpointError, match=r"4 is not saved: .*Not a directory"):
        checkpoints.save(4, make_state(4), ABOUT)
    checkpoints.close()


def test_failures_print_nothing_and_end_in_time(tmp_path):
    """orbax logs each in pages, and can leave threads behind that hold the process for ten minutes."""
    assert finish(start("save_restore_and_fail", tmp_path)) == ""


# Damage


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_one_flipped_bit_is_found_in_any_file(tmp_path):
    write_steps(tmp_path, 1, 2)
    files = [path for path in (tmp_path / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        flip_bit(file)
        step, warnings = restore_newest(tmp_path)
        assert step == 1, file
        assert len(warnings) == 1, file
        assert f"{tmp_path / '2'} is not a checkpoint: its " in warnings[0]
        assert file.name in warnings[0]
        file.write_bytes(content)
    assert restore_newest(tmp_path) == (2, [])


def edit_manifest(path: Path, **changes) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def payload(path: Path) -> Path:
    return max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


DAMAGE = {
    "truncated": (lambda path: os.truncate(payload(path), 100), "holds 100 bytes, not "),
    "deleted": (lambda path: payload(path).unlink(), "is missing"),
    "broken manifest": (lambda path: (path / "manifest.json").write_text('{"step": 7'), "is not JSON"),
    "zeroed manifest": (lambda path: (path / "manifest.json").write_bytes(bytes(4096)), "is not JSON"),
    "empty manifest": (lambda path: (path / "manifest.json").write_text(""), "is not JSON"),
    "foreign manifest": (lambda path: (path / "manifest.json").write_text("[]"), "not one of ours"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "it has no manifest.json"),
    "edited manifest": (lambda path: edit_manifest(path, about={"lr": 1}), "changed after it was written"),
    "newer format": (lambda path: edit_manifest(path, format=2), "its format is 2, this version reads 1"),
    "empty directory": (lambda path: [shutil.rmtree(path), path.mkdir()], "it has no manifest.json"),
    "renamed": (lambda path: [shutil.rmtree(path), shutil.copytree(path.parent / "2", path)], "holds step 2"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("verify", [True, False])
def test_damage_falls_back_to_the_step_before(tmp_path, kind, verify):
    damage, reason = DAMAGE[kind]
    write_steps(tmp_path, 2, 7)
    damage(tmp_path / "7")
    step, warnings = restore_newest(tmp_path, verify=verify)
    assert step == 2
    assert len(warnings) == 1
    assert f"{tmp_path / '7'} is not a checkpoint: it" in warnings[0]
    assert reason in warnings[0]


def test_manifest_cannot_point_outside(tmp_path):
    write_steps(tmp_path, 2)
    manifest = json.loads((tmp_path / "2" / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": ""}
    edit_manifest(tmp_path / "2", files=manifest["files"], seal=sealed.seal(manifest))
    with pytest.raises(InputError, match=r"names the file \.\./secret outside of it"):
        restore_newest(tmp_path)


def test_no_digests_no_proof(tmp_path):
    """What verify=False gives up, and that orbax's own complaint still ends in one line."""
    write_steps(tmp_path, 1)
    metadata = tmp_path / "1" / "_METADATA"
    metadata.write_bytes(bytes(metadata.stat().st_size))
    with pytest.raises(InputError, match="1 cannot be read: ") as caught:
        restore_newest(tmp_path, verify=False)
    assert_is_one_line(caught.value)


def test_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "none", read_only=True) as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(InputError, match=r"none holds no checkpoint to go on from"):
            checkpoints.restore(on_one_device(make_state(0)))
    (tmp_path / "9").write_text("a stray file")
    (tmp_path / "notes").mkdir()
    (tmp_path / "007").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None


def test_none_that_verifies_is_an_error_that_names_each(tmp_path):
    write_steps(tmp_path, 1, 2)
    flip_bit(payload(tmp_path / "1"))
    (tmp_path / "2" / "manifest.json").unlink()
    before = list_tree(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        for call in (checkpoints.latest, lambda: checkpoints.restore(on_one_device(make_state(0)))):
            with pytest.raises(InputError) as caught:
                call()
            assert f"{tmp_path / '1'} is not a checkpoint: its file" in str(caught.value)
            assert f"{tmp_path / '2'} is not a checkpoint: it has no manifest" in str(caught.value)
            assert_is_one_line(caught.value)
    assert list_tree(tmp_path) == before


def test_a_step_asked_for_must_verify(tmp_path):
    write_steps(tmp_path, 1, 2, 3)
    flip_bit(payload(tmp_path / "2"))
    assert restore_newest(tmp_path, step=1) == (1, [])
    with pytest.raises(InputError, match=r"2 is not a checkpoint: its file .* was changed"):
        restore_newest(tmp_path, step=2)
    with pytest.raises(InputError, match="5 is not a checkpoint: it has no manifest"):
        restore_newest(tmp_path, step=5)
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(InputError, match="no manifest"):
        checkpoints.about(5)


def test_a_run_goes_on_from_an_older_step(tmp_path):
    """Newer steps are set aside, under names that are free, and their numbers can be saved again."""
    for _ in range(2):
        write_steps(tmp_path, *{1, 2, 3} - set(map(int, filter(str.isdigit, names_in(tmp_path)))))
        (tmp_path / "3" / "manifest.json").unlink()
        flip_bit(payload(tmp_path / "2"))
        warnings: list[str] = []
        with Checkpoints(tmp_path, warn=warnings.append) as checkpoints:
            assert checkpoints.latest() == 1
            assert names_in(tmp_path) >= {"1", "2", "3"}
            assert checkpoints.restore(on_one_device(make_state(0)))[0] == 1
        aside = [line for line in warnings if "is set aside as" in line]
        assert len(aside) == 2
        assert "the run goes on from step 1" in aside[0]
    assert names_in(tmp_path) == {"1", "2.rejected", "3.rejected", "2.rejected1", "3.rejected1"}
    write_steps(tmp_path, 2)
    assert restore_newest(tmp_path) == (2, [])


def test_misfits_are_named(tmp_path):
    def edit(change):
        wanted = on_one_device(make_state(0))
        change(wanted.params)
        return wanted

    def struct(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(jax.devices()[0]))

    write_steps(tmp_path, 1)
    cases = {
        r"params\.scale has shape \(16,\), not \(8,\)": lambda p: p.update(scale=struct((8,), jnp.float32)),
        r"params\.scale has dtype float32, not bfloat16": lambda p: p.update(scale=struct((16,), jnp.bfloat16)),
        r"params\.b is missing in it": lambda p: p.update(b=struct((), jnp.int32)),
        r"params\.scale is extra in it": lambda p: p.pop("scale"),
        r"params\.x4 is missing in it; and 3 more;": lambda p: p.update(
            {f"x{i}": struct((), jnp.int32) for i in range(8)}
        ),
    }
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for message, change in cases.items():
            with pytest.raises(InputError, match=rf"{tmp_path}/1 does not fit: .*{message}") as caught:
                checkpoints.restore(edit(change))
            assert_is_one_line(caught.value)


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
            with pytest.raises(CheckpointError, match=r"GB free, a save of 0\.000 GB asks for 1\.2 times"):
                checkpoints.save(2, make_state(2), ABOUT)
        checkpoints.save(2, make_state(2), ABOUT)
    assert names_in(tmp_path) == {"1", "2"}


@pytest.mark.parametrize("step", [5, 4])
def test_step_must_rise(tmp_path, step):
    write_steps(tmp_path, 5)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=f"checkpoint {step} is not saved: .*5 is there already"):
            checkpoints.save(step, make_state(step), ABOUT)
        checkpoints.save(6, make_state(6), ABOUT)
        with pytest.raises(CheckpointError, match="6 is there already"):
            checkpoints.save(6, make_state(6), ABOUT)
    assert restore_newest(tmp_path) == (6, [])


@pytest.mark.parametrize(
    ("keep", "keep_best", "left"),
    [(1, False, {5}), (2, False, {4, 5}), (1, True, {2, 5}), (2, True, {2, 4, 5}), (9, True, {1, 2, 3, 4, 5})],
)
def test_what_is_kept(tmp_path, keep, keep_best, left):
    losses = {1: 2.0, 2: 1.0, 3: None, 4: np.nan, 5: 1.5}
    for step, loss in losses.items():  # a new object each time: a resumed run goes on counting
        with Checkpoints(tmp_path, keep=keep, keep_best=keep_best) as checkpoints:
            checkpoints.save(step, make_state(step), ABOUT, val_loss=loss)
    assert names_in(tmp_path) == set(map(str, left))
    assert restore_newest(tmp_path) == (5, [])


def test_nothing_is_deleted_before_a_newer_one_counts(tmp_path, monkeypatch):
    seen = []
    real = checkpoint.write_seal
    monkeypatch.setattr(checkpoint, "write_seal", lambda *args: (seen.append(names_in(tmp_path)), real(*args)))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), ABOUT)
    assert seen == [{"1.saving"}, {"1", "2.saving"}, {"2", "3.saving"}]
    assert names_in(tmp_path) == {"3"}


# Failures in the background


def fail_to_hash(path, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device" + "\nsome cause" * 1000, str(path))


@pytest.mark.parametrize("told_by", ["raise_if_failed", "save", "wait", "close", "latest"])
def test_failed_save_is_told(tmp_path, monkeypatch, told_by):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), ABOUT)
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "hash_file", fail_to_hash)
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
    monkeypatch.setattr(sealed, "hash_file", fail_to_hash)
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


# Deaths


def test_leftovers_go_when_training_starts(tmp_path):
    write_steps(tmp_path, 1)
    leftovers = {"2.saving", "2.saving.orbax-checkpoint-tmp", "0.deleting"}
    for name in leftovers:
        (tmp_path / name / "d").mkdir(parents=True)
    for name in ("notes.saving", "2.rejected"):
        (tmp_path / name).mkdir()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest() == 1
    assert names_in(tmp_path) >= leftovers
    with Checkpoints(tmp_path):
        pass
    assert names_in(tmp_path) == {"1", "notes.saving", "2.rejected"}


def save_for_ever(directory: str) -> None:
    with lock_run(directory), Checkpoints(Path(directory) / "checkpoints", keep=2) as checkpoints:
        for step in range(1, 1_000_000):
            checkpoints.save(step, make_state(step), ABOUT)


def kill_trials(root: str, n_trials: str) -> None:
    """Forks, before the backend starts, a process that saves, and kills it within its first 40 saves or so."""
    import orbax.checkpoint  # noqa: F401  # once for all the children

    for trial in range(int(n_trials)):
        directory = Path(root) / str(trial)
        child = os.fork()
        if child == 0:
            save_for_ever(str(directory))
        while not (directory / "checkpoints" / "1").is_dir():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it died by itself"
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def assert_all_steps_are_whole(directory: Path) -> int:
    """Every step that has a directory restores, and without a word; returns the newest."""
    steps = sorted(int(name) for name in names_in(directory) if name.isdigit())
    for step in steps:
        assert restore_newest(directory, step=step) == (step, [])
    assert restore_newest(directory) == (steps[-1], [])
    return steps[-1]


def test_killed_at_any_instant(tmp_path):
    """Whatever lies under a step's name is whole; the newest one is what was saved at that step."""
    finish(start("kill_trials", tmp_path, 5))
    for trial in tmp_path.iterdir():
        with lock_run(trial):  # the dead do not hold it
            step = assert_all_steps_are_whole(trial / "checkpoints")
            with Checkpoints(trial / "checkpoints") as checkpoints:
                assert all(name.isdigit() for name in names_in(trial / "checkpoints"))
                checkpoints.save(step + 1, make_state(step + 1), ABOUT)
        assert assert_all_steps_are_whole(trial / "checkpoints") == step + 1


def copy_at_each_move(directory: str, copies: str) -> None:
    """Saves, and copies the directory before each file operation that follows orbax's part of a save."""
    is_copying = False

    def copy_first(event: str, args: tuple) -> None:
        nonlocal is_copying
        is_move = event in ("open", "os.rename", "os.remove", "os.rmdir")
        if is_move and threading.current_thread().name.startswith("checkpoint ") and not is_copying:
            is_copying = True
            shutil.copytree(directory, Path(copies) / f"{len(os.listdir(copies)):04d}")
            is_copying = False

    sys.addaudithook(copy_first)
    with Checkpoints(directory, keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), ABOUT)
            checkpoints.wait()


def test_killed_at_each_move(tmp_path):
    """The disk before each open, rename and removal that makes step 2 count and step 1 go."""
    (tmp_path / "copies").mkdir()
    finish(start("copy_at_each_move", tmp_path / "run", tmp_path / "copies"))
    copies = sorted((tmp_path / "copies").iterdir())
    seen = list(dict.fromkeys(" ".join(sorted(names_in(copy))) for copy in copies))
    assert seen == ["1.saving", "1", "1 2.saving", "1 2", "1.deleting 2"]
    newest = [assert_all_steps_are_whole(copy) for copy in copies if names_in(copy) != {"1.saving"}]
    assert newest == sorted(newest)


def save_and_leave(directory: str, how: str) -> None:
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, make_state(1), ABOUT)
    checkpoints.wait()
    checkpoints.save(2, make_state(2), ABOUT)
    if how == "os._exit":
        os._exit(0)


@pytest.mark.parametrize("how", ["os._exit", "end of program"])
def test_leaving_without_close_harms_nothing(tmp_path, how):
    output = finish(start("save_and_leave", tmp_path, how))
    step, warnings = restore_newest(tmp_path)
    assert step in (1, 2)
    assert warnings == []
    if how == "end of program" and step == 1:
        assert "checkpoint 2 is not saved" in output


# The lock


def hold_lock(directory: str) -> None:
    with lock_run(directory):
        print("held", flush=True)
        time.sleep(600)


def test_lock(tmp_path):
    run = tmp_path / "run"
    process = start("hold_lock", run)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    message = f"run is in use by process {process.pid} on host {socket.gethostname()}; wait for it or choose"
    with pytest.raises(InputError, match=message), lock_run(run):
        pass
    process.kill()
    process.communicate()
    with lock_run(run), pytest.raises(InputError, match=f"in use by process {os.getpid()} on"), lock_run(run):
        pass
    with lock_run(run):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file cannot be written"), lock_run(tmp_path / "file"):
        pass


def test_read_only_changes_nothing(tmp_path):
    write_steps(tmp_path, 1, 2, 3)
    flip_bit(payload(tmp_path / "3"))
    (tmp_path / "4.saving").mkdir()
    before = list_tree(tmp_path)
    warnings: list[str] = []
    with Checkpoints(tmp_path, read_only=True, warn=warnings.append) as checkpoints:
        assert checkpoints.latest() == 2
        assert checkpoints.about(2) == ABOUT
        assert checkpoints.restore(on_one_device(make_state(0)))[0] == 2
        with pytest.raises(AssertionError, match="read_only"):
            checkpoints.save(5, make_state(5), ABOUT)
    assert list_tree(tmp_path) == before
    with Checkpoints(tmp_path / "not there", read_only=True) as checkpoints:
        assert checkpoints.latest() is None
    assert list_tree(tmp_path) == before


# Other devices, other processes


def ask_for(state: State, devices: list) -> State:
    """The state spread over the devices: matrices by their first axis, the rest on each of them."""
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))

    def spread(leaf):
        spec = PartitionSpec("data") if leaf.ndim == 2 else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(spread, state)


def put(state: State, devices: list) -> State:
    """The state as `ask_for` describes it."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, ask_for(state, devices))
    return jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(
            leaf.shape, sharding, functools.partial(np.asarray(leaf).__getitem__)
        ),
        state,
        shardings,
    )


def assert_same_shards(got: State, wanted: State) -> None:
    """The shards that this process holds, and how they lie."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.sharding == b.sharding
        for shard, other in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert shard.index == other.index
            assert np.asarray(shard.data).tobytes() == np.asarray(other.data).tobytes()


def pass_on(directory: str, n_devices: str, step: str) -> None:
    """Restores step - 1 on all devices (unless there is none), then saves the next state from them."""
    devices, at = jax.devices(), int(step)
    assert len(devices) == int(n_devices)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh), Checkpoints(directory, keep=9) as checkpoints:
        if at > 1:
            _, state, _ = checkpoints.restore(ask_for(make_state(0), devices))
            assert_same_shards(state, put(make_state(at - 1), devices))
        state = put(make_state(at), devices)
        checkpoints.save(at, state, ABOUT)
        jax.block_until_ready(overwrite(state))  # its buffers are free to be used again


def test_other_device_counts(tmp_path):
    for step, n_devices in enumerate([8, 4, 1, 8], start=1):
        finish(start("pass_on", tmp_path, n_devices, step, n_devices=n_devices))
    for step in (1, 2, 3, 4):
        assert restore_newest(tmp_path, step=step) == (step, [])


def be_one_of_two(directory: str, port: str, process_id: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process_id))
    devices, is_first = jax.devices(), jax.process_index() == 0
    assert (len(devices), len(jax.local_devices())) == (4, 2)
    wanted = ask_for(make_state(0), devices)
    warnings: list[str] = []
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with (
        jax.set_mesh(mesh),
        lock_run(directory) if is_first else contextlib.nullcontext(),
        Checkpoints(Path(directory) / "steps", keep=2, warn=warnings.append) as checkpoints,
    ):
        assert checkpoints.latest() is None
        for step in (1, 2, 3):
            checkpoints.save(step, put(make_state(step), devices), ABOUT)
        checkpoints.wait()
        assert names_in(checkpoints.directory) == {"2", "3"}
        # What only process 0 can see fails in both, so that neither waits for the other.
        hash_file = sealed.hash_file
        if is_first:
            sealed.hash_file = fail_to_hash
        checkpoints.save(4, put(make_state(4), devices), ABOUT)
        try:
            checkpoints.wait()
        except CheckpointError as error:
            assert "checkpoint 4 is not saved" in str(error)
        else:
            raise AssertionError("the failure of process 0 is unknown here")
        sealed.hash_file = hash_file
    with Checkpoints(Path(directory) / "steps", warn=warnings.append) as checkpoints:
        step, state, _ = checkpoints.restore(wanted)
        assert step == 3
        assert_same_shards(state, put(make_state(3), devices))
    assert not warnings
    jax.distributed.shutdown()


def test_two_processes(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [start("be_one_of_two", tmp_path, port, i, n_devices=2) for i in range(2)]
    for process in processes:
        finish(process)
    assert restore_newest(tmp_path / "steps") == (3, [])


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
