"""Two hosts that share no disk train one run at an object store: each uploads what it wrote.

They run this file as a program: its first argument names a function here.
"""

import os
import socket
import sys

import jax

from jaxgpt.parallel.texts import gather_texts
from jaxgpt.run import remote as remotes
from jaxgpt.run.remote import hold_run, opened_run
from jaxgpt.training.checkpoint import CheckpointError, Checkpoints
from parity_tests.helpers.object_store import BUCKET, content, environment_of, s3_server
from parity_tests.helpers.saved_states import ABOUT, assert_same_bits, make_state, on_one_device, restore
from parity_tests.test_checkpoint_processes import ask_for, assert_same_shards, finish, put, start_file

LOCATION = f"s3://{BUCKET}/runs/x"


def train_on_one_of_two(cache: str, port: str, process_id: str) -> None:
    """Saves three steps and fails to save a fourth; then opens the run again, and restores."""
    os.environ["XDG_CACHE_HOME"] = os.path.join(cache, process_id)  # as on a host of its own
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process_id))
    devices, index, warnings = jax.devices(), jax.process_index(), []
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        with hold_run(LOCATION, index, gather_texts, is_new=True, warn=warnings.append) as (directory, remote):
            assert remote
            with Checkpoints(directory / "checkpoints", keep=2, remote=remote, warn=warnings.append) as saved:
                assert saved.choose() is None
                for step in (1, 2, 3):
                    saved.save(step, put(make_state(step), devices), ABOUT)
                saved.wait()
                if index == 1:
                    remote.store._files.pipe_file = refuse  # its part of the next one
                remotes.PART_S = 1
                saved.save(4, put(make_state(4), devices), ABOUT)
                try:
                    saved.wait()
                except CheckpointError as error:
                    assert "checkpoint 4 is not saved" in str(error)
                else:
                    raise AssertionError("the failure of process 1 is unknown here")
        held = hold_run(LOCATION, index, gather_texts, is_new=False, warn=warnings.append)
        with held as (directory, remote), Checkpoints(directory / "checkpoints", remote=remote) as saved:
            chosen, state = restore(saved, ask_for(make_state(0), devices))
            assert chosen.step == 3
            assert_same_shards(state, put(make_state(3), devices))
    assert not warnings, warnings
    jax.distributed.shutdown()


def refuse(*_args, **_options):
    raise OSError("the store is away")


def test_two_hosts(tmp_path):
    with s3_server() as server, environment_of(server, tmp_path / "reader"):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        processes = [start_file(__file__, "train_on_one_of_two", tmp_path, port, i, n_devices=2) for i in range(2)]
        for process in processes:
            finish(process)
        names = {name for name in content(LOCATION) if name.startswith("checkpoints/3/")}
        with opened_run(LOCATION, "--run") as (directory, remote):
            saved = Checkpoints(directory / "checkpoints", read_only=True, remote=remote)
            chosen, state = restore(saved, on_one_device(make_state(0)))
        assert_same_bits(state, make_state(3))
        assert names == {f"checkpoints/3/{name}" for name in [*chosen.manifest["files"], "manifest.json"]}
        assert not any(name.startswith("checkpoints/4/") for name in content(LOCATION))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
