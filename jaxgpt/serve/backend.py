"""What the server asks of whatever generates: a request goes in and never waits, tokens come out one by one.

The server lives on one event loop, an engine on threads. `ThreadStream` is the bridge that an engine fills. Imports no
JAX, so that the request layer starts, and is tested, without a model.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from jaxgpt.data.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


class Token(NamedTuple):
    """A token that was generated, or one of the prompt where the prompt is scored.

    Attributes:
      logprob: natural logarithm of its probability under the model, at temperature 1 and before top_k, top_p and
        biases; None where it was not asked for, and for the first token of a prompt.
      top: the most likely ids here with their logprobs, best first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Settings:
    """How one text is generated. The server has checked the ranges, and that prompt and max_tokens fit the context.

    Attributes:
      max_tokens: tokens after the prompt, forced ones among them; 0: only the prompt is scored.
      temperature, top_p, top_k, seed, sample: as in `jaxgpt.inference.request.Request`.
      stop_ids: each ends the text and is not yielded.
      has_tools: whether the model's calls of its tools are answered.
      n_logprobs: None: no logprobs; 0: that of each token; k: and those of the k most likely.
      is_prompt_scored: the tokens of the prompt are yielded first.
      presence_penalty, frequency_penalty: subtracted from the logit of an id that was generated already: once, and
        once per occurrence.
      logit_bias: id -> what is added to its logit.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    sample: int = 0
    stop_ids: tuple[int, ...] = ()
    has_tools: bool = False
    n_logprobs: int | None = None
    is_prompt_scored: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


class QueueFull(Exception):
    """No more requests can wait; asking again later can work."""


class Unsupported(Exception):
    """The backend cannot do this. `name` is the field of `Settings`."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class BrokenModel(Exception):
    """The model cannot continue this text. The message is for the client."""


class Stream(Protocol):
    """The tokens of one text, on the event loop that submitted it. The iterator raises what went wrong."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended: a stop id, or max_tokens. None before its end."""

    def __aiter__(self) -> AsyncIterator[Token]: ...

    def cancel(self) -> None:
        """Nobody reads on: the slot is free within one step. Any number of times, also after the end."""


class Backend(Protocol):
    """A model that generates for many at once."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""
        ...

    @property
    def model_name(self) -> str:
        """What clients call it."""
        ...

    @property
    def n_context(self) -> int:
        """The most tokens that a prompt and its continuation have."""
        ...

    @property
    def n_capacity(self) -> int:
        """Texts that can be generated or wait at one time."""
        ...

    @property
    def is_chat(self) -> bool:
        """Whether it knows turns of a conversation."""
        ...

    @property
    def n_active(self) -> int:
        """Texts that are being generated."""
        ...

    @property
    def n_waiting(self) -> int:
        """Texts that wait for a slot."""
        ...

    def submit(self, prompt_ids: Sequence[int], settings: Settings) -> Stream:
        """Queues a request, from the event loop's thread. Returns at once.

        Raises:
          QueueFull: too many wait.
          Unsupported: it cannot do something that the settings ask for.
        """
        ...

    def close(self) -> None:
        """Ends what is being generated, and the threads."""


class ThreadStream:
    """A `Stream` that another thread fills. Made on the event loop.

    What is pushed but not read waits here: at most prompt and max_tokens of tokens.

    Attributes:
      is_cancelled: the engine looks at it between steps.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Token | FinishReason | Exception] = asyncio.Queue()
        self.finish_reason: FinishReason | None = None
        self.is_cancelled = False

    def push(self, item: Token | FinishReason | Exception) -> None:
        """A token, the reason of the end, or the fault that ended it. From any thread."""
        push_all([(self, item)])

    def put(self, item: Token | FinishReason | Exception) -> None:
        """As `push`, on the event loop itself."""
        self._queue.put_nowait(item)

    def cancel(self) -> None:
        self.is_cancelled = True

    def __aiter__(self) -> "ThreadStream":
        return self

    async def __anext__(self) -> Token:
        if self.finish_reason is not None:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Token):
            return item
        if isinstance(item, Exception):
            raise item
        self.finish_reason = item
        raise StopAsyncIteration


def push_all(pushes: Sequence[tuple[ThreadStream, Token | FinishReason | Exception]]) -> None:
    """Pushes to streams of one event loop, which is woken once."""
    if not pushes:
        return
    try:
        pushes[0][0].loop.call_soon_threadsafe(_put_all, pushes)
    except RuntimeError:  # the loop is closed: the server has left
        for stream, _ in pushes:
            stream.is_cancelled = True


def _put_all(pushes: Sequence[tuple[ThreadStream, Token | FinishReason | Exception]]) -> None:
    for stream, item in pushes:
        stream.put(item)
