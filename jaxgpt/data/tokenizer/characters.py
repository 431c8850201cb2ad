"""Tokenizers without merges: one id per character, or per UTF-8 byte."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxgpt.data.tokenizer.base import Tokenizer, replace_surrogates
from jaxgpt.errors import InputError


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
        return np.frombuffer(replace_surrogates(text).encode("utf-8"), np.uint8).astype(np.uint32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return bytes(self._checked(ids))

    def token_bytes(self) -> np.ndarray:
        return np.ones(self.vocab_size, np.int32)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}
