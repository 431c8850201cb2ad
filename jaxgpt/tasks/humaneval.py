"""HumanEval: write the function whose signature and docstring are given (arXiv:2107.03374); judged by running it."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxgpt.tasks.hub_files import HubSplit
from jaxgpt.tasks.sandbox import Limits, run_python
from jaxgpt.tasks.task import Conversation, Shuffled, Task

COLUMNS = ("prompt", "canonical_solution", "entry_point", "test")
SPLITS = {"test": HubSplit("openai/openai_humaneval", "openai_humaneval", "test", COLUMNS, 164)}
_FENCED = re.compile(r"```(?:python)?\s*\n(.*?)\n```", re.DOTALL)


def humaneval(rows: Sequence[Any], limits: Limits | None = None, *, allow_unconfined: bool = False) -> Task:
    """The rows in nanochat's order.

    Args:
      limits, allow_unconfined: see `run_python`, which runs what the model wrote.
    """
    judge = _judge_in(limits, allow_unconfined)
    return Task("HumanEval", Shuffled(rows), converse, kind="generated", judge=judge)


def converse(row: Any) -> Conversation:
    reference = f"{row['prompt']}\n{row['canonical_solution']}"
    messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": reference}]
    return {"messages": messages, "entry_point": row["entry_point"], "test": row["test"]}


def find_code(text: str) -> str:
    """The first fenced block of an answer; without one, all of it."""
    found = _FENCED.search(text)
    return (found[1] if found else text).strip()


def find_imports(prompt: str) -> str:
    """The import lines at the head of a prompt; blank lines and comments between them are skipped."""
    lines = []
    for line in map(str.strip, prompt.splitlines()):
        if line.startswith(("import ", "from ")):
            lines.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(lines)


def build_program(conversation: Conversation, text: str) -> str:
    """What is run. The prompt is not put before the answer, so an answer must repeat the signature."""
    imports = find_imports(conversation["messages"][0]["content"])
    check = f"check({conversation['entry_point']})"
    return f"{imports}\n\n{find_code(text)}\n\n{conversation['test']}\n{check}"


def _judge_in(limits: Limits | None, allow_unconfined: bool) -> Callable[[Conversation, str], bool]:
    def judge(conversation: Conversation, text: str) -> bool:
        return run_python(build_program(conversation, text), limits, allow_unconfined=allow_unconfined).is_good

    return judge
