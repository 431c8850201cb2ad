"""Cursors: where each lane of documents resumes, as untrusted JSON from a checkpoint, checked.

A cursor holds where reading resumes, and the places of the documents in the buffer, which are tokenized again. One that
was made from another program's checkpoint does not know what its data was: its `data` is unknown.
"""

import functools
from dataclasses import dataclass
from typing import Any

from jaxgpt.data.cursor_checks import check_count, damaged, require_format, require_lanes, require_objects, show
from jaxgpt.data.documents import REFILL_ROWS, Position
from jaxgpt.data.packing import BestFit
from jaxgpt.data.text_data import TextData
from jaxgpt.errors import InputError

FORMAT = 1
UNKNOWN_DATA = "unknown"
"""In place of the digest of the text and the tokenizer."""


@dataclass(frozen=True)
class Start:
    """A cursor that has been checked."""

    position: Position
    token: int = 0
    places: tuple[tuple[int, int], ...] = ()
    """(group, row) of each document in the buffer."""


_SETTINGS = {"packing": "data.sampling", "seq_len": "model.seq_len", "n_lanes": "data.lanes"}


def place_cursor(sampling: str, seq_len: int, epoch: int, file: int, row_group: int) -> dict[str, Any]:
    """Cursors of a single lane that begins at a row group of whatever data the run will have."""
    following = {"epoch": epoch, "file": file, "row_group": row_group, "row": 0, "token": 0}
    head = {"format": FORMAT, "data": UNKNOWN_DATA, "packing": sampling, "seq_len": seq_len, "n_lanes": 1}
    return {"0": {**head, "lane": 0, "next": following, "buffer": []}}


def check_cursors(cursors: Any, head: dict[str, Any], data: TextData) -> list[Start]:
    """Where each lane begins.

    Args:
      cursors: of all lanes, by lane.
      head: the fields that each of them must have in common with this run.

    Raises:
      InputError: they are damaged, of another run, or of other data.
    """
    require_objects(cursors)
    for cursor in cursors.values():
        require_format(cursor, FORMAT)
        for name, setting in _SETTINGS.items():
            if type(cursor.get(name)) is not type(head[name]):
                raise damaged(f"{name}={show(cursor.get(name))}")
            if cursor[name] != head[name]:
                raise InputError(
                    f"{setting}={head[name]}, the checkpoint was written with {show(cursor[name])}; "
                    f"set --{setting}={show(cursor[name])}, or start a new run"
                )
        if cursor.get("data") not in (UNKNOWN_DATA, head["data"]):
            raise InputError(
                f"the text or the tokenizer in data.dir={data.directory} changed since the checkpoint was written; "
                "restore the old files, or start a new run with train.init_from"
            )
    require_lanes(cursors, head["n_lanes"])
    return [_check_cursor(cursors[str(lane)], lane, head, data) for lane in range(head["n_lanes"])]


def _check_cursor(cursor: dict[str, Any], lane: int, head: dict[str, Any], data: TextData) -> Start:
    def bad(what: str) -> InputError:
        return damaged(f"lane {lane}: {what}")

    count = functools.partial(check_count, lane)

    def find(file: Any, row_group: Any) -> int:
        group = data.train.find_group(count(file, "file"), count(row_group, "row_group"))
        if group is None or group % head["n_lanes"] != lane:
            raise bad(f"file {file} row group {row_group} is not one of the lane's")
        return group

    if set(cursor) != {*head, "lane", "next", "buffer"}:
        raise bad(f"its fields are {show(sorted(map(str, cursor)))}")
    if count(cursor["lane"], "lane") != lane:
        raise bad(f"it is of lane {cursor['lane']}")
    following, buffer = cursor["next"], cursor["buffer"]
    if not isinstance(following, dict) or set(following) != {"epoch", "file", "row_group", "row", "token"}:
        raise bad(f"next={show(following)}")
    group = find(following["file"], following["row_group"])
    row = count(following["row"], "row", data.train.rows_of(group))
    position = Position(count(following["epoch"], "epoch"), group, row)
    token = count(following["token"], "token")
    is_best_fit = head["packing"] == "best_fit"
    if is_best_fit and (row % REFILL_ROWS or token):
        raise bad(f"row {row} token {token} does not begin a refill of {REFILL_ROWS} rows")
    n_most = BestFit.N_BUFFER + REFILL_ROWS - 1 if is_best_fit else 0
    if not isinstance(buffer, list) or len(buffer) > n_most:
        raise bad(f"buffer={show(buffer)} is no list of up to {n_most}")
    places: list[tuple[int, int]] = []
    for run in buffer:
        if not isinstance(run, list) or len(run) != 3 or not isinstance(run[2], list) or len(run[2]) > n_most:
            raise bad(f"buffer holds {show(run)}, not [file, row group, [rows]]")
        group = find(run[0], run[1])
        places += [(group, count(row, "row", data.train.rows_of(group))) for row in run[2]]
    if len(places) > n_most:
        raise bad(f"buffer has {len(places)} documents, {n_most} at most fit")
    return Start(position, token, tuple(places))
