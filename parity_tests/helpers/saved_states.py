"""A small state to save, and what the tests of checkpoints do with it and with the files."""

import contextlib
import errno
import functools
import resource
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import SingleDeviceSharding

from jaxgpt.run.checkpoints import Checkpoint
from jaxgpt.training.checkpoint import Checkpoints

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
    """Lets the kernel refuse what is written beyond, as a full disk would; meanwhile JAX caches no programs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    least_s = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_s)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def join_background() -> None:
    """Returns when the save under way is over, without asking how it went."""
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint "):
            thread.join()


def restore(checkpoints: Checkpoints, wanted: Any, step: int | None = None) -> tuple[Checkpoint, Any]:
    """The newest checkpoint, or that of a step, and its state."""
    chosen = checkpoints.choose(step)
    assert chosen is not None
    return chosen, checkpoints.restore(wanted, chosen)


def restore_newest(directory: Path, step: int | None = None) -> tuple[int, list[str]]:
    """Restores without changing the disk: the step, its bits checked, and what was warned of."""
    warnings: list[str] = []
    with Checkpoints(directory, read_only=True, warn=warnings.append) as checkpoints:
        chosen, state = restore(checkpoints, on_one_device(make_state(0)), step)
    assert_same_bits(state, make_state(chosen.step))
    assert chosen.about == ABOUT
    return chosen.step, warnings


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def payload(path: Path) -> Path:
    return max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def fail_to_hash(path, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device" + "\nsome cause" * 1000, str(path))
