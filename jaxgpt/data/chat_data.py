"""A directory of conversations that `jaxgpt prepare chat` made: train.jsonl, val.jsonl, and chat.json about them.

    {"format": 1, "corpus": ..., "request": {...}, "n_left_out": ..., "left_out": [[place, reason], ...],
     "splits": {"train": {"name", "n_conversations", "size_bytes", "sha256"}, "val": {...}}}

A line is a conversation, {"messages": [...]}. The files are not held in memory. The manifest is input like any other:
its fields are checked, and the files against it.
"""

import hashlib
import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from jaxgpt.data.conversations import Conversation
from jaxgpt.data.digests import hash_files, require_digest
from jaxgpt.errors import InputError
from jaxgpt.files import open_regular, read_bounded, write_atomically

CHAT_MANIFEST = "chat.json"
FORMAT = 1
CHAT_FILES = {"train": "train.jsonl", "val": "val.jsonl"}
_LIMIT_BYTES = 64 << 20
_BLOCK_BYTES = 64 << 20


class ConversationFile(Sequence[Conversation]):
    """The conversations of a file, one per line, read when they are asked for."""

    def __init__(self, path: Path):
        """Finds the lines. Raises InputError if the file cannot be read, is empty, or does not end with a line."""
        self.path = path
        try:
            with open_regular(path) as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            what = error.strerror if isinstance(error, OSError) else "it is empty"
            raise InputError(f"{path} cannot be read: {what}; prepare the conversations again") from error
        blocks = range(0, len(self._bytes), _BLOCK_BYTES)
        ends = [
            np.flatnonzero(np.frombuffer(self._bytes[at : at + _BLOCK_BYTES], np.uint8) == 10) + at for at in blocks
        ]
        self._ends = np.concatenate(ends)
        if not len(self._ends) or self._ends[-1] != len(self._bytes) - 1:
            raise InputError(f"{path} was cut short: its last line has no end; prepare the conversations again")

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | Sequence[Conversation]:
        """Raises InputError, with the line's number, where it is no conversation."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        line = self._bytes[int(self._ends[i - 1]) + 1 if i else 0 : int(self._ends[i])]
        try:
            return Conversation.read(json.loads(line))
        except InputError as error:
            raise InputError(f"{self.path}:{i + 1} {error}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path}:{i + 1} is not JSON ({error}); prepare the conversations again") from error


@dataclass(frozen=True)
class ChatData:
    """A directory of conversations, checked and open.

    Attributes:
      digest: SHA-256 (hex) of the digests of both files.
    """

    directory: Path
    train: ConversationFile
    val: ConversationFile
    digest: str


def open_chat(directory: str | Path, *, verify_again: bool = False) -> ChatData:
    """Opens a directory, and checks its files against the manifest.

    Args:
      verify_again: read also the files that were checked before and did not change since.

    Raises:
      InputError: a file is missing, damaged or changed.
    """
    directory = Path(directory)
    splits = read_chat_manifest(directory)["splits"]
    paths = {split: directory / entry["name"] for split, entry in splits.items()}
    for split, path in paths.items():
        if not path.is_file():
            raise InputError(f"{path} is missing, and {CHAT_MANIFEST} names it as {split}; prepare the data again")
    found = hash_files(list(paths.values()), again=verify_again)
    files = {}
    for split, path in paths.items():
        require_digest(path, found[path], splits[split]["sha256"], CHAT_MANIFEST)
        files[split] = ConversationFile(path)
        if len(files[split]) != splits[split]["n_conversations"]:
            raise InputError(
                f"{path} has {len(files[split])} lines, {CHAT_MANIFEST} says {splits[split]['n_conversations']}; "
                "prepare the data again"
            )
    content = " ".join(splits[split]["sha256"] for split in CHAT_FILES)
    return ChatData(directory, files["train"], files["val"], hashlib.sha256(content.encode()).hexdigest())


def write_chat_manifest(directory: Path, values: dict[str, Any]) -> None:
    """Writes chat.json in one step."""
    write_atomically(directory / CHAT_MANIFEST, json.dumps({"format": FORMAT, **values}, indent=1))


def read_chat_manifest(directory: Path) -> dict[str, Any]:
    """chat.json, with its splits checked.

    Raises:
      InputError: it is missing, damaged, or of another version.
    """
    path = directory / CHAT_MANIFEST
    try:
        values = json.loads(read_bounded(path, _LIMIT_BYTES).decode("utf-8"))
    except OSError as error:
        command = "`jaxgpt prepare chat --input FILES`"
        raise InputError(f"{path} cannot be read: {error.strerror}; {command} writes one") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON; it is damaged, prepare the data again") from error
    splits = values.get("splits") if isinstance(values, dict) else None
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(splits, dict):
        raise InputError(f"{path} is not of format {FORMAT}; prepare the data again")
    kinds = {"name": str, "n_conversations": int, "size_bytes": int, "sha256": str}
    for split, name in CHAT_FILES.items():
        entry = splits.get(split)
        found = entry if isinstance(entry, dict) else {}
        is_good = all(type(found.get(field)) is kind for field, kind in kinds.items())
        if not is_good or found["name"] != name or len(splits) != len(CHAT_FILES):
            raise InputError(f"{path}: {split}={str(entry)[:60]} describes no {name}; prepare the data again")
    return values
