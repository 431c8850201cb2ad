"""Questions that are answered by a letter: the most likely of the problem's own letters, nothing sampled.

Prompts are rendered up to the assistant's start token and padded at their end; the logits at the last real place are
compared among the letters, each of which has to be a single token. The first of equal ones wins.

Reference: nanochat c6abcdf scripts/chat_eval.py run_categorical_eval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxgpt.data.conversations import MAX_TOKENS, render_for_completion
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError, require
from jaxgpt.tasks.task import Conversation, Task

CHUNK_PROBLEMS = 512
"""Prompts in memory at a time."""


class NextLogits(Protocol):
    """A model as this evaluation sees it, such as a `SpanScorer`.

    Attributes:
      max_tokens: of a prompt.
    """

    max_tokens: int

    def next_logits(self, prompts: Sequence[np.ndarray], choices: Sequence[Sequence[int]]) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class CategoricalResult:
    """Answers of one task.

    Attributes:
      letters: the model's, by problem.
      answers: a digit for each problem; 1: right.
      n_cropped: prompts longer than the model's context, of which the last tokens were kept.
    """

    name: str
    letters: tuple[str, ...]
    answers: str
    n_cropped: int

    @property
    def accuracy(self) -> float:
        return self.answers.count("1") / len(self.answers)


def evaluate_categorical(
    task: Task,
    model: NextLogits,
    tokenizer: Tokenizer,
    *,
    max_problems: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> CategoricalResult:
    """Asks the first `max_problems` problems of a task of kind letter (0: all).

    Args:
      on_progress: receives problems done and problems in all.

    Raises:
      InputError: the task has no problem, a letter is not one token, or the tokenizer lacks a control token.
    """
    assert task.kind == "letter", (task.name, task.kind)
    n_problems = min(len(task), max_problems or len(task))
    require(n_problems > 0, f"{task.name} has no problem to answer; give a task that has rows")
    letters, answers, n_cropped = [], "", 0
    for first in range(0, n_problems, CHUNK_PROBLEMS):
        problems = [task[i] for i in range(first, min(first + CHUNK_PROBLEMS, n_problems))]
        prompts = [render_for_completion(problem, tokenizer, MAX_TOKENS) for problem in problems]
        n_cropped += sum(len(prompt) > model.max_tokens for prompt in prompts)
        choices = [letter_ids(problem, tokenizer) for problem in problems]
        logits = model.next_logits([prompt[-model.max_tokens :] for prompt in prompts], choices)
        for problem, logits_C in zip(problems, logits, strict=True):
            letters.append(problem["letters"][int(np.argmax(logits_C))])
            answers += str(int(task.judge(problem, letters[-1])))
        if on_progress:
            on_progress(len(letters), n_problems)
    return CategoricalResult(task.name, tuple(letters), answers, n_cropped)


def letter_ids(problem: Conversation, tokenizer: Tokenizer) -> list[int]:
    """The ids of a problem's letters.

    Raises:
      InputError: a letter is not one token.
    """
    ids = [tokenizer.encode(letter) for letter in problem["letters"]]
    for letter, tokens in zip(problem["letters"], ids, strict=True):
        if len(tokens) != 1:
            raise InputError(
                f"the letter {letter!r} is {len(tokens)} tokens of the {tokenizer.name} tokenizer, not one; "
                "evaluate a model whose tokenizer has it"
            )
    return [tokens[0] for tokens in ids]
