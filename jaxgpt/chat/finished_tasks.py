"""The finished tasks of one evaluation, in a JSON file, so that an interrupted evaluation continues."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded, write_atomically

LIMIT_BYTES = 256 << 20


class Finished(Protocol):
    """A dataclass of JSON values."""

    @property
    def name(self) -> str: ...

    @property
    def answers(self) -> str:
        """A digit for each item; 1: right."""
        ...


T = TypeVar("T", bound=Finished)


@dataclass(frozen=True)
class FinishedTasks(Generic[T]):
    """
    Attributes:
      path: the file, which need not exist.
      facts: what the answers depend on: model, weights, number of items, ... Those of other facts are not taken.
      make: the class of a finished task.
    """

    path: Path
    facts: Mapping[str, Any]
    make: Callable[..., T]

    def read(self) -> dict[str, T]:
        """Finished tasks by name.

        Raises:
          InputError: the file holds something else, or an evaluation of other facts.
        """
        if not self.path.exists():
            return {}
        try:
            found = json.loads(read_bounded(self.path, LIMIT_BYTES))
            facts, tasks = found["facts"], [self.make(**task) for task in found["tasks"]]
            is_good = all(task.answers and set(task.answers) <= {"0", "1"} for task in tasks)
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise InputError(f"{self.path} is no record of an evaluation: {error}; remove it") from error
        differing = [name for name in {**self.facts, **facts} if self.facts.get(name) != facts.get(name)]
        if differing or not is_good:
            was = ", ".join(f"{name} was {facts.get(name)!r:.20}" for name in differing) or "a task is damaged"
            raise InputError(f"{self.path} holds another evaluation ({was}); move it away, or choose another --out")
        return {task.name: task for task in tasks}

    def write(self, tasks: Sequence[T]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"facts": dict(self.facts), "tasks": [dataclasses.asdict(task) for task in tasks]}  # pyright: ignore[reportArgumentType]
        write_atomically(self.path, json.dumps(content, indent=1) + "\n")
