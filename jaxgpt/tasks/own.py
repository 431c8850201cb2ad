"""Conversations of one's own: a file of JSON lines, each a list of messages. How a model learns who it is.

Reference: nanochat c6abcdf, tasks/customjson.py; there a missing file is an empty task, here it is an error.
"""

import json
from pathlib import Path

from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded
from jaxgpt.tasks.task import Conversation, Task, check_messages

LIMIT_BYTES = 1 << 30


def own_conversations(path: Path) -> Task:
    """The conversations of a file, in its order. Each line is a list of messages, or {"messages": list}.

    Raises:
      InputError: the file is missing or empty, or a line is not a conversation; names the line.
    """
    try:
        content = read_bounded(path, LIMIT_BYTES)
    except OSError as error:
        raise InputError(
            f"conversations {path} cannot be read ({error.strerror}); give a file of JSON lines"
        ) from error
    rows: list[Conversation] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            rows.append({"messages": check_messages(value["messages"] if isinstance(value, dict) else value)})
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        except (ValueError, KeyError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is not a list of messages in JSON; correct it") from error
    if not rows:
        raise InputError(f"conversations {path} has no line; give at least one conversation")
    return Task(path.stem, rows, lambda row: row)
