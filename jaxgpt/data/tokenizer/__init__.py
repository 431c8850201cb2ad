"""Text to token ids and back: characters, bytes, GPT-2's BPE, a BPE trained on your text, any tokenizer.json.

Every tokenizer has one interface, `Tokenizer`, and can be written as JSON (`to_json`, `tokenizer_from_json`), so
that a data set and a checkpoint carry theirs and `digest` tells two apart. Nothing is pickled. Text is only
ever text: "<|endoftext|>" in a document becomes the ids of its characters, never the control token. Control tokens
are asked for by name (`special_id`).

Lone surrogates are no Unicode text: the byte-level tokenizers replace each with U+FFFD, as tiktoken does; the
character tokenizer refuses them like any other character that it does not know.
"""

from typing import Any

from jaxgpt.data.tokenizer.base import StreamDecoder, Tokenizer
from jaxgpt.data.tokenizer.byte_pairs import (
    CHAT_SPECIALS,
    MAX_VOCAB_SIZE,
    RUN_CHARS,
    SPLIT_PATTERN,
    BPETokenizer,
    GPT2Tokenizer,
)
from jaxgpt.data.tokenizer.characters import ByteTokenizer, CharTokenizer
from jaxgpt.data.tokenizer.hugging_face import HuggingFaceTokenizer
from jaxgpt.errors import InputError

__all__ = [
    "CHAT_SPECIALS",
    "MAX_VOCAB_SIZE",
    "RUN_CHARS",
    "SPLIT_PATTERN",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "GPT2Tokenizer",
    "HuggingFaceTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "tokenizer_from_json",
]


def tokenizer_from_json(value: Any) -> Tokenizer:
    """The inverse of `Tokenizer.to_json`, for untrusted values from a file. Runs no code.

    Raises:
      InputError: not such a value.
    """
    if not isinstance(value, dict):
        raise InputError(f"tokenizer: expected a JSON object with a kind, found {type(value).__name__}")
    kind = value.get("kind")
    fields = {
        "char": {"kind", "chars"},
        "byte": {"kind"},
        "gpt2": {"kind"},
        "bpe": {"kind", "split", "tokens", "specials"},
        "hugging_face": {"kind", "content", "begin_of_text", "end_of_text"},
    }
    if not isinstance(kind, str) or kind not in fields:
        raise InputError(f"tokenizer: kind={kind!r} is unknown; this version reads {', '.join(fields)}")
    if set(value) != fields[kind]:
        wrong = ", ".join(sorted(map(str, set(value) ^ fields[kind])))
        raise InputError(f"tokenizer: a {kind} tokenizer has the fields {sorted(fields[kind])}; check {wrong}")
    if kind == "byte":
        return ByteTokenizer()
    if kind == "gpt2":
        return GPT2Tokenizer()
    if kind == "bpe":
        return _bpe_from_json(value)
    if kind == "hugging_face":
        return _hugging_face_from_json(value)
    if not isinstance(value["chars"], str):
        raise InputError(f"tokenizer: chars is a {type(value['chars']).__name__}, not a string of characters")
    return CharTokenizer(value["chars"])


def _bpe_from_json(value: dict[str, Any]) -> BPETokenizer:
    for field in ("tokens", "specials"):
        strange = [item for item in value[field] if type(item) is not str] if type(value[field]) is list else [value]
        if strange:
            raise InputError(f"tokenizer: {field} is not a list of strings; train the tokenizer again")
    if value["split"] != SPLIT_PATTERN:  # a regex from a file could be one that never ends
        raise InputError(
            f"tokenizer: split={str(value['split'])[:40]!r} is not this version's pattern, the only one that it reads; "
            "train the tokenizer again"
        )
    try:
        tokens = [token.encode("latin-1") for token in value["tokens"]]
    except UnicodeEncodeError as error:
        raise InputError(
            f"tokenizer: {error.object[error.start]!r} in tokens is not a byte; train the tokenizer again"
        ) from error
    return BPETokenizer(tokens, value["specials"])


def _hugging_face_from_json(value: dict[str, Any]) -> HuggingFaceTokenizer:
    content, ends = value["content"], {name: value[name] for name in ("begin_of_text", "end_of_text")}
    if type(content) is not dict or any(i is not None and type(i) is not int for i in ends.values()):
        raise InputError("tokenizer: content is not an object, or an id not an int; fetch it again")
    return HuggingFaceTokenizer(content, **ends)
