"""Rows do not depend on who reads them, nor on how often the run is killed."""

import itertools
import json
import threading
import time

import numpy as np
import pytest

from jaxgpt.config import DataConfig
from jaxgpt.data.packing import BestFit
from jaxgpt.data.sources import open_source
from jaxgpt.data.text_batches import TextBatches, require_lanes
from jaxgpt.data.text_data import TextData, open_text
from jaxgpt.data.tokenizer import ByteTokenizer
from jaxgpt.errors import InputError
from parity_tests.helpers.plain_packing import plain_best_fit, plain_stream
from parity_tests.helpers.text_directories import (
    N_STEPS,
    ONE,
    PACKINGS,
    SEQ_LEN,
    TWO,
    MarkedBytes,
    open_small,
    random_texts,
    read,
    tokenize_threads,
    tokens_of,
    write_data,
)

pytestmark = pytest.mark.usefixtures("marked")


@pytest.fixture
def data(tmp_path, monkeypatch) -> TextData:
    return open_small(tmp_path, monkeypatch)


# Resume


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


# What a user can do wrong


def test_fewer_row_groups_than_lanes(data):
    """Faults: C39."""
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
    """Faults: C46."""
    source = open_source(DataConfig(dir=str(data.directory), sampling="stream"))
    message = r"model.vocab_size=256 is below the 257 ids of .*; set --model.vocab_size=257 or more"
    with pytest.raises(InputError, match=message):
        source.check_vocabulary(256)
    source.check_vocabulary(257)


@pytest.mark.parametrize("kind", PACKINGS)
def test_bad_text_stops_the_run_when_its_turn_comes(tmp_path, kind, monkeypatch):
    """Faults: C37."""
    monkeypatch.setattr(BestFit, "N_BUFFER", 3)
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
