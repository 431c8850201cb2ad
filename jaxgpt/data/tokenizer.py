"""Text to token ids and back: characters, bytes, GPT-2's BPE, a BPE of one's own.

Every tokenizer has one shape, `Tokenizer`, and can be written as JSON (`to_json`, `tokenizer_from_json`), so
that a data set and a checkpoint carry theirs and `digest` tells two apart. Nothing is pickled. Text is only
ever text: "<|endoftext|>" in a document becomes the ids of its characters, never the control token. Control tokens
are asked for by name (`special_id`).

Lone surrogates are no Unicode text: the byte-level tokenizers replace each with U+FFFD, as tiktoken does; the
character tokenizer refuses them like any other character that it does not know.
"""

import codecs
import functools
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxgpt.errors import InputError


class Tokenizer(ABC):
    """What the rest of the code knows of a tokenizer."""

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
    def token_bytes(self) -> np.ndarray:
        """How many UTF-8 bytes of text each id stands for, int32 [vocab_size]; 0 for special tokens."""

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
        """The ids of a text that a document begins with: behind begin_of_text, where there is one."""
        ids = self.encode(text)
        return ids if self.begin_of_text is None else [self.begin_of_text, *ids]

    def stop_ids(self) -> tuple[int, ...]:
        """The ids after which a text is over: its end, or the beginning of the next."""
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


RUN_CHARS = 1 << 18
_LONG_RUN = re.compile(rf"(?<!\s)\s{{{RUN_CHARS},}}|(?<!\S)\S{{{RUN_CHARS},}}")


class _TiktokenTokenizer(Tokenizer):
    """What GPT-2's BPE and our own share. tiktoken works outside Python: several threads encode at once."""

    @property
    @abstractmethod
    def _bpe(self) -> Any:
        """The tiktoken.Encoding. Made when it is first needed: importing tiktoken is slow, and shards do without."""

    def encode_array(self, text: str) -> np.ndarray:
        """As in the base class.

        Runs of more than `RUN_CHARS` blanks, or of as many characters without a blank, are cut there: on the ones
        tiktoken's regex overflows its stack, on the others its memory is some fifty times the text.
        """
        text = _replace_surrogates(text)
        if len(text) <= RUN_CHARS:
            return self._encode_clean(text)
        cuts = {0, len(text)}
        for run in _LONG_RUN.finditer(text):
            cuts.update(range(run.start() + RUN_CHARS, run.end(), RUN_CHARS))
        return np.concatenate([self._encode_clean(text[a:b]) for a, b in pairwise(sorted(cuts))])

    def _encode_clean(self, text: str) -> np.ndarray:
        return self._bpe.encode_to_numpy(text, disallowed_special=())


class GPT2Tokenizer(_TiktokenTokenizer):
    """GPT-2's byte-level BPE."""

    name = "gpt2"
    vocab_size = 50257
    end_of_text = 50256
    specials = MappingProxyType({"<|endoftext|>": 50256})

    @functools.cached_property
    def _bpe(self) -> Any:
        import tiktoken

        try:
            return tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # what requests raises is an OSError
            raise InputError(
                f"the GPT-2 vocabulary cannot be loaded ({type(error).__name__}); tiktoken fetches it from the "
                "network once; without network, point TIKTOKEN_CACHE_DIR to a copy of a machine's tiktoken cache"
            ) from error

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._bpe.decode_bytes(self._checked(ids))

    def token_bytes(self) -> np.ndarray:
        sizes = [len(self._bpe.decode_single_token_bytes(i)) for i in range(self.vocab_size - 1)]
        return np.array([*sizes, 0], np.int32)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "gpt2"}


SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""Where nanochat cuts text before it merges bytes: GPT-4's pattern, but digits in twos."""
CHAT_SPECIALS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
"""nanochat's control tokens, in the order of their ids. <|bos|> goes in front of every document."""
MAX_VOCAB_SIZE = 1 << 20
_MAX_VOCAB_BYTES = 64 << 20


class BPETokenizer(_TiktokenTokenizer):
    """A byte-level BPE with a vocabulary of its own: an id is a merge's rank, and after the merges come the specials.

    `jaxgpt.data.bpe` learns one from text.
    """

    name = "bpe"

    def __init__(self, tokens: Sequence[bytes], specials: Sequence[str] = CHAT_SPECIALS):
        """
        Args:
          tokens: the bytes of each id, in the order in which they merge; all 256 single bytes are among them.
          specials: names of the control tokens, such as <|bos|>; their ids follow.

        Raises:
          InputError: this is no vocabulary, or is larger than any should be.
        """
        self.vocab_size = len(tokens) + len(specials)
        if self.vocab_size > MAX_VOCAB_SIZE or sum(map(len, tokens)) > _MAX_VOCAB_BYTES:
            raise InputError(
                f"bpe tokenizer: {self.vocab_size} tokens of {sum(map(len, tokens))} bytes; "
                f"at most {MAX_VOCAB_SIZE} and {_MAX_VOCAB_BYTES} will do: train it again, or fetch it again"
            )
        ranks = {token: i for i, token in enumerate(tokens)}
        problem = ""
        if len(ranks) < len(tokens):
            twice = next(token for i, token in enumerate(tokens) if ranks[token] != i)
            problem = f"{twice!r} occurs twice in its tokens"
        elif b"" in ranks:
            problem = f"token {ranks[b'']} is empty"
        elif missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
            problem = f"no token is the single byte 0x{missing[0]:02x}"
        elif len(set(specials)) < len(specials):
            problem = "a special token's name occurs twice"
        elif strange := [name for name in specials if not re.fullmatch(r"<\|[a-z0-9_]{1,40}\|>", name)]:
            problem = f"{strange[0][:60]!r} is no name for a special token, such as <|bos|>"
        if problem:
            raise InputError(f"bpe tokenizer: {problem}; it is damaged: train it again, or fetch it again")
        self._ranks = ranks
        self.specials = MappingProxyType({name: len(tokens) + i for i, name in enumerate(specials)})
        self._spelled = [*tokens, *(name.encode("ascii") for name in specials)]
        self.begin_of_text = self.specials.get("<|bos|>")

    @functools.cached_property
    def _bpe(self) -> Any:
        import tiktoken

        return tiktoken.Encoding(
            "bpe", pat_str=SPLIT_PATTERN, mergeable_ranks=self._ranks, special_tokens=dict(self.specials)
        )

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join([self._spelled[i] for i in self._checked(ids)])

    def token_bytes(self) -> np.ndarray:
        return np.array([*map(len, self._ranks), *[0] * len(self.specials)], np.int32)

    def to_json(self) -> dict[str, Any]:
        """The bytes of a token as characters of Latin-1, so that a file of them can be read."""
        tokens = [token.decode("latin-1") for token in self._ranks]
        return {"kind": "bpe", "split": SPLIT_PATTERN, "tokens": tokens, "specials": list(self.specials)}


def tokenizer_from_json(value: Any) -> Tokenizer:
    """The inverse of `Tokenizer.to_json`, for values from a file that nobody vouches for. Runs no code.

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
    if not isinstance(value["chars"], str):
        raise InputError(f"tokenizer: chars is a {type(value['chars']).__name__}, not a string of characters")
    return CharTokenizer(value["chars"])


def _bpe_from_json(value: dict[str, Any]) -> BPETokenizer:
    for field in ("tokens", "specials"):
        strange = [item for item in value[field] if type(item) is not str] if type(value[field]) is list else [value]
        if strange:
            raise InputError(f"tokenizer: {field} is not the list of strings it should be; train the tokenizer again")
    if value["split"] != SPLIT_PATTERN:  # a regex from a file could be one that never ends
        raise InputError(
            f"tokenizer: split={str(value['split'])[:40]!r} is no pattern of this version, which reads only its own; "
            "train the tokenizer again"
        )
    try:
        tokens = [token.encode("latin-1") for token in value["tokens"]]
    except UnicodeEncodeError as error:
        raise InputError(
            f"tokenizer: {error.object[error.start]!r} in tokens is no byte; train the tokenizer again"
        ) from error
    return BPETokenizer(tokens, value["specials"])


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
