"""A directory of text: what is in it is found, in one order, by any number of threads; what is wrong is said."""

import gc
import json
import threading
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxgpt.data import documents, text_data
from jaxgpt.data.documents import Encoder, Lane, Position
from jaxgpt.data.text_data import TextData, open_text
from jaxgpt.data.tokenizer import ByteTokenizer
from jaxgpt.errors import InputError
from jaxgpt.prepare.corpora import TEXT_CORPORA
from parity_tests.helpers.text_directories import (
    DELIMITER,
    MarkedBytes,
    tokenize_threads,
    write_data,
    write_file,
)

pytestmark = pytest.mark.usefixtures("marked")


def text_of(document) -> str:
    assert document.tokens[0] == DELIMITER
    return bytes(document.tokens[1:].astype(np.uint8)).decode()


def read(data: TextData, n_threads=2, max_tokens=None, split="train", n_chunks=None, **options) -> list:
    """The chunks of a lane, one epoch unless told otherwise."""
    encoder = Encoder(data, n_threads, max_tokens)
    lane = Lane(getattr(data, split), encoder, **{"n_epochs": None if n_chunks else 1, **options})
    try:
        return [next(lane) for _ in range(n_chunks)] if n_chunks else list(lane)
    finally:
        encoder.close()


def flat(chunks) -> list:
    return [document for chunk in chunks for document in chunk.documents]


TEXTS = [[f"file {f} text {i} " * (1 + (i * 7 + f) % 5) for i in range(n)] for f, n in enumerate((13, 3, 21))]
VAL = ["held out", "and another"]


@pytest.fixture
def data(tmp_path) -> TextData:
    return open_text(write_data(tmp_path / "data", *TEXTS, VAL))


# Order


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_documents_come_in_order_each_epoch(data, n_threads):
    """Faults: C38."""
    found = flat(read(data, n_threads, n_epochs=3))
    assert [text_of(document) for document in found] == [text for texts in TEXTS for text in texts] * 3
    assert [d.n_tokens for d in found] == [len(d.tokens) for d in found]
    assert [text_of(document) for document in flat(read(data, n_threads, split="val"))] == VAL


@pytest.mark.parametrize("chunk_rows", [1, 4, 32])
def test_every_place_leads_to_the_rest(data, monkeypatch, chunk_rows):
    monkeypatch.setattr(documents, "_CHUNK_ROWS", chunk_rows)
    whole = flat(read(data, n_epochs=2))
    seen = 0
    for chunk in read(data, n_epochs=2):
        assert [(d.group, d.row) for d in chunk.documents] == [(d.group, d.row) for d in whole[seen:]][
            : len(chunk.documents)
        ]
        seen += len(chunk.documents)
        rest = flat(read(data, start=chunk.after, n_epochs=2))
        assert [text_of(d) for d in rest] == [text_of(d) for d in whole[seen:]]
    assert seen == len(whole) and chunk.after == Position(2, 0, 0)


def test_a_place_has_a_name_and_is_found_by_it(tmp_path):
    data = open_text(write_data(tmp_path / "data", TEXTS[0], [], TEXTS[2], VAL))
    split = data.train
    places = [split.place_of(group) for group in range(split.n_groups)]
    assert places == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4)]
    assert [split.rows_of(group) for group in range(split.n_groups)] == [5, 5, 3, 5, 5, 5, 5, 1]
    assert [split.find_group(*place) for place in places] == list(range(split.n_groups))
    for place in ((0, 3), (1, 0), (3, 0), (-1, 0), (0, -1), (10**30, 0), (2, 10**30)):
        assert split.find_group(*place) is None
    assert split.describe(3, 4) == f"{tmp_path / 'data' / 'shard_00002.parquet'} row group 0 row 4"
    assert split.count_rows() == 34 and split.count_rows(1, 3) == 5 + 5 + 1


@pytest.mark.parametrize("n_lanes", [2, 3, 9])
def test_lanes_share_the_row_groups(data, n_lanes):
    assert data.train.n_groups == 9
    found = [flat(read(data, lane=lane, n_lanes=n_lanes)) for lane in range(n_lanes)]
    for lane, part in enumerate(found):
        assert part and all(document.group % n_lanes == lane for document in part)
    together = sorted((d.group, d.row, text_of(d)) for part in found for d in part)
    assert together == [(d.group, d.row, text_of(d)) for d in flat(read(data))]


def test_nulls_and_empty_texts_are_no_documents(tmp_path):
    """Faults: C40."""
    texts = [None, "a", "", None, "b", None, None, None, None, None, "c", ""]
    data = open_text(write_data(tmp_path / "data", texts, VAL))
    chunks = read(data)
    assert [(d.group, d.row, text_of(d)) for d in flat(chunks)] == [(0, 1, "a"), (0, 4, "b"), (2, 0, "c")]
    assert [chunk.after[1:] for chunk in chunks] == [(1, 0), (2, 0), (0, 0)]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()])
def test_every_kind_of_string_column_is_read(tmp_path, kind):
    directory = write_data(tmp_path / "data", TEXTS[0], VAL)
    write_file(directory / "shard_00000.parquet", [*TEXTS[0], None], kind=kind)
    assert [text_of(d) for d in flat(read(open_text(directory)))] == TEXTS[0]


def test_only_what_is_asked_for_is_kept_of_a_document(data):
    whole, cut = flat(read(data)), flat(read(data, max_tokens=20))
    assert {len(document.tokens) for document in cut} == {min(20, len(document.tokens)) for document in whole}
    assert [d.n_tokens for d in cut] == [d.n_tokens for d in whole]
    for one, other in zip(cut, whole, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens[:20])
        assert one.tokens.base is None  # not a view that keeps the rest


def test_documents_are_fetched_by_place(data):
    whole = {(d.group, d.row): text_of(d) for d in flat(read(data))}
    places = [(8, 0), (0, 3), (0, 1), (8, 0), (4, 4)]
    encoder = Encoder(data, 3, None)
    assert [text_of(d) for d in encoder.fetch(data.train, places)] == [whole[place] for place in places]
    encoder.close()


# Opening


def test_the_last_number_is_for_validation_and_numbers_may_be_missing(tmp_path):
    directory = write_data(tmp_path / "data", TEXTS[0], first=7)
    write_file(directory / "shard_06542.parquet", VAL)
    write_file(directory / "shard_00002.parquet", TEXTS[1])
    (directory / "shard_99999.parquet.tmp").write_bytes(b"half a download")
    for name in (".shard_99999.parquet", "zebra.parquet", "text.json"):
        (directory / name).write_bytes(b"no shard")
    data = open_text(str(directory))
    assert [file.path.name for file in data.train.files] == ["shard_00002.parquet", "shard_00007.parquet"]
    assert [file.path.name for file in data.val.files] == ["shard_06542.parquet"]
    assert [text_of(d) for d in flat(read(data))] == TEXTS[1] + TEXTS[0]
    write_file(directory / "shard_99999.parquet", ["the last of five digits"])
    write_file(directory / "shard_100000.parquet", ["behind it"])
    assert [file.path.name for file in open_text(directory).val.files] == ["shard_100000.parquet"]


def test_the_digest_changes_with_the_content(tmp_path):
    directory = write_data(tmp_path / "data", *TEXTS, VAL)
    digests = [open_text(directory).digest, open_text(directory).digest]
    assert digests[0] == digests[1]
    path = directory / "shard_00001.parquet"
    write_file(path, [text.swapcase() for text in TEXTS[1]])
    digests.append(open_text(directory).digest)
    write_file(path, TEXTS[1], group_rows=2)
    digests.append(open_text(directory).digest)
    write_file(path, TEXTS[1])
    assert open_text(directory).digest == digests[0]
    (directory / "shard_00003.parquet").rename(directory / "shard_00009.parquet")
    digests.append(open_text(directory).digest)
    (directory / "shard_00009.parquet").rename(directory / "shard_00003.parquet")
    other = tmp_path / "other.json"
    other.write_text('{"kind": "gpt2"}')
    assert open_text(directory).digest == digests[0]
    digests.append(open_text(directory, other).digest)
    assert len(set(digests)) == len(digests) - 1


def test_the_digest_sees_the_front_of_a_file(tmp_path):
    """Without statistics, footers of texts of one length are alike; and two such files are still no copies."""
    directory = write_data(tmp_path / "data", *TEXTS, VAL)
    digests = []
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    write_file(directory / "shard_00001.parquet", ["b" * 9000], **plain)
    for letter in "ab":
        write_file(directory / "shard_00003.parquet", [letter + "b" * 8998 + "c"], **plain)
        digests.append(open_text(directory).digest)
    write_file(directory / "shard_00003.parquet", ["b" * 8999 + "c"], **plain)
    data = open_text(directory)
    assert data.train.files[1].sha256_of_ends == data.val.files[0].sha256_of_ends
    assert data.train.files[1].size_bytes == data.val.files[0].size_bytes
    assert digests[0] != digests[1] == data.digest


def test_the_delimiter_is_begin_of_text_else_end_of_text(tmp_path, monkeypatch):
    directory = write_data(tmp_path / "data", *TEXTS, VAL)
    assert open_text(directory).delimiter == DELIMITER
    monkeypatch.setattr(MarkedBytes, "end_of_text", 9)
    assert open_text(directory).delimiter == DELIMITER
    monkeypatch.setattr(MarkedBytes, "begin_of_text", 0)
    assert open_text(directory).delimiter == 0
    (directory / "tokenizer.json").write_text('{"kind": "gpt2"}')
    assert open_text(directory).delimiter == 50256
    assert open_text(directory).tokenizer_json == {"kind": "gpt2"}


def lacks_directory(directory):
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def lacks_text_column(directory):
    pyarrow.parquet.write_table(pyarrow.table({"content": ["a"], "n": [1]}), directory / "shard_00001.parquet")


def has_numbers_for_text(directory):
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), directory / "shard_00001.parquet")


def is_cut_short(directory):
    path = directory / "shard_00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def has_one_file(directory):
    for path in sorted(directory.glob("*.parquet"))[1:]:
        path.unlink()


def has_no_files(directory):
    for path in directory.glob("*.parquet"):
        path.unlink()


def has_no_rows(*numbers):
    def empty(directory):
        for number in numbers:
            write_file(directory / f"shard_{number:05d}.parquet", [])

    return empty


def has_a_copy_for_validation(directory):
    (directory / "shard_00003.parquet").write_bytes((directory / "shard_00000.parquet").read_bytes())


def writes(name, content):
    return lambda directory: (directory / name).write_bytes(content)


FAULTS = {
    lacks_directory: "data.dir={0} does not exist; `jaxgpt prepare climbmix --shards 8 --out {0}` fetches",
    has_one_file: "{0} has only shard_00000.parquet; the last file is for validation, so it needs two; `jaxgpt",
    has_no_files: "{0} has no shard_00000.parquet and so on; the last file is for validation",
    lacks_text_column: "{0}/shard_00001.parquet: no column 'text' (it has: content, n); rename",
    has_numbers_for_text: "{0}/shard_00001.parquet: column 'text' is int64, not string",
    is_cut_short: "{0}/shard_00001.parquet is not a parquet file, or was cut short (Parquet magic bytes not found",
    writes("shard_00002.parquet", b""): "{0}/shard_00002.parquet is not a parquet file, or was cut short (",
    writes("shard_00002.parquet", b"PAR1\xff\xff\xff\x7fPAR1"): "{0}/shard_00002.parquet is not a parquet file, or",
    has_no_rows(3): "{0}: shard_00003.parquet (val) has no rows",
    has_no_rows(0, 1, 2): "{0}: shard_00000.parquet, shard_00001.parquet, shard_00002.parquet (train) has no rows",
    has_a_copy_for_validation: "{0}: shard_00003.parquet, which is for validation, has the same content as shard_00000",
    lambda d: (d / "tokenizer.json").unlink(): (
        "the tokenizer {0}/tokenizer.json is missing; `jaxgpt train_tokenizer --data {0}` creates one"
    ),
    writes("tokenizer.json", b"\xff"): "the tokenizer {0}/tokenizer.json is not JSON (",
    writes("tokenizer.json", b"{"): "the tokenizer {0}/tokenizer.json is not JSON (",
    writes("tokenizer.json", b"[" * 100_000): "the tokenizer {0}/tokenizer.json is not JSON (",
    writes("tokenizer.json", b'{"kind": "?"}'): "{0}/tokenizer.json: tokenizer: kind='?' is unknown",
    writes("tokenizer.json", b'{"kind": "byte"}'): "the byte tokenizer in {0}/tokenizer.json has no token that",
}


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__qualname__.split(".")[0])
def test_a_fault_is_named_in_one_line(tmp_path, spoil):
    """Faults: C18, C32, C44."""
    directory = write_data(tmp_path / "data", *TEXTS, VAL)
    spoil(directory)
    with pytest.raises(InputError) as error:
        open_text(directory)
    assert FAULTS[spoil].format(directory) in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_rows_is_passed_over(tmp_path):
    data = open_text(write_data(tmp_path / "data", [], TEXTS[0], [], TEXTS[1], VAL))
    assert [text_of(d) for d in flat(read(data))] == TEXTS[0] + TEXTS[1]


# Reading what has faults


def take_until_error(lane: Lane, match: str, n_most: int = 100) -> list:
    chunks = []
    with pytest.raises(InputError, match=match) as error:
        for _ in range(n_most):
            chunks.append(next(lane))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=match):  # and again, not the chunk behind it
        next(lane)
    return flat(chunks)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_text_that_is_not_utf8_is_located_when_its_turn_comes(tmp_path, n_threads):
    """Faults: C40."""
    texts = [f"text {i}" for i in range(12)]
    data = open_text(write_data(tmp_path / "data", [*texts, b"caf\xe9 au lait"], TEXTS[0], VAL))
    encoder = Encoder(data, n_threads)
    place = f"{tmp_path / 'data' / 'shard_00000.parquet'} row group 2 row 2 is not UTF-8: byte 0xe9 at offset 3"
    assert [text_of(d) for d in take_until_error(Lane(data.train, encoder), place)] == texts[:10]
    with pytest.raises(InputError, match=place):
        encoder.fetch(data.train, [(2, 2)])
    encoder.close()


def test_a_file_that_changed_is_refused_when_its_turn_comes(tmp_path):
    """Faults: C35."""
    data = open_text(write_data(tmp_path / "data", *TEXTS, VAL))
    before = TEXTS[0] + TEXTS[1]
    path = tmp_path / "data" / "shard_00002.parquet"
    encoder = Encoder(data, 2)
    write_file(path, TEXTS[2], group_rows=4)
    message = "shard_00002.parquet row group 0 has 4 rows, 5 when the run opened it"
    assert [text_of(d) for d in take_until_error(Lane(data.train, encoder), message)] == before
    for content in (b"", path.read_bytes()[:-30]):
        path.write_bytes(content)
        assert len(take_until_error(Lane(data.train, encoder), "row group 0 cannot be read")) == len(before)
    path.unlink()
    assert len(take_until_error(Lane(data.train, encoder), "row group 0 cannot be read")) == len(before)
    write_file(path, TEXTS[2][:5])
    assert len(take_until_error(Lane(data.train, encoder), "row group 1 cannot be read")) == len(before) + 5
    encoder.close()


def test_a_flipped_bit_is_seen_where_pages_have_checksums(tmp_path):
    """Faults: C34."""
    directory = write_data(tmp_path / "data", *TEXTS, VAL)
    path = directory / "shard_00001.parquet"
    write_file(path, TEXTS[1], compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(b"file 1 text 1")] ^= 1  # neither the least nor the largest: those stand in the footer too
    path.write_bytes(content)
    data = open_text(directory)
    encoder = Encoder(data, 2)
    message = "shard_00001.parquet row group 0 cannot be read"
    assert len(take_until_error(Lane(data.train, encoder), message)) == len(TEXTS[0])
    encoder.close()


def test_what_the_tokenizer_refuses_is_located(data, monkeypatch):
    def encode_array(self, text):
        if text == TEXTS[2][7]:
            raise InputError("no such character")
        return ByteTokenizer.encode_array(self, text)

    monkeypatch.setattr(MarkedBytes, "encode_array", encode_array)
    encoder = Encoder(data, 2)
    match = "shard_00002.parquet row group 1 rows 0 to 4: no such character"
    assert len(take_until_error(Lane(data.train, encoder), match)) == 21
    encoder.close()


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_lane_without_text_is_refused_and_does_not_spin(tmp_path, nothing):
    data = open_text(write_data(tmp_path / "data", ["a"] * 5 + [nothing] * 5, VAL))
    encoder = Encoder(data, 2)
    lane = Lane(data.train, encoder, lane=1, n_lanes=2)
    message = "train: the row groups of lane 1 of data.lanes=2 hold no text, only nulls"
    assert take_until_error(lane, message) == []
    encoder.close()


# Working ahead


def test_reading_ahead_is_bounded(tmp_path, monkeypatch):
    """By chunks, and by bytes where documents are large."""
    monkeypatch.setattr(documents, "_CHUNK_ROWS", 1)
    encoded = []

    def encode_array(self, text):
        encoded.append(text)
        return ByteTokenizer.encode_array(self, text)

    monkeypatch.setattr(MarkedBytes, "encode_array", encode_array)
    data = open_text(write_data(tmp_path / "data", [f"{i} " * 100 for i in range(300)], VAL))
    for n_threads, ahead_bytes, n_bounded in ((1, 1 << 20, 128), (80, 1 << 20, 160), (1, 2000, 8), (1, 1, 1)):
        monkeypatch.setattr(documents, "_AHEAD_BYTES", ahead_bytes)
        encoded.clear()
        encoder = Encoder(data, n_threads)
        lane = Lane(data.train, encoder)
        next(lane)
        next(lane)
        encoder.pool.shutdown(wait=True)
        assert n_bounded <= len(encoded) <= n_bounded + 3, (n_threads, ahead_bytes)


def test_threads_work_at_the_same_time(data, monkeypatch):
    barrier = threading.Barrier(3, timeout=60)
    monkeypatch.setattr(documents, "_CHUNK_ROWS", 1)

    def encode_array(self, text):
        barrier.wait()
        return ByteTokenizer.encode_array(self, text)

    monkeypatch.setattr(MarkedBytes, "encode_array", encode_array)
    encoder = Encoder(data, 3)
    lane = Lane(data.train, encoder)
    assert [text_of(d) for d in flat([next(lane) for _ in range(6)])] == TEXTS[0][:6]
    barrier.abort()
    encoder.close()


@pytest.mark.parametrize("how", ["close", "drop"])
def test_no_thread_is_left_behind(data, how):
    encoder = Encoder(data, 3)
    lane = Lane(data.train, encoder)
    next(lane)
    assert tokenize_threads() > 0
    if how == "close":
        encoder.close()
        assert tokenize_threads() == 0
    else:
        del lane, encoder
        deadline = time.monotonic() + 30
        while tokenize_threads() and time.monotonic() < deadline:
            gc.collect()  # what is being tokenized holds on to the lane until it is done
            time.sleep(0.01)
        assert tokenize_threads() == 0


def test_close_does_not_wait_for_what_has_not_begun(data, monkeypatch):
    monkeypatch.setattr(documents, "_CHUNK_ROWS", 1)
    begun = []

    def encode_array(self, text):
        begun.append(text)
        time.sleep(0.05)
        return ByteTokenizer.encode_array(self, text)

    monkeypatch.setattr(MarkedBytes, "encode_array", encode_array)
    encoder = Encoder(data, 1)
    next(Lane(data.train, encoder))
    encoder.close()
    assert len(begun) < 64  # of 128 that were waiting


def test_footers_are_enough_to_open(tmp_path, monkeypatch):
    """No text is read: opening thousands of large files takes seconds."""
    directory = write_data(tmp_path / "data", *TEXTS, VAL)
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", None)
    data = open_text(directory)
    assert json.loads((directory / "tokenizer.json").read_text()) == data.tokenizer_json
    assert [file.group_rows for file in data.train.files] == [(5, 5, 3), (3,), (5, 5, 5, 5, 1)]


@pytest.mark.parametrize(
    ("directory", "command"),
    [
        ("data/fineweb-edu", "fineweb-edu --shards 8"),
        ("data/climbmix", "climbmix --shards 8"),
        ("data/mine", "climbmix --shards 8 --out data/mine"),
        ("elsewhere/fineweb-edu", "fineweb-edu --shards 8 --out elsewhere/fineweb-edu"),
        ("data/pydocs_text", "pydocs --format text"),
        ("data/pydocs", "pydocs --format text --out data/pydocs"),
    ],
)
def test_a_missing_directory_is_prepared_by_its_name(directory, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tuple(TEXT_CORPORA) == text_data.TEXT_CORPUS_NAMES
    with pytest.raises(InputError, match=f"data.dir={directory} does not exist; `jaxgpt prepare {command}` fetches"):
        open_text(directory)
