"""From a request's messages or prompt to token ids, and the settings of what follows."""

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxgpt.data.conversations import render_for_completion
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.serve.backend import Backend, Settings
from jaxgpt.serve.bodies import ChatBody, ChatMessage, CompletionBody, Sampling
from jaxgpt.serve.faults import bad_request

COMPLETION_TOKENS = 16
"""Where max_tokens is not given, as OpenAI has it. A chat answer may fill the context."""
TOOL = re.compile(r"<\|python_start\|>(.*?)<\|python_end\|>(?:<\|output_start\|>(.*?)<\|output_end\|>)?", re.DOTALL)


class Prompt(NamedTuple):
    """What a text continues.

    Attributes:
      ids: what the model reads.
      n_hidden: ids at the beginning that the client has not written: <|bos|>.
      text: what `echo` answers.
    """

    ids: list[int]
    n_hidden: int
    text: str


def chat_prompt(body: ChatBody, backend: Backend) -> Prompt:
    """The conversation as the model was taught to read it, up to where its answer begins.

    Raises:
      ApiError: 400: roles out of order, a model that does not chat, or an answer that has no room.
    """
    if not backend.is_chat:
        raise bad_request(f"{backend.model_name} is a base model: it knows no turns; use /v1/completions", "model")
    last, place = body.messages[-1].role, f"messages[{len(body.messages) - 1}].role"
    if last != "user":
        raise bad_request(f"{place}={last} is not user; end with a question", place)
    messages = [_message(message) for message in body.messages]
    asked = {"messages": [*messages, {"role": "assistant", "content": ""}]}
    try:
        ids = render_for_completion(asked, backend.tokenizer, None).tolist()
    except InputError as error:
        raise bad_request(str(error), "messages") from error
    return Prompt(ids, len(ids), "")


def _message(message: ChatMessage) -> dict[str, Any]:
    if message.role == "assistant":
        return {"role": "assistant", "content": tool_parts(message.text)}
    return {"role": "system" if message.role == "developer" else message.role, "content": message.text}


def tool_parts(text: str) -> list[dict[str, str]]:
    """An earlier answer, in which calls of the tool were shown as text, in its parts: the model reads what it wrote.

    Only the assistant's own turn is read so. What a user types stays text.
    """
    parts, end = [], 0
    for call in TOOL.finditer(text):
        parts += [("text", text[end : call.start()]), ("python", call[1]), ("python_output", call[2])]
        end = call.end()
    parts.append(("text", text[end:]))
    return [{"type": kind, "text": part} for kind, part in parts if part] or [{"type": "text", "text": ""}]


def completion_prompts(body: CompletionBody, backend: Backend) -> list[Prompt]:
    """A prompt for each text or list of ids: <|bos|> is put in front once, nothing else is added.

    Raises:
      ApiError: 400: an id or a character that the model does not know.
    """
    return [_completion_prompt(prompt, backend.tokenizer) for prompt in body.prompts]


def _completion_prompt(prompt: str | Sequence[int], tokenizer: Tokenizer) -> Prompt:
    try:
        if isinstance(prompt, str):
            ids, text = tokenizer.encode_prompt(prompt), prompt
            n_hidden = len(ids) if not prompt else int(tokenizer.begin_of_text is not None)
            return Prompt(ids, n_hidden, text)
        text, begin = tokenizer.decode(prompt), tokenizer.begin_of_text
    except InputError as error:
        raise bad_request(f"prompt: {error}", "prompt") from error
    is_bare = begin is not None and prompt[0] != begin
    return Prompt([begin, *prompt] if is_bare else [*prompt], int(is_bare), text)  # pyright: ignore[reportArgumentType]


def settings_of(body: Sampling, prompt: Prompt, backend: Backend) -> Settings:
    """How to generate after this prompt.

    Raises:
      ApiError: 400 context_length_exceeded, or an id in logit_bias that is none.
    """
    n_prompt, n_vocab = len(prompt.ids), backend.tokenizer.vocab_size
    max_tokens, n_logprobs, is_echo = body.max_tokens, None, False
    stop_ids = backend.tokenizer.stop_ids()
    if isinstance(body, ChatBody):
        max_tokens = body.max_tokens or body.max_completion_tokens or max(backend.n_context - n_prompt, 1)
        stop_ids = (*stop_ids, backend.tokenizer.special_id("<|assistant_end|>"))
        n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    elif isinstance(body, CompletionBody):
        max_tokens = COMPLETION_TOKENS if max_tokens is None else max_tokens
        is_echo, n_logprobs = bool(body.echo and body.logprobs is not None), body.logprobs
        if body.n_drawn > body.n_choices:
            n_logprobs = n_logprobs or 0
    assert max_tokens is not None
    if n_prompt + max_tokens > backend.n_context:
        raise bad_request(
            f"the prompt has {n_prompt} tokens, with max_tokens={max_tokens} more than the context of "
            f"{backend.n_context}; shorten one of them",
            "messages" if isinstance(body, ChatBody) else "prompt",
            "context_length_exceeded",
        )
    if (body.top_k or 0) > n_vocab:
        raise bad_request(f"top_k={body.top_k} is above the vocabulary of {n_vocab}; 0 keeps all", "top_k")
    return Settings(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        seed=(secrets.randbits(32) if body.seed is None else body.seed) % 2**32,
        stop_ids=stop_ids,
        has_tools=isinstance(body, ChatBody),
        n_logprobs=n_logprobs,
        is_prompt_scored=is_echo,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_biases(body.logit_bias or {}, n_vocab),
    )


def _biases(found: Mapping[str, float], n_vocab: int) -> dict[int, float]:
    for name in found:
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < n_vocab):
            raise bad_request(f"logit_bias: {name[:20]!r} is no id below {n_vocab}", "logit_bias")
    return {int(name): bias for name, bias in found.items()}
