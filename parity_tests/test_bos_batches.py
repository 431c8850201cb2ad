"""BOS-aligned rows: the original's batches on crafted, random and real shards, wherever a run is resumed."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.config import Config, DataConfig, EvalConfig, GPT2Config, TrainConfig
from jaxgpt.config.steps import Plan
from jaxgpt.data.batches import Batches
from jaxgpt.data.bos_batches import BosBatches, EndOfData
from jaxgpt.data.shards import Dataset, Split, inspect_shard
from jaxgpt.data.sources import open_source
from jaxgpt.data.tokenizer import GPT2Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.prepare.shard_writer import write_shard

BOS = 9
CRAFTED = [
    9,
    1,
    2,
    3,
    9,
    4,
    9,
    5,
    6,
    7,
    8,
    1,
    2,
    9,
    3,
    4,
    5,
    9,
    6,
    9,
    9,
    7,
    8,
    1,
    9,
    2,
    3,
    4,
    5,
    6,
    7,
    9,
    8,
    1,
    9,
    2,
    3,
    4,
]
"""The example of the specification; measured on the original's own loader."""


def make_split(directory: Path, *shards) -> Split:
    paths = [directory / f"train_{i:06d}.bin" for i in range(len(shards))]
    for path, tokens in zip(paths, shards, strict=True):
        write_shard(path, np.array(tokens, np.uint16), "llmc")
    return Split("train", directory, tuple(inspect_shard(path) for path in paths))


def plain_calls(shards, sizes, cap, n_ranks=1):
    """The original's algorithm, one call after another: per rank the (start, end) of its documents in their shard.

    Args:
      sizes: N of each call; the calls end with the data.

    Yields:
      shard's index, one list of documents for each rank.
    """
    sizes = iter(sizes)
    n = next(sizes)
    for number, tokens in enumerate(shards):
        begins = [i for i, token in enumerate(tokens) if token == BOS]
        i = 0
        while True:
            ranks, j = [], i
            for _ in range(n_ranks):
                documents, current = [], 0
                while current <= n and j < len(begins):
                    start = begins[j]
                    end = begins[j + 1] if j + 1 < len(begins) else len(tokens)
                    end = min(end, start + cap, start + n - current + 1)
                    documents.append((start, end))
                    current += end - start
                    j += 1
                if current < n + 1:
                    break
                ranks.append(documents)
            if len(ranks) < n_ranks:
                break
            i = j
            yield number, ranks
            n = next(sizes, None)
            if n is None:
                return


def all_spans(batches, sizes):
    """Spans of rows of these lengths, to the end of the data."""
    found = []
    for n in sizes:
        try:
            found.append(batches.spans(n))
        except EndOfData:
            return found
    return found


def forever(n):
    while True:
        yield n


@pytest.mark.parametrize(
    ("n", "cap", "expected"),
    [
        (8, 4, [["0-4", "4-6", "6-9"], ["13-17", "17-19", "19-20", "20-22"], ["24-28", "31-34", "34-36"]]),
        (5, 100, [["0-4", "4-6"], ["6-12"], ["13-17", "17-19"], ["19-20", "20-24", "24-25"], ["31-34", "34-37"]]),
    ],
)
def test_the_crafted_example(tmp_path, n, cap, expected):
    batches = BosBatches(make_split(tmp_path, CRAFTED), BOS, cap)
    found = [[f"{start}-{end}" for start, end in row] for row in all_spans(batches, forever(n))]
    assert found == expected
    assert [[[f"{a}-{b}" for a, b in r] for r in ranks] for _, ranks in plain_calls([CRAFTED], forever(n), cap)] == [
        [row] for row in expected
    ]


def test_the_crafted_example_as_rows(tmp_path):
    """Inputs and targets of three batches; the fourth starts the next shard, which is the same again."""
    batches = BosBatches(make_split(tmp_path, CRAFTED, CRAFTED), BOS, 4)
    rows = batches.rows(4, 8, range(4))
    assert rows.dtype == np.int32
    assert rows[:, :-1].tolist() == [
        [9, 1, 2, 3, 9, 4, 9, 5], [9, 3, 4, 5, 9, 6, 9, 9], [9, 2, 3, 4, 9, 8, 1, 9], [9, 1, 2, 3, 9, 4, 9, 5],
    ]  # fmt: skip
    assert rows[:, 1:].tolist()[:3] == [
        [1, 2, 3, 9, 4, 9, 5, 6], [3, 4, 5, 9, 6, 9, 9, 7], [2, 3, 4, 9, 8, 1, 9, 2],
    ]  # fmt: skip


def test_two_ranks_lose_a_row_that_one_stream_reads(tmp_path):
    two = [[[f"{a}-{b}" for a, b in r] for r in ranks] for _, ranks in plain_calls([CRAFTED], forever(5), 100, 2)]
    assert two == [[["0-4", "4-6"], ["6-12"]], [["13-17", "17-19"], ["19-20", "20-24", "24-25"]]]
    one = all_spans(BosBatches(make_split(tmp_path, CRAFTED), BOS, 100), forever(5))
    assert [row for ranks in two for row in ranks] == [[f"{a}-{b}" for a, b in row] for row in one[:4]]
    assert len(one) == 5


def test_rows_may_change_their_length(tmp_path):
    """The third call is the first of the new length, reaches the end of its shard and starts the next one."""
    batches = BosBatches(make_split(tmp_path, CRAFTED, CRAFTED), BOS, 4)
    assert batches.rows(2, 8, [1])[0, :-1].tolist() == [9, 3, 4, 5, 9, 6, 9, 9]
    batches.max_document_tokens = 6
    assert batches.rows(1, 14, [0])[0, :-1].tolist() == [9, 1, 2, 3, 9, 4, 9, 5, 6, 7, 8, 1, 9, 3]
    assert batches.place.shard == 1


@pytest.mark.parametrize("block", range(10))
def test_random_shards_are_read_as_the_original_reads_them(tmp_path, block):
    """100 data sets of one to three shards each, with rows of changing length; resumed at a random row."""
    for seed in range(block * 100, block * 100 + 100):
        draw = np.random.default_rng([44, seed])
        n_ids, cap = int(draw.integers(10, 40)), int(draw.integers(1, 30))
        shards = [draw.integers(0, n_ids, draw.integers(1, 300)).tolist() for _ in range(draw.integers(1, 4))]
        sizes = draw.integers(1, 40, 400).tolist()
        directory = tmp_path / str(seed)
        directory.mkdir()
        split = make_split(directory, *shards)
        first = np.cumsum([0, *map(len, shards)])
        expected = [
            [(first[number] + start, first[number] + end) for start, end in ranks[0]]
            for number, ranks in plain_calls(shards, sizes, cap)
        ]
        batches = BosBatches(split, BOS, cap)
        found = all_spans(batches, sizes)
        assert found == expected, seed
        assert batches.n_used == sum(n + 1 for n, _ in zip(sizes, found, strict=False))
        if not found:
            continue
        assert batches.n_used + batches.n_cut + batches.n_headless == sum(map(len, shards)) or len(found) == len(sizes)
        stop = int(draw.integers(0, len(found)))
        batches = BosBatches(split, BOS, cap)
        read = batches.rows(1, sizes[0], [0])[0] if stop else np.empty(0)
        tokens = np.concatenate(shards)
        assert read.tolist() == ([t for a, b in expected[0] for t in tokens[a:b].tolist()] if stop else [])
        for n in sizes[1:stop]:
            batches.spans(n)
        resumed = BosBatches(split, BOS, cap, cursors=json.loads(json.dumps(batches.cursors())))
        assert all_spans(resumed, sizes[stop:]) == expected[stop:], seed


@pytest.fixture
def real_text(tmp_path, gpt2_vocabulary, shakespeare):
    """The real text of the digests: 241 documents of thirty paragraphs."""
    pieces = shakespeare.read_text().split("\n\n")
    documents = ["\n\n".join(pieces[i : i + 30]) for i in range(0, len(pieces), 30)]
    ids = GPT2Tokenizer().encode_batch(documents)
    tokens = np.concatenate([np.array([50256, *document], np.uint16) for document in ids])
    assert (len(pieces), len(documents), len(tokens)) == (7222, 241, 337_786)
    sha256 = "6524fe7664184afdc35ca165a61e6ed1e9998099436fd902db63bf23018a0fb6"
    assert hashlib.sha256(tokens.tobytes()).hexdigest() == sha256
    return make_split(tmp_path, tokens)


def test_real_text_gives_the_digests(real_text):
    batches = BosBatches(real_text, 50256, 2048)
    for n_documents, starts, inputs, targets in (
        (13, [0, 1133, 2879, 3758, 5258, 6063], 64479588, 64430197),
        (15, [0, 1040, 2110, 3247, 4210, 5694], 63774938, 63724972),
        (12, [0, 1143, 1982, 3106, 4686, 5949], 64480523, 64430465),
    ):
        (row,) = batches.rows(1, 16384, [0])
        found = np.flatnonzero(row[:-1] == 50256)
        assert (len(found), found[:6].tolist()) == (n_documents, starts)
        assert (row[:-1].sum(), row[1:].sum()) == (inputs, targets)
    rest = all_spans(batches, forever(16384))
    assert 3 + len(rest) == 19
    val = Batches(real_text, 32768, 0, "sequential").at([0])[0, :-1]
    assert (np.sum(val == 50256), val.sum()) == (28, 127210674)


def test_eight_ranks_read_16_of_the_19_rows(real_text):
    shard = np.where(real_text.read(0, 337_786) == 50256, BOS, 0).tolist()
    assert sum(len(ranks) for _, ranks in plain_calls([shard], forever(16384), 2048, 8)) == 16
    assert sum(len(ranks) for _, ranks in plain_calls([shard], forever(16384), 2048, 1)) == 19


# In a run


def make_config(directory: Path, steps=4, **data) -> Config:
    return Config(
        model=GPT2Config(n_layer=1, n_head=1, n_embd=8, seq_len=16, vocab_size=64),
        data=DataConfig(
            dir=str(directory), sampling="bos_aligned", **{"bos_id": BOS, "max_document_tokens": 7, **data}
        ),
        train=TrainConfig(steps=steps, batch_tokens=16 * 8, micro_batch_size=2),
        eval=EvalConfig(tokens=64),
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Shards of 5000, 300 and 2000 tokens."""
    directory = tmp_path_factory.mktemp("bos")
    draw = np.random.default_rng(3)
    for i, n in enumerate((5000, 300, 2000)):
        write_shard(directory / f"x_train_{i + 1:06d}.bin", draw.integers(0, 20, n).astype(np.uint16), "llmc")
    write_shard(directory / "x_val_000000.bin", draw.integers(0, 20, 400).astype(np.uint16), "llmc")
    return directory


def train_of(config) -> Split:
    data = open_source(config.data).data
    assert isinstance(data, Dataset)
    return data.train


def read_steps(config, n_devices=1, cuts=(0,), first=0, cursors=None):
    """Rows [n, T + 1] of each step in the order of the stream, and the cursors after it."""
    plan, source = Plan(config, n_devices), open_source(config.data)
    readers = [source.reader(config, cursors) for _ in cuts]
    for step in range(first, plan.n_steps):
        edges = [*cuts, plan.at(step).n_rows]
        parts = [r.read(plan.at(step), lo, hi).tokens for r, (lo, hi) in zip(readers, pairwise(edges), strict=True)]
        after = [reader.cursors() for reader in readers]
        assert all(c == after[0] for c in after)
        yield np.concatenate(parts, axis=1).reshape(-1, 17), after[0]


def test_devices_and_hosts_share_one_stream(directory):
    """One device in four microbatches, two devices in two, four devices of two hosts in one: the same rows."""
    config = make_config(directory)
    one = [rows for rows, _ in read_steps(config)]
    stream = BosBatches(train_of(config), BOS, 7).rows(4 * 8, 16, range(32))
    np.testing.assert_array_equal(np.concatenate(one), stream)
    for n_devices, cuts in ((2, (0,)), (4, (0, 4)), (4, (0, 2, 6))):
        many = [rows for rows, _ in read_steps(config, n_devices, cuts)]
        np.testing.assert_array_equal(one, many)


def test_a_run_resumes_at_any_step(directory):
    config = make_config(directory, steps=40, epochs=0)
    whole = list(read_steps(config))
    places = [(cursors["0"]["epoch"], cursors["0"]["shard"]) for _, cursors in whole]
    assert set(places) >= {(0, 0), (0, 2), (1, 0), (1, 2)}
    for n_done in (1, places.index((0, 2)), places.index((0, 2)) + 1, places.index((1, 0)) + 1, 39):
        cursors = json.loads(json.dumps(whole[n_done - 1][1]))
        rest = [rows for rows, _ in read_steps(config, first=n_done, cursors=cursors)]
        np.testing.assert_array_equal(rest, [rows for rows, _ in whole[n_done:]])


def test_steps_that_the_data_does_not_have_are_counted_before_the_run(directory):
    config = make_config(directory, steps=10**6)
    with pytest.raises(InputError) as caught:
        open_source(config.data).require_steps(config)
    n_steps = int(str(caught.value).split("--train.steps=")[1])
    assert f"train.steps=1000000 is above the {n_steps} steps that data.epochs=1 of {directory} gives" in str(
        caught.value
    )
    assert len(list(read_steps(make_config(directory, steps=n_steps)))) == n_steps
    with pytest.raises(EndOfData, match=r"data.epochs=1: .* has no further row of 17 tokens; add shards"):
        list(read_steps(make_config(directory, steps=n_steps + 1)))
    twice = make_config(directory, steps=2 * n_steps, epochs=2)
    open_source(twice.data).require_steps(twice)
    rows = np.concatenate([rows for rows, _ in read_steps(make_config(directory, steps=3 * n_steps, epochs=0))])
    n_epoch = len(all_spans(BosBatches(train_of(config), BOS, 7), forever(16)))
    np.testing.assert_array_equal(rows[:n_epoch], rows[n_epoch : 2 * n_epoch])


def test_what_is_left_out_is_counted(tmp_path):
    batches = BosBatches(make_split(tmp_path, [1, 2, *CRAFTED]), BOS, 4)
    all_spans(batches, forever(8))
    assert (batches.n_used, batches.n_cut, batches.n_headless) == (27, 11, 2)
    assert batches.summary() == (
        "bos_aligned rows left out 27.5% of tokens, the ends of long documents and of rows, and 2 before the first BOS "
        "of shards"
    )


def test_a_bos_that_never_occurs(tmp_path, directory):
    batches = BosBatches(make_split(tmp_path, CRAFTED, CRAFTED), 77, 4, n_epochs=0)
    with pytest.raises(InputError, match=r"no shard has a row of 9 tokens in documents that begin with data.bos_id=77"):
        batches.spans(8)
    assert open_source(make_config(directory, bos_id=-1).data).bos_id() == 50256
    open_source(DataConfig(dir=str(directory))).require_steps(make_config(directory))  # other samplings never end


def test_an_id_outside_the_vocabulary_is_located(tmp_path):
    batches = BosBatches(make_split(tmp_path, CRAFTED, [BOS, *[1] * 5, 700, *[2] * 10]), BOS, 100, id_limit=256)
    with pytest.raises(InputError, match=r"train_000001.bin: token 6 is id 700, outside the vocabulary of 256"):
        batches.rows(4, 8, range(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: None, "is not the one cursor"),
        (lambda c: {"1": c["0"]}, "is not the one cursor"),
        (lambda c: {"0": c["0"] | {"format": 2}}, "format=2, this code reads 1"),
        (lambda c: {"0": c["0"] | {"document": "3"}}, "its fields are"),
        (lambda c: {"0": c["0"] | {"more": 3}}, "its fields are"),
        (lambda c: {"0": c["0"] | {"document": 11}}, "document 11 is not in the data"),
        (lambda c: {"0": c["0"] | {"shard": 1}}, "shard 1 document 3 is not in the data"),
        (lambda c: {"0": c["0"] | {"epoch": -1}}, "epoch -1"),
        (lambda c: {"0": c["0"] | {"bos_id": 5}}, "pass --data.bos_id=5 to resume"),
        (lambda c: {"0": c["0"] | {"max_document_tokens": 5}}, "pass --data.max_document_tokens=5 to resume"),
    ],
    ids=lambda value: "" if callable(value) else value.replace(" ", "_")[:30],
)
def test_damaged_cursors_are_refused(tmp_path, change, message):
    split = make_split(tmp_path, CRAFTED)
    batches = BosBatches(split, BOS, 4)
    batches.spans(8)
    assert batches.cursors()["0"]["document"] == 3
    cursors = change(batches.cursors())
    with pytest.raises(InputError, match=message):
        BosBatches(split, BOS, 4, cursors=cursors if cursors is not None else [])
