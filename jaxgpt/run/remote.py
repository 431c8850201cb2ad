"""A run at an object store: its directory is a copy on this machine (`jaxgpt.mirror`), and the store is the truth.

    <location>/config.py, metrics.jsonl, ...        as on a disk; written again when they changed
    <location>/checkpoints/<step>/...               as on a disk; manifest.json is written last, and deleted first
    <location>/writer.json                          which process writes

A store has no rename. So a step counts when it has its manifest: a kill between any two requests leaves the step whole,
or objects without a manifest, which the next run deletes. The copy has each step's manifest; its files are fetched when
the step is read.

Where several processes train, each has a copy, and uploads what it wrote; the first one commits when all are done.

A store has no locks either. The process that started last is the writer. One that was the writer before finds that out
before it commits its next checkpoint, and ends: a machine that was taken away and comes back cannot damage the run.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.errors import Failure, InputError
from jaxgpt.files import is_location, lock_run, write_atomically
from jaxgpt.mirror import claim_mirror, directory_of, mirror_path
from jaxgpt.run.checkpoints import TAKEN_OVER, list_steps, print_warning, refuse_old_run
from jaxgpt.run.console import working
from jaxgpt.run.manifest import MANIFEST, MAX_BYTES, describe_file, seal_manifest
from jaxgpt.stores import Store

WRITER = "writer.json"
PUSH_S = 60.0
"""How often records are written to the store between checkpoints."""
RECORDS = re.compile(
    r"config\.py|metrics\.jsonl(\.bad\d*)?|history\.jsonl|loss\.png|skipped\.json|trackers\.json|stacks(\.\d+)?\.txt|"
    r"(tensorboard|evaluations)/[^/]+"
)
"""Files of a run, besides its checkpoints."""
COMMON = re.compile(r"_[^/]+|commit_success\.txt|(.+/)?\.zarray")
"""Files of a checkpoint that each of several writers has; those of the first one count."""
PART_S = 1800
"""How long the first of several writers waits for the others' uploads."""
_POLL_S = 0.5
_STEP = re.compile(r"checkpoints/(\d+(?:\.rejected\d*)?)/(.+)")


class RemoteRun:
    """The store of a run, and its copy.

    Args:
      location: such as s3://bucket/runs/x.
      directory: the copy.

    Attributes:
      token: of this writer, in all of its processes.
      pushed_names: which records this process writes to the store.

    Raises:
      InputError, Failure: see `Store`; each method raises them too.
    """

    def __init__(self, location: str, directory: Path, setting: str):
        self.store, self.directory = Store(location, setting), directory
        self.token = secrets.token_hex(8)
        self._pushed: dict[str, tuple[int, int]] = {}
        self._pushing = threading.Lock()
        self.pushed_names = RECORDS
        self._leftovers: list[str] = []
        self._has_failed = False

    # Opening

    def sync(self) -> None:
        """Brings the copy in line with the store: records, and the manifest of each checkpoint."""
        entries = self.store.list()
        whole, self._leftovers = _find_steps(entries)
        self._sync_steps(whole)
        records = {name: entry for name, entry in entries.items() if RECORDS.fullmatch(name)}
        for name in self._list_records():
            if name not in records:
                (self.directory / name).unlink()
        self.store.download(records, self.directory)
        self._pushed = {name: self._state(name) for name in records}

    def _sync_steps(self, whole: set[str]) -> None:
        checkpoints = self.directory / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        for path in checkpoints.iterdir():
            if path.name not in whole:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for step in whole:
            path = checkpoints / step / MANIFEST
            manifest = self.store.read(f"checkpoints/{step}/{MANIFEST}", MAX_BYTES)
            is_same = path.is_file() and path.read_bytes() == manifest
            if manifest is not None and not is_same:
                shutil.rmtree(path.parent, ignore_errors=True)
                path.parent.mkdir()
                write_atomically(path, manifest)

    # Checkpoints

    def fetch(self, step: int, *, again: bool = False) -> None:
        """Fetches the files of a step.

        Args:
          again: also those that the copy has with the right size.
        """
        below = f"checkpoints/{step}"
        entries = self.store.list(below)
        wanted = {
            name: entry
            for name, entry in entries.items()
            if (again and name != f"{below}/{MANIFEST}") or not _has_size(self.directory / name, entry.size_bytes)
        }
        with working(f"fetching checkpoint {step} from {self.store.location}"):
            self.store.download(wanted, self.directory)

    def publish(self, step: int, staging: Path, index: int, n_writers: int) -> None:
        """Writes a step to the store, from a directory in which it is complete. The manifest is the commit.

        Where several processes each wrote a part of it into a directory of their own, each calls this. The first one
        waits for the others, and adds their files to the manifest, here and at the store.

        Args:
          index: of this process.
          n_writers: processes that wrote.
        """
        below = f"checkpoints/{step}"
        names = [path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()]
        if index != 0:
            self._publish_part(step, staging, [name for name in names if not COMMON.fullmatch(name)], index)
            return
        self.push()  # so that no record of a step before the checkpoint is missing
        self.store.upload({f"{below}/{name}": staging / name for name in names if name != MANIFEST})
        if n_writers > 1:
            manifest = json.loads((staging / MANIFEST).read_bytes())
            for other in range(1, n_writers):
                manifest["files"] |= self._wait_for_part(step, other)
            seal_manifest(staging, manifest)
        if fault := self.find_other_writer():
            raise Failure(fault)
        self.store.write(f"{below}/{MANIFEST}", (staging / MANIFEST).read_bytes())
        self.store.delete([self._part(step, other) for other in range(1, n_writers)])

    def _part(self, step: int, index: int) -> str:
        """The object in which a process lists the files that it wrote, with their digests."""
        return f"checkpoints/{step}/part_{index}_{self.token}.json"

    def _publish_part(self, step: int, staging: Path, names: list[str], index: int) -> None:
        try:
            self.store.upload({f"checkpoints/{step}/{name}": staging / name for name in names})
            part = {"files": {name: describe_file(staging / name) for name in names}}
            self.store.write(self._part(step, index), json.dumps(part).encode())
        except (InputError, Failure) as error:
            with contextlib.suppress(InputError, Failure):  # so that the first process does not wait for it
                self.store.write(self._part(step, index), json.dumps({"failure": str(error)}).encode())
            raise

    def _wait_for_part(self, step: int, index: int) -> dict[str, Any]:
        """The files of another process, as a manifest describes them."""
        end_s = time.monotonic() + PART_S
        while (content := self.store.read(self._part(step, index), MAX_BYTES)) is None:
            if time.monotonic() > end_s:
                raise Failure(f"process {index} did not write its part of it within {PART_S} s")
            time.sleep(_POLL_S)
        part = json.loads(content)
        if "failure" in part:
            raise Failure(f"process {index}: {part['failure']}")
        return part["files"]

    def set_aside(self, step: int, name: str) -> None:
        """Renames a step: its objects are copied, the manifest last, and then deleted, the manifest first."""
        old, new = f"checkpoints/{step}/", f"checkpoints/{name}/"
        names = {entry: new + entry.removeprefix(old) for entry in self.store.list(old.rstrip("/"))}
        manifest = {old + MANIFEST: names.pop(old + MANIFEST)} if old + MANIFEST in names else {}
        self.store.copy(names)
        self.store.copy(manifest)
        self.delete(step)

    def delete(self, step: int) -> None:
        """Deletes a step from the store, its manifest first."""
        below = f"checkpoints/{step}"
        self.store.delete([f"{below}/{MANIFEST}"])
        self.store.delete([name for name in self.store.list(below) if name != f"{below}/{MANIFEST}"])

    # Who writes

    def take(self) -> None:
        """Makes this process the writer; deletes what a killed save or deletion left at the store before `sync`."""
        owner = {"token": self.token, "owner": f"process {os.getpid()} on host {socket.gethostname()}"}
        self.store.write(WRITER, json.dumps(owner).encode())
        self.store.delete(self._leftovers)

    def find_other_writer(self) -> str:
        """Which process has become the writer since, in words; or empty."""
        content = self.store.read(WRITER, 2**16)
        if content is None:
            return ""
        try:
            found = json.loads(content)
            token, owner = found["token"], str(found["owner"])
        except (ValueError, KeyError, TypeError, RecursionError):
            token, owner = "", "another process"
        return "" if token == self.token else f"{TAKEN_OVER} {self.store.location}: {owner[:100]}"

    # Records

    def _list_records(self) -> list[str]:
        files = [
            *self.directory.glob("*"),
            *(path for name in ("tensorboard", "evaluations") for path in self.directory.glob(f"{name}/*")),
        ]
        names = [path.relative_to(self.directory).as_posix() for path in files if path.is_file()]
        return [name for name in names if RECORDS.fullmatch(name)]

    def _state(self, name: str) -> tuple[int, int]:
        found = (self.directory / name).stat()
        return found.st_mtime_ns, found.st_size

    def push(self) -> None:
        """Writes the records that changed since they were written last."""
        with self._pushing:
            names = [name for name in self._list_records() if self.pushed_names.fullmatch(name)]
            states = {name: self._state(name) for name in names}
            changed = [name for name, state in states.items() if state[1] and self._pushed.get(name) != state]
            if changed and (fault := self.find_other_writer()):
                raise Failure(fault)
            self.store.upload({name: self.directory / name for name in changed})
            self._pushed |= {name: states[name] for name in changed}

    def push_or_warn(self, warn: Callable[[str], None]) -> None:
        """As `push`; a failure is a warning, once until it works again."""
        try:
            self.push()
        except (InputError, Failure, OSError) as error:
            if not self._has_failed:
                warn(f"records are not at the store: {error}")
            self._has_failed = True
        else:
            self._has_failed = False


def has_steps(location: str) -> bool:
    """Whether a run's directory, on a disk or at a store, has a checkpoint to resume from."""
    if is_location(location):
        return any(step.isdigit() for step in _find_steps(Store(location, "run.dir").list())[0])
    return bool(list_steps(Path(location, "checkpoints")))


def _find_steps(names: Iterable[str]) -> tuple[set[str], list[str]]:
    """Directories of checkpoints that have a manifest, and the names of objects in the others."""
    found: dict[str, list[str]] = {}
    for name in names:
        if match := _STEP.fullmatch(name):
            found.setdefault(match[1], []).append(match[2])
    whole = {step for step, files in found.items() if MANIFEST in files}
    return whole, [f"checkpoints/{step}/{name}" for step, files in found.items() if step not in whole for name in files]


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size_bytes


def run_directory(location: str, index: int = 0) -> Path:
    """The directory that a training works in: `run.dir` itself, or its copy on this machine. Asks no store.

    Args:
      index: of the process. Each has a copy of its own, whether they share a machine or not.
    """
    return directory_of(location, f"runs-{index}" if index else "runs")


class Held(NamedTuple):
    """A run that this process may train.

    Attributes:
      directory: see `run_directory`.
      remote: its store; None for a run on a disk.
    """

    directory: Path
    remote: RemoteRun | None


@contextlib.contextmanager
def hold_run(
    location: str,
    index: int,
    gather_texts: Callable[[str], list[str]],
    *,
    is_new: bool,
    warn: Callable[[str], None] = print_warning,
) -> Iterator[Held]:
    """Holds a run for this process, and opens it if it is at a store. Called by all processes of a run together.

    Args:
      index: of this process.
      gather_texts: the texts of all processes.
      is_new: refuse a directory that already contains a run.
      warn: called with one line when records cannot be written to the store.

    Raises:
      InputError: another process of this machine holds it; it already contains a run, and is_new; or see `Store`.
      Failure: the store cannot be reached.
    """
    directory = run_directory(location, index)
    if not is_location(location):
        with lock_run(directory) if index == 0 else contextlib.nullcontext():
            if is_new:
                refuse_old_run(directory)
            yield Held(directory, None)
        return
    with lock_run(directory):
        remote = RemoteRun(location, directory, "run.dir")
        if index != 0:
            remote.token = gather_texts("")[0]  # the first process is done with the store
            remote.sync()
            remote.pushed_names = re.compile(rf"stacks\.{index}\.txt")
            with pushing(remote, warn):
                yield Held(directory, remote)
            return
        with working(f"opening {location}"):
            remote.sync()
            if is_new:
                refuse_old_run(directory)
            remote.take()
        gather_texts(remote.token)
        with pushing(remote, warn):
            yield Held(directory, remote)


@contextlib.contextmanager
def pushing(remote: RemoteRun, warn: Callable[[str], None]) -> Iterator[None]:
    """Writes records to the store, from time to time and at the end. A failure is one warning; training continues."""
    is_over = threading.Event()

    def follow() -> None:
        while not is_over.wait(PUSH_S):
            remote.push_or_warn(warn)

    thread = threading.Thread(target=follow, name="records to the store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        remote.push_or_warn(warn)


@contextlib.contextmanager
def opened_run(location: str, setting: str) -> Iterator[tuple[Path, RemoteRun | None]]:
    """A run to read, also while it is trained: its directory, and its store if it is at one.

    A copy of its own, so that the training's is left alone. Held until the end of the block.

    Raises:
      InputError, Failure: see `Store`.
    """
    if not is_location(location):
        yield Path(location), None
        return
    directory = mirror_path(location, "readers")
    with claim_mirror(directory):
        remote = RemoteRun(location, directory, setting)
        remote.sync()
        yield directory, remote
