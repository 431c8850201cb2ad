"""Whether a Hugging Face directory's own tokenizer is GPT-2's, the only one of them that is read here.

Compared is what its files say, not their bytes: programs write the same vocabulary in different ways.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded

TOKENS_SHA256 = "e35a33a0b2250c932ffdafc4c3a3552aef0cc7af7a11e9ebfddf1d2a6517371f"
"""Of GPT-2's 50257 tokens in the order of their ids, as vocab.json spells them, joined by line ends."""
MERGES_SHA256 = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"
"""Of GPT-2's 50000 merges, such as "Ġ t", joined by line ends."""
LIMIT_BYTES = 64 << 20
STRANGERS = ("tokenizer.model", "spiece.model", "vocab.txt", "sentencepiece.bpe.model")
"""Files of tokenizers that are not GPT-2's."""


def find_other_vocabulary(directory: Path) -> str:
    """Name of a file that describes another tokenizer than GPT-2's; empty where there is none.

    Raises:
      InputError: such a file cannot be read.
    """
    for name in STRANGERS:
        if (directory / name).exists():
            return name
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    if vocab.exists() and not _are_tokens(_read_json(vocab)):
        return vocab.name
    if merges.exists() and not _are_merges(_read(merges).decode("utf-8", "replace").splitlines()):
        return merges.name
    fast = directory / "tokenizer.json"
    if fast.exists():
        values = _read_json(fast)
        model = values.get("model") if isinstance(values, dict) else None
        if not isinstance(model, dict) or not _are_tokens(model.get("vocab")) or not _are_merges(model.get("merges")):
            return fast.name
    return ""


def _are_tokens(vocab: Any) -> bool:
    if not isinstance(vocab, dict):
        return False
    token_of = {i: token for token, i in vocab.items() if type(i) is int and i < 50257}
    return sorted(token_of) == list(range(50257)) and _digest([token_of[i] for i in range(50257)]) == TOKENS_SHA256


def _are_merges(merges: Any) -> bool:
    if not isinstance(merges, list):
        return False
    lines = [" ".join(map(str, merge)) if isinstance(merge, list) else str(merge) for merge in merges]
    return _digest([line for line in lines if line and not line.startswith("#version")]) == MERGES_SHA256


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, LIMIT_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; fetch it again, or remove it") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON; fetch it again, or remove it") from error
