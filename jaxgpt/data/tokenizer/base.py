"""The interface of every tokenizer, and what needs nothing but that interface."""

import codecs
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxgpt.errors import InputError


class Tokenizer(ABC):
    """What the rest of the code knows about a tokenizer."""

    name: str
    vocab_size: int
    """Ids are in [0, vocab_size). A model may have more rows than that; those never occur in data."""
    begin_of_text: int | None = None
    """The id that goes in front of a document, if there is one."""
    end_of_text: int | None = None
    """The id that ends a document, if there is one."""
    specials: Mapping[str, int] = MappingProxyType({})
    """The ids of the control tokens, by name. Decoding shows them as their names."""

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
    def token_bytes(self) -> np.ndarray | None:
        """How many UTF-8 bytes of text each id stands for, int32 [vocab_size]; 0 for special tokens.

        None where ids do not stand for bytes, as in WordPiece.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The value from which `tokenizer_from_json` makes an equal tokenizer."""

    def special_id(self, name: str) -> int:
        """The id of a control token, such as "<|user_start|>".

        Raises:
          InputError: this tokenizer has no such token.
        """
        if name not in self.specials:
            there = ", ".join(self.specials) or "none"
            raise InputError(f"the {self.name} tokenizer has no {name} (it has: {there}); use one that has")
        return self.specials[name]

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.encode_array(text).tolist()

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text that a document begins with: behind begin_of_text, where there is one.

        Nothing is what a document begins with too: begin_of_text alone, or the end_of_text of the document before.

        Raises:
          InputError: there is no text and no such token, or a character without an id.
        """
        if not text and not self.stop_ids():
            raise InputError(f"the prompt is empty, and {self.name} has no token that begins a text; give some text")
        ids = self.encode(text)
        if self.begin_of_text is not None:
            return [self.begin_of_text, *ids]
        return ids or [*self.stop_ids()]

    def stop_ids(self) -> tuple[int, ...]:
        """The ids after which a text ends: its end, or the beginning of the next."""
        return tuple(i for i in (self.begin_of_text, self.end_of_text) if i is not None)

    def encode_batch(self, texts: Sequence[str], n_threads: int = 1) -> list[np.ndarray]:
        """`encode_array` of each text. Threads help where the encoder works outside Python."""
        if n_threads == 1 or len(texts) < 2:
            return [self.encode_array(text) for text in texts]
        with ThreadPoolExecutor(n_threads) as pool:
            return list(pool.map(self.encode_array, texts))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream_decoder(self, after: Sequence[int] = ()) -> "StreamDecoder":
        """Decodes ids one at a time; `after` are the ids of the text that they continue."""
        return StreamDecoder(self)

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


class StreamDecoder:
    """Ids one at a time to text that can be shown at once: a character appears when its last byte has arrived."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The characters that this id completes, often one, sometimes none."""
        return self._utf8.decode(self._tokenizer.decode_bytes([token_id]))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else nothing."""
        return self._utf8.decode(b"", final=True)


def replace_surrogates(text: str) -> str:
    """A surrogate pair becomes its character, a lone surrogate U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
