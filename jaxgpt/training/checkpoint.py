"""Checkpoints of a JAX state: orbax writes the arrays, in the background, under the manifest of `run/checkpoints.py`.

`save` returns when the state is copied from the device. When orbax has committed it, a thread writes the manifest and
renames the directory. Each file is readable with orbax alone; dtypes and shapes must be the ones asked for, where orbax
would silently cast or load a flipped bit.

It sits on orbax's AsyncCheckpointer, not its CheckpointManager: the latter's list of steps counts an empty
directory as the latest, keeps failed saves, and returns False for a step that it rejects.
"""

import contextlib
import functools
import logging
import sys
import threading
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.errors import Failure, InputError
from jaxgpt.parallel.texts import gather_texts
from jaxgpt.run.checkpoints import Checkpoint, CheckpointDirectory, CheckpointError, one_line


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by names such as params.h.0.attn.c_q."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two leaves share a path"
    return named


@jax.jit
def _is_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def _floats(state: Any) -> dict[str, Any]:
    return {path: leaf for path, leaf in _by_path(state).items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}


def _layout(leaf: Any) -> tuple[Any, ...]:
    return leaf.shape, leaf.dtype, leaf.sharding


def _show_unraisable(show: Callable[[Any], None], unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        show(unraisable)


class Checkpoints(CheckpointDirectory):
    """The checkpoints of one run. A context manager: leaving it waits for the save in progress.

    All processes of a run call `wait` and `close` together, too.
    """

    packages = ("jax", "orbax-checkpoint")
    _thread: threading.Thread | None = None
    _failure = ""
    _checks: Mapping[tuple[Any, ...], Callable[[jax.Array], jax.Array]] = types.MappingProxyType({})

    def prepare(self, abstract_state: Any) -> None:
        """Loads and compiles what a save needs, so that a signal's save does not wait for it."""
        assert self._orbax
        layouts = {_layout(leaf): leaf for leaf in _floats(abstract_state).values()}
        self._checks = {layout: _is_finite.lower(leaf).compile() for layout, leaf in layouts.items()}

    def _name_non_finite(self, state: Any) -> str:
        """The path of the first leaf with a NaN or an infinity; or empty.

        Reduced leaf by leaf on the device: one function of the whole state takes seconds to compile, and a model
        has few distinct shapes.
        """
        floats = _floats(state)
        found = {path: self._checks.get(_layout(leaf), _is_finite)(leaf) for path, leaf in floats.items()}
        is_finite = jax.device_get(found)
        return next((path for path in floats if not is_finite[path]), "")

    @functools.cached_property
    def _orbax(self):
        # Here, because listing checkpoints needs no orbax, and its import takes half a second.
        import orbax.checkpoint as ocp

        # Each failure that is raised here in one line is logged by orbax in pages of tracebacks; its writes that
        # still run when the first has failed report to an event loop that is closed, and those that had not begun
        # are warned of.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", r"coroutine 'async_serialize_from_host\b.* was never awaited", RuntimeWarning)
        sys.unraisablehook = functools.partial(_show_unraisable, sys.unraisablehook)
        # Directories made in the background leave threads behind when that fails, which hold the process at
        # its end for ten minutes.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        if self._n_writers() == 1:
            return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)
        # Each process has a directory of its own, so none may rely on what another writes: no OCDBT, whose databases
        # one process merges, and no primary host. A chunk is a file of the process that holds replica 0 of it.
        alone = ocp.options.MultiprocessingOptions(primary_host=None)
        arrays = ocp.type_handlers.ArrayHandler(primary_host=None, replica_id=0, use_replica_parallel=False)
        handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt=False,
            multiprocessing_options=alone,
            type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays)),
        )
        return ocp.AsyncCheckpointer(handler, async_options=options, multiprocessing_options=alone)

    def save(
        self, step: int, state: Any, about: dict, *, val_loss: float | None = None, is_proven: bool = True
    ) -> None:
        """Starts to save a state; returns when it is copied from the device and may be donated.

        Waits for the save before it. What goes wrong later is raised by `raise_if_failed`, the next `save`,
        or `close`. An error of the save before is raised when this one is under way: it costs no more.

        Args:
          step: 0 or more, and above every step that has a directory.
          state: tree of jax.Arrays, of any sharding.
          about: what the run must know to resume, as JSON: config, digests of data and tokenizer, versions.
          val_loss: in nats per token, for keep_best.
          is_proven: see CheckpointDirectory.save.

        Raises:
          CheckpointError: the save before it failed; or this step is not saved, because it is not above the
            latest, a value is not finite, the disk has too little room, or orbax refused. Older ones stay.
        """
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state)), "leaves must be jax.Arrays"
        manifest = self._make_manifest(step, state, about, val_loss)
        earlier = self._join()
        refusal = ""
        if path := self._name_non_finite(state):
            refusal = f"{path} is not finite"
        elif self._process_index() == 0:
            refusal = self._find_obstacle(step, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        if refusal := self._find_first(refusal):
            raise CheckpointError(f"{earlier and earlier + '; '}checkpoint {step} is not saved: {refusal}")
        import orbax.checkpoint as ocp

        try:
            self._orbax.save(self._path(step, ".saving").absolute(), args=ocp.args.PyTreeSave(state))
        except (OSError, ValueError, RuntimeError) as error:
            self._give_up(step)
            failure = f"checkpoint {step} is not saved: {one_line(error)}"
            raise CheckpointError(f"{earlier and earlier + '; '}{failure}") from error
        self._unproven = None if is_proven else step
        self._thread = threading.Thread(target=self._finish, args=(step, manifest), name=f"checkpoint {step}")
        self._thread.start()
        if earlier:
            raise CheckpointError(earlier, is_earlier=True)

    def _finish(self, step: int, manifest: dict) -> None:
        """In its own thread: waits for orbax, makes the step count, deletes old ones."""
        try:
            self._orbax.wait_until_finished()
            if self._process_index() == 0 or self.remote:
                self._commit(step, manifest)
            if self._process_index() != 0:
                return
        except Exception as error:  # whatever it is, the training thread must learn of it
            self._failure = f"checkpoint {step} is not saved: {one_line(error)}"
            self._give_up(step)
        else:
            try:
                self._delete_old()
            except (OSError, InputError, Failure) as error:
                self._failure = f"checkpoint {step} is saved, but an older one is not deleted: {error}"
        if self._failure and not threading.main_thread().is_alive():
            self.warn(f"{self._failure}; the process ended without close()")

    def _give_up(self, step: int) -> None:
        with contextlib.suppress(Exception):  # reported already; what counts is that orbax has let go of the files
            self._orbax.wait_until_finished()
        if self._process_index() == 0 or self.remote:
            self._remove_staging(step)

    def _join(self) -> str:
        """Waits for the save under way. What failed in it, in whichever process; or empty."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return "" if self.read_only else self._find_first(self._take_failure())

    def _take_failure(self) -> str:
        failure, self._failure = self._failure, ""
        return failure

    def raise_if_failed(self) -> None:
        """As in the base class."""
        if self._failure:
            raise CheckpointError(self._take_failure())

    def wait(self) -> None:
        """Returns when the save under way is a checkpoint; raises CheckpointError where it failed."""
        if failure := self._join():
            raise CheckpointError(failure)

    def close(self) -> None:
        """Waits for the save under way, and raises CheckpointError where one failed."""
        try:
            self.wait()
        finally:
            if "_orbax" in self.__dict__:
                self._orbax.close()
                del self._orbax

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.close()
        elif self._thread is not None:
            # Another error is on its way, perhaps in this process alone: no word to the others, who may be
            # elsewhere, and that error stays the one that is raised.
            self._thread.join()
            if self._failure:
                self.warn(self._take_failure())

    def _finish_background(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _delete_in_background(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return  # it deletes when the save is done, or the next one does
        self._thread = threading.Thread(target=super()._delete_in_background, name="checkpoint deletion")
        self._thread.start()

    def choose(self, step: int | None = None, *, verify: bool = True) -> Checkpoint | None:
        """As in CheckpointDirectory; first waits for the save under way, and raises CheckpointError where it failed."""
        self.wait()
        return super().choose(step, verify=verify)

    def _process_index(self) -> int:
        return jax.process_index()

    def _n_writers(self) -> int:
        return jax.process_count() if self.remote and not self.read_only else 1

    def _gather_texts(self, text: str) -> list[str]:
        return gather_texts(text)

    def _describe(self, tree: Any) -> dict[str, list]:
        return {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in _by_path(tree).items()}

    def _read(self, abstract_state: Any, chosen: Checkpoint, is_part: bool) -> Any:
        """Reads onto the devices, whatever devices it was written from.

        Args:
          abstract_state: tree of ShapeDtypeStructs with shardings; the arrays come out exactly so, in separate
          buffers that may be donated.
        """
        for path, leaf in _by_path(abstract_state).items():
            assert leaf.sharding is not None, f"{path} has no sharding"
        import orbax.checkpoint as ocp

        request = ocp.args.PyTreeRestore(
            item=abstract_state,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state),
            partial_restore=True,  # the manifest has every leaf; orbax would also ask for dicts that are empty
        )
        try:
            reader = self._orbax if self._n_writers() == 1 else ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
            return reader.restore(chosen.path.absolute(), args=request)
        except (OSError, ValueError) as error:
            raise InputError(f"{chosen.path} cannot be read: {one_line(error)}") from error
