"""Cursors of conversations: where each lane resumes, as untrusted JSON from a checkpoint, checked.

A cursor has the settings of its reader, how many conversations its lane took, which of them are in a buffer or half
in a row (they are rendered again), and what was counted.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from jaxgpt.data.chat_packing import N_BUFFER, Counts
from jaxgpt.errors import InputError

FORMAT = 1
_MOST = 1 << 53


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
    if not isinstance(cursors, dict) or not cursors or not all(isinstance(c, dict) for c in cursors.values()):
        raise _damaged("it is no JSON object of cursors")
    for cursor in cursors.values():
        if cursor.get("kind") != head["kind"]:
            raise InputError("data cursor: the checkpoint was trained on text, not on conversations; start a new run")
        if type(cursor.get("format")) is not int or cursor["format"] != head["format"]:
            raise InputError(
                f"data cursor: format={_show(cursor.get('format'))}, this code reads {head['format']}; "
                "resume with the version that wrote the checkpoint"
            )
        for name in head.keys() - {"format", "kind", "data"}:
            there, here = cursor.get(name), head[name]
            if type(there) is not type(here) or there != here:
                raise InputError(
                    f"{name}={here}, the checkpoint was written with {_show(there)}; set {name}={_show(there)}, or "
                    "start a new run"
                )
        if cursor.get("data") != head["data"]:
            raise InputError(
                "the conversations or the tokenizer changed since the checkpoint was written; restore the old files, "
                "or start a new run"
            )
    lanes = [str(lane) for lane in range(head["n_lanes"])]
    if set(cursors) != set(lanes):
        wrong = _show(sorted(set(map(str, cursors)) ^ set(lanes)))
        raise _damaged(f"{head['n_lanes']} lanes have one cursor each; missing, or too many: {wrong}")
    return [_check_cursor(cursors[str(lane)], lane, head, n_conversations) for lane in range(head["n_lanes"])]


def _check_cursor(cursor: dict[str, Any], lane: int, head: dict[str, Any], n_conversations: int) -> ChatStart:
    def count(value: Any, name: str, limit: int = _MOST) -> int:
        if type(value) is not int or not 0 <= value < limit:
            raise _damaged(f"lane {lane}: {name}={_show(value)} is not in [0, {limit})")
        return value

    own = {"lane", "n_conversations", "n_taken", "held", "token", "counts"}
    if set(cursor) != head.keys() | own:
        raise _damaged(f"lane {lane}: its fields are {_show(sorted(map(str, cursor)))}")
    if count(cursor["lane"], "lane") != lane or count(cursor["n_conversations"], "n_conversations") != n_conversations:
        raise _damaged(f"lane {lane}: it is of lane {cursor['lane']} and {cursor['n_conversations']} conversations")
    n_taken, held, counts = count(cursor["n_taken"], "n_taken"), cursor["held"], cursor["counts"]
    n_most = {"stream": 1, "rows": 0, "best_fit": N_BUFFER}[head["packing"]]
    if not isinstance(held, list) or len(held) > n_most:
        raise _damaged(f"lane {lane}: held={_show(held)} is no list of up to {n_most}")
    for index in held:
        count(index, "held", lane + n_taken * head["n_lanes"])
        if index % head["n_lanes"] != lane or held.count(index) > 1:
            raise _damaged(f"lane {lane}: held={index} is not one of the lane's, or occurs twice")
    names = {item.name for item in dataclasses.fields(Counts)}
    if not isinstance(counts, dict) or set(counts) != names:
        raise _damaged(f"lane {lane}: counts={_show(counts)}")
    checked = Counts(**{name: count(counts[name], name) for name in names})
    return ChatStart(n_taken, tuple(held), count(cursor["token"], "token"), checked)


def _damaged(what: str) -> InputError:
    return InputError(f"data cursor: {what}; the checkpoint is damaged, resume from another")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
