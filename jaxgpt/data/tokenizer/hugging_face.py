"""A tokenizer that is a tokenizer.json, run by Hugging Face's `tokenizers`: the ids are those of transformers.

Of any structure (BPE, WordPiece, Unigram, word level). Where it is a byte-level BPE that loses nothing, each id stands
for known bytes; of others only whole texts can be decoded, and bits per byte are not available.

The content is data. A pattern in it may be slow, but `tokenizers` limits how often a match is retried.

Left out, as everywhere here: special tokens in a text are text; nothing is put around a text, cut off or filled up; and
a BPE's dropout, which would give other ids each time.

Reference: https://huggingface.co/docs/tokenizers/api/tokenizer.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxgpt.data.tokenizer.base import StreamDecoder, Tokenizer, replace_surrogates
from jaxgpt.data.tokenizer.byte_pairs import MAX_VOCAB_SIZE, unspell
from jaxgpt.errors import InputError

KEEP_TEXT = ("ByteLevel", "Digits", "Punctuation", "Split")
"""Kinds of pre-tokenizers that only cut text."""


class HuggingFaceTokenizer(Tokenizer):
    """What a tokenizer.json describes. `vocab_size` is its highest id + 1; ids between that nobody has are empty."""

    name = "hugging_face"

    def __init__(self, content: dict[str, Any], *, begin_of_text: int | None = None, end_of_text: int | None = None):
        """
        Args:
          content: of the tokenizer.json.
          begin_of_text, end_of_text: ids, which the file does not name.

        Raises:
          InputError: `tokenizers` cannot read it, or it has ids beyond the limit.
        """
        self.content = {**content, "truncation": None, "padding": None}
        model = content.get("model")
        if isinstance(model, dict) and model.get("dropout"):
            self.content["model"] = {**model, "dropout": None}
        self._library = _read_library(self.content)
        ids = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        if not 0 < self.vocab_size <= MAX_VOCAB_SIZE:
            raise InputError(f"tokenizer.json has {self.vocab_size} ids, outside [1, {MAX_VOCAB_SIZE}]; fetch it again")
        for name, i in (("begin_of_text", begin_of_text), ("end_of_text", end_of_text)):
            if i is not None and not 0 <= i < self.vocab_size:
                raise InputError(
                    f"tokenizer.json has {self.vocab_size} ids, {name}={i} is none of them; fetch it again"
                )
        self.begin_of_text, self.end_of_text = begin_of_text, end_of_text
        added = self._library.get_added_tokens_decoder()
        self.specials = MappingProxyType({t.content: i for i, t in sorted(added.items()) if t.special})
        self._spelled: list[bytes] | None = None
        self._has_every_byte = False
        full = json.loads(self._library.to_str())  # with the values that the file may leave out
        if _is_byte_level(full):
            spelled = [b""] * self.vocab_size
            for token, i in ids.items():
                spelled[i] = unspell(token)
            self._has_every_byte = {bytes([byte]) for byte in range(256)} <= set(spelled)
            for i, token in added.items():
                spelled[i] = token.content.encode("utf-8")
            if self._has_every_byte or not full["model"]["unk_token"]:
                self._spelled = spelled

    def encode_array(self, text: str) -> np.ndarray:
        """As in the base class.

        Raises:
          InputError: a character that has no id; or the tokenizer's pattern does not come to an end on this text.
        """
        text = replace_surrogates(text)
        with _one_line("the tokenizer cannot encode this text"):
            ids = np.array(self._library.encode(text, add_special_tokens=False).ids, np.uint32)
        if self._spelled is not None and not self._has_every_byte:
            lost = len(text.encode("utf-8")) - sum(len(self._spelled[i]) for i in ids)
            if lost:
                raise InputError(f"the tokenizer has no id for {lost} bytes of {text[:40]!r}; remove such characters")
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """As in the base class. What is not byte-level gives the bytes of a whole text, not of each id apart."""
        ids = self._checked(ids)
        if self._spelled is not None:
            return b"".join([self._spelled[i] for i in ids])
        with _one_line("the tokenizer cannot decode these ids"):
            return self._library.decode(ids, skip_special_tokens=False).encode("utf-8")

    def token_bytes(self) -> np.ndarray | None:
        if self._spelled is None:
            return None
        sizes = np.array([*map(len, self._spelled)], np.int32)
        sizes[[*self.specials.values()]] = 0
        return sizes

    def stream_decoder(self, after: Sequence[int] = ()) -> StreamDecoder:
        return StreamDecoder(self) if self._spelled is not None else WindowDecoder(self, after)

    def id_of(self, token: object) -> int | None:
        """The id of a token, given as text or as an id; None for anything else."""
        if isinstance(token, int) and not isinstance(token, bool):
            return token if 0 <= token < self.vocab_size else None
        return self._library.token_to_id(token) if isinstance(token, str) else None

    def first_id(self) -> int | None:
        """The id that transformers puts in front of a text; None where it puts nothing there."""
        with _one_line("the tokenizer cannot encode a text"):
            around = self._library.encode("", add_special_tokens=True).ids
        return around[0] if around else None

    def to_json(self) -> dict[str, Any]:
        ends = {"begin_of_text": self.begin_of_text, "end_of_text": self.end_of_text}
        return {"kind": "hugging_face", "content": self.content, **ends}


class WindowDecoder(StreamDecoder):
    """For tokens whose text depends on those before them, such as words that bring a space unless they come first."""

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()):
        """`after`: ids of the text that the stream continues."""
        super().__init__(tokenizer)
        self._ids, self._n_shown = [*after], len(after)

    def feed(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith("\ufffd"):  # a character that may not be whole
            return ""
        self._ids, self._n_shown = self._ids[self._n_shown :], len(self._ids) - self._n_shown
        return text

    def finish(self) -> str:
        text, self._ids, self._n_shown = self._new_text(), [], 0
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[: self._n_shown])
        return self._tokenizer.decode(self._ids)[len(before) :]


def _read_library(content: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer as Library

    with _one_line("tokenizer.json cannot be read"):
        library = Library.from_str(json.dumps(content))
        library.encode_special_tokens = True
        return library


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turns what `tokenizers` raises into an InputError. It is written in Rust: its errors are bare Exceptions, and
    what it calls panics are not even these."""
    try:
        yield
    except BaseException as error:
        if (
            type(error) is Exception
            or isinstance(error, ValueError | TypeError | OverflowError | RecursionError)
            or _is_panic(error)
        ):
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{what}: {first_line[:200]}; use another tokenizer, or fetch it again") from error
        raise


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


def _is_byte_level(content: dict[str, Any]) -> bool:
    """Whether ids stand for bytes that, one after the other, are the text; of a content that leaves nothing out."""
    model = content["model"]
    steps = _list_steps(content["pre_tokenizer"], "pretokenizers")
    decoders = [step["type"] for step in _list_steps(content["decoder"], "decoders")]
    return (
        model["type"] == "BPE"
        and not any(model[name] for name in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"))
        and content["normalizer"] is None
        and decoders == ["ByteLevel"]
        and any(step["type"] == "ByteLevel" for step in steps)
        and all(_keeps_text(step) for step in steps)
        and not any(token["lstrip"] or token["rstrip"] for token in content["added_tokens"] if not token["special"])
    )


def _list_steps(value: dict[str, Any] | None, several: str) -> list[dict[str, Any]]:
    """The steps of a part that is one step, a sequence of them, or None."""
    if value is None:
        return []
    if value["type"] != "Sequence":
        return [value]
    return [step for part in value[several] for step in _list_steps(part, several)]


def _keeps_text(step: dict[str, Any]) -> bool:
    has_space = step["type"] == "ByteLevel" and step["add_prefix_space"]
    return step["type"] in KEEP_TEXT and not has_space and step.get("behavior") != "Removed"
