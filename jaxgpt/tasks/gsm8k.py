"""GSM8K: word problems whose answers call a calculator and end with "#### number" (arXiv:2110.14168)."""

import re
from collections.abc import Sequence
from typing import Any

from jaxgpt.errors import InputError
from jaxgpt.tasks.hub_files import HubSplit
from jaxgpt.tasks.task import Conversation, Shuffled, Task

COLUMNS = ("question", "answer")
SPLITS = {
    "train": HubSplit("openai/gsm8k", "main", "train", COLUMNS, 7_473),
    "test": HubSplit("openai/gsm8k", "main", "test", COLUMNS, 1_319),
}
_CALL = re.compile(r"(<<[^>]+>>)")
_NUMBER = re.compile(r"#### (-?[0-9.,]+)", re.ASCII)


def gsm8k(rows: Sequence[Any]) -> Task:
    """The rows in nanochat's order."""
    return Task("GSM8K", Shuffled(rows), converse, kind="generated", judge=is_number_right)


def converse(row: Any) -> Conversation:
    """A question, and its answer in parts: texts, calls <<expression=result>> as python and python_output."""
    parts = []
    for piece in _CALL.split(row["answer"]):
        if _CALL.fullmatch(piece):
            call, _, result = piece[2:-2].rpartition("=")
            call, result = (call, result) if "=" in piece else (result, "")
            parts += [{"type": "python", "text": call}, {"type": "python_output", "text": result}]
        elif piece:
            parts.append({"type": "text", "text": piece})
    return {
        "messages": [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": parts},
        ]
    }


def find_number(text: str) -> str | None:
    """The first number after "#### ", without commas, as text; None where there is none. "5." and "5" differ."""
    found = _NUMBER.search(text)
    return found[1].replace(",", "") if found else None


def is_number_right(conversation: Conversation, text: str) -> bool:
    """Whether a text gives the number of the reference, compared as text.

    Raises:
      InputError: the reference's last part has no number.
    """
    reference = find_number(conversation["messages"][-1]["content"][-1]["text"])
    if reference is None:
        raise InputError("the reference does not end with '#### number'; the row is damaged")
    return find_number(text) == reference
