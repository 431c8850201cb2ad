"""Conversations that people have, checked one by one, to the directory that training opens.

It reads .jsonl files, an entry per line, and .json files with an array of entries, also compressed; `layouts` says what
an entry may be. What is left out is counted, and said with its place and the reason.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from jaxgpt.data.chat_batches import Conversations
from jaxgpt.data.chat_data import CHAT_FILES, read_chat_manifest
from jaxgpt.data.conversations import Conversation
from jaxgpt.data.tokenizer.base import replace_surrogates
from jaxgpt.errors import InputError
from jaxgpt.prepare.inputs import detect_format
from jaxgpt.prepare.layouts import conversation_of
from jaxgpt.prepare.readers import json_values, lines_of
from jaxgpt.prepare.source import is_val
from jaxgpt.prepare.streams import InputStream
from jaxgpt.streams import one_line

MAX_LISTED = 1000
"""Entries left out that the manifest lists; all are counted."""
MAX_SAID = 10


def write_conversations(
    inputs: list[Path], scratch: Path, val_fraction: float, advance: Callable[[float], object]
) -> dict[str, Any]:
    """Writes train.jsonl and val.jsonl, and describes them for the manifest.

    Args:
      scratch: where the files go.
      val_fraction: part for validation, by a hash of a conversation's number.
      advance: called with the bytes that were read since.

    Raises:
      InputError: a file is of another kind or damaged, or fewer than two conversations are left.
    """
    left_out: list[tuple[str, str]] = []
    n_left_out = n_kept = 0
    with SplitWriter(scratch) as writer:
        for place, value, n_read in _entries(inputs):
            advance(n_read)
            try:
                if isinstance(value, InputError):
                    raise value
                conversation = conversation_of(value)
            except InputError as error:
                n_left_out += 1
                if n_left_out <= MAX_LISTED:
                    left_out.append((one_line(place), one_line(error)))
                continue
            writer.add("val" if is_val(n_kept, val_fraction) else "train", conversation)
            n_kept += 1
    if n_kept < 2:
        first = f" ({left_out[0][0]}: {left_out[0][1]})" if left_out else ""
        raise InputError(
            f"--input has {n_kept} conversations to train on, and {n_left_out} that are left out{first}; "
            "give two or more"
        )
    return {"n_left_out": n_left_out, "left_out": left_out, "splits": writer.describe()}


def write_mixture(
    splits: Mapping[str, Conversations], scratch: Path, val_fraction: float, advance: Callable[[float], object]
) -> dict[str, Any]:
    """Writes conversations in their order, and describes them for the manifest. As they come from known data sets,
    one that is malformed is an error.

    Args:
      splits: train and val; without val, a part of train becomes it, by a hash of a conversation's number.
      advance: called with 1 for each conversation.

    Raises:
      InputError: a conversation is malformed, or a split has none.
    """
    with SplitWriter(scratch) as writer:
        for split, conversations in splits.items():
            for i in range(len(conversations)):
                value = conversations[i]
                conversation = value if isinstance(value, Conversation) else Conversation.read(value)
                is_held = "val" not in splits and is_val(i, val_fraction)
                writer.add("val" if is_held else split, conversation)
                advance(1)
    described = writer.describe()
    for split, entry in described.items():
        if not entry["n_conversations"]:
            raise InputError(f"the mixture has no conversations for {split}; name more, or a larger --val-fraction")
    return {"n_left_out": 0, "left_out": [], "splits": described}


class SplitWriter:
    """Writes train.jsonl and val.jsonl, new, into a directory."""

    def __init__(self, directory: Path):
        self._directory, self._stack = directory, ExitStack()
        self._counts, self._sums = dict.fromkeys(CHAT_FILES, 0), {split: hashlib.sha256() for split in CHAT_FILES}

    def __enter__(self) -> Self:
        paths = {split: self._directory / name for split, name in CHAT_FILES.items()}
        self._files = {split: self._stack.enter_context(path.open("xb")) for split, path in paths.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, split: str, conversation: Conversation) -> None:
        """One more line of a split."""
        text = json.dumps(conversation.to_json(), ensure_ascii=False)
        line = replace_surrogates(text).encode("utf-8") + b"\n"
        self._files[split].write(line)
        self._sums[split].update(line)
        self._counts[split] += 1

    def describe(self) -> dict[str, dict[str, Any]]:
        """The splits for the manifest; after the block."""
        return {
            split: {
                "name": name, "n_conversations": self._counts[split],
                "size_bytes": (self._directory / name).stat().st_size, "sha256": self._sums[split].hexdigest(),
            }
            for split, name in CHAT_FILES.items()
        }  # fmt: skip


def describe_chat(out: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """The rows of a table, and lines that say what was left out and why."""
    values = read_chat_manifest(out)
    rows: list[tuple[str, ...]] = [("split", "conversations", "MB on disk")]
    for split, entry in values["splits"].items():
        rows.append((split, f"{entry['n_conversations']:,}", f"{entry['size_bytes'] / 1e6:,.1f}"))
    n, listed = values.get("n_left_out", 0), values.get("left_out", [])
    if not n:
        return rows, []
    said = [f"left out: {place}: {reason}" for place, reason in listed[:MAX_SAID]]
    more = f"; the first {len(listed):,} of them are in {out / 'chat.json'}" if n > MAX_SAID else ""
    return rows, [*said, f"left out: {n:,} conversation{'s' * (n > 1)} in all{more}"]


def _entries(inputs: list[Path]) -> Iterator[tuple[str, Any, float]]:
    """Place, value, and bytes read for it. A line that is not JSON is an InputError as the value."""
    for path in inputs:
        kind = detect_format(path)
        if kind not in ("jsonl", "json", ""):
            raise InputError(f"--input {path} is {kind}, not .jsonl or .json; give conversations as JSON")
        if not kind:
            yield str(path), InputError("the file is empty"), 0
            continue
        with InputStream(path) as stream:
            if kind == "json":
                for number, value in enumerate(json_values(stream, path)):
                    yield f"{path}[{number}]", value, stream.n_read()
                continue
            for number, line in enumerate(lines_of(stream, path), 1):
                if line.strip():
                    yield f"{path}:{number}", _parse(line), stream.n_read()


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return InputError(f"it is not UTF-8 at byte {error.start}; convert it")
    except (ValueError, RecursionError) as error:
        return InputError(f"it is not JSON ({error}); correct it")
