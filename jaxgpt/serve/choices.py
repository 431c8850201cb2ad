"""One text on its way to a client: tokens in, pieces of text out, which end before a stop text.

A piece may be sent at once: it splits no character, and it holds no beginning of a stop text that could still come
true. With it come the tokens whose text begins in it, for logprobs.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.inference.text_stream import TextStream
from jaxgpt.serve.backend import FinishReason, Stream, Token
from jaxgpt.serve.prompts import Prompt


class Placed(NamedTuple):
    """A token, and the character of the answered text at which its text begins."""

    token: Token
    offset: int


class Piece(NamedTuple):
    text: str
    tokens: list[Placed]


class Choice:
    """One of the texts of a request.

    Attributes:
      index: its number in the answer.
      prompt: what it continues; other choices may share it.
      n_tokens: that were generated so far.
      first_s: time to the first of them, in seconds from the submission; None before.
      logprob: of all of them together.
    """

    def __init__(
        self, index: int, prompt: Prompt, stream: Stream, tokenizer: Tokenizer, stops: Sequence[str], *,
        is_echo: bool = False, is_prompt_scored: bool = False,
    ):  # fmt: skip
        self.index, self.prompt, self._stream, self._tokenizer = index, prompt, stream, tokenizer
        self._text = TextStream(tokenizer, stops, prompt.ids)
        self._decoder = tokenizer.stream_decoder(prompt.ids)  # places tokens, also while text is held back
        self._is_echo, self._is_prompt_scored = is_echo, is_prompt_scored
        self._reason: FinishReason | None = None
        self._begin_s = time.perf_counter()
        self.n_tokens, self.logprob, self.first_s = 0, 0.0, None

    @property
    def finish_reason(self) -> FinishReason | None:
        """A stop text is a stop as well."""
        return self._reason or self._stream.finish_reason

    def cancel(self) -> None:
        self._stream.cancel()

    async def pieces(self) -> AsyncIterator[Piece]:
        """All of the text, in the order in which it comes. An echoed prompt is the first piece."""
        tokens = aiter(self._stream)
        scored = [await anext(tokens) for _ in self.prompt.ids] if self._is_prompt_scored else []
        n_echoed = len(self.prompt.text) if self._is_echo else 0
        if self._is_echo:
            yield Piece(self.prompt.text, self._place_prompt(scored))
        n_sent = n_decoded = n_echoed
        waiting: list[Placed] = []
        async for token in tokens:
            if self.first_s is None:
                self.first_s = time.perf_counter() - self._begin_s
            self.n_tokens += 1
            self.logprob += token.logprob or 0.0
            waiting.append(Placed(token, n_decoded))
            n_decoded += len(self._decoder.feed(token.id))
            text = self._text.feed(token.id)
            if text or self._text.has_ended:
                n_sent += len(text)
                yield Piece(text, [placed for placed in waiting if placed.offset < n_sent])
                waiting = [placed for placed in waiting if placed.offset >= n_sent]
            if self._text.has_ended:
                self._reason = "stop"
                self._stream.cancel()
                return
        rest = self._text.finish()
        if rest or waiting:
            yield Piece(rest, waiting)

    def _place_prompt(self, scored: list[Token]) -> list[Placed]:
        """The prompt's tokens without those that the client did not write. The first has no logprob, as at OpenAI."""
        decoder, offset, placed = self._tokenizer.stream_decoder(), 0, []
        for i, token in enumerate(scored[self.prompt.n_hidden :]):
            placed.append(Placed(Token(token.id) if i == 0 else token, offset))
            offset += len(decoder.feed(token.id))
        return placed


async def run_choices(choices: Sequence[Choice], emit: Callable[[Choice, Piece], Awaitable[None]]) -> None:
    """Runs all choices at once; each piece is emitted when it comes. However it ends, no choice is left generating.

    Raises:
      Exception: what the first choice to fail has raised.
    """

    async def run(choice: Choice) -> None:
        async for piece in choice.pieces():
            await emit(choice, piece)

    try:
        async with asyncio.TaskGroup() as group:
            for choice in choices:
                group.create_task(run(choice))
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    finally:
        for choice in choices:
            choice.cancel()
