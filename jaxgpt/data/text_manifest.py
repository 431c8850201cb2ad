"""text.json, which says what a prepared directory of text was made from, and the SHA-256 of its files.

    {"format": 1, "corpus": ..., "request": {...}, "files": [{"name", "size_bytes", "sha256", "n_chars", ...}]}

A directory may lack it, or hold files that it does not name: text is read from whatever shards there are. Files that
it names are checked against it. It is input like any other, and its fields are checked.
"""

import json
import re
from pathlib import Path
from typing import Any

from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded, write_atomically

TEXT_MANIFEST = "text.json"
FORMAT = 1
TEXT_SHARD = re.compile(r"shard_\d{5,}\.parquet")
_LIMIT_BYTES = 64 << 20


def write_text_manifest(directory: Path, values: dict[str, Any]) -> None:
    """Writes text.json in one step."""
    write_atomically(directory / TEXT_MANIFEST, json.dumps({"format": FORMAT, **values}, indent=1))


def read_text_manifest(directory: Path) -> dict[str, Any]:
    """text.json: `corpus`, `request`, and `files`: a name, and perhaps n_chars, size_bytes and sha256.

    Raises:
      InputError: it is damaged, or of another version.
    """
    path = directory / TEXT_MANIFEST
    try:
        values = json.loads(read_bounded(path, _LIMIT_BYTES).decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON; it is damaged, prepare the text again") from error
    files = values.get("files", []) if isinstance(values, dict) else None
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(files, list):
        raise InputError(f"{path} is not of format {FORMAT}; prepare the text again")
    kinds = {"n_chars": int, "size_bytes": int, "sha256": str}
    for entry in files:
        name = entry.get("name") if isinstance(entry, dict) else None
        is_good = isinstance(name, str) and TEXT_SHARD.fullmatch(name)
        if not is_good or any(type(entry.get(field, kind())) is not kind for field, kind in kinds.items()):
            raise InputError(f"{path}: {str(entry)[:60]} describes no shard; it is damaged, prepare the text again")
    return {**values, "files": files}


def require_sizes(directory: Path, values: dict[str, Any]) -> None:
    """Raises InputError unless all files that the manifest names are there, with the sizes that it says."""
    for entry in values["files"]:
        path = directory / entry["name"]
        found = path.stat().st_size if path.is_file() else "missing"
        if found != entry.get("size_bytes"):
            raise InputError(
                f"{path} has size_bytes={found}, {TEXT_MANIFEST} says {entry.get('size_bytes')}; "
                "it changed since it was prepared: restore it, or prepare again"
            )
