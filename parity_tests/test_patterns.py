"""Shards chosen by patterns, where modded-nanogpt finds its train_files and val_files; DATA_PATH moves these alone."""

import dataclasses

import numpy as np
import pytest

from jaxgpt.config import DataConfig
from jaxgpt.data.manifest import write_manifest
from jaxgpt.data.shards import Dataset, open_dataset
from jaxgpt.data.sources import open_directory, open_source
from jaxgpt.data.tokenizer import ByteTokenizer
from jaxgpt.errors import InputError
from jaxgpt.prepare.encode import describe_tokens
from jaxgpt.prepare.shard_writer import write_shard

DATA = DataConfig(
    dir="data/fineweb10B", train_files="fineweb_train_*.bin", val_files="fineweb_val_*.bin", sampling="bos_aligned"
)


def open_tokens(config: DataConfig) -> Dataset:
    data = open_source(config).data
    assert isinstance(data, Dataset)
    return data


@pytest.fixture(autouse=True)
def no_data_path(monkeypatch):
    monkeypatch.delenv("DATA_PATH", raising=False)


@pytest.fixture
def shards(tmp_path):
    """tmp_path/mnt/data/fineweb10B: shard i of the training set holds 100 times id i, out of order on the disk."""
    directory = tmp_path / "mnt" / "data" / "fineweb10B"
    directory.mkdir(parents=True)
    for i in (3, 1, 2):
        write_shard(directory / f"fineweb_train_{i:06d}.bin", np.full(100, i, np.uint16), "llmc")
    write_shard(directory / "fineweb_val_000000.bin", np.full(50, 9, np.uint16), "llmc")
    write_shard(directory / "other_train_000001.bin", np.full(70, 8, np.uint16), "llmc")
    return directory


@pytest.mark.parametrize("kind", ["data_path", "working_directory", "absolute", "data_path_and_absolute"])
def test_where_a_pattern_looks(tmp_path, shards, monkeypatch, kind):
    config = DATA
    monkeypatch.chdir(tmp_path / "mnt" if kind == "working_directory" else tmp_path)
    if "data_path" in kind:
        monkeypatch.setenv("DATA_PATH", "mnt" if kind == "data_path" else str(tmp_path / "elsewhere"))
    if "absolute" in kind:
        config = dataclasses.replace(DATA, dir=str(shards))
    source, data = open_source(config), open_tokens(config)
    assert data.train.read(0, 300).tolist() == [1] * 100 + [2] * 100 + [3] * 100
    assert data.val.read(0, 50).tolist() == [9] * 50
    assert source.bos_id() == 50256 and source.n_ids == 50257


def test_a_pattern_may_be_absolute_or_choose_some(shards):
    some = dataclasses.replace(DATA, dir=str(shards), train_files="fineweb_train_00000[13].bin")
    assert open_tokens(some).train.read(0, 200).tolist() == [1] * 100 + [3] * 100
    absolute = dataclasses.replace(
        DATA, dir=".", train_files=f"{shards}/other_*.bin", val_files=f"{shards}/*_val_*.bin"
    )
    assert open_tokens(absolute).train.n_tokens == 70


def test_data_path_moves_nothing_else(tmp_path, shards, monkeypatch):
    (shards / "other_train_000001.bin").unlink()
    monkeypatch.chdir(tmp_path / "mnt")
    monkeypatch.setenv("DATA_PATH", str(tmp_path / "elsewhere"))
    assert open_tokens(DataConfig(dir="data/fineweb10B")).train.n_tokens == 300
    assert open_directory(str(shards), DATA).n_train_tokens == 300


@pytest.mark.parametrize(
    ("data_path", "change", "message"),
    [
        (
            "",
            {},
            "data.train_files=fineweb_train_*.bin matches no file in {here}/data/fineweb10B (DATA_PATH is not set)",
        ),
        ("mnt2", {}, "matches no file in {here}/mnt2/data/fineweb10B (DATA_PATH=mnt2); correct data.dir or DATA_PATH"),
        ("mnt", {"val_files": "x*"}, "data.val_files=x* matches no file in {here}/mnt/data/fineweb10B (DATA_PATH=mnt)"),
        ("mnt", {"val_files": "*_00000[02].bin"}, "both match mnt/data/fineweb10B/fineweb_train_000002.bin"),
        ("", {}, "or run `jaxgpt prepare fineweb10B`"),
    ],
    ids=["no_data_path", "wrong_data_path", "no_val", "both", "command"],
)
def test_what_is_missing_is_named(tmp_path, shards, monkeypatch, data_path, change, message):
    monkeypatch.chdir(tmp_path)
    if data_path:
        monkeypatch.setenv("DATA_PATH", data_path)
    with pytest.raises(InputError) as caught:
        open_source(dataclasses.replace(DATA, **change))
    assert message.format(here=tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_one_pattern_alone_is_refused():
    with pytest.raises(InputError, match=r"data.train_files='a\*' and data.val_files='' belong together"):
        DataConfig(train_files="a*")


def test_patterns_choose_among_the_files_of_a_manifest(tmp_path):
    def write(name, value):
        return {"files": [write_shard(tmp_path / name, np.full(40, value, np.uint16))], "n_tokens": 40}

    parts = [write("train_000000.bin", 1), write("train_000001.bin", 2)]
    train = {"files": [part["files"][0] for part in parts], "n_tokens": 80}
    tokens = describe_tokens(ByteTokenizer(), np.dtype(np.uint16), {"train": train, "val": write("val_000000.bin", 3)})
    write_manifest(tmp_path, {"format": 1, "corpus": "x", **tokens})
    config = DataConfig(dir=str(tmp_path), train_files="train_000001.bin", val_files="val_*.bin")
    source = open_source(config)
    assert open_tokens(config).train.read(0, 40).tolist() == [2] * 40 and source.n_ids == 256
    assert source.digest == open_dataset(tmp_path).digest
    write_shard(tmp_path / "train_000002.bin", np.full(40, 4, np.uint16))
    with pytest.raises(InputError, match=r"matches .*train_000002.bin, which .*manifest.json does not list"):
        open_source(dataclasses.replace(config, train_files="train_*.bin"))
    write_shard(tmp_path / "train_000001.bin", np.full(40, 5, np.uint16))
    with pytest.raises(InputError, match="SHA-256"):
        open_source(config)
