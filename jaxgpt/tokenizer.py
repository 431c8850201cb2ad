"""Text to token ids and back: characters, bytes, GPT-2's BPE.

Every tokenizer has one shape, `Tokenizer`, and can be written as JSON (`to_json`, `tokenizer_from_json`), so
that a data set and a checkpoint carry theirs and `digest` tells two apart. Nothing is pickled. Text is only
ever text: "<|endoftext|>" in a document becomes the ids of its characters, never the control token.

Lone surrogates are no Unicode text: the byte-level tokenizers replace each with U+FFFD, as tiktoken does; the
character tokenizer refuses them like any other character that it does not know.
"""

import codecs
import functools
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from jaxgpt.errors import InputError


class Tokenizer(ABC):
    """What the rest of the code knows of a tokenizer."""

    name: str
    vocab_size: int
    """Ids are in [0, vocab_size). A model may have more rows than that; those never occur in data."""
    end_of_text: int | None = None
    """The id that ends a document, if there is one."""

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """The ids of a text, uint32 [n]."""

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes that the ids stand for; they may begin or end inside a character.

        Raises:
          InputError: an id outside [0, vocab_size).
        """

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """How many UTF-8 bytes of text each id stands for, int32 [vocab_size]; 0 for special tokens."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The value from which `tokenizer_from_json` makes an equal tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.encode_array(text).tolist()

    def encode_batch(self, texts: Sequence[str], n_threads: int = 1) -> list[np.ndarray]:
        """`encode_array` of each text. Threads help where the encoder works outside Python."""
        if n_threads == 1 or len(texts) < 2:
            return [self.encode_array(text) for text in texts]
        with ThreadPoolExecutor(n_threads) as pool:
            return list(pool.map(self.encode_array, texts))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def digest(self) -> str:
        """SHA-256 (hex) of the tokenizer's canonical JSON: equal digests, equal ids."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def _checked(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise InputError(
                    f"token id {i} is outside the {self.name} vocabulary of {self.vocab_size}; "
                    "use the tokenizer that the model was trained with, and sample below its vocab_size"
                )
        return ids


def _replace_surrogates(text: str) -> str:
    """A surrogate pair becomes its character, a lone surrogate U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class CharTokenizer(Tokenizer):
    """One id per character, in the order of `chars`."""

    name = "char"

    def __init__(self, chars: str):
        """`chars`: each character once. `from_text` collects and sorts them.

        Raises:
          InputError: no characters, one of them twice, or a lone surrogate.
        """
        if not chars:
            raise InputError("char tokenizer: the set of characters is empty; build it from some text")
        if len(set(chars)) != len(chars):
            twice = next(c for i, c in enumerate(chars) if c in chars[:i])
            raise InputError(f"char tokenizer: {twice!r} occurs twice in its characters; list each once")
        surrogate = next((c for c in chars if "\ud800" <= c <= "\udfff"), None)
        if surrogate is not None:
            raise InputError(f"char tokenizer: {surrogate!r} is a lone surrogate, not text; remove it")
        self.chars = chars
        self.vocab_size = len(chars)

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """The tokenizer of a text's own characters, sorted by code point."""
        return cls("".join(sorted(set(text))))

    @functools.cached_property
    def _id_of_code_point(self) -> np.ndarray:
        code_points = np.array([ord(c) for c in self.chars])
        table = np.full(code_points.max() + 2, -1, np.int32)  # the last entry stands for all beyond
        table[code_points] = np.arange(self.vocab_size)
        return table

    def encode_array(self, text: str) -> np.ndarray:
        """As in the base class.

        Raises:
          InputError: a character that is not in the vocabulary, and its position.
        """
        table = self._id_of_code_point
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ids = table[np.minimum(code_points, len(table) - 1)]
        if ids.size and ids.min() < 0:
            position = int(np.argmax(ids < 0))
            raise InputError(
                f"character {text[position]!r} at position {position} is not among the {self.vocab_size} "
                "of the char tokenizer; remove it, or prepare the data with --tokenizer gpt2 or byte"
            )
        return ids.astype(np.uint32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return "".join([self.chars[i] for i in self._checked(ids)]).encode("utf-8")

    def token_bytes(self) -> np.ndarray:
        return np.array([len(c.encode("utf-8")) for c in self.chars], np.int32)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "chars": self.chars}


class ByteTokenizer(Tokenizer):
    """One id per UTF-8 byte. Knows every text, needs no vocabulary."""

    name = "byte"
    vocab_size = 256

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(_replace_surrogates(text).encode("utf-8"), np.uint8).astype(np.uint32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return bytes(self._checked(ids))

    def token_bytes(self) -> np.ndarray:
        return np.ones(self.vocab_size, np.int32)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}


_BLANK_RUN_CHARS = 1 << 18
_BLANK_RUN = re.compile(rf"\s{{{_BLANK_RUN_CHARS}}}")


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-level BPE, by tiktoken. The vocabulary is loaded when it is first needed."""

    name = "gpt2"
    vocab_size = 50257
    end_of_text = 50256

    @functools.cached_property
    def _bpe(self) -> Any:
        import tiktoken  # here, because importing it is slow and training on shards does without

        try:
            return tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # what requests raises is an OSError
            raise InputError(
                f"the GPT-2 vocabulary cannot be loaded ({type(error).__name__}); tiktoken fetches it from the "
                "network once; without network, point TIKTOKEN_CACHE_DIR to a copy of a machine's tiktoken cache"
            ) from error

    def encode_array(self, text: str) -> np.ndarray:
        """As in the base class. Runs of more than 2**18 blanks are cut, as tiktoken's regex overflows on them."""
        text = _replace_surrogates(text)
        if len(text) < _BLANK_RUN_CHARS:
            return self._encode_clean(text)
        cuts = [0, *(match.end() for match in _BLANK_RUN.finditer(text)), len(text)]
        return np.concatenate([self._encode_clean(text[a:b]) for a, b in pairwise(cuts)])

    def _encode_clean(self, text: str) -> np.ndarray:
        return self._bpe.encode_to_numpy(text, disallowed_special=())

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._bpe.decode_bytes(self._checked(ids))

    def token_bytes(self) -> np.ndarray:
        sizes = [len(self._bpe.decode_single_token_bytes(i)) for i in range(self.vocab_size - 1)]
        return np.array([*sizes, 0], np.int32)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "gpt2"}


def tokenizer_from_json(value: Any) -> Tokenizer:
    """The inverse of `Tokenizer.to_json`, for values from a file that nobody vouches for. Runs no code.

    Raises:
      InputError: not such a value.
    """
    if not isinstance(value, dict):
        raise InputError(f"tokenizer: expected a JSON object with a kind, found {type(value).__name__}")
    kind = value.get("kind")
    fields = {"char": {"kind", "chars"}, "byte": {"kind"}, "gpt2": {"kind"}}
    if not isinstance(kind, str) or kind not in fields:
        raise InputError(f"tokenizer: kind={kind!r} is unknown; this version reads {', '.join(fields)}")
    if set(value) != fields[kind]:
        wrong = ", ".join(sorted(map(str, set(value) ^ fields[kind])))
        raise InputError(f"tokenizer: a {kind} tokenizer has the fields {sorted(fields[kind])}; check {wrong}")
    if kind == "byte":
        return ByteTokenizer()
    if kind == "gpt2":
        return GPT2Tokenizer()
    if not isinstance(value["chars"], str):
        raise InputError(f"tokenizer: chars is a {type(value['chars']).__name__}, not a string of characters")
    return CharTokenizer(value["chars"])


class StreamDecoder:
    """Ids one at a time to text that can be shown at once: a character appears when its last byte is there."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The characters that this id completes, often one, sometimes none."""
        return self._utf8.decode(self._tokenizer.decode_bytes([token_id]))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else nothing."""
        return self._utf8.decode(b"", final=True)
