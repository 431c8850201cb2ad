"""Checkpoints of processes that die, that share a directory, or that have other devices.

These run this file as a program (`start`): its first argument names a function here.
"""

import contextlib
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgpt.errors import InputError
from jaxgpt.files import lock_run
from jaxgpt.run import manifest as manifests
from jaxgpt.training.checkpoint import CheckpointError, Checkpoints
from parity_tests.helpers.saved_states import (
    ABOUT,
    State,
    fail_to_hash,
    files_may_not_grow_past,
    make_state,
    names_in,
    on_one_device,
    restore,
    restore_newest,
)


def start(function: str, *args, n_devices: int = 1) -> subprocess.Popen:
    """Runs a function of this file in a process of its own."""
    return start_file(__file__, function, *args, n_devices=n_devices)


def start_file(file: str, function: str, *args, n_devices: int = 1) -> subprocess.Popen:
    """Runs a file as a program, in which warnings are errors too; it gets the name of a function and arguments."""
    flags = f"--xla_force_host_platform_device_count={n_devices}"
    root = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-W", "error", file, function, *map(str, args)],
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


# Deaths


def save_restore_and_fail(directory: str) -> None:
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, make_state(1), ABOUT)
    restore(checkpoints, on_one_device(make_state(0)))
    for _ in range(8):  # nothing of one failure may come up in the save after it
        with pytest.raises(CheckpointError, match="zero size"):
            checkpoints.save(2, {"w": jnp.zeros((0, 4))}, ABOUT)
    large = {f"w{i}": jnp.arange(10_000.0) ** 1.5 for i in range(16)}
    with files_may_not_grow_past(2048):
        for _ in range(8):
            checkpoints.save(3, large, ABOUT)
            with pytest.raises(CheckpointError, match="File too large"):
                checkpoints.wait()
    assert names_in(Path(directory)) == {"1"}
    shutil.rmtree(directory)
    Path(directory).write_text("in the way of a new directory")
    with pytest.raises(CheckpointError, match=r"4 is not saved: .*Not a directory"):
        checkpoints.save(4, make_state(4), ABOUT)
    checkpoints.close()


def test_failures_print_nothing_and_end_in_time(tmp_path):
    """orbax logs each in pages, and can leave threads behind that hold the process for ten minutes.

    Faults: F12, C65, C68.
    """
    assert finish(start("save_restore_and_fail", tmp_path)) == ""


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
    """Whatever lies under a step's name is whole; the newest one is what was saved at that step. Faults: C67."""
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
    """Faults: C69."""
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
            _, state = restore(checkpoints, ask_for(make_state(0), devices))
            assert_same_shards(state, put(make_state(at - 1), devices))
        state = put(make_state(at), devices)
        checkpoints.save(at, state, ABOUT)
        jax.block_until_ready(overwrite(state))  # its buffers are free to be used again


def test_other_device_counts(tmp_path):
    """Faults: C72."""
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
        assert checkpoints.choose() is None
        for step in (1, 2, 3):
            checkpoints.save(step, put(make_state(step), devices), ABOUT)
        checkpoints.wait()
        assert names_in(checkpoints.directory) == {"2", "3"}
        # What only process 0 can see fails in both, so that neither waits for the other.
        hash_file = manifests.hash_file
        if is_first:
            manifests.hash_file = fail_to_hash
        checkpoints.save(4, put(make_state(4), devices), ABOUT)
        try:
            checkpoints.wait()
        except CheckpointError as error:
            assert "checkpoint 4 is not saved" in str(error)
        else:
            raise AssertionError("the failure of process 0 is unknown here")
        manifests.hash_file = hash_file
    with Checkpoints(Path(directory) / "steps", warn=warnings.append) as checkpoints:
        chosen, state = restore(checkpoints, wanted)
        assert chosen.step == 3
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
