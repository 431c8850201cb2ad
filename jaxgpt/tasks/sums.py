"""Sums of two numbers, worked out by the calculator in one step: what a tiny model can learn from its own answers.

    What is 7 + 12?      <<7+12=19>> #### 19

All pairs of numbers below 30 in one shuffled order; the last hundred are the test. Nothing is fetched.
"""

import itertools
from typing import Any, Literal

from jaxgpt.tasks.gsm8k import is_number_right
from jaxgpt.tasks.task import Conversation, Shuffled, Task

N_NUMBERS = 30
N_TEST = 100


def sums(split: Literal["train", "test"]) -> Task:
    """800 sums to train on, or 100 others; GSM8K's rule judges the answers."""
    pairs = Shuffled(list(itertools.product(range(N_NUMBERS), repeat=2)))
    task = Task("Sums", pairs, converse, kind="generated", judge=is_number_right)
    n_train = len(pairs) - N_TEST
    return task.view(0, n_train) if split == "train" else task.view(n_train)


def converse(row: Any) -> Conversation:
    """A question, and its answer in parts: a call of the calculator, its output, and the number."""
    a, b = row
    parts = [
        {"type": "python", "text": f"{a}+{b}"},
        {"type": "python_output", "text": str(a + b)},
        {"type": "text", "text": f"#### {a + b}"},
    ]
    return {
        "messages": [{"role": "user", "content": f"What is {a} + {b}?"}, {"role": "assistant", "content": parts}],
    }
