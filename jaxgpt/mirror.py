"""Copies on this machine of what lies at an object store: programs read and write the copy, as any directory.

    <cache>/jaxgpt/mirrors/<kind>/<name>-<digest>/    <cache> is XDG_CACHE_HOME, or ~/.cache

The store is the truth: a copy is brought in line with it when it is opened. Messages show the location, not the copy.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxgpt.errors import Failure, InputError
from jaxgpt.files import is_location, open_in_place, read_bounded, wait_for_lock, write_atomically
from jaxgpt.stores import Store, partial_name
from jaxgpt.streams import show_as

DATA = re.compile(r"[^/]+\.(bin|parquet|json|pkl)")
"""Names of a data directory's files; others are not fetched."""
FILES_AT_ONCE = 16
SAID_BYTES = 1e8
"""What is larger says how far it is."""
_INDEX = "objects.json"
_INDEX_LIMIT_BYTES = 64 << 20


def mirror_path(location: str, kind: str) -> Path:
    """Where the copy of a location is kept. One endpoint's bucket is not another one's of the same name."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    location = location.rstrip("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    digest = hashlib.sha256(f"{endpoint} {location}".encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "-", location.rpartition("/")[2])[-40:]
    path = Path(cache, "jaxgpt", "mirrors", kind, f"{name}-{digest}")
    show_as(str(path), location)
    return path


def directory_of(text: str, kind: str) -> Path:
    """The directory to work in: of a location, its copy; else the path itself."""
    return mirror_path(text, kind) if is_location(text) else Path(text)


@contextlib.contextmanager
def claim_mirror(path: Path) -> Iterator[None]:
    """Holds a copy for this process, and waits for another one that holds it.

    Raises:
      Failure: the cache cannot be written, or has no locks.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open_in_place(path.with_name(f"{path.name}.lock"))
    except OSError as error:
        raise Failure(
            f"{path} cannot be written ({error.strerror}); set XDG_CACHE_HOME to a directory that can"
        ) from error
    with file:
        try:
            wait_for_lock(file, "reads the same location")
        except OSError as error:
            advice = "set XDG_CACHE_HOME to a local disk"
            raise Failure(f"{path} is on a file system without locks ({error}); {advice}") from error
        yield


def fetch_directory(location: str, setting: str) -> Path:
    """A copy of the files of a data directory; objects that did not change since they were fetched are not read again.

    Raises:
      InputError: there is nothing at the location, or its store refuses.
      Failure: the store cannot be reached, or the disk is full.
    """
    path, store = mirror_path(location, "data"), Store(location, setting)
    entries = {name: entry for name, entry in store.list().items() if DATA.fullmatch(name)}
    if not entries:
        raise InputError(f"{setting}={location} has no data; copy a directory that `jaxgpt prepare` wrote there")
    with claim_mirror(path):
        there = _read_index(path)
        kept = {_INDEX, *entries, *(partial_name(name, entry) for name, entry in entries.items())}
        for file in path.iterdir():
            if file.name not in kept:
                file.unlink()
        known = {name: [entry.size_bytes, entry.version] for name, entry in entries.items()}
        wanted = {
            name: entry
            for name, entry in entries.items()
            if there.get(name) != [*known[name], _mtime_ns(path / name)] or not entry.version
        }
        n_bytes = sum(entry.size_bytes for entry in wanted.values())
        free_bytes = shutil.disk_usage(path).free
        if n_bytes > free_bytes:
            sizes = f"{n_bytes / 1e9:.1f} GB to fetch, {path.parent} has {free_bytes / 1e9:.1f} GB free"
            raise Failure(f"{setting}={location}: {sizes}; set XDG_CACHE_HOME to a larger disk")
        n_done = 0
        if n_bytes > SAID_BYTES:
            print(f"fetching {n_bytes / 1e9:,.1f} GB from {location}", file=sys.stderr, flush=True)
        for names in _in_parts(
            sorted(wanted), FILES_AT_ONCE
        ):  # noted each time: a cut connection costs few files again
            store.download({name: wanted[name] for name in names}, path)
            n_done += sum(wanted[name].size_bytes for name in names)
            if n_bytes > SAID_BYTES:
                print(f"fetched {n_done / n_bytes:.0%}", file=sys.stderr, flush=True)
            there |= {name: [*known[name], _mtime_ns(path / name)] for name in names}
            _write_index(path, {name: about for name, about in there.items() if name in entries})
    return path


def upload_directory(path: Path, location: str, setting: str, manifest: str) -> None:
    """Puts the files of a data directory at a location. The manifest is deleted first and written last.

    Raises: as `fetch_directory` does.
    """
    store = Store(location, setting)
    files = {file.name: file for file in path.iterdir() if DATA.fullmatch(file.name)}
    there = store.list()
    is_same = all(name in there and there[name].size_bytes == file.stat().st_size for name, file in files.items())
    content = files.pop(manifest).read_bytes()
    if is_same and store.read(manifest, _INDEX_LIMIT_BYTES) == content:
        return
    store.delete([manifest])
    store.upload(files)
    store.delete([name for name in there if DATA.fullmatch(name) and name not in files])
    store.write(manifest, content)


def fetch_file(location: str, setting: str) -> Path:
    """A copy of one object. Raises as `fetch_directory` does."""
    directory, _, name = location.rpartition("/")
    path, store = mirror_path(directory, "files"), Store(directory, setting)
    entry = store.entry(name)
    if entry is None:
        raise InputError(f"{setting}={location} does not exist; correct the name")
    with claim_mirror(path):
        store.download({name: entry}, path)
    return path / name


def _in_parts(names: list[str], n: int) -> Iterator[list[str]]:
    return (names[i : i + n] for i in range(0, len(names), n))


def _mtime_ns(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def _read_index(path: Path) -> dict[str, list]:
    """name -> size, version and the copy's time of change; empty where nothing can be read."""
    try:
        values = json.loads(read_bounded(path / _INDEX, _INDEX_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _write_index(path: Path, values: dict[str, list]) -> None:
    try:
        write_atomically(path / _INDEX, json.dumps(values))
    except OSError as error:
        raise Failure(f"{path} cannot be written ({error.strerror}); free space") from error
