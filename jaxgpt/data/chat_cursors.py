"""Cursors of conversations: where each lane resumes, as untrusted JSON from a checkpoint, checked.

A cursor has the settings of its reader, how many conversations its lane took, which of them are in a buffer or half
in a row (they are rendered again), and what was counted.
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any

from jaxgpt.data.chat_packing import N_BUFFER, Counts
from jaxgpt.data.cursor_checks import check_count, damaged, require_format, require_lanes, require_objects, show
from jaxgpt.errors import InputError

FORMAT = 1


@dataclass(frozen=True)
class ChatStart:
    """A cursor that has been checked.

    Attributes:
      n_taken: conversations that the lane took.
      held: indices of those that are needed again.
      token: in a stream, where in the first of them the next row begins.
      counts: from the start of the run.
    """

    n_taken: int = 0
    held: tuple[int, ...] = ()
    token: int = 0
    counts: Counts = field(default_factory=Counts)


def check_chat_cursors(cursors: Any, head: dict[str, Any], n_conversations: int) -> list[ChatStart]:
    """Where each lane begins.

    Args:
      cursors: of all lanes, by lane.
      head: the fields that each of them must have in common with this run.

    Raises:
      InputError: they are damaged, of another run, or of other conversations.
    """
    require_objects(cursors)
    for cursor in cursors.values():
        if cursor.get("kind") != head["kind"]:
            raise InputError("data cursor: the checkpoint was trained on text, not on conversations; start a new run")
        require_format(cursor, head["format"])
        for name in head.keys() - {"format", "kind", "data"}:
            there, here = cursor.get(name), head[name]
            if type(there) is not type(here) or there != here:
                raise InputError(
                    f"{name}={here}, the checkpoint was written with {show(there)}; set {name}={show(there)}, or "
                    "start a new run"
                )
        if cursor.get("data") != head["data"]:
            raise InputError(
                "the conversations or the tokenizer changed since the checkpoint was written; restore the old files, "
                "or start a new run"
            )
    require_lanes(cursors, head["n_lanes"])
    return [_check_cursor(cursors[str(lane)], lane, head, n_conversations) for lane in range(head["n_lanes"])]


def _check_cursor(cursor: dict[str, Any], lane: int, head: dict[str, Any], n_conversations: int) -> ChatStart:
    count = functools.partial(check_count, lane)
    own = {"lane", "n_conversations", "n_taken", "held", "token", "counts"}
    if set(cursor) != head.keys() | own:
        raise damaged(f"lane {lane}: its fields are {show(sorted(map(str, cursor)))}")
    if count(cursor["lane"], "lane") != lane or count(cursor["n_conversations"], "n_conversations") != n_conversations:
        raise damaged(f"lane {lane}: it is of lane {cursor['lane']} and {cursor['n_conversations']} conversations")
    n_taken, held, counts = count(cursor["n_taken"], "n_taken"), cursor["held"], cursor["counts"]
    n_most = {"stream": 1, "rows": 0, "best_fit": N_BUFFER}[head["packing"]]
    if not isinstance(held, list) or len(held) > n_most:
        raise damaged(f"lane {lane}: held={show(held)} is no list of up to {n_most}")
    for index in held:
        count(index, "held", lane + n_taken * head["n_lanes"])
        if index % head["n_lanes"] != lane or held.count(index) > 1:
            raise damaged(f"lane {lane}: held={index} is not one of the lane's, or occurs twice")
    names = {item.name for item in dataclasses.fields(Counts)}
    if not isinstance(counts, dict) or set(counts) != names:
        raise damaged(f"lane {lane}: counts={show(counts)}")
    checked = Counts(**{name: count(counts[name], name) for name in names})
    return ChatStart(n_taken, tuple(held), count(cursor["token"], "token"), checked)
