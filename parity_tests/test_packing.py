"""Rows are what the plain algorithms give, in training and validation, and however large a document is."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.data import documents
from jaxgpt.data.documents import Chunk, Document, Position
from jaxgpt.data.packing import BestFit
from jaxgpt.data.text_batches import TextBatches, val_rows
from jaxgpt.data.text_data import open_text
from jaxgpt.data.tokenizer import ByteTokenizer
from jaxgpt.errors import InputError
from parity_tests.helpers.plain_packing import plain_best_fit, plain_stream, refills
from parity_tests.helpers.text_directories import (
    DELIMITER,
    PACKINGS,
    MarkedBytes,
    random_texts,
    tokenize_threads,
    tokens_of,
    write_data,
)

pytestmark = pytest.mark.usefixtures("marked")


# The plain algorithms


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
    monkeypatch.setattr(BestFit, "N_BUFFER", 50)
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
    """Faults: C40."""
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
    monkeypatch.setattr(BestFit, "N_BUFFER", 2)
    data = open_text(write_data(tmp_path / "data", ["x" * 100_000] * 3, ["val"]))
    with TextBatches(data, 32, "best_fit") as batches:
        np.testing.assert_array_equal(batches.rows(1, 0, 1), [[DELIMITER] + [ord("x")] * 32])
        assert batches.discarded_fraction == (100_001 - 33) / 100_001
        assert batches._packers is not None
        assert {len(document.tokens) for document in batches._packers[0].buffered()} == {33}


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
    """Faults: C29."""
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
