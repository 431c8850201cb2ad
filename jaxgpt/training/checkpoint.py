"""Checkpoints that are whole or not there: orbax writes the arrays, a manifest vouches for them.

A save goes to `<step>.saving`. When orbax has committed it, a thread hashes every file, adds `manifest.json`
(what the run was, every leaf's dtype and shape, every file's SHA-256), flushes all to the disk and renames
the directory to `<step>`. The rename is the commit: a kill at any instant leaves the step whole or a
`.saving` that the next run removes. On the way back nothing is believed: the newest step whose files match
their digests counts, each newer one is named with its reason, and dtypes and shapes must be the ones asked
for, where orbax would cast or load a flipped bit without a word.

    <directory>/<step>/            orbax's files, readable with orbax alone, and manifest.json
    <directory>/<step>.saving*     a save under way, or one that was killed
    <directory>/<step>.deleting    an old checkpoint on its way out
    <directory>/<step>.rejected    set aside because a run went on from an older step; never deleted here

It sits on orbax's AsyncCheckpointer, not its CheckpointManager: the latter's list of steps takes an empty
directory for the latest one, keeps failed saves, and answers False to a step it does not like. All processes
of a run must see one file system with atomic renames; object stores are left out.
"""

import contextlib
import datetime
import functools
import importlib.metadata
import json
import logging
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp

from jaxgpt.errors import Failure, InputError
from jaxgpt.parallel.texts import gather_texts
from jaxgpt.run.manifest import FORMAT, Damaged, fsync_directory, read_seal, verify_seal, write_seal

FREE_DISK_FACTOR = 1.2
"""Free disk that a save asks for, in sizes of the state: the arrays, their index, and some air."""
_LEFTOVER = re.compile(r"\d+\.(saving|deleting)(\.orbax-checkpoint-tmp.*)?")


class CheckpointError(Failure):
    """A checkpoint could not be saved. The message is one line; older checkpoints are as they were."""


def _one_line(error: BaseException) -> str:
    """orbax's messages run to 10 kB of nested causes; the first words name the file and the system's error."""
    return " ".join(str(error).split())[:1000] or type(error).__name__


def _print_warning(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by names such as params.h.0.attn.c_q."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two leaves share a path"
    return named


def _describe(tree: Any) -> dict[str, list]:
    """Path -> [dtype, shape] of every leaf, as JSON holds it."""
    return {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in _by_path(tree).items()}


def _list_misfits(saved: dict[str, list], wanted: dict[str, list], is_part: bool) -> list[str]:
    """One clause for each leaf in which what was saved is not what is wanted."""
    misfits = []
    for path, (dtype, shape) in wanted.items():
        if path not in saved:
            misfits.append(f"{path} is missing in it")
            continue
        saved_dtype, saved_shape = saved[path]
        if saved_shape != shape:
            misfits.append(f"{path} has shape {tuple(saved_shape)}, not {tuple(shape)}")
        if saved_dtype != dtype:
            misfits.append(f"{path} has dtype {saved_dtype}, not {dtype}")
    if not is_part:
        misfits += [f"{path} is extra in it" for path in saved if path not in wanted]
    return misfits


@jax.jit
def _is_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def _name_non_finite(state: Any) -> str:
    """The path of the first leaf with a NaN or an infinity; or empty.

    Reduced leaf by leaf on the device: one function of the whole state takes seconds to compile, and a model
    has few distinct shapes.
    """
    floats = {path: leaf for path, leaf in _by_path(state).items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    is_finite = jax.device_get({path: _is_finite(leaf) for path, leaf in floats.items()})
    return next((path for path in floats if not is_finite[path]), "")


def _find_first(text: str) -> str:
    """The first text that is not empty among those of all processes: one for all, so that all act alike."""
    return next((text for text in gather_texts(text) if text), "")


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for the save under way.

    Whoever writes holds the run (`lock_run`). In a run of several processes each makes one, and `save`,
    `latest`, `restore`, `wait` and `close` are called by all of them together; process 0 alone decides,
    writes manifests, deletes and warns.

    Args:
      directory: where the steps lie. Made if it is not there.
      keep: newest checkpoints that are kept.
      keep_best: keep the one with the lowest val_loss too.
      read_only: change nothing on the disk; for sampling and evaluation, beside a running training.
      warn: is told, in one line each, what was skipped or set aside; stderr by default.

    Raises:
      InputError: the directory cannot be made.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 2,
        keep_best: bool = True,
        read_only: bool = False,
        warn: Callable[[str], None] = _print_warning,
    ):
        assert keep >= 1, f"keep={keep}: the newest is never deleted"
        self.directory = Path(directory)
        self.keep, self.keep_best, self.read_only, self.warn = keep, keep_best, read_only, warn
        self._thread: threading.Thread | None = None
        self._failure = ""
        if read_only or jax.process_index() != 0:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self.directory.iterdir():
                if _LEFTOVER.fullmatch(path.name) and path.is_dir():
                    shutil.rmtree(path)
        except OSError as error:
            raise InputError(f"{directory} cannot be written: {error}; choose another --run.dir") from error

    @functools.cached_property
    def _orbax(self):
        # Here, because listing checkpoints needs no orbax, and its import takes half a second.
        import orbax.checkpoint as ocp

        # Each failure that is raised here in one line is logged by orbax in pages of tracebacks.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        # Directories made in the background leave threads behind when that fails, which hold the process at
        # its end for ten minutes.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.directory / f"{step}{suffix}"

    def _steps(self) -> list[int]:
        """Steps that have a directory, whatever is in it, newest first."""
        if not self.directory.is_dir():
            return []
        names = [path.name for path in self.directory.iterdir() if path.is_dir()]
        return sorted((int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name)), reverse=True)

    def save(self, step: int, state: Any, about: dict, *, val_loss: float | None = None) -> None:
        """Starts to save a state; returns when it is copied from the device and may be donated.

        Waits for the save before it. What goes wrong later is told by `raise_if_failed`, the next `save`,
        or `close`. An error that tells of the save before comes when this one is under way: it costs no more.

        Args:
          step: 0 or more, and above every step that has a directory.
          state: tree of jax.Arrays, of any sharding.
          about: what the run must know to go on, as JSON: config, digests of data and tokenizer, versions.
          val_loss: in nats per token, for keep_best.

        Raises:
          CheckpointError: the save before it failed; or this step is not saved, because it is not above the
            latest, a value is not finite, the disk has too little room, or orbax refused. Older ones stay.
        """
        assert step >= 0, step
        assert not self.read_only, "opened with read_only=True"
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state)), "leaves must be jax.Arrays"
        manifest = {
            "format": FORMAT,
            "step": step,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "orbax-checkpoint")},
            "val_loss": val_loss if val_loss is not None and math.isfinite(val_loss) else None,
            "about": json.loads(json.dumps(about, allow_nan=False)),
            "state": _describe(state),
        }
        earlier = self._join()
        refusal = ""
        if path := _name_non_finite(state):
            refusal = f"{path} is not finite"
        elif jax.process_index() == 0:
            refusal = self._find_obstacle(step, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        if refusal := _find_first(refusal):
            raise CheckpointError(f"{earlier and earlier + '; '}checkpoint {step} is not saved: {refusal}")
        import orbax.checkpoint as ocp

        try:
            self._orbax.save(self._path(step, ".saving").absolute(), args=ocp.args.PyTreeSave(state))
        except (OSError, ValueError, RuntimeError) as error:
            self._remove_staging(step)
            failure = f"checkpoint {step} is not saved: {_one_line(error)}"
            raise CheckpointError(f"{earlier and earlier + '; '}{failure}") from error
        self._thread = threading.Thread(target=self._commit, args=(step, manifest), name=f"checkpoint {step}")
        self._thread.start()
        if earlier:
            raise CheckpointError(earlier)

    def _find_obstacle(self, step: int, state_bytes: int) -> str:
        """Why the directory cannot take this step, as a clause; or empty."""
        latest = max(self._steps(), default=-1)
        if step <= latest:
            return f"{self._path(latest)} is there already, and steps only rise"
        free_bytes = shutil.disk_usage(self.directory).free
        if free_bytes < FREE_DISK_FACTOR * state_bytes:
            sizes = f"{free_bytes / 1e9:.3f} GB free, a save of {state_bytes / 1e9:.3f} GB"
            return f"{self.directory} has {sizes} asks for {FREE_DISK_FACTOR} times its size"
        return ""

    def _commit(self, step: int, manifest: dict) -> None:
        """In its own thread: waits for orbax, writes the manifest, makes the step count, deletes old ones."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() != 0:
                return
            write_seal(self._path(step, ".saving"), manifest)
            os.rename(self._path(step, ".saving"), self._path(step))
            fsync_directory(self.directory)
        except Exception as error:  # whatever it is, the training thread must hear of it
            self._failure = f"checkpoint {step} is not saved: {_one_line(error)}"
            self._remove_staging(step)
        else:
            try:
                self._delete_old()
            except OSError as error:
                self._failure = f"checkpoint {step} is saved, but an older one is not deleted: {error}"
        if self._failure and not threading.main_thread().is_alive():
            self.warn(f"{self._failure}; the process ended without close()")

    def _remove_staging(self, step: int) -> None:
        with contextlib.suppress(Exception):  # told already; what counts is that orbax has let go of the files
            self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            for path in self.directory.glob(f"{step}.saving*"):
                shutil.rmtree(path, ignore_errors=True)

    def _delete_old(self) -> None:
        """Deletes what is neither among the newest `keep` nor the best. Runs only after a newer one counts."""
        val_losses = {}
        for step in self._steps():
            with contextlib.suppress(Damaged):
                val_losses[step] = read_seal(self._path(step))["val_loss"]
        kept = set(list(val_losses)[: self.keep])
        judged = [(loss, step) for step, loss in val_losses.items() if loss is not None]
        if self.keep_best and judged:
            kept.add(min(judged)[1])
        for step in val_losses.keys() - kept:
            # Under another name first: a kill half-way must not leave half a checkpoint.
            os.rename(self._path(step), self._path(step, ".deleting"))
            shutil.rmtree(self._path(step, ".deleting"))

    def _join(self) -> str:
        """Waits for the save under way. What failed in it, in whichever process; or empty."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return "" if self.read_only else _find_first(self._take_failure())

    def _take_failure(self) -> str:
        failure, self._failure = self._failure, ""
        return failure

    def raise_if_failed(self) -> None:
        """Raises the CheckpointError of a background save, once. Cheap, and local to this process."""
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
                del self.__dict__["_orbax"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.close()
        elif self._thread is not None:
            # Another error is on its way, perhaps in this process alone: no word to the others, who may be
            # elsewhere, and that error stays the one that is raised.
            self._thread.join()
            if self._failure:
                self.warn(self._take_failure())

    def latest(self, *, verify: bool = True) -> int | None:
        """The newest step that is a checkpoint; None where the directory holds no step at all.

        Each newer one that is not is named in a warning.

        Args:
          verify: False checks names, sizes and the manifest, but reads no digests.

        Raises:
          InputError: there are steps, but none is a checkpoint; names each with its reason.
        """
        return self._choose(None, verify)

    def _choose(self, step: int | None, verify: bool) -> int | None:
        """The step to read: decided by process 0, so that no two processes read different ones."""
        self.wait()
        answer: dict = {}
        if jax.process_index() == 0:
            faults = []
            for candidate in self._steps() if step is None else [step]:
                try:
                    verify_seal(self._path(candidate), has_digests=verify)
                except Damaged as damage:
                    faults.append(f"{self._path(candidate)} is not a checkpoint: {damage}")
                else:
                    answer = {"step": candidate}
                    break
            if faults and not answer:
                answer = {"error": f"{'; '.join(faults)}; nothing was changed there"}
            elif faults:
                for fault in faults:
                    self.warn(fault)
        answer = json.loads(gather_texts(json.dumps(answer))[0])
        if "error" in answer:
            raise InputError(answer["error"])
        return answer.get("step")

    def about(self, step: int) -> dict:
        """What `save` was told about the run. Raises InputError where the manifest cannot be read."""
        return self._manifest(step)["about"]

    def _manifest(self, step: int) -> dict:
        try:
            return read_seal(self._path(step))
        except Damaged as damage:
            raise InputError(f"{self._path(step)} is not a checkpoint: {damage}") from damage

    def restore(
        self, abstract_state: Any, *, step: int | None = None, verify: bool = True, is_part: bool = False
    ) -> tuple[int, Any, dict]:
        """Reads a checkpoint onto the devices, whatever devices it was written from, bit for bit.

        Unless read-only, the run goes on from here: steps above it are renamed to `<step>.rejected`, each
        with a warning, because they are damaged or no longer its future.

        Args:
          abstract_state: tree of ShapeDtypeStructs with shardings; the arrays come out exactly so.
          step: None takes the latest that is a checkpoint.
          verify: False reads no digests.
          is_part: abstract_state may lack leaves that were saved: {"params": ...} needs no optimizer state.

        Returns:
          The step, the state in buffers of its own that may be donated, and what `save` was told about it.

        Raises:
          InputError: nothing to restore, or it is damaged, or paths, shapes or dtypes are not those asked for.
        """
        for path, leaf in _by_path(abstract_state).items():
            assert leaf.sharding is not None, f"{path} has no sharding"
        chosen = self._choose(step, verify)
        if chosen is None:
            raise InputError(f"{self.directory} holds no checkpoint to go on from; start without --resume")
        manifest = self._manifest(chosen)
        misfits = _list_misfits(manifest["state"], _describe(abstract_state), is_part)
        if misfits:
            more = f"; and {len(misfits) - 5} more" if len(misfits) > 5 else ""
            way_out = "use the model and optimizer settings it was written with"
            raise InputError(f"{self._path(chosen)} does not fit: {'; '.join(misfits[:5])}{more}; {way_out}")
        import orbax.checkpoint as ocp

        request = ocp.args.PyTreeRestore(
            item=abstract_state,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state),
            partial_restore=True,  # the manifest has every leaf; orbax would also ask for dicts that are empty
        )
        try:
            state = self._orbax.restore(self._path(chosen).absolute(), args=request)
        except (OSError, ValueError) as error:
            raise InputError(f"{self._path(chosen)} cannot be read: {_one_line(error)}") from error
        if not self.read_only and jax.process_index() == 0:
            for newer in [other for other in self._steps() if other > chosen]:
                self._set_aside(newer, chosen)
        return chosen, state, manifest["about"]

    def _set_aside(self, step: int, chosen: int) -> None:
        n_before = sum(1 for _ in self.directory.glob(f"{step}.rejected*"))
        aside = self._path(step, f".rejected{n_before or ''}")
        try:
            os.rename(self._path(step), aside)
        except OSError as error:
            raise InputError(f"{self._path(step)} cannot be renamed: {error}; move it away") from error
        self.warn(f"{self._path(step)} is set aside as {aside.name}: the run goes on from step {chosen}")
