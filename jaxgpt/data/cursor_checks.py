"""What the cursors of all readers have in common, as untrusted JSON from a checkpoint: checks, and their messages."""

from typing import Any

from jaxgpt.errors import InputError

MOST = 1 << 53
"""Above every count that occurs, and exact in any JSON reader."""


def damaged(what: str) -> InputError:
    return InputError(f"data cursor: {what}; the checkpoint is damaged, resume from another")


def show(value: Any) -> str:
    """A value of the cursor in a message: as Python writes it, at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def require_objects(cursors: Any) -> None:
    """Raises InputError unless it is a JSON object of objects, one at least."""
    if not isinstance(cursors, dict) or not cursors or not all(isinstance(c, dict) for c in cursors.values()):
        raise damaged("it is no JSON object of cursors")


def require_format(cursor: dict[str, Any], number: int) -> None:
    """Raises InputError where another version of the code wrote it."""
    found = cursor.get("format")
    if type(found) is not int or found != number:
        raise InputError(
            f"data cursor: format={show(found)}, this code reads {number}; resume with the version that wrote the "
            "checkpoint"
        )


def require_lanes(cursors: dict[str, Any], n_lanes: int) -> None:
    """Raises InputError unless there is one cursor for each lane."""
    lanes = {str(lane) for lane in range(n_lanes)}
    if set(cursors) != lanes:
        wrong = show(sorted(set(map(str, cursors)) ^ lanes))
        raise damaged(f"{n_lanes} lanes have one cursor each; missing, or too many: {wrong}")


def check_count(lane: int, value: Any, name: str, limit: int = MOST) -> int:
    """A number of a lane's cursor; raises InputError unless it is an int in [0, limit)."""
    if type(value) is not int or not 0 <= value < limit:
        raise damaged(f"lane {lane}: {name}={show(value)} is not in [0, {limit})")
    return value
