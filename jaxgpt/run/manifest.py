"""A checkpoint directory that vouches for itself: manifest.json with the SHA-256 of every file, and of itself.

Written last and flushed to the disk; on the way back nothing is believed that does not match it. It knows no
framework: jaxgpt seals what orbax wrote, torch_ref what safetensors wrote.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the manifest; raised when an older reader would misread a newer one."""
_HASH_THREADS = 4


class Damaged(Exception):
    """Why a directory is not a checkpoint, as a clause: "it has no manifest.json"."""


def hash_file(path: Path, *, is_new: bool = False) -> str:
    """SHA-256 of a file in hex. A new one is flushed to the disk first; orbax flushes only some of its own."""
    with path.open("rb") as file:
        if is_new:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def seal(manifest: dict) -> str:
    """SHA-256 over everything in a manifest but the seal."""
    body = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_seal(path: Path, manifest: dict) -> None:
    """Completes a manifest with the files under `path`, and puts it and them on the disk for good."""
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        digests = list(pool.map(lambda name: hash_file(path / name, is_new=True), names))
    manifest["files"] = {
        name: {"bytes": (path / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, digests, strict=True)
    }
    manifest["seal"] = seal(manifest)
    with (path / MANIFEST).open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for directory, _, _ in os.walk(path, topdown=False):
        fsync_directory(Path(directory))


def read_seal(path: Path) -> dict:
    """The manifest of one step directory. Raises Damaged where it is not there or not as written."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"it has no {MANIFEST}") from None
    except OSError as error:
        raise Damaged(f"its {MANIFEST} cannot be read: {error}") from error
    except (ValueError, RecursionError):
        raise Damaged(f"its {MANIFEST} is not JSON") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise Damaged(f"its {MANIFEST} is not one of ours")
    if manifest["format"] != FORMAT:
        raise Damaged(f"its format is {manifest['format']}, this version reads {FORMAT}")
    if manifest.get("seal") != seal(manifest):
        raise Damaged(f"its {MANIFEST} was changed after it was written")
    if str(manifest["step"]) != path.name:
        raise Damaged(f"it holds step {manifest['step']}")
    return manifest


def verify_seal(path: Path, *, has_digests: bool) -> dict:
    """The manifest of one step, its files checked against it: sizes always, contents if `has_digests`."""
    manifest = read_seal(path)
    for name, file in manifest["files"].items():
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise Damaged(f"its {MANIFEST} names the file {name} outside of it")
        if not (path / name).is_file():
            raise Damaged(f"its file {name} is missing")
        size = (path / name).stat().st_size
        if size != file["bytes"]:
            raise Damaged(f"its file {name} holds {size} bytes, not {file['bytes']}")
    if has_digests:
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            try:
                digests = list(pool.map(lambda name: hash_file(path / name), manifest["files"]))
            except OSError as error:
                raise Damaged(f"it cannot be read: {error}") from error
        for (name, file), digest in zip(manifest["files"].items(), digests, strict=True):
            if digest != file["sha256"]:
                raise Damaged(f"its file {name} was changed after it was written")
    return manifest
