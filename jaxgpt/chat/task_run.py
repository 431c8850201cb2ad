"""The tasks of a chat model, as `jaxgpt evaluate --tasks` runs them, and ChatCORE.

Finished tasks are kept in a JSON file with what the model answered, so that an interrupted evaluation continues and
every figure can be looked into.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from jaxgpt.chat.categorical import evaluate_categorical
from jaxgpt.chat.chat_core import ERA_TASKS, chat_core, era_of
from jaxgpt.chat.core_run import require_tokenizer, weights_digest
from jaxgpt.chat.finished_tasks import FinishedTasks
from jaxgpt.chat.generated import Writing, engines_of, evaluate_generated
from jaxgpt.chat.span_scores import SpanScorer
from jaxgpt.errors import InputError
from jaxgpt.inference.trained import Trained
from jaxgpt.run.bar import clock
from jaxgpt.run.console import working
from jaxgpt.tasks.mixtures import CHAT_CORE, Sources
from jaxgpt.tasks.task import Task

ALL: dict[str, tuple[str, ...]] = {"all": ERA_TASKS["2025"], **ERA_TASKS}
"""What --tasks calls several tasks: those of an era; all is 2025."""


@dataclass(frozen=True)
class Answered:
    """A finished task.

    Attributes:
      baseline: share that guessing gets.
      answers: a digit for each problem; 1: right.
      texts: what the model answered, by problem and sample.
      n_cropped: prompts longer than the model's context.
      n_unfinished: answers that reached the limit of tokens; 0 for letters.
      seconds: that it took, compilation included.
    """

    name: str
    kind: Literal["letter", "generated"]
    baseline: float
    answers: str
    texts: list[list[str]]
    n_cropped: int
    n_unfinished: int
    seconds: float

    @property
    def accuracy(self) -> float:
        return self.answers.count("1") / len(self.answers)


def open_tasks(text: str, sources: Sources, flag: str = "--tasks") -> dict[str, Task]:
    """Tasks by name: "ARC-Easy|GSM8K", or others of `Sources.task` that have a rule for answers; see `ALL`.

    Args:
      flag: for messages.

    Raises:
      InputError: there is no such task, it is named twice, has no rule for answers, or its rows are not to be had.
    """
    names = ALL.get(text) or text.split("|")
    tasks = {}
    for name in names:
        if name in tasks:
            raise InputError(f"{flag}={text} names {name} twice; keep one")
        try:
            task = sources.task(CHAT_CORE.get(name, name))
        except InputError as error:
            known = ", ".join(CHAT_CORE)
            raise InputError(
                f"{flag}={text}: {error}" + (f", {known}" if "does not exist" in str(error) else "")
            ) from None
        if task.kind == "talk":
            raise InputError(f"{flag}={text}: {name} has no rule for answers; choose among {', '.join(CHAT_CORE)}")
        tasks[name] = task
    return tasks


def run_tasks(
    trained: Trained,
    tasks: Mapping[str, Task],
    *,
    writing: Writing = Writing(),  # noqa: B008 - it is frozen
    max_per_task: int = 0,
    record_path: Path | None = None,
) -> dict[str, Any]:
    """Evaluates; says on stderr how each task went.

    Args:
      max_per_task: problems of each task; 0: all.
      record_path: keeps finished tasks, and is read first; None: nothing is kept.

    Returns:
      As JSON: model, dtype, chat_core (None unless the tasks are those of an era), era, and by task accuracy, centred,
      n_problems, n_cropped, n_unfinished and seconds.

    Raises:
      InputError: the model has no tokenizer, or one without control tokens; the record is of another evaluation; see
        `evaluate_categorical` and `evaluate_generated`.
    """
    tokenizer = require_tokenizer(trained)
    tokenizer.special_id("<|assistant_start|>")
    facts = {"model": trained.origin, "dtype": trained.compute_dtype, "max_per_task": max_per_task}
    facts |= {field: value for field, value in asdict(writing).items() if field != "n_rows"}
    record = None
    if record_path:
        about = facts | {"weights": weights_digest(trained), "tokenizer": tokenizer.digest()}
        record = FinishedTasks(record_path, about, Answered)
    done = record.read() if record else {}
    done = {name: one for name, one in done.items() if name not in tasks or _is_whole(one, tasks[name], max_per_task)}
    kept = [name for name in tasks if name in done]
    if kept:
        print(f"{len(kept)} of {len(tasks)} tasks are finished already; continuing", file=sys.stderr, flush=True)
    scorer, engines = SpanScorer(trained), engines_of(trained)
    for name, task in tasks.items():
        if name in kept:
            continue
        began_s = time.monotonic()
        with working(f"evaluating on {name}") as pulse:

            def tell(n_done: int, n_all: int, name: str = name, began_s: float = began_s) -> None:
                left = (time.monotonic() - began_s) * (n_all - n_done) / n_done if n_done else None
                pulse.what = f"{name}, {n_done:,} of {n_all:,} problems, ETA {clock(left)}"

            asked = {"max_problems": max_per_task, "on_progress": tell}
            if task.kind == "letter":
                letters = evaluate_categorical(task, scorer, tokenizer, **asked)
                found = (letters.answers, [[letter] for letter in letters.letters], letters.n_cropped, 0)
            else:
                written = evaluate_generated(task, engines, tokenizer, writing, **asked)
                found = (written.answers, [*map(list, written.texts)], written.n_cropped, written.n_unfinished)
        assert task.kind != "talk"
        one = Answered(name, task.kind, task.baseline, *found, round(time.monotonic() - began_s, 3))
        done[name] = one
        print(
            f"{name}: accuracy {one.accuracy:.4f}, {len(one.answers):,} problems in {clock(one.seconds)}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        if record:
            record.write([*done.values()])
    return as_json([done[name] for name in tasks], facts)


def _is_whole(one: Answered, task: Task, max_per_task: int) -> bool:
    return len(one.answers) == min(len(task), max_per_task or len(task))


def as_json(results: Sequence[Answered], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluate --tasks --json` prints; see `run_tasks`."""
    accuracies = {one.name: one.accuracy for one in results}
    era = era_of(accuracies)
    return {
        **facts,
        "era": era,
        "chat_core": chat_core(accuracies, era) if era else None,
        "tasks": {
            one.name: {
                "accuracy": one.accuracy,
                "centred": (one.accuracy - one.baseline) / (1 - one.baseline),
                "n_problems": len(one.answers),
                "n_cropped": one.n_cropped,
                "n_unfinished": one.n_unfinished,
                "seconds": one.seconds,
            }
            for one in results
        },
    }


def task_table(report: Mapping[str, Any]) -> tuple[Table, list[str]]:
    """The table of `as_json`'s value, below 80 columns, and the lines under it."""
    table = Table("task")
    for name in ("problems", "accuracy", "centred", "cropped", "unfinished"):
        table.add_column(name, justify="right")
    for name, task in report["tasks"].items():
        scores = (f"{task['accuracy']:.4f}", f"{task['centred']:.4f}")
        table.add_row(name, f"{task['n_problems']:,}", *scores, f"{task['n_cropped']:,}", f"{task['n_unfinished']:,}")
    if report["era"] is None:
        return table, ["ChatCORE needs all tasks of an era: --tasks 2025 or --tasks 2026"]
    n_tasks = len(ERA_TASKS[report["era"]])
    return table, [f"ChatCORE {report['chat_core']:.4f} ({report['era']}, {n_tasks} tasks)"]
