"""Conversations: what they are, and how they become tokens with a mask of what is trained.

    {"messages": [{"role": "system", "content": "Be brief."},
                  {"role": "user", "content": "What is 1+1?"},
                  {"role": "assistant", "content": [{"type": "python", "text": "1+1"},
                                                    {"type": "python_output", "text": "2"},
                                                    {"type": "text", "text": "It is 2."}]}]}

User and assistant alternate, the user first; a system message may precede them, and is put in front of the first user
text. Each turn lies between control tokens. Trained are the assistant's words, its calls of the tool and its end token,
not what others said and not what the tool printed. Text is only ever text: "<|assistant_end|>" that somebody typed
becomes ordinary tokens. Source: nanochat's tokenizer.py (render_conversation).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.data.tokenizer import CHAT_SPECIALS, Tokenizer
from jaxgpt.errors import InputError

MAX_TOKENS = 2048
"""Where nanochat cuts a conversation, whatever the model's context."""
PART_TOKENS = {
    "text": ("", ""),
    "python": ("<|python_start|>", "<|python_end|>"),
    "python_output": ("<|output_start|>", "<|output_end|>"),
}
"""Kinds of parts, and the control tokens around each."""
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Part:
    """A piece of a message: text, python (a call of the tool), or python_output (what the tool printed)."""

    kind: str
    text: str


@dataclass(frozen=True)
class Message:
    """What one side says. A user's or system's message has one part, of text."""

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its parts of kind text, joined."""
        return "".join(part.text for part in self.parts if part.kind == "text")

    def to_json(self) -> dict[str, Any]:
        """The inverse of reading: a string where one text is all there is."""
        is_plain = len(self.parts) == 1 and self.parts[0].kind == "text"
        parts = [{"type": part.kind, "text": part.text} for part in self.parts]
        return {"role": self.role, "content": self.text if is_plain else parts}


@dataclass(frozen=True)
class Conversation:
    """Messages that have been checked.

    Attributes:
      messages: perhaps a system message, then user and assistant in turns.
      extras: the other keys of the mapping that it was read from, such as the letters of a multiple choice.
    """

    messages: tuple[Message, ...]
    extras: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Any) -> "Conversation":
        """Checks a mapping with `messages`, which is not changed. A conversation is returned as it is.

        Raises:
          InputError: names the message and what is wrong with it.
        """
        if isinstance(value, Conversation):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f'conversation is {_kind(value)}, not an object; write {{"messages": [...]}}')
        found = value.get("messages")
        if not isinstance(found, list | tuple):
            raise InputError(f"messages is {_kind(found)}, not a list; give a list of role and content")
        messages = tuple(_read_message(message, f"messages[{i}]") for i, message in enumerate(found))
        _check_roles([message.role for message in messages])
        return cls(messages, {name: item for name, item in value.items() if name != "messages"})

    def to_json(self) -> dict[str, Any]:
        """The mapping that `read` reads."""
        return {"messages": [message.to_json() for message in self.messages], **self.extras}

    def turns(self) -> tuple[Message, ...]:
        """The messages of user and assistant; a system text stands in front of the first, with a blank line between."""
        first, *others = self.messages
        if first.role != "system":
            return self.messages
        user = Message("user", (Part("text", f"{first.text}\n\n{others[0].text}"),))
        return (user, *others[1:])


class Rendered(NamedTuple):
    """A conversation as tokens.

    Attributes:
      ids: int32 [n].
      mask: uint8 [n], of the tokens themselves: 1 is trained, as a target.
    """

    ids: np.ndarray
    mask: np.ndarray


def render(
    conversation: Conversation | Mapping[str, Any], tokenizer: Tokenizer, max_tokens: int | None = MAX_TOKENS
) -> Rendered:
    """The tokens of a conversation, and which of them are trained.

    Args:
      max_tokens: only so many are kept, and no end token is put behind the cut; the mask may then be all 0. None: all.

    Raises:
      InputError: it is malformed, or the tokenizer lacks a control token.
    """
    return cut(_render_turns(Conversation.read(conversation).turns(), tokenizer), max_tokens)


def render_for_completion(
    conversation: Conversation | Mapping[str, Any], tokenizer: Tokenizer, max_tokens: int | None = MAX_TOKENS
) -> np.ndarray:
    """The prompt that asks for a conversation's last message again: all before it, then the assistant's start token.

    Args:
      max_tokens: of what precedes the start token, which comes on top.

    Returns:
      int32 [n], n <= max_tokens + 1.

    Raises:
      InputError: as `render`; or the last message is not the assistant's.
    """
    conversation = Conversation.read(conversation)
    turns, n = conversation.turns(), len(conversation.messages)
    if turns[-1].role != "assistant":
        role = turns[-1].role
        raise InputError(f"messages[{n - 1}].role={role} is not assistant; the last message must be the answer")
    prompt = cut(_render_turns(turns[:-1], tokenizer), max_tokens).ids
    return np.append(prompt, np.int32(tokenizer.special_id("<|assistant_start|>")))


def cut(rendered: Rendered, max_tokens: int | None) -> Rendered:
    """Its first tokens; all of them where `max_tokens` is None."""
    assert max_tokens is None or max_tokens > 0, max_tokens
    return Rendered(rendered.ids[:max_tokens], rendered.mask[:max_tokens])


def require_chat_tokens(tokenizer: Tokenizer) -> None:
    """Raises InputError unless the tokenizer has the control tokens that `render` needs."""
    missing = [name for name in CHAT_SPECIALS if name not in tokenizer.specials]
    if missing:
        raise InputError(
            f"the {tokenizer.name} tokenizer has no {', '.join(missing)}; conversations need a tokenizer that "
            "`jaxgpt train_tokenizer` made, or another one with nanochat's control tokens"
        )


def _render_turns(turns: tuple[Message, ...], tokenizer: Tokenizer) -> Rendered:
    ids, mask = [tokenizer.special_id("<|bos|>")], [0]

    def add(tokens: list[int], is_trained: bool) -> None:
        ids.extend(tokens)
        mask.extend([int(is_trained)] * len(tokens))

    for turn in turns:
        is_answer = turn.role == "assistant"
        add([tokenizer.special_id(f"<|{turn.role}_start|>")], False)
        for part in turn.parts:
            tokens = tokenizer.encode(part.text)
            begin, end = PART_TOKENS[part.kind]
            if begin:
                tokens = [tokenizer.special_id(begin), *tokens, tokenizer.special_id(end)]
            add(tokens, is_answer and part.kind != "python_output")
        add([tokenizer.special_id(f"<|{turn.role}_end|>")], is_answer)
    return Rendered(np.array(ids, np.int32), np.array(mask, np.uint8))


# Reading


def _read_message(value: Any, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is {_kind(value)}, not an object; give it role and content")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{name}.role={_show(role)} is not one of {', '.join(ROLES)}; correct it")
    if isinstance(content, str):
        return Message(role, (Part("text", content),))
    if role != "assistant":
        raise InputError(f"{name}.content is {_kind(content)}, not a string; a {role} message has one text")
    if not isinstance(content, list | tuple):
        raise InputError(f"{name}.content is {_kind(content)}, not a string or a list of parts; correct it")
    return Message(role, tuple(_read_part(part, f"{name}.content[{i}]") for i, part in enumerate(content)))


def _read_part(value: Any, name: str) -> Part:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is {_kind(value)}, not an object; give it type and text")
    kind, text = value.get("type"), value.get("text")
    if not isinstance(kind, str) or kind not in PART_TOKENS:
        raise InputError(f"{name}.type={_show(kind)} is not one of {', '.join(PART_TOKENS)}; correct it")
    if not isinstance(text, str):
        raise InputError(f"{name}.text is {_kind(text)}, not a string; correct it")
    return Part(kind, text)


def _check_roles(roles: list[str]) -> None:
    if not roles:
        raise InputError("messages is empty; give at least a user message")
    n_system = roles[0] == "system"
    if roles == ["system"]:
        raise InputError("messages[0].role=system has no user message after it; add one")
    for i, role in enumerate(roles[n_system:]):
        wanted = ("user", "assistant")[i % 2]
        if role != wanted:
            rule = "only messages[0] may be the system's" if role == "system" else "user and assistant alternate"
            raise InputError(f"messages[{i + n_system}].role={role} is not {wanted}; {rule}, the user first")


def _kind(value: Any) -> str:
    return "missing (null)" if value is None else f"of type {type(value).__name__}"


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
