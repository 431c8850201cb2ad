"""CORE's 22 tasks: files, shots, baselines, the order of items, and the score. Knows no model.

CORE is the mean over its tasks of the centred accuracy, (accuracy - baseline) / (1 - baseline): 0 is guessing, 1 is
perfect (arXiv:2406.11794, DCLM). Two tables of baselines are in use. v1 is what nanochat and its leaderboard use; v2 is
DCLM's correction of September 2025, in which three tasks differ. Scores under the two cannot be compared.

References: nanochat c6abcdf scripts/base_eval.py and its eval_bundle (core.yaml); DCLM 361714b eval_meta_data.csv.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxgpt.errors import InputError, require
from jaxgpt.files import read_bounded

Kind = Literal["choices", "contexts", "continuation"]
"""Which of several continuations is likely; which of several contexts makes one continuation likely; whether the
continuation is what greedy decoding gives."""
Baselines = Literal["v1", "v2"]
COLUMNS = {
    "choices": ("query", "choices", "gold"),
    "contexts": ("context_options", "continuation", "gold"),
    "continuation": ("context", "continuation"),
}
ORDER_SEED, SHOT_SEED = 1337, 1234
LIMIT_BYTES = 1 << 30
ADDRESS = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"


@dataclass(frozen=True)
class CoreTask:
    """A task.

    Attributes:
      file: below eval_data/ of the bundle.
      n_shots: solved items that precede each question.
      delimiter: between a question and its answer.
      baselines: accuracy of guessing, (v1, v2).
    """

    name: str
    file: str
    kind: Kind
    n_shots: int
    baselines: tuple[float, float]
    delimiter: str = " "

    def baseline(self, table: Baselines) -> float:
        return self.baselines[table == "v2"]

    def centre(self, accuracy: float, table: Baselines) -> float:
        """Accuracy moved so that guessing is 0."""
        return (accuracy - self.baseline(table)) / (1 - self.baseline(table))


def _choices(name: str, path: str, n_shots: int, v1: float, v2: float | None = None, **more: str) -> CoreTask:
    return CoreTask(name, path, "choices", n_shots, (v1, v1 if v2 is None else v2), **more)


def _contexts(name: str, path: str) -> CoreTask:
    return CoreTask(name, path, "contexts", 0, (0.5, 0.5))


def _continuation(name: str, path: str, n_shots: int, **more: str) -> CoreTask:
    return CoreTask(name, path, "continuation", n_shots, (0.0, 0.0), **more)


_SENSE, _LANGUAGE, _READING = "commonsense_reasoning", "language_understanding", "reading_comprehension"
_SYMBOLS, _WORLD = "symbolic_problem_solving", "world_knowledge"
_ANSWER, _IDENTIFY = "\nAnswer: ", "bigbench_language_identification"
CORE_TASKS = (
    _choices("hellaswag_zeroshot", f"{_LANGUAGE}/hellaswag.jsonl", 0, 0.25),
    _continuation("jeopardy", f"{_WORLD}/jeopardy_all.jsonl", 10, delimiter=_ANSWER),
    _continuation("bigbench_qa_wikidata", f"{_WORLD}/bigbench_qa_wikidata.jsonl", 10),
    _choices("arc_easy", f"{_WORLD}/arc_easy.jsonl", 10, 0.25, delimiter=_ANSWER),
    _choices("arc_challenge", f"{_WORLD}/arc_challenge.jsonl", 10, 0.25, delimiter=_ANSWER),
    _choices("copa", f"{_SENSE}/copa.jsonl", 0, 0.5),
    _choices("commonsense_qa", f"{_SENSE}/commonsense_qa.jsonl", 10, 0.2, 0.403),
    _choices("piqa", f"{_SENSE}/piqa.jsonl", 10, 0.5, delimiter=_ANSWER),
    _choices("openbook_qa", f"{_SENSE}/openbook_qa.jsonl", 0, 0.25),
    _continuation("lambada_openai", f"{_LANGUAGE}/lambada_openai.jsonl", 0),
    _choices("hellaswag", f"{_LANGUAGE}/hellaswag.jsonl", 10, 0.25),
    _contexts("winograd", f"{_LANGUAGE}/winograd_wsc.jsonl"),
    _contexts("winogrande", f"{_LANGUAGE}/winogrande.jsonl"),
    _continuation("bigbench_dyck_languages", f"{_SYMBOLS}/bigbench_dyck_languages.jsonl", 10),
    _choices("agi_eval_lsat_ar", f"{_SYMBOLS}/agi_eval_lsat_ar.jsonl", 3, 0.2, 0.25),
    _continuation("bigbench_cs_algorithms", f"{_SYMBOLS}/bigbench_cs_algorithms.jsonl", 10),
    _continuation("bigbench_operators", f"{_SYMBOLS}/bigbench_operators.jsonl", 10),
    _continuation("bigbench_repeat_copy_logic", f"{_SYMBOLS}/bigbench_repeat_copy_logic.jsonl", 10),
    _continuation("squad", f"{_READING}/squad.jsonl", 10),
    _continuation("coqa", f"{_READING}/coqa.jsonl", 0),
    _choices("boolq", f"{_READING}/boolq.jsonl", 10, 0.62, delimiter=_ANSWER),
    _choices(
        "bigbench_language_identification", f"{_LANGUAGE}/bigbench_language_identification.jsonl", 10, 0.091, 0.25
    ),
)
"""In the order of nanochat's core.yaml."""


@dataclass(frozen=True)
class CoreItems:
    """Items of a task in the order in which they are evaluated.

    Attributes:
      digest: SHA-256 (hex) of the file that they were read from.
    """

    task: CoreTask
    items: Sequence[Mapping[str, Any]]
    digest: str

    def shots_of(self, i: int) -> list[Mapping[str, Any]]:
        """The solved items in front of item i. They depend on how many items there are, so a cut changes them."""
        others = [j for j in range(len(self.items)) if j != i]
        return [self.items[j] for j in random.Random(SHOT_SEED + i).sample(others, self.task.n_shots)]


def choose_tasks(directory: Path, names: Sequence[str] = ()) -> list[CoreTask]:
    """The tasks that these names mean, all whose files are there.

    Args:
      directory: an unpacked bundle, which holds eval_data/.
      names: of tasks; none: all 22. The single name "present": those whose files are there.

    Raises:
      InputError: a name is unknown, or the file of a task is missing.
    """
    known = {task.name: task for task in CORE_TASKS}
    is_there = {task.name: _path(directory, task).is_file() for task in CORE_TASKS}
    require(
        any(is_there.values()),
        f"core_data={directory} has no eval_data/ with tasks of CORE; unpack {ADDRESS} and name its directory",
    )
    if list(names) == ["present"]:
        return [task for task in CORE_TASKS if is_there[task.name]]
    unknown = [name for name in names if name not in known]
    require(not unknown, f"core_tasks={','.join(unknown)} is no task of CORE; choose among {', '.join(known)}")
    chosen = [task for task in CORE_TASKS if not names or task.name in names]
    missing = [task.file for task in chosen if not is_there[task.name]]
    require(
        not missing,
        f"core_data={directory} lacks eval_data/ {', '.join(dict.fromkeys(missing))}; fetch {ADDRESS}, or evaluate "
        "the tasks that are there with --core-tasks present",
    )
    return chosen


def read_items(directory: Path, task: CoreTask, max_items: int = 0) -> CoreItems:
    """Reads a task, shuffles it as nanochat does, and keeps the first `max_items` (0: all).

    Raises:
      InputError: the file cannot be read, a line is not such an item, or there are too few items for the shots.
    """
    path = _path(directory, task)
    try:
        content = read_bounded(path, LIMIT_BYTES)
        lines = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}; fetch {ADDRESS} again") from error
    items = [_check(line, task, f"{path} line {i + 1}") for i, line in enumerate(lines) if line.strip()]
    random.Random(ORDER_SEED).shuffle(items)
    items = items[: max_items or None]
    require(
        len(items) > task.n_shots,
        f"{task.name} keeps {len(items)} items, too few for {task.n_shots} shots and a question; raise --max-per-task",
    )
    return CoreItems(task, items, hashlib.sha256(content).hexdigest())


def core_score(accuracies: Mapping[str, float], table: Baselines) -> float:
    """The mean centred accuracy of the tasks that are given. It is CORE where these are all 22."""
    centred = [task.centre(accuracies[task.name], table) for task in CORE_TASKS if task.name in accuracies]
    return sum(centred) / len(centred)


def _path(directory: Path, task: CoreTask) -> Path:
    return directory / "eval_data" / task.file


def _check(line: str, task: CoreTask, where: str) -> Mapping[str, Any]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}; fetch the file again") from error
    columns = COLUMNS[task.kind]
    lacking = [name for name in columns if not isinstance(item, dict) or name not in item]
    require(not lacking, f"{where} has no {', '.join(lacking)}; {task.name} needs {', '.join(columns)}")
    texts = [item[name] for name in columns if name in ("query", "context", "continuation")]
    options = item.get("choices" if task.kind == "choices" else "context_options", [])
    is_good = isinstance(options, list) and all(isinstance(text, str) for text in [*texts, *options])
    if "gold" in columns:
        is_good = is_good and type(item["gold"]) is int and 0 <= item["gold"] < len(options)
    require(is_good, f"{where} has a text that is none, or a gold outside its options; fetch the file again")
    return item
