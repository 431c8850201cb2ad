"""ARC: science questions of schools, Easy and Challenge (arXiv:1803.05457). Each row brings its letters, A-E or 1-4."""

from collections.abc import Sequence
from typing import Any, Literal

from jaxgpt.tasks.hub_files import HubSplit
from jaxgpt.tasks.multiple_choice import choose, is_letter_right
from jaxgpt.tasks.task import Conversation, Shuffled, Task

Subset = Literal["ARC-Easy", "ARC-Challenge"]
COLUMNS = ("question", "choices", "answerKey")
SPLITS = {
    (subset, split): HubSplit("allenai/ai2_arc", subset, split, COLUMNS, n_rows)
    for subset, split, n_rows in (
        ("ARC-Easy", "train", 2_251),
        ("ARC-Easy", "test", 2_376),
        ("ARC-Challenge", "train", 1_119),
        ("ARC-Challenge", "test", 1_172),
    )
}


def arc(subset: Subset, rows: Sequence[Any]) -> Task:
    """The rows in nanochat's order."""
    return Task(subset, Shuffled(rows), converse, kind="letter", judge=is_letter_right, baseline=0.25)


def converse(row: Any) -> Conversation:
    choices = row["choices"]
    return choose(row["question"], choices["label"], choices["text"], row["answerKey"])
