"""A task: rows of a data set seen as conversations; and several tasks in one order, shuffled or not.

Nothing is copied: a row is read and rendered when its index is asked for. Orders depend on seeds alone, so every
process computes the same one.

Reference: nanochat c6abcdf and 92d63d4, tasks/common.py (the view, Random(42)); datasets.shuffle(seed=42), which is
numpy's permutation.
"""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from jaxgpt.errors import InputError

Conversation = Mapping[str, Any]
"""messages: list of {role, content}; further keys belong to the task."""
Kind = Literal["talk", "letter", "generated"]
"""How a task is evaluated: not at all, by the most likely of its letters, or by the text that a model writes."""
SEED = 42


class Conversations(Protocol):
    """What a reader needs: a length, and a conversation for each index below it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Conversation: ...


def shuffled_order(n_rows: int, seed: int = SEED) -> np.ndarray:
    """The order int64 [n_rows] in which nanochat reads a data set of the hub."""
    return np.random.default_rng(seed).permutation(n_rows)


class Shuffled(Sequence[Any]):
    """Rows in the order of `shuffled_order`."""

    def __init__(self, rows: Sequence[Any], seed: int = SEED):
        self._rows, self.order = rows, shuffled_order(len(rows), seed)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[int(self.order[index])]


def _refuse(conversation: Conversation, text: str) -> bool:
    raise AssertionError("this task has no rule for answers")


@dataclass(frozen=True)
class Task:
    """Rows as conversations: item i is row start + i * step.

    Attributes:
      name: as in ChatCORE, and for messages.
      converse: row -> conversation; InputError where a row is not what the data set promises.
      kind: see `Kind`.
      judge: (conversation, text of the model) -> whether the answer is right. May run for seconds.
      baseline: share that guessing gets.
      start, stop, step: which rows; a stop of None is the end.
    """

    name: str
    rows: Sequence[Any]
    converse: Callable[[Any], Conversation]
    kind: Kind = "talk"
    judge: Callable[[Conversation, str], bool] = _refuse
    baseline: float = 0.0
    start: int = 0
    stop: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        n_rows = len(self.rows)
        stop = n_rows if self.stop is None else self.stop
        if not (0 <= self.start <= stop <= n_rows and self.step >= 1):
            raise InputError(
                f"{self.name}: rows {self.start} to {stop} in steps of {self.step} are not among its {n_rows} rows; "
                "choose 0 <= start <= stop <= rows and a step of 1 or more"
            )

    def __len__(self) -> int:
        stop = len(self.rows) if self.stop is None else self.stop
        return -(-(stop - self.start) // self.step)

    def __getitem__(self, index: int, /) -> Conversation:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} conversations, no index {index}")
        row = self.start + index * self.step
        try:
            return self.converse(self.rows[row])
        except InputError as error:
            raise InputError(f"{self.name}, row {row}: {error}") from error

    def view(self, start: int = 0, stop: int | None = None, step: int = 1) -> "Task":
        """The same task with other rows of the whole."""
        return dataclasses.replace(self, start=start, stop=stop, step=step)


class Mixture:
    """Conversations of several tasks in one shuffled order. A task that is given twice is seen twice.

    Attributes:
      order: int64 [rows], indices into the tasks laid end to end.
    """

    def __init__(self, tasks: Sequence[Conversations], seed: int = SEED):
        self.tasks = tuple(tasks)
        self._ends = np.cumsum([len(task) for task in self.tasks], dtype=np.int64)
        order = list(range(int(self._ends[-1]) if self.tasks else 0))
        random.Random(seed).shuffle(order)
        self.order = np.asarray(order, np.int64)
        if not order:
            raise InputError("a mixture of 0 conversations cannot be trained on; give tasks that have rows")

    def __len__(self) -> int:
        return len(self.order)

    def pair(self, index: int) -> tuple[int, int]:
        """(number of the task, index in it)."""
        return _locate(self._ends, int(self.order[index]))

    def __getitem__(self, index: int, /) -> Conversation:
        task, item = self.pair(index)
        return self.tasks[task][item]


class Chain:
    """Conversations of several tasks, one task after the other."""

    def __init__(self, tasks: Sequence[Conversations]):
        self.tasks = tuple(tasks)
        self._ends = np.cumsum([len(task) for task in self.tasks], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.tasks else 0

    def __getitem__(self, index: int, /) -> Conversation:
        if not 0 <= index < len(self):
            raise IndexError(f"{len(self)} conversations, no index {index}")
        task, item = _locate(self._ends, index)
        return self.tasks[task][item]


def _locate(ends: np.ndarray, index: int) -> tuple[int, int]:
    task = int(np.searchsorted(ends, index, side="right"))
    return task, index - (int(ends[task - 1]) if task else 0)


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages of texts that alternate from the user, after at most one of the system; copied, so that rows stay.

    Raises:
      InputError: names the message and what is wrong with it.
    """
    if not isinstance(messages, list) or not messages:
        raise InputError("messages is not a list of messages; give [{role, content}, ...]")
    checked = []
    has_system = isinstance(messages[0], Mapping) and messages[0].get("role") == "system"
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise InputError(f"message {i} has no text; give role and content, both strings")
        role = "system" if has_system and i == 0 else ("user", "assistant")[(i - has_system) % 2]
        if message.get("role") != role:
            raise InputError(f"message {i} has role {message.get('role')!r}, not {role!r}; let the roles alternate")
        checked.append({"role": role, "content": message["content"]})
    if len(checked) - has_system < 2:
        raise InputError("there is no answer; give at least one message of user and one of assistant")
    return checked
