"""The objects of OpenAI's API that are sent back: whole answers, and the chunks of a stream.

Source: OpenAI's API reference; openai-python 3.57.0 reads every field of them in the tests.
"""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.serve.backend import Token
from jaxgpt.serve.choices import Choice, Piece, Placed

MIN_LOGPROB = -9999.0
"""In place of minus infinity, which JSON does not have."""


def usage_of(n_prompt: int, n_completion: int) -> dict[str, int]:
    return {"prompt_tokens": n_prompt, "completion_tokens": n_completion, "total_tokens": n_prompt + n_completion}


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def error_event(body: dict[str, Any]) -> bytes:
    """What went wrong after the headers were sent."""
    return b"event: error\n" + event(body)


DONE = b"data: [DONE]\n\n"


def to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


class Answer:
    """The objects of one request: they share id, time and model. `ChatAnswer` and `TextAnswer` say what differs."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, model: str, tokenizer: Tokenizer, *, has_logprobs: bool, has_usage_chunk: bool):
        self._model, self.tokenizer = model, tokenizer
        self._id, self._created = f"{self.id_prefix}-{secrets.token_hex(12)}", int(time.time())
        self._has_logprobs, self._has_usage_chunk = has_logprobs, has_usage_chunk

    def whole(self, texts: Sequence[tuple[Choice, Piece]], usage: dict[str, int]) -> dict[str, Any]:
        choices = [self._choice(i, choice, piece) for i, (choice, piece) in enumerate(texts)]
        return {**self._head(self.whole_object), "choices": choices, "usage": usage}

    def first_chunk(self, choice: Choice) -> dict[str, Any] | None:
        """Before any text; None where there is none."""
        return None

    def chunk(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        return self._chunk([self._chunk_choice(choice, piece, None)])

    def last_chunk(self, choice: Choice) -> dict[str, Any]:
        """Says why the text ended."""
        return self._chunk([self._chunk_choice(choice, Piece("", []), choice.finish_reason)])

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any] | None:
        return {**self._chunk([]), "usage": usage} if self._has_usage_chunk else None

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self._has_usage_chunk else {}
        return {**self._head(self.chunk_object), "choices": choices, **usage}

    def _choice(self, index: int, choice: Choice, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _chunk_choice(self, choice: Choice, piece: Piece, reason: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _text_of(self, token_id: int) -> str:
        return self.tokenizer.decode([token_id])


class ChatAnswer(Answer):
    id_prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first_chunk(self, choice: Choice) -> dict[str, Any] | None:
        return self._chunk([self._delta(choice, {"role": "assistant", "content": ""}, None, None)])

    def _choice(self, index: int, choice: Choice, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        found = {"index": index, "message": message, "finish_reason": choice.finish_reason}
        return {**found, "logprobs": self._logprobs(piece.tokens)}

    def _chunk_choice(self, choice: Choice, piece: Piece, reason: str | None) -> dict[str, Any]:
        delta = {} if reason else {"content": piece.text}
        return self._delta(choice, delta, reason, None if reason else self._logprobs(piece.tokens))

    def _delta(self, choice: Choice, delta: dict[str, Any], reason: str | None, logprobs: Any) -> dict[str, Any]:
        return {"index": choice.index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}

    def _logprobs(self, tokens: list[Placed]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        return {"content": [self._scored(placed.token) for placed in tokens], "refusal": None}

    def _scored(self, token: Token) -> dict[str, Any]:
        top = [self._entry(token_id, logprob) for token_id, logprob in token.top]
        return {**self._entry(token.id, token.logprob or 0.0), "top_logprobs": top}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self.tokenizer.decode_bytes([token_id])
        return {"token": self._text_of(token_id), "logprob": max(logprob, MIN_LOGPROB), "bytes": list(data)}


class TextAnswer(Answer):
    id_prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def _choice(self, index: int, choice: Choice, piece: Piece) -> dict[str, Any]:
        found = self._chunk_choice(choice, piece, choice.finish_reason)
        return {**found, "index": index, "logprobs": self._logprobs(piece.tokens)}

    def _chunk_choice(self, choice: Choice, piece: Piece, reason: str | None) -> dict[str, Any]:
        logprobs = None if reason else self._logprobs(piece.tokens)
        return {"index": choice.index, "text": piece.text, "finish_reason": reason, "logprobs": logprobs}

    def _logprobs(self, tokens: list[Placed]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        scores = [token.logprob for token, _ in tokens]
        tops = [
            None if token.logprob is None else {self._text_of(i): max(p, MIN_LOGPROB) for i, p in reversed(token.top)}
            for token, _ in tokens
        ]  # reversed: of two ids with one text, such as parts of characters, the likelier one stays
        return {
            "tokens": [self._text_of(token.id) for token, _ in tokens],
            "token_logprobs": [None if score is None else max(score, MIN_LOGPROB) for score in scores],
            "top_logprobs": tops,
            "text_offset": [offset for _, offset in tokens],
        }
