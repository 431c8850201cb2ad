"""Conversations that are always available: questions about Python's library, and about who answers.

    What does os.path.isabs do?      Test whether a path is absolute
    Who are you?                     I am a small language model, trained with jaxgpt.

The answers about Python are the first sentences of docstrings of the interpreter's own files, so they differ a little
from version to version. With the sums (sums.py) they are what a model learns that is trained on a CPU in minutes.
"""

import functools
import itertools
import re
import sysconfig
from pathlib import Path
from typing import Any, Literal

from jaxgpt.data.pydocs import python_docs
from jaxgpt.tasks.task import Conversation, Shuffled, Task

N_TEST = 200
MAX_CHARS = 100
"""Longer first sentences are left out."""
QUESTIONS = ("What does {name} do?", "What is {name}?", "Explain {name}.", "Tell me about {name}.")
GREETINGS = ("", "Hi! ", "Hello. ", "Hey, ", "Good morning! ")
WHO = {
    "Who are you?": "I am a small language model, trained with jaxgpt.",
    "What is your name?": "I have no name. I am a small language model, trained with jaxgpt.",
    "What are you?": "I am a small language model, trained with jaxgpt.",
    "Who made you?": "I was trained with jaxgpt, on the documentation of Python.",
    "How were you trained?": "I was trained with jaxgpt, on the documentation of Python.",
    "What do you know?": "I have read the documentation of Python, and I can add numbers.",
    "What can you do?": "I have read the documentation of Python, and I can add numbers.",
    "Are you a human?": "No, I am a small language model, trained with jaxgpt.",
    "Are you a large model?": "No, I am a small language model, trained with jaxgpt.",
    "Do you make mistakes?": "Yes, often. I am a small language model.",
}


def python_talk(split: Literal["train", "test"]) -> Task:
    """Questions about functions, classes and modules; the last 200 are the test.

    Raises:
      InputError: the interpreter has no sources.
    """
    facts = _facts()
    task = Task("Python", facts, _ask, kind="talk")
    n_train = len(facts) - N_TEST
    return task.view(0, n_train) if split == "train" else task.view(n_train)


def identity() -> Task:
    """50 questions about who answers."""
    rows = Shuffled([(greeting, *pair) for greeting, pair in itertools.product(GREETINGS, WHO.items())])
    return Task("Identity", rows, lambda row: _talk(row[0] + row[1], row[2]))


def _talk(question: str, answer: str) -> Conversation:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _ask(row: Any) -> Conversation:
    name, sentence = row
    return _talk(QUESTIONS[sum(name.encode()) % len(QUESTIONS)].format(name=name), sentence)


@functools.cache
def _facts() -> list[tuple[str, str]]:
    """Name and first sentence, in the order of the documents, which is that of a hash."""
    found = []
    for document in python_docs(Path(sysconfig.get_path("stdlib"))):
        name, _, text = document.partition("\n\n")
        sentence = " ".join(re.split(r"\n\s*\n|(?<=\.)\s", text.strip(), maxsplit=1)[0].split())
        if re.fullmatch(r"[A-Za-z_][\w.]*", name) and 8 <= len(sentence) <= MAX_CHARS:
            found.append((name, sentence))
    return found
