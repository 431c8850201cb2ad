"""The manifest of a checkpoint: manifest.json has what was saved, the SHA-256 of every file, and its own.

It is written last and flushed to the disk; when a checkpoint is read, nothing is trusted that does not match it.
Frameworks are left out: orbax or safetensors wrote the files.
"""

import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxgpt.files import flush_directory, flush_to_disk, open_regular, read_bounded

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the manifest; raised when an older reader would misread a newer one."""
MAX_BYTES = 256 * 2**20
"""Of a manifest: one with 100,000 leaves has 10 MB."""
_HASH_THREADS = 4


class Damaged(Exception):
    """Why a directory is not a checkpoint, as a clause: "it has no manifest.json"."""


def hash_file(path: Path, *, is_new: bool = False) -> str:
    """SHA-256 of a file in hex. A new one is flushed to the disk first; orbax flushes only some of its files."""
    with open_regular(path) as file:
        if is_new:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_manifest(
    step: int, state: dict[str, list], about: dict, val_loss: float | None, packages: tuple[str, ...]
) -> dict:
    """A manifest that lacks its files.

    Args:
      state: path -> [dtype, shape] of every leaf.
      about: what the run must know to resume, as JSON.
      val_loss: in nats per token; None where it is unknown. One that is not finite counts as unknown.
      packages: whose versions it notes.
    """
    return {
        "format": FORMAT,
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "val_loss": val_loss if val_loss is not None and math.isfinite(val_loss) else None,
        "about": json.loads(json.dumps(about, allow_nan=False)),
        "state": state,
    }


def digest_manifest(manifest: dict) -> str:
    """SHA-256 over everything in a manifest except this digest, which stands under "seal"."""
    body = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """What a manifest says of a new file, which is flushed to the disk first."""
    return {"sha256": hash_file(path, is_new=True), "bytes": path.stat().st_size}


def seal_manifest(path: Path, manifest: dict) -> None:
    """Writes a complete manifest into the directory `path`, with its own digest."""
    manifest["seal"] = digest_manifest(manifest)
    with (path / MANIFEST).open("w") as file:
        json.dump(manifest, file, indent=1)
        flush_to_disk(file)


def write_manifest(path: Path, manifest: dict) -> None:
    """Completes a manifest with the files under `path`, writes it there, and flushes it and them to the disk."""
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        manifest["files"] = dict(zip(names, pool.map(lambda name: describe_file(path / name), names), strict=True))
    seal_manifest(path, manifest)
    for directory, _, _ in os.walk(path, topdown=False):
        flush_directory(Path(directory))


def read_manifest(path: Path) -> dict:
    """The manifest of one step directory. Raises Damaged where it is missing or was changed."""
    try:
        manifest = json.loads(read_bounded(path / MANIFEST, MAX_BYTES))
    except FileNotFoundError:
        raise Damaged(f"it has no {MANIFEST}") from None
    except OSError as error:
        raise Damaged(f"its {MANIFEST} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise Damaged(f"its {MANIFEST} is not JSON") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise Damaged(f"its {MANIFEST} is not one of ours")
    if manifest["format"] != FORMAT:
        raise Damaged(f"its format is {manifest['format']}, this version reads {FORMAT}")
    try:
        is_sealed = manifest.get("seal") == digest_manifest(manifest)
    except (ValueError, RecursionError):
        is_sealed = False
    if not is_sealed:
        raise Damaged(f"its {MANIFEST} was changed after it was written")
    if fault := _find_fault(manifest):
        raise Damaged(f"its {MANIFEST} has {fault}")
    if str(manifest["step"]) != path.name:
        raise Damaged(f"it holds step {manifest['step']}")
    return manifest


def _find_fault(manifest: dict[str, Any]) -> str:
    """What is wrong with the fields of a manifest whose seal is right: anyone can make one. Empty: nothing."""

    def is_count(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**63

    def is_leaf(leaf: Any) -> bool:
        is_pair = isinstance(leaf, list) and len(leaf) == 2 and isinstance(leaf[0], str)
        return is_pair and isinstance(leaf[1], list) and all(map(is_count, leaf[1]))

    def is_file(file: Any) -> bool:
        return isinstance(file, dict) and is_count(file.get("bytes")) and isinstance(file.get("sha256"), str)

    def is_loss(value: Any) -> bool:
        return value is None or (type(value) in (int, float) and math.isfinite(value))

    def is_numbers(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(type(number) is float for number in value)

    def holds(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
        return lambda value: isinstance(value, dict) and bool(value) and all(map(check, value.values()))

    about = manifest.get("about")
    fields: list[tuple[str, Any, Callable[[Any], bool]]] = [
        ("step", manifest.get("step"), is_count),
        ("val_loss", manifest.get("val_loss", ""), is_loss),
        ("files", manifest.get("files"), holds(is_file)),
        ("state", manifest.get("state"), holds(is_leaf)),
        ("about", about, lambda value: isinstance(value, dict)),
    ]
    if isinstance(about, dict):
        fields += [
            ("about.config", about.get("config"), lambda value: value is None or isinstance(value, dict)),
            ("about.data_sha256", about.get("data_sha256"), lambda value: value is None or isinstance(value, str)),
            ("about.spikes", about.get("spikes", [0.0]), is_numbers),
            ("about.cursors", about.get("cursors"), lambda value: value is None or isinstance(value, dict)),
        ]
    wrong = [(name, value) for name, value, is_right in fields if not is_right(value)]
    if not wrong:
        return ""
    name, value = wrong[0]
    return f"no {name}" if value is None else f"{name} of another form ({json.dumps(value)[:60]})"


def verify_manifest(path: Path, *, has_digests: bool) -> dict:
    """The manifest of one step, its files checked against it: sizes always, contents if `has_digests`."""
    manifest = read_manifest(path)
    for name, file in manifest["files"].items():
        if ".." in Path(name).parts or Path(name).is_absolute() or "\0" in name:
            raise Damaged(f"its {MANIFEST} names the file {name!r} outside of it")
        try:
            found = os.stat(path / name)
        except (OSError, ValueError):
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            raise Damaged(f"its file {_show(name)} is missing")
        if found.st_size != file["bytes"]:
            raise Damaged(f"its file {_show(name)} holds {found.st_size} bytes, not {file['bytes']}")
    if has_digests:
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            try:
                digests = list(pool.map(lambda name: hash_file(path / name), manifest["files"]))
            except OSError as error:
                raise Damaged(f"it cannot be read: {error}") from error
        for (name, file), digest in zip(manifest["files"].items(), digests, strict=True):
            if digest != file["sha256"]:
                raise Damaged(f"its file {_show(name)} was changed after it was written")
    return manifest


def _show(name: str) -> str:
    """A name from outside: in one line, without what a terminal would obey."""
    return name if name.isprintable() and len(name) < 200 else repr(name[:200])
