"""Cursors that nobody vouches for: each is checked before it is used, and refused in one line."""

import copy
import functools
import json

import pytest

from jaxgpt.data.packing import Packing
from jaxgpt.data.text_batches import TextBatches
from jaxgpt.data.text_data import TextData, open_text
from jaxgpt.errors import InputError
from parity_tests.helpers.text_directories import (
    ONE,
    PACKINGS,
    SEQ_LEN,
    open_small,
    read,
    write_file,
)

pytestmark = pytest.mark.usefixtures("marked")


@pytest.fixture
def data(tmp_path, monkeypatch) -> TextData:
    return open_small(tmp_path, monkeypatch)


def some_cursors(data, kind) -> dict:
    (*_, (_, cursors)) = read(data, kind, 2, ONE, n_steps=3)
    return json.loads(cursors)


def resume_from(data, kind, cursors, n_lanes=2, seq_len=SEQ_LEN):
    with TextBatches(data, seq_len, kind, n_lanes=n_lanes, cursors=cursors) as batches:
        return batches.rows(2, 0, 2)


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_cursor_of_another_run_is_refused(data, kind):
    """Faults: C47, C73."""
    cursors = some_cursors(data, kind)
    other = PACKINGS[kind == "stream"]
    went_wrong = [
        ((other, cursors), f"data.sampling={PACKINGS[kind != 'stream']}".replace(kind, other)),
        ((kind, cursors, 1), "data.lanes=1, the checkpoint was written with 2; set --data.lanes=2"),
        ((kind, cursors, 2, 16), "model.seq_len=16, the checkpoint was written with 24; set --model.seq_len=24"),
    ]
    for arguments, message in went_wrong:
        with pytest.raises(InputError, match=message):
            resume_from(data, *arguments)
    write_file(data.directory / "shard_00000.parquet", ["changed"] * 34, group_rows=9)
    with pytest.raises(InputError, match=r"the text or the tokenizer in data.dir=.* changed since the checkpoint"):
        resume_from(open_text(data.directory), kind, cursors)


def edits(value, path=()):
    """Paths to every value inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from edits(inner, (*path, key))


BAD = (None, True, -1, 1.0, float("nan"), 10**40, "", "0", [], {}, [[0]], {"0": 0}, "x" * 10**5, [0] * 10**5)


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_tampered_cursor_is_refused_in_one_line(data, kind):
    """Every value of a cursor replaced by every kind of wrong one, and left out."""
    whole = some_cursors(data, kind)
    resume_from(data, kind, whole)
    n_refused = 0
    for path in edits(whole):
        for bad in (*BAD, "drop", "add"):
            cursors = copy.deepcopy(whole)
            parent = functools.reduce(lambda value, key: value[key], path[:-1], cursors)
            if bad == "add":
                target = functools.reduce(lambda value, key: value[key], path, cursors)
                if not isinstance(target, dict):
                    continue
                target["more"] = 0
            elif not path:
                cursors = bad
            elif bad == "drop" and isinstance(parent, list):
                continue  # a shorter buffer is a buffer
            elif bad == "drop":
                del parent[path[-1]]
            else:
                parent[path[-1]] = bad
            if cursors is None or (bad == [] and path[-1:] in (("buffer",), (2,))):
                continue  # no cursor, or an emptier buffer: nothing tells that it is wrong
            with pytest.raises(InputError) as error:
                resume_from(data, kind, cursors)
            assert "\n" not in str(error.value) and len(str(error.value)) < 500, (path, bad)
            n_refused += 1
    assert n_refused > 150


def test_a_cursor_out_of_range_is_refused(data):
    whole = some_cursors(data, "best_fit")
    row_groups = [file.group_rows for file in data.train.files]
    assert row_groups == [(9, 9, 9, 7), (0,), (9, 9, 9)]

    def refused(match, edit, kind: Packing = "best_fit", cursors=whole):
        cursors = copy.deepcopy(cursors)
        edit(cursors["1"])
        with pytest.raises(InputError, match=match):
            resume_from(data, kind, cursors)
            TextBatches(data, SEQ_LEN, kind, n_lanes=2, cursors=cursors).rows(2, 1, 2)

    refused("file=3|file 3", lambda cursor: cursor["next"].update(file=3, row_group=0))
    refused("file 1 row group 0 is not", lambda cursor: cursor["next"].update(file=1, row_group=0))
    refused("file 0 row group 2 is not", lambda cursor: cursor["next"].update(file=0, row_group=2))  # lane 0's
    refused(r"row=9 is not in \[0, 9\)", lambda cursor: cursor["next"].update(file=0, row_group=1, row=9))
    refused("row 5 token 0 does not begin", lambda cursor: cursor["next"].update(row=5))
    refused("row 0 token 1 does not begin", lambda cursor: cursor["next"].update(row=0, token=1))
    refused(r"row=7 is not in \[0, 7\)", lambda cursor: cursor["buffer"].append([0, 3, [7]]))
    refused("file 0 row group 0 is not", lambda cursor: cursor["buffer"].append([0, 0, [1]]))
    refused("buffer has 19|buffer has 1[0-9]{2}", lambda cursor: cursor["buffer"].extend([[0, 3, [0]]] * 130))
    refused("it is of lane 0", lambda cursor: cursor.update(lane=0))
    stream = some_cursors(data, "stream")
    begin = {"epoch": 0, "file": 0, "row_group": 1, "row": 0}
    refused("token 100000 is after the end", lambda c: c.update(next={**begin, "token": 10**5}), "stream", stream)
    refused(r"buffer=.* is no list of up to 0", lambda c: c.update(buffer=[[0, 1, [0]]]), "stream", stream)
    null = {"0": {**stream["0"], "next": {**begin, "row_group": 0, "token": 1}}, "1": stream["1"]}
    with pytest.raises(InputError, match="token 1 is after the end"):
        resume_from(data, "stream", null)
    null = copy.deepcopy(whole)
    null["0"]["buffer"].append([0, 0, [0]])
    with pytest.raises(InputError, match="row group 0 row 0 has no text"):
        resume_from(data, "best_fit", null)
