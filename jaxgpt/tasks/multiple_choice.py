"""Questions with choices, answered by one letter: the prompt, and a task of them.

The letter stands after its choice, and without a space before it, so the token that is answered is the token that the
prompt holds; small models bind it better.

Reference: nanochat c6abcdf, tasks/common.py render_mc.
"""

from collections.abc import Sequence

from jaxgpt.errors import require
from jaxgpt.tasks.task import Conversation


def ask(question: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    """The text of the user."""
    lines = "".join(f"- {choice}={letter}\n" for letter, choice in zip(letters, choices, strict=True))
    return f"Multiple Choice question: {question}\n{lines}\nRespond only with the letter of the correct answer."


def choose(question: str, letters: Sequence[str], choices: Sequence[str], answer: str) -> dict[str, object]:
    """A conversation whose answer is a bare letter, with the problem's `letters`.

    Raises:
      InputError: the answer is none of the letters.
    """
    require(answer in letters, f"answer {answer!r} is none of {', '.join(letters)}; the row is damaged")
    messages = [
        {"role": "user", "content": ask(question, letters, choices)},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "letters": tuple(letters)}


def is_letter_right(conversation: Conversation, text: str) -> bool:
    """Whether a letter is the reference's.

    Raises:
      AssertionError: it is none of the problem's letters; an evaluation chooses among them.
    """
    assert text in conversation["letters"], (text, conversation["letters"])
    return text == conversation["messages"][-1]["content"]
