"""What an epoch of conversations comes to, remembered: packing a million of them takes minutes.

Kept in ~/.cache/jaxgpt/epochs.json (XDG_CACHE_HOME counts) by what decides it: the conversations, the tokenizer and how
rows are packed. Where that file cannot be read or written, it is counted each time.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jaxgpt.data.chat_batches import ChatSettings, Conversations, count_epoch
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.files import read_bounded, write_atomically

VERSION = 1
"""Raised when packing changes, so that older counts no longer hold."""
_LIMIT_BYTES = 1 << 20
_MOST = 1000


def epoch_rows(conversations: Conversations, digest: str, tokenizer: Tokenizer, settings: ChatSettings) -> int:
    """Rows of one epoch, packed in one lane.

    Args:
      digest: of the conversations and their order.

    Raises:
      InputError: as `count_epoch`.
    """
    decides = [VERSION, digest, tokenizer.digest(), dataclasses.asdict(settings) | {"n_lanes": 1}]
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    known = _recall().get(key)
    if type(known) is int and known > 0:
        return known
    n_rows = count_epoch(conversations, tokenizer, settings).n_rows
    _remember(key, n_rows)
    return n_rows


def _path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jaxgpt", "epochs.json")


def _recall() -> dict[str, Any]:
    try:
        values = json.loads(read_bounded(_path(), _LIMIT_BYTES))
    except (OSError, ValueError, RuntimeError, RecursionError):  # RuntimeError: there is no home directory
        return {}
    return values if isinstance(values, dict) else {}


def _remember(key: str, n_rows: int) -> None:
    kept = {other: n for other, n in _recall().items() if other != key} | {key: n_rows}
    with contextlib.suppress(OSError, RuntimeError, UnicodeError):
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_path(), json.dumps(dict(list(kept.items())[-_MOST:]), indent=0))
