"""The tokenizer of a Hugging Face directory, from its JSON files alone.

tokenizer.json is read first, then vocab.json with merges.txt, as transformers does. One that this package wrote, and
GPT-2's, become the tokenizers they are here, so that data prepared with those fits; others are run by `tokenizers`.
Which ids begin and end a text is in the files beside them.

What makes a vocabulary GPT-2's is what its files say, not their bytes: programs write the same one in different ways.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxgpt.data.tokenizer import GPT2Tokenizer, HuggingFaceTokenizer, Tokenizer
from jaxgpt.data.tokenizer.byte_pairs import GPT2_SPLIT_PATTERN
from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded
from jaxgpt.formats.tokenizer_json import byte_level_json, from_tokenizer_json

TOKENS_SHA256 = "e35a33a0b2250c932ffdafc4c3a3552aef0cc7af7a11e9ebfddf1d2a6517371f"
"""Of GPT-2's 50257 tokens in the order of their ids, as vocab.json spells them, joined by line ends."""
MERGES_SHA256 = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"
"""Of GPT-2's 50000 merges, such as "Ġ t", joined by line ends."""
WRITTEN_MERGES_SHA256 = "e7c713910e93f3a603b985d91035b19b2608e11a05d319fe3d1b75b6a5b9f4b1"
"""Of the 108299 that `tokenizer_json` writes for the same tokens."""
END = "<|endoftext|>"
LIMIT_BYTES = 64 << 20
STRANGERS = ("tokenizer.model", "spiece.model", "vocab.txt", "sentencepiece.bpe.model", "vocab.json", "merges.txt")
"""Files that say a tokenizer is there, but are not read alone."""
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json")
"""Files that may name the tokens that begin and end a text, the first that does decides."""


def read_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer whose files are in a directory; None where there are no such files.

    Raises:
      InputError: a file cannot be read, or describes a tokenizer in a form that is not read.
    """
    if (directory / "tokenizer.json").exists():
        return _make_tokenizer(directory, _read_json(directory / "tokenizer.json"))
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    if vocab.exists():
        tokens = _read_json(vocab)
        lines = _read(merges).decode("utf-8", "replace").splitlines() if merges.exists() else None
        if _are_tokens(tokens) and (lines is None or _are_merges(lines)):
            return GPT2Tokenizer()
        if lines is not None:
            return _make_tokenizer(directory, _assemble(tokens, lines))
    found = next((name for name in STRANGERS if (directory / name).exists()), None)
    if found is not None:
        raise InputError(
            f"{directory / found} is not read alone; save the tokenizer again with transformers: "
            "AutoTokenizer.from_pretrained(directory).save_pretrained(directory) writes tokenizer.json"
        )
    return None


def _make_tokenizer(directory: Path, content: Any) -> Tokenizer:
    if not isinstance(content, dict):
        raise InputError(f"{directory / 'tokenizer.json'} is not a JSON object; fetch it again, or remove it")
    if _is_gpt2(content):
        return GPT2Tokenizer()
    ours = from_tokenizer_json(content)
    if ours is not None:
        return ours
    try:
        tokenizer = HuggingFaceTokenizer(content)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from error
    tokenizer.begin_of_text, tokenizer.end_of_text = _find_ends(directory, tokenizer)
    return tokenizer


def _find_ends(directory: Path, tokenizer: HuggingFaceTokenizer) -> tuple[int | None, int | None]:
    """The ids that begin and end a text; the first counts only where the tokenizer itself puts it in front of one."""
    files = [_read_json(directory / name) for name in CONFIGS if (directory / name).exists()]
    found: dict[str, int | None] = {"bos": None, "eos": None}
    for values in (values for values in reversed(files) if isinstance(values, dict)):
        for kind in found:
            for value in (values.get(f"{kind}_token"), values.get(f"{kind}_token_id")):
                i = tokenizer.id_of(value["content"] if isinstance(value, dict) and "content" in value else value)
                found[kind] = found[kind] if i is None else i
    first = tokenizer.first_id()
    begin = first if first is not None and first == found["bos"] else None
    return begin, found["eos"] if found["eos"] != begin else None


def _assemble(vocab: Any, lines: list[str]) -> dict[str, Any]:
    """vocab.json and merges.txt of a GPT-2 as a tokenizer.json: bytes, cut where GPT-2 cuts."""
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": vocab[END], "content": END, **plain}] if isinstance(vocab, dict) and END in vocab else []
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": bytes_only,
        "post_processor": None,
        "decoder": bytes_only,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _is_gpt2(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json gives GPT-2's ids: OpenAI's, or the one that this package writes."""
    model, added = content.get("model"), content.get("added_tokens")
    if not isinstance(model, dict) or not isinstance(added, list) or len(added) > 1:
        return False
    vocab: Any = model.get("vocab")
    cut = content.get("pre_tokenizer")
    if not _are_tokens(vocab) or len(vocab) != 50257 or content.get("normalizer") is not None:
        return False
    if isinstance(cut, dict) and cut.get("type") == "ByteLevel":
        return not cut.get("add_prefix_space") and cut.get("use_regex", True) and _are_merges(model.get("merges"))
    is_cut = cut == byte_level_json([], GPT2_SPLIT_PATTERN, {})["pre_tokenizer"]
    return is_cut and _are_merges(model.get("merges"), WRITTEN_MERGES_SHA256)


def _are_tokens(vocab: Any) -> bool:
    if not isinstance(vocab, dict):
        return False
    token_of = {i: token for token, i in vocab.items() if type(i) is int and i < 50257}
    return sorted(token_of) == list(range(50257)) and _digest([token_of[i] for i in range(50257)]) == TOKENS_SHA256


def _are_merges(merges: Any, sha256: str = MERGES_SHA256) -> bool:
    if not isinstance(merges, list):
        return False
    lines = [" ".join(map(str, merge)) if isinstance(merge, list) else str(merge) for merge in merges]
    return _digest([line for line in lines if line and not line.startswith("#version")]) == sha256


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
