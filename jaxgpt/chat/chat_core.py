"""ChatCORE: one number for the tasks of a chat model, 0 for guessing and 1 for perfection.

It is the mean over the tasks of (accuracy - baseline) / (1 - baseline), and exists only where all tasks were run. There
are two of them: nanochat of 2025 has six tasks, of 2026 five, without SpellingBee. A model near 1 on SpellingBee gains
about .15, so the two cannot be compared.

Reference: nanochat c6abcdf and 92d63d4, scripts/chat_eval.py.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

Era = Literal["2025", "2026"]
BASELINES = {
    "ARC-Easy": 0.25, "ARC-Challenge": 0.25, "MMLU": 0.25, "GSM8K": 0.0, "HumanEval": 0.0, "SpellingBee": 0.0,
}  # fmt: skip
"""Accuracy of guessing."""
LETTER_TASKS = ("ARC-Easy", "ARC-Challenge", "MMLU")
ERA_TASKS: dict[Era, tuple[str, ...]] = {
    "2025": (*LETTER_TASKS, "GSM8K", "HumanEval", "SpellingBee"),
    "2026": (*LETTER_TASKS, "GSM8K", "HumanEval"),
}


def centre(task: str, accuracy: float) -> float:
    """Accuracy moved so that guessing is 0."""
    return (accuracy - BASELINES[task]) / (1 - BASELINES[task])


def era_of(names: Iterable[str]) -> Era | None:
    """The era whose tasks are all among these; None where there is none."""
    run = set(names)
    return next((era for era, tasks in ERA_TASKS.items() if run.issuperset(tasks)), None)


def chat_core(accuracies: Mapping[str, float], era: Era) -> float | None:
    """ChatCORE from accuracies by task; None where one of the era's tasks was not run."""
    return _mean(accuracies, ERA_TASKS[era])


def chat_core_letters(accuracies: Mapping[str, float]) -> float | None:
    """The same over the three tasks that are answered by a letter, which nanochat of 2026 logs while training."""
    return _mean(accuracies, LETTER_TASKS)


def _mean(accuracies: Mapping[str, float], tasks: tuple[str, ...]) -> float | None:
    if any(task not in accuracies for task in tasks):
        return None
    return sum(centre(task, accuracies[task]) for task in tasks) / len(tasks)
