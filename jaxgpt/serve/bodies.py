"""The bodies of requests, checked: OpenAI's fields, plus `top_k`. A field that is not served is refused by its name.

Source: OpenAI's API reference; which fields its client sends, read from openai-python 3.57.0.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from jaxgpt.serve.faults import bad_request

N_CHOICES = 16
N_PROMPTS = 128
N_STOPS = 4
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Body(BaseModel):
    """Of any JSON object here: types are not converted, unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Body):
    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """What one side says. The fields that are always null are those that clients send back with an answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = Field(default=None, max_length=0)

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(Body):
    type: Literal["text"]


class Sampling(Body):
    """What both kinds of completion have. `user`, `metadata` and `store` change nothing in an answer."""

    model: str = Field(min_length=1)
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=N_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=N_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=1024)
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def n_choices(self) -> int:
        return self.n or 1

    @property
    def has_usage_chunk(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _check_stream_options(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: TextFormat | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; give one")
        if self.max_tokens == 0:
            raise ValueError("max_tokens=0 is below 1")
        return self


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1, le=N_CHOICES)] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One text or one list of ids each."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        is_ids = bool(self.prompt) and isinstance(self.prompt[0], int)
        return [self.prompt] if is_ids else self.prompt  # pyright: ignore[reportReturnType]

    @property
    def n_drawn(self) -> int:
        """Texts per prompt that are generated, of which the `n_choices` most likely are answered."""
        return self.best_of or self.n_choices

    @model_validator(mode="after")
    def _check_prompt(self) -> "CompletionBody":
        if not 1 <= len(self.prompts) <= N_PROMPTS:
            raise ValueError(f"prompt holds {len(self.prompts)} prompts, not 1 to {N_PROMPTS}")
        if any(isinstance(prompt, list) and not prompt for prompt in self.prompts):
            raise ValueError("prompt holds an empty list of ids")
        if self.n_drawn < self.n_choices:
            raise ValueError(f"best_of={self.best_of} is below n={self.n}")
        if self.n_drawn > self.n_choices and self.stream:
            raise ValueError(f"best_of={self.best_of} is above n={self.n_choices}, which cannot be streamed")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens=0 needs echo=true")
        return self


AnyBody = TypeVar("AnyBody", ChatBody, CompletionBody)
FIELDS = {name for body in (ChatBody, CompletionBody, ChatMessage, TextPart) for name in body.model_fields}


def read_body(kind: type[AnyBody], data: bytes) -> AnyBody:
    """The request in a body of JSON.

    Raises:
      ApiError: 400, which names the first field at fault.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    param = _path(first["loc"], is_unknown=first["type"] == "extra_forbidden")
    if first["type"] == "extra_forbidden":
        raise bad_request(f"{param} is not supported; leave it out", param)
    message = first["msg"].removeprefix("Value error, ")
    raise bad_request(f"{param}: {message}" if param else message, param or None)


def _path(places: tuple[int | str, ...], *, is_unknown: bool) -> str:
    """Such as messages[0].content; pydantic also names the branch of a union, which is no field."""
    path = ""
    for i, place in enumerate(places):
        if isinstance(place, int):
            path += f"[{place}]"
        elif place in FIELDS or (is_unknown and i == len(places) - 1):
            path += f".{place[:64]}" if path else place[:64]
    return path
