"""CORE of a model: runs the tasks, and draws the table.

    tasks = choose_tasks(directory)
    results = evaluate_core(tasks, directory, scorer, tokenizer)
    score = core_score({result.name: result.accuracy for result in results}, "v1")

A model is anything that scores spans (`Scorer`), so this file knows no framework. An evaluation that was interrupted
continues: finished tasks are kept in a JSON file, which names the model and the data that they are of.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxgpt.chat.core_prompts import Question, ask
from jaxgpt.chat.core_tasks import CORE_TASKS, Baselines, CoreItems, CoreTask, core_score, read_items
from jaxgpt.chat.finished_tasks import FinishedTasks
from jaxgpt.chat.span import Scorer
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.run.bar import clock
from jaxgpt.run.console import working

CHUNK_ITEMS = 512
"""Items whose prompts are in memory at a time, and among which rows of similar length are found."""


@dataclass(frozen=True)
class TaskResult:
    """A finished task.

    Attributes:
      answers: a digit for each item in the order of evaluation; 1: right.
      n_cropped: items of which some prompt was longer than the model's context.
      digest: SHA-256 of the task's file.
      seconds: that it took, compilation included.
    """

    name: str
    answers: str
    n_cropped: int
    digest: str
    seconds: float

    @property
    def n_items(self) -> int:
        return len(self.answers)

    @property
    def accuracy(self) -> float:
        return self.answers.count("1") / len(self.answers)


def evaluate_core(
    tasks: Sequence[CoreTask],
    directory: Path,
    scorer: Scorer,
    tokenizer: Tokenizer,
    *,
    max_per_task: int = 0,
    record: FinishedTasks[TaskResult] | None = None,
) -> list[TaskResult]:
    """Results of the tasks, in their order. Says on stderr how far it is and how long it will take.

    Args:
      directory: the unpacked bundle; all of it is read and checked before the first task.
      max_per_task: items of each task; 0: all.
      record: finished tasks in it are not run again, where their files are the same; each new one is put into it.

    Raises:
      InputError: see `read_items`, `ask` and `FinishedTasks.read`; before the model has computed anything.
    """
    done = record.read() if record else {}
    read = [read_items(directory, task, max_per_task) for task in tasks]
    kept = [items.task.name for items in read if _is_same(done.get(items.task.name), items)]
    if kept:
        print(f"{len(kept)} of {len(tasks)} tasks are finished already; continuing", file=sys.stderr, flush=True)
    for items in read:
        ask(items.task, items.items[0], items.shots_of(0), tokenizer, scorer.max_tokens)
    to_do = [items for items in read if items.task.name not in kept]
    results = {name: result for name, result in done.items() if name in kept}
    clock_of = _Clock(sum(_work(items) for items in to_do))
    for items in to_do:
        results[items.task.name] = _run_task(items, scorer, tokenizer, clock_of)
        if record:
            record.write([*{**done, **results}.values()])
    return [results[task.name] for task in tasks]


def _is_same(result: TaskResult | None, items: CoreItems) -> bool:
    return result is not None and result.digest == items.digest and result.n_items == len(items.items)


class _Clock:
    """How much of the work is done, and when the rest will be."""

    def __init__(self, work: float):
        self._work, self._done, self._began_s = work, 0.0, time.monotonic()

    def add(self, work: float) -> None:
        self._done += work

    def eta(self, more: float = 0.0) -> str:
        done = self._done + more
        return clock((time.monotonic() - self._began_s) * (self._work - done) / done if done else None)


def _work(items: CoreItems) -> float:
    """Characters that the model will read, roughly."""
    n_chars = sum(len(str(value)) for item in items.items for value in item.values())
    options = [len(item.get("choices", item.get("context_options", "."))) for item in items.items]
    return n_chars * (items.task.n_shots + 1) * sum(options) / len(options)


def _run_task(items: CoreItems, scorer: Scorer, tokenizer: Tokenizer, clock_of: _Clock) -> TaskResult:
    task, n_items, began_s = items.task, len(items.items), time.monotonic()
    answers, n_cropped, work = "", 0, _work(items)
    with working(f"CORE, {task.name}") as pulse:
        for first in range(0, n_items, CHUNK_ITEMS):
            chunk = range(first, min(first + CHUNK_ITEMS, n_items))
            questions = [ask(task, items.items[i], items.shots_of(i), tokenizer, scorer.max_tokens) for i in chunk]

            def tell(n_spans: int, first: int = first, questions: Sequence[Question] = questions) -> None:
                share = (first + n_spans * len(questions) / sum(len(q.spans) for q in questions)) / n_items
                pulse.what = f"CORE, {task.name}, {share:.0%} of {n_items:,} items, ETA {clock_of.eta(share * work)}"

            answers += _answer(questions, scorer, tell)
            n_cropped += sum(question.is_cropped for question in questions)
    clock_of.add(work)
    result = TaskResult(task.name, answers, n_cropped, items.digest, round(time.monotonic() - began_s, 3))
    print(
        f"{task.name}: accuracy {result.accuracy:.4f}, {n_items:,} items in {clock(result.seconds)}, "
        f"ETA {clock_of.eta()}",
        file=sys.stderr,
        flush=True,
    )
    return result


def _answer(questions: Sequence[Question], scorer: Scorer, on_progress: Any) -> str:
    """A digit for each question."""
    scores = iter(scorer([span for question in questions for span in question.spans], on_progress))
    return "".join(str(int(question.is_right([next(scores) for _ in question.spans]))) for question in questions)


def as_json(results: Sequence[TaskResult], table: Baselines, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluate --core --json` prints. `core` is None unless all 22 tasks were run."""
    accuracies = {result.name: result.accuracy for result in results}
    by_name = {task.name: task for task in CORE_TASKS}
    mean = core_score(accuracies, table)
    return {
        **facts,
        "baselines": table,
        "core": mean if len(results) == len(CORE_TASKS) else None,
        "mean_centred": mean,
        "missing": [task.name for task in CORE_TASKS if task.name not in accuracies],
        "tasks": {
            result.name: {
                "accuracy": result.accuracy,
                "centred": by_name[result.name].centre(result.accuracy, table),
                "n_items": result.n_items,
                "n_cropped": result.n_cropped,
                "seconds": result.seconds,
            }
            for result in results
        },
    }


def core_table(report: Mapping[str, Any]) -> tuple[Table, list[str]]:
    """The table of `as_json`'s value, below 80 columns, and the lines under it."""
    table = Table("task")
    for name in ("items", "accuracy", "centred", "cropped"):
        table.add_column(name, justify="right")
    for name, task in report["tasks"].items():
        cells = (f"{task['n_items']:,}", f"{task['accuracy']:.4f}", f"{task['centred']:.4f}", f"{task['n_cropped']:,}")
        table.add_row(name, *cells)
    origin = {"v1": "nanochat's baselines", "v2": "DCLM's corrected baselines"}[report["baselines"]]
    lines = [f"CORE {report['mean_centred']:.6f} ({origin}, {report['baselines']})"]
    if report["core"] is None:
        lines = [
            f"mean of {len(report['tasks'])} tasks {report['mean_centred']:.6f} ({origin}, {report['baselines']}); "
            f"not CORE, since tasks are missing: {', '.join(report['missing'])}"
        ]
    n_cropped = sum(task["n_cropped"] for task in report["tasks"].values())
    if n_cropped:
        lines.append(f"{n_cropped:,} items were longer than the context; their last tokens were kept")
    return table, lines
