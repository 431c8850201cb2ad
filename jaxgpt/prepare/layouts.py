"""Layouts of conversations that people have, brought to the one that `jaxgpt.data.conversations` reads.

    own      a list of messages, or {"messages": [{"role", "content"}]}; the assistant's content may have parts
    OpenAI   {"messages": [...]} as for fine-tuning: developer is system, texts in a list are joined
    ShareGPT {"conversations": [{"from": "human", "value": ...}]}

What a layout can say and this program cannot train on, such as calls of functions or images, is refused with a reason,
not dropped from the conversation.
"""

from typing import Any

from jaxgpt.data.conversations import Conversation
from jaxgpt.errors import InputError

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip
UNSUPPORTED = ("tool_calls", "function_call", "audio", "refusal")
"""Fields of OpenAI's messages that carry what a text does not."""


def conversation_of(value: Any) -> Conversation:
    """The conversation in an entry of a file.

    Raises:
      InputError: it has none, a message is malformed or says what cannot be trained, or the assistant says nothing.
    """
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise InputError(f"it is of type {type(value).__name__}, not a list of messages or an object with messages")
    if isinstance(value.get("messages"), list):
        messages = [_openai_message(message, f"messages[{i}]") for i, message in enumerate(value["messages"])]
    elif isinstance(value.get("conversations"), list):
        messages = [_sharegpt_message(turn, f"conversations[{i}]") for i, turn in enumerate(value["conversations"])]
    else:
        there = ", ".join(map(str, list(value)[:8])) or "nothing"
        raise InputError(f"it has no list named messages or conversations (it has: {there})")
    others = {name: item for name, item in value.items() if name not in ("messages", "conversations")}
    conversation = Conversation.read({"messages": messages, **others})
    if not any(message.role == "assistant" for message in conversation.messages):
        raise InputError("messages has no assistant message; nothing of it would be trained")
    return conversation


def _openai_message(message: Any, name: str) -> Any:
    if not isinstance(message, dict):
        return message  # Conversation.read says what is wrong
    for field in UNSUPPORTED:
        if message.get(field):
            raise InputError(f"{name}.{field} is set; only text can be trained")
    if message.get("weight") not in (None, 1):
        raise InputError(f"{name}.weight={str(message['weight'])[:40]} is not 1; every answer is trained alike")
    role, content = message.get("role"), message.get("content")
    role = "system" if role == "developer" else role
    if role in ("system", "user") and isinstance(content, list):
        content = "".join(_text_part(part, f"{name}.content[{i}]") for i, part in enumerate(content))
    return {"role": role, "content": content}


def _text_part(part: Any, name: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(text, str):
        raise InputError(f"{name}.type={str(kind)[:40]} is no text; only text can be trained")
    return text


def _sharegpt_message(turn: Any, name: str) -> dict[str, Any]:
    speaker = turn.get("from") if isinstance(turn, dict) else None
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise InputError(f"{name}.from={str(speaker)[:40]} is not one of {', '.join(SHAREGPT_ROLES)}")
    return {"role": SHAREGPT_ROLES[speaker], "content": turn.get("value")}
