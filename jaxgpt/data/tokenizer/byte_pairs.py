"""Byte-level BPE tokenizers, which tiktoken runs: GPT-2's, and one with a vocabulary learned from text."""

import functools
import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxgpt.data.tokenizer.base import Tokenizer, replace_surrogates
from jaxgpt.errors import InputError

RUN_CHARS = 1 << 18
_LONG_RUN = re.compile(rf"(?<!\s)\s{{{RUN_CHARS},}}|(?<!\S)\S{{{RUN_CHARS},}}")


class _TiktokenTokenizer(Tokenizer):
    """What GPT-2's BPE and our own share. tiktoken works outside Python: several threads encode at once."""

    @property
    @abstractmethod
    def _bpe(self) -> Any:
        """The tiktoken.Encoding. Made on first use: importing tiktoken is slow, and shards do not need it."""

    def encode_array(self, text: str) -> np.ndarray:
        """As in the base class.

        Runs of more than `RUN_CHARS` blanks, or of as many characters without a blank, are cut there: blanks
        overflow the stack of tiktoken's regex, and the others need some fifty times the text in memory.
        """
        text = replace_surrogates(text)
        if len(text) <= RUN_CHARS:
            return self._encode_clean(text)
        cuts = {0, len(text)}
        for run in _LONG_RUN.finditer(text):
            cuts.update(range(run.start() + RUN_CHARS, run.end(), RUN_CHARS))
        return np.concatenate([self._encode_clean(text[a:b]) for a, b in pairwise(sorted(cuts))])

    def _encode_clean(self, text: str) -> np.ndarray:
        return self._bpe.encode_to_numpy(text, disallowed_special=())


def spell(token: bytes) -> str:
    """A token in GPT-2's alphabet: a visible character for each byte."""
    return "".join(ALPHABET[byte] for byte in token)


def _make_alphabet() -> list[str]:
    """GPT-2's: bytes that are visible in Latin-1 stand for themselves, the others are counted up from U+0100."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]


ALPHABET = _make_alphabet()
BYTE_OF = {character: byte for byte, character in enumerate(ALPHABET)}


def unspell(token: str) -> bytes:
    """The inverse of `spell`; a character outside the alphabet stands for its UTF-8 bytes."""
    return b"".join(bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode("utf-8", "surrogatepass") for c in token)


GPT2_SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""Where GPT-2's BPE cuts text, as tiktoken spells it; `GPT2Tokenizer` takes it from tiktoken."""


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
    """A byte-level BPE with a trained vocabulary: an id is a merge's rank, and after the merges come the specials.

    `jaxgpt.data.bpe` learns one from text.
    """

    name = "bpe"

    def __init__(self, tokens: Sequence[bytes], specials: Sequence[str] = CHAT_SPECIALS):
        """
        Args:
          tokens: the bytes of each id, in the order in which they merge; all 256 single bytes are among them.
          specials: names of the control tokens, such as <|bos|>; their ids follow.

        Raises:
          InputError: this is not a vocabulary, or is above the limits.
        """
        self.vocab_size = len(tokens) + len(specials)
        if self.vocab_size > MAX_VOCAB_SIZE or sum(map(len, tokens)) > _MAX_VOCAB_BYTES:
            raise InputError(
                f"bpe tokenizer: {self.vocab_size} tokens of {sum(map(len, tokens))} bytes; "
                f"the limits are {MAX_VOCAB_SIZE} and {_MAX_VOCAB_BYTES}: train it again, or fetch it again"
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
            problem = f"{strange[0][:60]!r} is not a name for a special token, such as <|bos|>"
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
