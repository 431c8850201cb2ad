"""What is written is what is read, across files and formats; every damaged directory is one line that says so."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import DTypeLike

from jaxgpt.data import shards
from jaxgpt.data.manifest import write_manifest
from jaxgpt.data.shards import (
    HEADER_BYTES,
    LLMC_MAGIC,
    MAGIC,
    Split,
    check_ids,
    inspect_shard,
    open_dataset,
    pick_dtype,
    verify,
)
from jaxgpt.data.tokenizer import ByteTokenizer
from jaxgpt.errors import InputError
from jaxgpt.prepare import shard_writer
from jaxgpt.prepare.corpora import CORPORA
from jaxgpt.prepare.shard_writer import ShardWriter, write_shard


def ids(n: int, seed: int = 0, limit: int = 256, dtype: DTypeLike = np.uint16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, limit, n).astype(dtype)


def prepared(directory: Path, train=(300, 200), val=(90,), dtype=np.uint16) -> dict:
    """A directory as `prepare` writes it, and its manifest's values."""
    directory.mkdir(parents=True, exist_ok=True)
    splits = {}
    for seed, (name, sizes) in enumerate({"train": train, "val": val}.items()):
        paths = [directory / f"{name}_{i:06d}.bin" for i in range(len(sizes))]
        files = [
            write_shard(p, ids(n, seed * 100 + i, dtype=dtype))
            for i, (p, n) in enumerate(zip(paths, sizes, strict=True))
        ]
        splits[name] = {"files": files, "n_tokens": sum(sizes), "n_bytes": sum(sizes)}
    tokenizer = ByteTokenizer()
    values = {
        "format": 1,
        "corpus": "x",
        "tokenizer": tokenizer.to_json(),
        "tokenizer_sha256": tokenizer.digest(),
        "vocab_size": tokenizer.vocab_size,
        "dtype": np.dtype(dtype).name,
        "splits": splits,
    }
    write_manifest(directory, values)
    return values


def llmc(path: Path, tokens: np.ndarray, **changes) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = changes.get("magic", LLMC_MAGIC), changes.get("version", 1), changes.get("count", len(tokens))
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


def message(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


# Written = read


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_written_is_read(tmp_path, dtype):
    tokens = ids(5000, limit=np.iinfo(dtype).max, dtype=dtype)
    entry = write_shard(tmp_path / "a.bin", tokens)
    file = inspect_shard(tmp_path / "a.bin")
    assert (entry["n_tokens"], entry["size_bytes"]) == (5000, (tmp_path / "a.bin").stat().st_size)
    assert (tmp_path / "a.bin").read_bytes()[:4] == b"JGPT"
    split = Split("train", tmp_path, (file,))
    np.testing.assert_array_equal(split.read(0, 5000), tokens)
    assert split.read(7, 3).dtype == dtype
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("seed", range(12))
def test_any_cut_into_shards_reads_the_same(tmp_path, seed):
    rng = np.random.default_rng(seed)
    dtype = (np.uint16, np.uint32)[seed % 2]
    tokens = ids(int(rng.integers(1, 3000)), seed, np.iinfo(dtype).max, dtype)
    writer = ShardWriter(tmp_path, "train", np.dtype(dtype), int(rng.integers(1, 700)))
    left = tokens.astype(np.int64)
    while len(left):
        n = int(rng.integers(0, 900))
        writer.write(left[:n])
        left = left[n:]
    entries = writer.close()
    split = Split("train", tmp_path, tuple(inspect_shard(tmp_path / entry["name"]) for entry in entries))
    assert sum(entry["n_tokens"] for entry in entries) == split.n_tokens == len(tokens)
    for _ in range(50):
        start = int(rng.integers(0, len(tokens) + 1))
        n = int(rng.integers(0, len(tokens) - start + 1))
        np.testing.assert_array_equal(split.read(start, n), tokens[start : start + n])
    for position in rng.integers(0, len(tokens), 20).tolist():
        name, offset = split.locate(position)
        file = inspect_shard(tmp_path / name)
        assert Split("train", tmp_path, (file,)).read(offset, 1)[0] == tokens[position]


def test_reading_outside_the_split_is_a_bug(tmp_path):
    write_shard(tmp_path / "a.bin", ids(10))
    split = Split("train", tmp_path, (inspect_shard(tmp_path / "a.bin"),))
    for start, n in [(-1, 2), (0, 11), (10, 1), (3, -1)]:
        with pytest.raises(IndexError):
            split.read(start, n)


def test_a_count_above_32_bits_survives_the_header():
    n = (5 << 32) + 7
    words = np.frombuffer(shard_writer._header(n, np.dtype("<u2")), "<i4")
    assert (int(words[2]) & 0xFFFFFFFF) + (int(words[3]) << 32) == n and len(words) * 4 == HEADER_BYTES


def test_dtype_is_the_narrowest():
    assert [pick_dtype(n).itemsize for n in (1, 50257, 65536, 65537)] == [2, 2, 2, 4]


def test_an_unfinished_writer_leaves_nothing(tmp_path):
    writer = ShardWriter(tmp_path, "train", np.dtype(np.uint16), 100)
    writer.write(ids(150))
    assert sorted(os.listdir(tmp_path)) == ["train_000000.bin", "train_000001.bin.tmp"]
    writer.abandon()
    assert os.listdir(tmp_path) == ["train_000000.bin"]


# Directories that are fine


def test_prepared_directory(tmp_path):
    prepared(tmp_path, (300, 200), (90,))
    data = open_dataset(tmp_path)
    assert (data.train.n_tokens, data.val.n_tokens, data.vocab_size) == (500, 90, 256)
    assert data.tokenizer_json == {"kind": "byte"}
    np.testing.assert_array_equal(data.train.read(290, 20), np.concatenate([ids(300, 0)[290:], ids(200, 1)[:10]]))
    check_ids(data.train, 256)
    assert verify(data) == {file.path.name: file.sha256 for file in data.train.files + data.val.files}


def test_nanogpt_directory(tmp_path):
    for name, seed in (("train", 0), ("val", 1)):
        ids(1000, seed, 50257).tofile(tmp_path / f"{name}.bin")
    data = open_dataset(tmp_path)
    np.testing.assert_array_equal(data.train.read(0, 1000), ids(1000, 0, 50257))
    assert data.vocab_size is None and data.tokenizer_json is None
    content = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("train.bin", "val.bin")}
    assert verify(data) == content and not data.has_manifest


def test_llmc_directory(tmp_path):
    for i in (1, 2):
        llmc(tmp_path / f"fineweb_train_{i:06d}.bin", ids(400, i, 50257))
    llmc(tmp_path / "fineweb_val_000000.bin", ids(100, 9, 50257))
    (tmp_path / "fineweb_train_000003.bin.part").write_bytes(b"half")
    data = open_dataset(tmp_path)
    np.testing.assert_array_equal(data.train.read(0, 800), np.concatenate([ids(400, i, 50257) for i in (1, 2)]))
    assert data.vocab_size == 50257 and data.tokenizer_json == {"kind": "gpt2"}


def test_llmc_shards_under_a_manifest(tmp_path):
    values = prepared(tmp_path)
    for split in values["splits"].values():
        for entry in split["files"]:
            llmc(tmp_path / entry["name"], ids(entry["n_tokens"], len(entry["name"])))
            entry |= {"size_bytes": 1024 + 2 * entry["n_tokens"], "format": "llmc"}
    write_manifest(tmp_path, values)
    assert open_dataset(tmp_path).train.files[0].format == "llmc"


@pytest.mark.parametrize("kind", ["prepared", "nanogpt", "llmc"])
def test_the_digest_follows_the_content_and_not_the_place(tmp_path, kind):
    def make(directory, seed):
        directory.mkdir(exist_ok=True)
        if kind == "prepared":
            return prepared(directory, (300 + seed,), (90,))
        names = ("train.bin", "val.bin") if kind == "nanogpt" else ("a_train_000001.bin", "a_val_000000.bin")
        for i, name in enumerate(names):
            tokens = ids(500, seed + i)
            tokens.tofile(directory / name) if kind == "nanogpt" else llmc(directory / name, tokens)
        return None

    for name, seed in (("a", 0), ("b", 0), ("c", 5)):
        make(tmp_path / name, seed)
    a, b, c = (open_dataset(tmp_path / name).digest for name in "abc")
    assert a == b != c and len(a) == 64


# Files that are not fine


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda b: b"", "has 0 bytes"),
        (lambda b: b[:-1], "odd number"),
        (lambda b: b[:500], "has 500 bytes, a header alone has 1024"),
        (lambda b: b"\0\0\0\1" + b[4:], f"has magic 16777216, not {MAGIC}"),
        (lambda b: b[3::-1] + b[4:], "another byte order"),
        (lambda b: b[:4] + (2).to_bytes(4, "little") + b[8:], "has version 2, this code reads 1"),
        (lambda b: b[:16] + (3).to_bytes(4, "little") + b[20:], "has dtype code 3"),
        (lambda b: b[:-20], "header says 90 tokens, file holds 80; the file was cut short"),
        (lambda b: b[:8] + (2**31 - 1).to_bytes(4, "little") + b[12:], "header says 2147483647 tokens, file holds 90"),
        (lambda b: b[:12] + (2**31 - 1).to_bytes(4, "little") + b[16:], "tokens, file holds 90; the file was cut"),
        (lambda b: b[:12] + b"\xff" * 4 + b[16:], "header says -4294967206 tokens; it is damaged"),
        (lambda b: b + b[-20:], "header says 90 tokens, file holds 100 (20 bytes more)"),
        (lambda b: np.frombuffer(b[1024:], "<u2").tobytes() * 9, "has magic"),
        (lambda b: LLMC_MAGIC.to_bytes(4, "little") + b[4:], "a file of format llmc"),
    ],
)
def test_damaged_shard(tmp_path, damage, expected):
    """Faults: C21, C22, C23, C24, C25, C26, C27, C28."""
    prepared(tmp_path)
    path = tmp_path / "val_000000.bin"
    path.write_bytes(damage(path.read_bytes()))
    found = message(open_dataset, tmp_path)
    assert expected in found and str(path) in found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"magic": 20240801}, f"has magic 20240801, not {MAGIC} or {LLMC_MAGIC}"),
        ({"version": 7}, "has version 7"),
        ({"count": 101}, "header says 101 tokens, file holds 100; the file was cut short"),
        ({"count": 99}, "header says 99 tokens, file holds 100 (2 bytes more)"),
        ({"count": -1}, "header says -1 tokens; it is damaged"),
    ],
)
def test_damaged_llmc_shard(tmp_path, changes, expected):
    """Faults: C21, C22, C23, C24, C25, C26, C27, C28."""
    llmc(tmp_path / "a_train_000001.bin", ids(400))
    llmc(tmp_path / "a_val_000000.bin", ids(100), **changes)
    assert expected in message(open_dataset, tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "train.bin has 0 bytes"),
        (b"abc", "train.bin has 3 bytes, an odd number"),
        (ids(500, dtype=np.uint32).tobytes(), "looks like uint32 ids"),
    ],
)
def test_damaged_nanogpt_file(tmp_path, content, expected):
    """Faults: C22, C31."""
    (tmp_path / "train.bin").write_bytes(content)
    ids(100, 3).tofile(tmp_path / "val.bin")
    assert expected in message(open_dataset, tmp_path)


# Directories that are not fine


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("data/pydocs", "`jaxgpt prepare pydocs`"),
        ("data/openwebtext", "`jaxgpt prepare openwebtext`"),
        ("elsewhere/shakespeare", "`jaxgpt prepare shakespeare --out elsewhere/shakespeare`"),
        ("data/mine", "`jaxgpt prepare mine --input FILE`"),
    ],
)
def test_missing_directory_names_the_command(tmp_path, monkeypatch, name, command):
    """Faults: C18."""
    monkeypatch.chdir(tmp_path)
    assert message(open_dataset, name) == f"data.dir={name} does not exist; run {command}"


def test_every_corpus_is_named():
    assert tuple(CORPORA) == shards.CORPUS_NAMES


def test_directory_without_shards(tmp_path):
    """Faults: C19."""
    assert "has no train shards (found: nothing)" in message(open_dataset, tmp_path)
    ids(100).tofile(tmp_path / "train.bin")
    assert "has no val shards (found: train.bin)" in message(open_dataset, tmp_path)


@pytest.mark.parametrize(("there", "missing"), [((1, 3), 2), ((0, 1, 3), 2), ((2, 3), 1), ((1, 2, 3, 5), 4)])
def test_gap_in_a_numbered_sequence(tmp_path, there, missing):
    """Faults: C20."""
    for i in there:
        llmc(tmp_path / f"fineweb_train_{i:06d}.bin", ids(100, i))
    llmc(tmp_path / "fineweb_val_000000.bin", ids(100, 9))
    assert f"fineweb_train_{missing:06d}.bin is missing, fineweb_train_{there[-1]:06d}.bin exists" in message(
        open_dataset, tmp_path
    )


def test_ambiguous_directories(tmp_path):
    for name in ("a_train_000001.bin", "a_train_1.bin", "a_val_000000.bin"):
        llmc(tmp_path / name, ids(100, len(name)))
    assert "do not number one sequence" in message(open_dataset, tmp_path)
    (tmp_path / "a_train_1.bin").rename(tmp_path / "b_train_1.bin")
    assert "several data sets ('a', 'b')" in message(open_dataset, tmp_path)


def test_shards_without_their_manifest(tmp_path):
    prepared(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert "has shards but no manifest.json" in message(open_dataset, tmp_path)


def test_missing_shard_of_a_manifest(tmp_path):
    prepared(tmp_path)
    (tmp_path / "train_000001.bin").unlink()
    assert f"shard {tmp_path / 'train_000001.bin'} is missing" in message(open_dataset, tmp_path)


def test_empty_val(tmp_path):
    """Faults: C92."""
    prepared(tmp_path, val=(0,))
    assert "val has no tokens" in message(open_dataset, tmp_path)


def test_val_equal_to_train(tmp_path):
    """Faults: C33."""
    values = prepared(tmp_path / "a")
    values["splits"]["val"]["files"] = values["splits"]["train"]["files"][1:]
    values["splits"]["val"]["n_tokens"] = 200
    write_manifest(tmp_path / "a", values)
    assert "val's train_000001.bin has the same content as train's train_000001.bin" in message(
        open_dataset, tmp_path / "a"
    )
    (tmp_path / "b").mkdir()
    ids(100).tofile(tmp_path / "b/train.bin")
    (tmp_path / "b/val.bin").symlink_to("train.bin")
    assert "val's val.bin has the same content as train's train.bin" in message(open_dataset, tmp_path / "b")
    (tmp_path / "c").mkdir()
    llmc(tmp_path / "c/a_train_000001.bin", ids(100))
    shutil.copy(tmp_path / "c/a_train_000001.bin", tmp_path / "c/a_val_000000.bin")
    assert "val's a_val_000000.bin has the same content as train's a_train_000001.bin" in message(
        open_dataset, tmp_path / "c"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"format": 1, "corpus": "\xff"}', "is not UTF-8 at byte 25"),
        (b"[]", "format=[], this code reads 1"),
        (b'{"format": 2}', "format=2, this code reads 1"),
        (b'{"format": true}', "format=True, this code reads 1"),
        (b'{"format": 1}', "tokenizer=None is not a valid dict"),
    ],
)
def test_manifest_that_is_none(tmp_path, content, expected):
    prepared(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    found = message(open_dataset, tmp_path)
    assert found.startswith(str(tmp_path / "manifest.json")) and expected in found


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("tokenizer",), {"kind": "pickle"}, "kind='pickle' is unknown"),
        (("tokenizer",), {"kind": "char", "chars": "ab"}, "its tokenizer is not the one that made the shards"),
        (("tokenizer_sha256",), "0" * 64, "its tokenizer is not the one that made the shards"),
        (("vocab_size",), 255, "its tokenizer is not the one"),
        (("vocab_size",), -256, "vocab_size=-256 is not a valid int"),
        (("dtype",), "uint32", "holds uint16"),
        (("splits",), [], "splits=[] is not a valid dict"),
        (("splits", "val"), None, "val=None is not a valid dict"),
        (("splits", "val", "files"), [], "val has no shards"),
        (("splits", "val", "files", 0), "val_000000.bin", "name=None is not a valid str"),
        (("splits", "val", "files", 0, "name"), "../val_000000.bin", "'../val_000000.bin' leaves the directory"),
        (("splits", "val", "files", 0, "name"), "/etc/passwd", "'/etc/passwd' leaves the directory"),
        (("splits", "val", "files", 0, "name"), "a\\b.bin", "leaves the directory"),
        (("splits", "val", "files", 0, "name"), "..", "'..' leaves the directory"),
        (("splits", "val", "files", 0, "sha256"), "x", "is not 64 hex digits"),
        (("splits", "val", "files", 0, "format"), "pickle", "format=pickle"),
        (("splits", "val", "files", 0, "size_bytes"), 4, "has size_bytes=1204, manifest.json says 4"),
        (("splits", "val", "files", 0, "n_tokens"), 90.0, "n_tokens=90.0 is not a valid int"),
        (("splits", "val", "n_tokens"), 91, "val has n_tokens=91, its files 90"),
    ],
)
def test_manifest_with_a_wrong_field(tmp_path, path, value, expected):
    """Faults: C43."""
    values = prepared(tmp_path)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    found = message(open_dataset, tmp_path)
    assert expected in found and str(tmp_path) in found


def test_manifest_and_header_disagree(tmp_path):
    values = prepared(tmp_path)
    write_shard(tmp_path / "val_000000.bin", ids(95))
    assert "has size_bytes=1214, manifest.json says 1204" in message(open_dataset, tmp_path)
    values["splits"]["val"]["files"][0]["size_bytes"] = 1214
    write_manifest(tmp_path, values)
    assert "has n_tokens=95, manifest.json says 90" in message(open_dataset, tmp_path)


def test_unreadable_shard(tmp_path, monkeypatch):
    """Faults: C36."""
    prepared(tmp_path)
    data = open_dataset(tmp_path)

    def broken(fd, n, at):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    assert "cannot be read at byte 1024: Input/output error" in message(data.train.read, 0, 5)


def test_shard_cut_while_it_is_read(tmp_path):
    """Faults: C35."""
    prepared(tmp_path)
    data = open_dataset(tmp_path)
    data.train.read(0, 5)
    os.truncate(tmp_path / "train_000000.bin", 1100)
    assert "ends at byte 1100, 100 bytes early" in message(data.train.read, 38, 50)


def test_short_reads_are_completed(tmp_path, monkeypatch):
    prepared(tmp_path)
    whole, pread = open_dataset(tmp_path).train.read(0, 500), os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 7), at))
    np.testing.assert_array_equal(open_dataset(tmp_path).train.read(0, 500), whole)


def test_an_id_outside_the_vocabulary_is_located(tmp_path, monkeypatch):
    """Faults: C30."""
    monkeypatch.setattr(shards, "BLOCK_BYTES", 64)
    values = prepared(tmp_path)
    tokens = ids(200, 1)
    tokens[[123, 150]] = 300, 301
    values["splits"]["train"]["files"][1] = write_shard(tmp_path / "train_000001.bin", tokens)
    write_manifest(tmp_path, values)
    data = open_dataset(tmp_path)
    expected = f"shard {tmp_path / 'train_000001.bin'}: token 123 is id 300, outside the vocabulary of 256"
    assert expected in message(check_ids, data.train, 256)
    check_ids(data.val, 256)
    check_ids(data.train, 302)


def test_verify_finds_one_flipped_bit(tmp_path):
    """Faults: C34."""
    prepared(tmp_path)
    path = tmp_path / "train_000001.bin"
    content = bytearray(path.read_bytes())
    content[1100] ^= 1
    path.write_bytes(content)
    found = message(verify, open_dataset(tmp_path))
    assert found.startswith(f"shard {path} has SHA-256") and "it changed since it was prepared" in found
