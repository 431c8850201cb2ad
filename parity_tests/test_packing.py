"""Rows are what the plain algorithm gives, whoever reads them, however often the run is killed."""

import copy
import functools
import itertools
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.data import documents, packing
from jaxgpt.data.documents import Chunk, Document, Position, TextData, open_text
from jaxgpt.data.packing import BestFit, TextBatches, require_lanes, val_rows
from jaxgpt.errors import InputError
from jaxgpt.tokenizer import ByteTokenizer
from parity_tests.test_documents import (  # noqa: F401 - a fixture
    DELIMITER,
    MarkedBytes,
    marked,
    tokenize_threads,
    write_data,
    write_file,
)

PACKINGS = ("stream", "best_fit")


def random_texts(seed: int, n: int, mean: int = 20) -> list[str]:
    """Texts of very different lengths, each with its own letters."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(1 + rng.pareto(1.2, n) * mean / 4, 40 * mean).astype(int)
    return ["".join(map(chr, rng.integers(33, 127, length))) for length in lengths]


def tokens_of(text: str) -> list[int]:
    return [DELIMITER, *text.encode()]


# The plain algorithms


def plain_stream(texts: list[str], width: int, n_rows: int) -> np.ndarray:
    flat: list[int] = []
    while len(flat) < n_rows * (width - 1) + 1:
        for text in texts:
            flat += tokens_of(text)
    return np.array([flat[i * (width - 1) : i * (width - 1) + width] for i in range(n_rows)])


def refills(texts: list[str], group_rows: int, n_epochs: int | None = None):
    """Lists of documents: row groups in parts of 128."""
    for _ in itertools.count() if n_epochs is None else range(n_epochs):
        for g in range(0, len(texts), group_rows):
            group = texts[g : g + group_rows]
            for i in range(0, len(group), 128):
                yield [tokens_of(text) for text in group[i : i + 128]]


def plain_best_fit(batches, width: int, n_rows: int, n_buffer: int = 1000) -> tuple[np.ndarray, int]:
    """The algorithm in words: a list, searched from its front. Rows, and how many tokens were cut off."""
    buffer: list[list[int]] = []
    rows, n_discarded = [], 0
    while len(rows) < n_rows:
        row: list[int] = []
        while len(row) < width:
            while len(buffer) < n_buffer:
                batch = next(batches, None)
                if batch is None:
                    break
                buffer += batch
            if not buffer:
                return np.array(rows), n_discarded
            room = width - len(row)
            best = None
            for i, document in enumerate(buffer):
                if len(document) <= room and (best is None or len(document) > len(buffer[best])):
                    best = i
            if best is None:
                best = min(range(len(buffer)), key=lambda i: len(buffer[i]))
            document = buffer.pop(best)
            n_discarded += max(0, len(document) - room)
            row += document[:room]
        rows.append(row)
    return np.array(rows), n_discarded


@pytest.mark.parametrize("seed, seq_len, mean", [(0, 64, 20), (1, 37, 20), (2, 256, 60), (3, 1, 5), (4, 16, 200)])
def test_best_fit_is_the_plain_algorithm(tmp_path, seed, seq_len, mean):
    texts, width = random_texts(seed, 1000, mean), seq_len + 1
    assert {len(text) < seq_len for text in texts} == ({False} if seq_len == 1 else {True, False})
    data = open_text(write_data(tmp_path / "data", texts, ["val"], group_rows=300))
    n_rows = 2 * sum(len(text) + 1 for text in texts) // width + 7  # into the third epoch
    n_rows = min(n_rows, 1500)
    expected, n_discarded = plain_best_fit(refills(texts, 300), width, n_rows)
    with TextBatches(data, seq_len, "best_fit") as batches:
        rows = batches.rows(n_rows, 0, n_rows)
        np.testing.assert_array_equal(rows, expected)
        assert rows.dtype == np.int32
        assert batches.discarded_fraction == n_discarded / (n_discarded + n_rows * width)
    assert (rows[:, 0] == DELIMITER).all()


@pytest.mark.parametrize("seed", range(4))
def test_best_fit_takes_the_oldest_among_equals(monkeypatch, seed):
    """Few lengths, so nearly all are equal to others; tokens tell documents apart."""
    monkeypatch.setattr(packing, "BUFFER_DOCUMENTS", 50)
    rng = np.random.default_rng(seed)
    lists = [[i] * int(n) for i, n in enumerate(rng.choice([1, 2, 3, 5, 9], 1000))]
    chunks = [
        Chunk(
            0, [Document(i // 8, i % 8, np.array(lists[i]), len(lists[i])) for i in range(a, a + 8)], Position(0, a, 0)
        )
        for a in range(0, 1000, 8)
    ]
    expected, _ = plain_best_fit((lists[a : a + 8] for a in range(0, 1000, 8)), 8, 10**6, 50)
    packer, rows = BestFit(iter(chunks), Position(0, 0, 0)), np.zeros((len(expected) + 1, 8), int)
    assert [packer.fill(row) for row in rows] == [True] * len(expected) + [False]
    np.testing.assert_array_equal(rows[:-1], expected)


@pytest.mark.parametrize("seq_len", [1, 16, 300, 5000])
def test_a_stream_is_the_plain_algorithm(tmp_path, seq_len):
    texts = random_texts(5, 400, 60)
    data = open_text(write_data(tmp_path / "data", texts[:150], texts[150:], ["val"], group_rows=90))
    n_rows = min(3 * sum(len(text) + 1 for text in texts) // seq_len, 1500)
    with TextBatches(data, seq_len, "stream") as batches:
        rows = np.concatenate([batches.rows(n, 0, n) for n in (1, n_rows - 3, 2)])
        assert batches.discarded_fraction == 0
    np.testing.assert_array_equal(rows, plain_stream(texts, seq_len + 1, n_rows))


# Resume


@pytest.fixture
def data(tmp_path, monkeypatch) -> TextData:
    """Small enough that an epoch is a few steps: 7 row groups, nulls, a document of several rows, a buffer of 20."""
    monkeypatch.setattr(packing, "BUFFER_DOCUMENTS", 20)
    monkeypatch.setattr(documents, "_CHUNK_ROWS", 4)
    texts = random_texts(6, 60, 16)
    texts[17] = "long " * 60
    return open_text(
        write_data(tmp_path / "data", [None, *texts[:33]], [], texts[33:], ["val", "x" * 90], group_rows=9)
    )


SEQ_LEN, N_ROWS, N_STEPS = 24, 4, 40


def read(data: TextData, kind: str, n_lanes: int, hosts, cursors=None, n_steps=N_STEPS, n_rows=N_ROWS, **options):
    """Steps as rows of all hosts, and the cursors after each as a checkpoint has them."""
    parts = [TextBatches(data, SEQ_LEN, kind, n_lanes=n_lanes, cursors=cursors, **options) for _ in hosts]
    try:
        for _ in range(n_steps):
            rows = np.concatenate([b.rows(n_rows, *span) for b, span in zip(parts, hosts, strict=True)])
            yield rows, json.dumps(functools.reduce(dict.__or__, [part.cursors() for part in parts]), sort_keys=True)
    finally:
        for part in parts:
            part.close()


ONE, TWO = [(0, 4)], [(0, 2), (2, 4)]


@pytest.mark.parametrize("n_lanes", [1, 2])
@pytest.mark.parametrize("kind", PACKINGS)
def test_killed_at_every_step_a_run_reads_on(data, kind, n_lanes):
    """On as many hosts, on more, on fewer: the next batch is the next, and so is the cursor behind it."""
    whole = list(read(data, kind, n_lanes, ONE))
    epochs = [json.loads(cursors)["0"]["next"]["epoch"] for _, cursors in whole]
    assert epochs[0] == 0 and epochs[-1] >= 2
    for step in range(N_STEPS - 1):
        for hosts in (ONE, TWO):
            ((rows, cursors),) = read(data, kind, n_lanes, hosts, json.loads(whole[step][1]), n_steps=1)
            np.testing.assert_array_equal(rows, whole[step + 1][0])
            assert cursors == whole[step + 1][1]
    for shared, alone in zip(read(data, kind, n_lanes, TWO), whole, strict=True):
        np.testing.assert_array_equal(shared[0], alone[0])
        assert shared[1] == alone[1]


@pytest.mark.parametrize("kind", PACKINGS)
def test_the_rows_of_a_step_are_dealt_to_lanes(data, kind):
    """Lane l of 2 reads as a run of one lane would, were its row groups all that there is."""
    both = [rows for rows, _ in read(data, kind, 2, ONE, n_steps=5)]
    hosts = [[(0, 1), (1, 2), (2, 3), (3, 4)], [(0, 3), (3, 4)], [(0, 0), (0, 4)], [(0, 2), (2, 2), (2, 4)]]
    for cuts in hosts:
        np.testing.assert_array_equal([rows for rows, _ in read(data, kind, 2, cuts, n_steps=5)], both)
    texts = [[], []]
    for group in range(data.train.n_groups):
        texts[group % 2].append([text for text in data.train.read_group(group).to_pylist() if text])
    for lane in range(2):
        found = np.concatenate([rows[lane * 2 : lane * 2 + 2] for rows in both])
        if kind == "stream":
            expected = plain_stream([*itertools.chain(*texts[lane])], SEQ_LEN + 1, 10)
        else:
            batches = itertools.cycle([[tokens_of(text) for text in group] for group in texts[lane]])
            expected, _ = plain_best_fit(batches, SEQ_LEN + 1, 10, 20)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_run_whose_batch_grows_keeps_its_rows(data, kind):
    """Each lane's rows are the same, however many of them a step takes."""
    sizes = [2, 4, 4, 8, 6]
    alone = TextBatches(data, SEQ_LEN, kind, n_lanes=2)
    hosts = [TextBatches(data, SEQ_LEN, kind, n_lanes=2) for _ in range(2)]
    found = []
    for n in sizes:
        found.append(alone.rows(n, 0, n))
        parts = [host.rows(n, i * n // 2, (i + 1) * n // 2) for i, host in enumerate(hosts)]
        np.testing.assert_array_equal(np.concatenate(parts), found[-1])
    steps = [rows for rows, _ in read(data, kind, 2, ONE, n_steps=6)]
    for lane in range(2):
        lane_rows = np.concatenate([rows[len(rows) // 2 * lane :][: len(rows) // 2] for rows in found])
        np.testing.assert_array_equal(lane_rows, np.concatenate([rows[lane * 2 : lane * 2 + 2] for rows in steps]))
    with pytest.raises(AssertionError, match=r"lanes range\(0, 2\), but lanes \[0\] are run"):
        hosts[0].rows(4, 0, 4)
    for batches in (alone, *hosts):
        batches.close()


@pytest.mark.parametrize("kind", PACKINGS)
def test_rows_do_not_depend_on_the_number_of_threads(data, kind, monkeypatch):
    expected = list(read(data, kind, 2, ONE, n_threads=1, n_steps=12))

    def encode_array(self, text):
        time.sleep(len(text) % 3 / 2000)  # they finish out of order
        return ByteTokenizer.encode_array(self, text)

    monkeypatch.setattr(MarkedBytes, "encode_array", encode_array)
    for n_threads in (2, 7):
        for found, wanted in zip(read(data, kind, 2, ONE, n_threads=n_threads, n_steps=12), expected, strict=True):
            np.testing.assert_array_equal(found[0], wanted[0])
            assert found[1] == wanted[1]


def test_resume_with_the_real_buffer(tmp_path):
    """1000 documents and more wait, some since the first epoch; the cursor stays small, its rows are the same."""
    texts = random_texts(7, 1500, 40)
    data = open_text(write_data(tmp_path / "data", texts[:800], texts[800:], ["val"], group_rows=300))
    batches = TextBatches(data, 128, "best_fit")
    for _ in range(4):
        batches.rows(200, 0, 200)
    saved = json.dumps(batches.cursors())
    cursor = json.loads(saved)["0"]
    n_waiting = sum(len(rows) for _, _, rows in cursor["buffer"])
    assert cursor["next"]["epoch"] >= 1 and 900 <= n_waiting <= 1127 and len(saved) < 20_000
    with TextBatches(data, 128, "best_fit", cursors=json.loads(saved)) as resumed:
        np.testing.assert_array_equal(resumed.rows(500, 0, 500), batches.rows(500, 0, 500))
        assert json.dumps(resumed.cursors()) == json.dumps(batches.cursors())
    batches.close()


# Large documents


WORD = b"0123456789abcde "
LARGE = WORD * 6_220_000


def test_a_stream_through_a_document_of_100_mb(tmp_path):
    data = open_text(write_data(tmp_path / "data", ["first " * 9, LARGE, "last"], ["val"]))
    before = [*tokens_of("first " * 9), DELIMITER]
    with TextBatches(data, 1024, "stream") as batches:
        rows = batches.rows(20_000, 0, 20_000)
        np.testing.assert_array_equal(rows[0], [*before, *(WORD * 100)[: 1025 - len(before)]])
        np.testing.assert_array_equal(rows[-1], list(WORD * 100)[(19_999 * 1024 - len(before)) % 16 :][:1025])
        saved = json.dumps(batches.cursors())
        following = {"epoch": 0, "file": 0, "row_group": 0, "row": 1, "token": 20_000 * 1024 - len(before) + 1}
        assert json.loads(saved)["0"]["next"] == following and len(saved) < 500
        with TextBatches(data, 1024, "stream", cursors=json.loads(saved)) as resumed:
            np.testing.assert_array_equal(resumed.rows(2, 0, 2), batches.rows(2, 0, 2))


def test_best_fit_with_a_document_of_100_mb(tmp_path):
    texts = random_texts(9, 1400, 100)
    data = open_text(write_data(tmp_path / "data", [*texts[:700], LARGE, *texts[700:]], ["val"], group_rows=500))
    with TextBatches(data, 1024, "best_fit") as batches:
        rows = batches.rows(64, 0, 64)
        texts.insert(700, LARGE[:5000].decode())
        np.testing.assert_array_equal(rows, plain_best_fit(refills(texts, 500), 1025, 64)[0])
        saved = json.dumps(batches.cursors())
        assert [0, 1, 200] in [[f, g, row] for f, g, rows in json.loads(saved)["0"]["buffer"] for row in rows]
        with TextBatches(data, 1024, "best_fit", cursors=json.loads(saved)) as resumed:
            np.testing.assert_array_equal(resumed.rows(2, 0, 2), batches.rows(2, 0, 2))


def test_a_few_documents_are_not_read_over_and_over(tmp_path, monkeypatch):
    """The buffer is an epoch where an epoch is small."""
    n_bytes = []

    def encode_array(self, text):
        n_bytes.append(len(text))
        return ByteTokenizer.encode_array(self, text)

    monkeypatch.setattr(MarkedBytes, "encode_array", encode_array)
    monkeypatch.setattr(documents, "_AHEAD_BYTES", 1)
    data = open_text(write_data(tmp_path / "data", ["x" * 100_000, "y" * 200_000], ["val"]))
    with TextBatches(data, 64, "best_fit", n_threads=1) as batches:
        rows = batches.rows(3, 0, 3)
        assert sum(n_bytes) < 2_000_000
        np.testing.assert_array_equal(rows, plain_best_fit(refills(["x" * 100_000, "y" * 200_000], 5), 65, 3, 2)[0])


def test_of_a_large_document_best_fit_keeps_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "BUFFER_DOCUMENTS", 2)
    data = open_text(write_data(tmp_path / "data", ["x" * 100_000] * 3, ["val"]))
    with TextBatches(data, 32, "best_fit") as batches:
        np.testing.assert_array_equal(batches.rows(1, 0, 1), [[DELIMITER] + [ord("x")] * 32])
        assert batches.discarded_fraction == (100_001 - 33) / 100_001
        assert batches._packers is not None
        assert {len(document.tokens) for document in batches._packers[0].buffered()} == {33}


# What a user can do wrong


def test_fewer_row_groups_than_lanes(data):
    assert data.train.n_groups == 7
    with pytest.raises(InputError) as error:
        TextBatches(data, SEQ_LEN, "stream", n_lanes=8)
    expected = f"data.lanes=8 is not in [1, 7], the row groups that train has in {data.directory}; set --data.lanes=7"
    assert expected in str(error.value)
    with TextBatches(data, SEQ_LEN, "stream", n_lanes=7) as batches:
        assert batches.rows(14, 0, 14).shape == (14, SEQ_LEN + 1)
    with pytest.raises(InputError, match=r"set --data.lanes=1"):
        TextBatches(data, SEQ_LEN, "stream", n_lanes=0)


def test_lanes_that_do_not_divide_a_step(data):
    with (
        TextBatches(data, SEQ_LEN, "best_fit", n_lanes=5) as batches,
        pytest.raises(InputError, match=r"data.lanes=5 does not divide the 12 rows of a step .*; nearest: 4, 6"),
    ):
        batches.rows(12, 0, 12)
    with pytest.raises(InputError, match=r"nearest: 12$"):
        require_lanes(24, 12)
    require_lanes(4, 12)


def test_a_tokenizer_with_more_ids_than_the_model(data):
    message = r"model.vocab_size=256 is below the 257 ids of .*; set --model.vocab_size=257 or more"
    with pytest.raises(InputError, match=message):
        TextBatches(data, SEQ_LEN, "stream", vocab_size=256)
    with pytest.raises(InputError, match=message):
        val_rows(data, SEQ_LEN, "stream", 0, vocab_size=256)
    TextBatches(data, SEQ_LEN, "stream", vocab_size=257).close()


@pytest.mark.parametrize("kind", PACKINGS)
def test_bad_text_stops_the_run_when_its_turn_comes(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(packing, "BUFFER_DOCUMENTS", 3)
    good = [f"text {i:02d}" for i in range(40)]
    data = open_text(write_data(tmp_path / "data", [*good, b"\xff"], ["val"], group_rows=1))
    with TextBatches(data, 6, kind) as batches:
        for _ in range(30):
            assert batches.rows(1, 0, 1).shape == (1, 7)
        for _ in range(2):
            with pytest.raises(InputError, match=r"shard_00000.parquet row group 40 row 0 is not UTF-8"):
                batches.rows(30, 0, 30)
    assert tokenize_threads() == 0


def test_a_reader_that_stops_early_leaves_no_thread(data):
    n_threads = threading.active_count()
    batches = TextBatches(data, SEQ_LEN, "best_fit", n_lanes=2, n_threads=3)
    batches.rows(2, 0, 2)
    batches.close()
    batches.close()
    assert tokenize_threads() == 0
    TextBatches(data, SEQ_LEN, "best_fit").close()
    assert threading.active_count() == n_threads


# Cursors that nobody vouches for


def some_cursors(data, kind) -> dict:
    (*_, (_, cursors)) = read(data, kind, 2, ONE, n_steps=3)
    return json.loads(cursors)


def resume_from(data, kind, cursors, n_lanes=2, seq_len=SEQ_LEN):
    with TextBatches(data, seq_len, kind, n_lanes=n_lanes, cursors=cursors) as batches:
        return batches.rows(2, 0, 2)


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_cursor_of_another_run_is_refused(data, kind):
    cursors = some_cursors(data, kind)
    other = PACKINGS[kind == "stream"]
    went_wrong = [
        ((other, cursors), f"data.packing={PACKINGS[kind != 'stream']}".replace(kind, other)),
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

    def refused(match, edit, kind="best_fit", cursors=whole):
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
    refused("token 100000 is behind the end", lambda c: c.update(next={**begin, "token": 10**5}), "stream", stream)
    refused(r"buffer=.* is no list of up to 0", lambda c: c.update(buffer=[[0, 1, [0]]]), "stream", stream)
    null = {"0": {**stream["0"], "next": {**begin, "row_group": 0, "token": 1}}, "1": stream["1"]}
    with pytest.raises(InputError, match="token 1 is behind the end"):
        resume_from(data, "stream", null)
    null = copy.deepcopy(whole)
    null["0"]["buffer"].append([0, 0, [0]])
    with pytest.raises(InputError, match="row group 0 row 0 holds no text"):
        resume_from(data, "best_fit", null)


# Validation


@pytest.mark.parametrize("seq_len", [1, 24, 100])
@pytest.mark.parametrize("kind", PACKINGS)
def test_validation_is_one_pass(tmp_path, kind, seq_len):
    texts = random_texts(8, 700)
    data = open_text(write_data(tmp_path / "data", ["train"], texts, group_rows=300))
    n_tokens = sum(len(text) + 1 for text in texts)
    if kind == "stream":
        expected = plain_stream(texts, seq_len + 1, (n_tokens - 1) // seq_len)
    else:
        expected, _ = plain_best_fit(refills(texts, 300, n_epochs=1), seq_len + 1, 10**9)
    for wanted, n_rows in (
        (0, len(expected)),
        (1, 1),
        (seq_len * 70, 70),
        (seq_len * 71 - 1, 70),
        (10**12, len(expected)),
    ):
        rows = val_rows(data, seq_len, kind, wanted, n_threads=2)
        assert rows.tokens.dtype == np.uint16 and len(rows.indices) == n_rows
        np.testing.assert_array_equal(rows.at(rows.indices), expected[:n_rows])
    assert tokenize_threads() == 0
    some = rows.at([5, 5, 0])
    assert some.dtype == np.int32
    np.testing.assert_array_equal(some, expected[[5, 5, 0]])


@pytest.mark.parametrize("kind", PACKINGS)
def test_validation_shorter_than_a_row(tmp_path, kind):
    directory = write_data(tmp_path / "data", ["train"], ["12345", "6789"])
    data = open_text(directory)
    np.testing.assert_array_equal(
        val_rows(data, 10, kind, 0).at([0]),
        [tokens_of("12345") + tokens_of("6789")],
    )
    with pytest.raises(InputError, match=r"val \(shard_00001.parquet\) has fewer than 12 tokens, model.seq_len=11"):
        val_rows(data, 11, kind, 0)
    assert tokenize_threads() == 0


def test_ids_above_16_bits_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(MarkedBytes, "vocab_size", 70_000)
    monkeypatch.setattr(MarkedBytes, "begin_of_text", 69_999)
    data = open_text(write_data(tmp_path / "data", ["train"], ["12345"] * 9))
    for kind in PACKINGS:
        assert val_rows(data, 5, kind, 0).at([0]).max() == 69_999
        with TextBatches(data, 5, kind) as batches:
            assert batches.rows(1, 0, 1).max() == 69_999


def test_two_copies_of_nothing(tmp_path: Path):
    """A single document is enough for both packings, again and again."""
    data = open_text(write_data(tmp_path / "data", ["ab"], ["val"]))
    with TextBatches(data, 3, "best_fit") as batches:
        np.testing.assert_array_equal(batches.rows(2, 0, 2), [[DELIMITER, 97, 98, DELIMITER]] * 2)
    with TextBatches(data, 2, "stream") as batches:
        np.testing.assert_array_equal(
            batches.rows(3, 0, 3), [[DELIMITER, 97, 98], [98, DELIMITER, 97], [97, 98, DELIMITER]]
        )
