"""The directory of a run's checkpoints, the same for both frameworks: a step exists completely or not at all.

A save goes to `<step>.saving`. When the framework has written the arrays there, `manifest.json` is added (what the run
was, every leaf's dtype and shape, every file's SHA-256), all is flushed to the disk, and the directory is renamed to
`<step>`. The rename is the commit: a kill at any instant leaves the step whole or a `.saving` that the next run
removes. When a checkpoint is read, nothing is trusted: the newest step whose files match their digests is used, each
newer one is reported with its reason, and paths, dtypes and shapes must be the ones asked for.

    <directory>/<step>/            the framework's files, and manifest.json
    <directory>/<step>.saving*     a save in progress, or one that was killed
    <directory>/<step>.deleting    an old checkpoint that is being deleted
    <directory>/<step>.rejected    set aside because a run resumed from an older step; never deleted here

All processes of a run must see one file system with atomic renames. Of a run at an object store this is a copy, and
each change is made at the store first (`run/remote.py`).
"""

import abc
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from jaxgpt import streams
from jaxgpt.errors import Failure, InputError
from jaxgpt.files import flush_directory, refuse_link
from jaxgpt.run.manifest import Damaged, make_manifest, read_manifest, verify_manifest, write_manifest

FREE_DISK_FACTOR = 1.2
"""Free disk space that a save requires, in sizes of the state: the arrays, their index, and a margin."""
TAKEN_OVER = "another process has taken over"
"""How a failure begins that says so: the run at a store has another writer."""
_LEFTOVER = re.compile(r"\d+\.(saving|deleting)(\.orbax-checkpoint-tmp.*)?")


class CheckpointError(Failure):
    """A checkpoint could not be saved. The message is one line; older checkpoints are unchanged.

    Attributes:
      is_earlier: it is about a save before this one, which is under way.
      is_final: no later save can succeed: the run has another writer.
    """

    def __init__(self, message: str, *, is_earlier: bool = False):
        super().__init__(message)
        self.is_earlier = is_earlier
        self.is_final = TAKEN_OVER in message


def one_line(error: BaseException) -> str:
    """orbax's messages run to 10 kB of nested causes; the first words name the file and the system's error."""
    return " ".join(str(error).split())[:1000] or type(error).__name__


def print_warning(message: str) -> None:
    print(f"warning: {streams.one_line(message)}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk that was verified when it was chosen."""

    path: Path
    manifest: dict

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def about(self) -> dict:
        """What `save` was given about the run."""
        return self.manifest["about"]

    def refuse_misfits(self, wanted: dict[str, list], *, is_part: bool) -> None:
        """Raises InputError, which names them, where leaves differ from the wanted ones: path -> [dtype, shape].

        Args:
          is_part: the checkpoint may have more leaves.
        """
        saved, misfits = self.manifest["state"], []
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
        if misfits:
            more = f"; and {len(misfits) - 5} more" if len(misfits) > 5 else ""
            advice = "use the model and optimizer settings it was written with"
            raise InputError(f"{self.path} does not fit: {'; '.join(misfits[:5])}{more}; {advice}")


class RemoteSteps(Protocol):
    """The checkpoints of a run at an object store. A method that fails raises InputError or Failure."""

    def fetch(self, step: int, *, again: bool = False) -> None:
        """Completes the step's directory; again: also files that are there."""

    def publish(self, step: int, staging: Path, index: int, n_writers: int) -> None:
        """Commits a step, whose part by the process `index` of `n_writers` is in `staging`."""

    def set_aside(self, step: int, name: str) -> None:
        """Renames a step."""

    def delete(self, step: int) -> None:
        """Deletes a step."""

    def find_other_writer(self) -> str:
        """Which process has taken the run over, in words that begin with TAKEN_OVER; or empty."""
        ...


def refuse_old_run(run_dir: Path) -> None:
    """Raises InputError where the directory already contains a run."""
    if any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*")):
        raise InputError(
            f"run.dir={run_dir} already contains a run; pass --resume to continue it, or choose another --run.dir"
        )


def list_steps(directory: Path) -> list[int]:
    """Steps that have a directory, whatever is in it, newest first."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.is_dir() and not path.is_symlink()]
    return sorted((int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name)), reverse=True)


def choose_checkpoint(
    directory: Path,
    step: int | None = None,
    *,
    verify: bool = True,
    warn: Callable[[str], None] = print_warning,
    remote: RemoteSteps | None = None,
) -> Checkpoint | None:
    """The newest valid checkpoint, or the one of a step; None where the directory has no steps.

    Each newer one that is not valid is named in a warning.

    Args:
      verify: False checks names, sizes and the manifest, but reads no digests; for whoever wants `about` alone.
      remote: where the directory's files come from, if it is a copy.

    Raises:
      Failure: the store cannot be reached.
      InputError: there are steps, but none is a checkpoint; names each with its reason.
    """
    faults = []
    for candidate in list_steps(directory) if step is None else [step]:
        path = directory / str(candidate)
        try:
            chosen = Checkpoint(path, _verify(path, candidate, verify, remote))
        except Damaged as damage:
            faults.append(f"{path} is not a checkpoint: {damage}")
            continue
        for fault in faults:
            warn(fault)
        return chosen
    if faults:
        raise InputError(f"{'; '.join(faults)}; nothing was changed there")
    return None


def _verify(path: Path, step: int, has_digests: bool, remote: RemoteSteps | None) -> dict:
    if remote is None or not has_digests:
        return verify_manifest(path, has_digests=has_digests)
    if path.is_dir():
        read_manifest(path)  # one that is damaged is not fetched
    remote.fetch(step)
    try:
        return verify_manifest(path, has_digests=True)
    except Damaged:  # the copy, perhaps
        remote.fetch(step, again=True)
        return verify_manifest(path, has_digests=True)


class CheckpointDirectory(abc.ABC):
    """The checkpoints of one run. A framework's subclass writes and reads the arrays, and says who its processes are.

    Whoever writes holds the run (`lock_run`). In a run of several processes each makes one, and `save`, `choose` and
    `restore` are called by all of them together; process 0 alone decides, writes manifests, deletes and warns.

    Args:
      directory: where the steps lie. Made if it does not exist.
      keep: newest checkpoints that are kept.
      keep_best: keep the one with the lowest val_loss too.
      read_only: change nothing on the disk; for sampling and evaluation, beside a running training.
      warn: called with one line for each step that was skipped or set aside; prints to stderr by default.
      remote: the store that the directory is a copy of. Then each process has a directory of its own.

    Raises:
      InputError: the directory cannot be made.
    """

    packages: tuple[str, ...]
    """Whose versions a manifest notes."""
    _unproven: int | None = None
    """The newest checkpoint, while no step after it is known to be finite."""

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 2,
        keep_best: bool = True,
        read_only: bool = False,
        warn: Callable[[str], None] = print_warning,
        remote: RemoteSteps | None = None,
    ):
        assert keep >= 1, f"keep={keep}: the newest is never deleted"
        self.directory = Path(directory)
        self.keep, self.keep_best, self.read_only, self.warn = keep, keep_best, read_only, warn
        self.remote = remote
        if read_only or (self._process_index() != 0 and not remote):
            return
        refuse_link(self.directory, "put the directory in its place, or choose another --run.dir")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self.directory.iterdir():
                if _LEFTOVER.fullmatch(path.name):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            raise InputError(f"{directory} cannot be written: {error}; choose another --run.dir") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:  # noqa: B027 - a framework may have a save under way
        pass

    # What a framework gives

    @abc.abstractmethod
    def save(
        self, step: int, state: Any, about: dict, *, val_loss: float | None = None, is_proven: bool = True
    ) -> None:
        """Saves a state. Raises CheckpointError where that failed.

        Args:
          is_proven: it is good, so older ones may go; False: `confirm` tells later.
        """

    @abc.abstractmethod
    def _process_index(self) -> int:
        """The number of this process among those of the run."""

    def _n_writers(self) -> int:
        """How many processes write a part of each checkpoint."""
        return 1

    @abc.abstractmethod
    def _gather_texts(self, text: str) -> list[str]:
        """The texts of all processes."""

    @abc.abstractmethod
    def _describe(self, tree: Any) -> dict[str, list]:
        """Path -> [dtype, shape] of every leaf, as JSON holds it; paths as in params.h.0.attn.c_q."""

    @abc.abstractmethod
    def _read(self, abstract_state: Any, chosen: Checkpoint, is_part: bool) -> Any:
        """Reads the arrays. Raises InputError where they cannot be read."""

    # Choosing and reading

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, newest first, once the save under way is over. Asks no other process."""
        self._finish_background()
        return list_steps(self.directory)

    def reject_from(self, step: int, why: str = "training diverged from it") -> int | None:
        """Sets checkpoints from a step on aside. Asks no other process.

        Returns:
          The newest that is left, if there is one.
        """
        steps = self.steps()
        if self._process_index() == 0:
            for bad in [other for other in steps if other >= step]:
                self._set_aside(bad, why)
        return next((other for other in steps if other < step), None)

    def raise_if_failed(self) -> None:  # noqa: B027 - a framework may save in the background
        """Raises the CheckpointError of a save in the background, once. Cheap, and local to this process."""

    def confirm(self, good_step: int) -> None:
        """Tells that a step was finite. If it began after the newest checkpoint, that is good, and older ones may go.

        A state whose values are all finite can still give no finite step, so until then `keep` others are kept.
        """
        if self._unproven is not None and good_step > self._unproven:
            self._unproven = None
            if self._process_index() == 0:
                self._delete_in_background()

    def choose(self, step: int | None = None, *, verify: bool = True) -> Checkpoint | None:
        """The checkpoint to read: `choose_checkpoint` by process 0, so that no two processes read different ones."""
        answer = {}
        if self._process_index() == 0:
            try:
                chosen = choose_checkpoint(self.directory, step, verify=verify, warn=self.warn, remote=self.remote)
                answer = {"step": chosen.step} if chosen else {}
            except InputError as error:
                answer = {"error": str(error)}
            except Failure as error:
                answer = {"failure": str(error)}
        answer = json.loads(self._gather_texts(json.dumps(answer))[0])
        if "error" in answer:
            raise InputError(answer["error"])
        if "failure" in answer:
            raise Failure(answer["failure"])
        if "step" not in answer:
            return None
        path = self._path(answer["step"])
        try:
            if self.remote and self._process_index() != 0:
                _verify(path, answer["step"], verify, self.remote)
            return Checkpoint(path, read_manifest(path))
        except Damaged as damage:
            raise InputError(f"{path} is not a checkpoint: {damage}") from damage

    def restore(self, abstract_state: Any, chosen: Checkpoint, *, is_part: bool = False) -> Any:
        """Reads a checkpoint, bit for bit.

        Unless read-only, the run resumes from here: steps above it are renamed to `<step>.rejected`, each with a
        warning, because they are damaged or no longer its future.

        Args:
          abstract_state: tree of the shapes and dtypes that must be in it.
          is_part: abstract_state may lack leaves that were saved: {"params": ...} needs no optimizer state.

        Raises:
          InputError: it cannot be read, or its paths, shapes or dtypes are not those asked for.
        """
        chosen.refuse_misfits(self._describe(abstract_state), is_part=is_part)
        state = self._read(abstract_state, chosen, is_part)
        if not self.read_only and self._process_index() == 0:
            for newer in [other for other in list_steps(self.directory) if other > chosen.step]:
                self._set_aside(newer, f"the run resumes from step {chosen.step}")
        return state

    def _set_aside(self, step: int, why: str) -> None:
        n_before = sum(1 for _ in self.directory.glob(f"{step}.rejected*"))
        aside = self._path(step, f".rejected{n_before or ''}")
        if self.remote:
            self.remote.set_aside(step, aside.name)
        try:
            os.rename(self._path(step), aside)
        except OSError as error:
            raise InputError(f"{self._path(step)} cannot be renamed: {error}; move it away") from error
        self.warn(f"{self._path(step)} is renamed to {aside.name}: {why}")

    # Steps of a save

    def _make_manifest(self, step: int, state: Any, about: dict, val_loss: float | None) -> dict:
        assert step >= 0, step
        assert not self.read_only, "opened with read_only=True"
        return make_manifest(step, self._describe(state), about, val_loss, self.packages)

    def _find_obstacle(self, step: int, state_bytes: int) -> str:
        """Why this step cannot be saved, as a clause; or empty."""
        latest = max(list_steps(self.directory), default=-1)
        if step <= latest:
            return f"{self._path(latest)} already exists, and step numbers only rise"
        try:
            if self.remote and (other := self.remote.find_other_writer()):
                return other
        except (InputError, Failure) as error:
            return str(error)
        try:
            free_bytes = shutil.disk_usage(self.directory).free
        except OSError as error:  # the run's directory was removed, or its disk is gone
            return f"{self.directory}: {error.strerror}"
        if free_bytes < FREE_DISK_FACTOR * state_bytes:
            sizes = f"{free_bytes / 1e9:.3f} GB free, a save of {state_bytes / 1e9:.3f} GB"
            return f"{self.directory} has {sizes} needs {FREE_DISK_FACTOR} times its size"
        return ""

    def _commit(self, step: int, manifest: dict) -> None:
        """Writes the manifest of `<step>.saving`, and commits the step. By process 0, and by each one at a store."""
        index, staging = self._process_index(), self._path(step, ".saving")
        if index == 0:
            write_manifest(staging, manifest)
        if self.remote:
            self.remote.publish(step, staging, index, self._n_writers())
        if index != 0:
            self._remove_staging(step)
            return
        os.rename(staging, self._path(step))
        flush_directory(self.directory)

    def _remove_staging(self, step: int) -> None:
        for path in self.directory.glob(f"{step}.saving*"):
            shutil.rmtree(path, ignore_errors=True)

    def _delete_old(self) -> None:
        """Deletes what is neither among the newest `keep` nor the best. Runs only after a newer one is committed.

        One that is not proven to be good takes no place among them.
        """
        val_losses = {}
        for step in list_steps(self.directory):
            with contextlib.suppress(Damaged):
                val_losses[step] = read_manifest(self._path(step))["val_loss"]
        unproven = {self._unproven}
        kept = set([step for step in val_losses if step not in unproven][: self.keep]) | unproven
        judged = [(loss, step) for step, loss in val_losses.items() if loss is not None and step not in unproven]
        if self.keep_best and judged:
            kept.add(min(judged)[1])
        for step in val_losses.keys() - kept:
            if self.remote:
                self.remote.delete(step)
            # Under another name first: a kill half-way must not leave half a checkpoint.
            os.rename(self._path(step), self._path(step, ".deleting"))
            shutil.rmtree(self._path(step, ".deleting"))

    def _finish_background(self) -> None:  # noqa: B027 - a framework may have a save under way
        pass

    def _delete_in_background(self) -> None:
        try:
            self._delete_old()
        except (OSError, InputError, Failure) as error:
            self.warn(f"an older checkpoint is not deleted: {error}")

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.directory / f"{step}{suffix}"

    def _find_first(self, text: str) -> str:
        """The first non-empty text among those of all processes, so that all act alike."""
        return next((text for text in self._gather_texts(text) if text), "")
