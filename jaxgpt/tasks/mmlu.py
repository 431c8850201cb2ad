"""MMLU: 57 subjects, four choices (arXiv:2009.03300); nanochat trains on its auxiliary_train and tests on test."""

from collections.abc import Sequence
from typing import Any

from jaxgpt.errors import require
from jaxgpt.tasks.hub_files import HubSplit
from jaxgpt.tasks.multiple_choice import choose, is_letter_right
from jaxgpt.tasks.task import Conversation, Shuffled, Task

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("question", "choices", "answer", "subject")
SPLITS = {
    "auxiliary_train": HubSplit("cais/mmlu", "all", "auxiliary_train", COLUMNS, 99_842),
    "test": HubSplit("cais/mmlu", "all", "test", COLUMNS, 14_042),
}


def mmlu(rows: Sequence[Any]) -> Task:
    """The rows in nanochat's order. The hub's other layout, each row inside a column `train`, is read too."""
    return Task("MMLU", Shuffled(rows), converse, kind="letter", judge=is_letter_right, baseline=0.25)


def converse(row: Any) -> Conversation:
    row = row["train"] if set(row) == {"train"} else row
    choices, answer = row["choices"], row["answer"]
    require(len(choices) == 4, f"{len(choices)} choices, not 4; the row is damaged")
    require(isinstance(answer, int) and 0 <= answer < 4, f"answer {answer!r} is not 0 to 3; the row is damaged")
    return {**choose(row["question"], LETTERS, choices, LETTERS[answer]), "subject": row["subject"]}
