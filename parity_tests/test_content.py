"""The content of data is what it was: hashed when opened, remembered, compared with the manifest and the checkpoint."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from jaxgpt import train_tokenizer
from jaxgpt.config import Config, DataConfig, GPT2Config, to_dict
from jaxgpt.data import digests
from jaxgpt.data.bpe import train_bpe
from jaxgpt.data.digests import hash_files
from jaxgpt.data.sources import open_directory
from jaxgpt.errors import InputError
from jaxgpt.files import open_regular
from jaxgpt.run.resume import list_changes
from parity_tests.helpers.prepare_runs import DOCUMENTS, refused, run, write_jsonl

pytestmark = pytest.mark.usefixtures("in_tmp_path", "memory")


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An empty memory of digests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxgpt" / "digests.json"


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were read to be hashed."""
    names, read = [], digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda path, *rest: (names.append(path.name), read(path, *rest))[1])
    return names


def add_tokenizer(directory):
    train_tokenizer.write_tokenizer(train_bpe(DOCUMENTS, 300), Path(directory, "tokenizer.json"))


def message(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def zero_middle(path):
    """The same size, other content between both ends."""
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = bytes(8)
    Path(path).write_bytes(content)


def write_nanogpt(directory):
    Path(directory).mkdir()
    for seed, name in enumerate(("train", "val")):
        ids = np.random.default_rng(seed).integers(1, 60, 200_000).astype("<u2")
        ids.tofile(Path(directory, f"{name}.bin"))
    return directory


def test_a_file_is_hashed_once_until_it_changes(memory, hashed, monkeypatch):
    """Faults: F1, C34."""
    path = Path("a.bin")
    path.write_bytes(b"one")
    monkeypatch.setattr(digests, "_RACY_NS", -(10**18))  # however young
    first = hash_files([path])
    assert hash_files([path]) == first and hashed == ["a.bin"]
    assert hash_files([path], again=True) == first and hashed == ["a.bin"] * 2
    stamp = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the old time does not hide it
    assert hash_files([path]) != first and len(hashed) == 3
    for content in (b"", b"[]", b"[" * 100_000, b'{"x": 1}', b"\xff"):
        memory.write_bytes(content)
        assert hash_files([path]) != first
    assert json.loads(memory.read_text()).keys() == {str(path.resolve())}


def test_a_file_that_just_changed_is_not_remembered(memory, hashed):
    """It may change again within one tick of the file system's clock. Faults: F1."""
    Path("a.bin").write_bytes(b"one")
    hash_files([Path("a.bin")])
    assert not memory.exists()


def test_without_a_place_for_the_memory_files_are_hashed_each_time(hashed, monkeypatch):
    """Faults: F1."""
    monkeypatch.setattr(digests, "_RACY_NS", -(10**18))
    Path("a.bin").write_bytes(b"one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    hash_files([Path("a.bin")])
    hash_files([Path("a.bin")])
    assert hashed == ["a.bin"] * 2


def test_what_takes_long_says_so(monkeypatch, capsys):
    monkeypatch.setattr(digests, "PROGRESS_S", 0.01)
    read = digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda *rest: (time.sleep(0.05), read(*rest))[1])
    Path("a.bin").write_bytes(b"one")
    hash_files([Path("a.bin")])
    assert "checking 0.0 GB in .: 0%\n" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["tokens", "text"])
def test_a_changed_shard_is_refused_by_all_who_read_it(form):
    """Faults: F1, C34, C42."""
    write_jsonl("x.jsonl", DOCUMENTS * 20)
    ask = ["x", "--input", "x.jsonl", "--format", form, "--out", "d"]
    assert run(*ask) == 0
    if form == "text":
        add_tokenizer("d")
    open_directory("d")
    shard = "d/train_000000.bin" if form == "tokens" else "d/shard_00000.parquet"
    content = Path(shard).read_bytes()
    zero_middle(shard)
    found = message(open_directory, "d")
    assert found.startswith(f"shard {shard} has SHA-256") and "it changed since it was prepared" in found
    assert f"shard {shard} has SHA-256" in refused(*ask)
    Path(shard).write_bytes(content)
    open_directory("d")
    assert run(*ask) == 0
    if form == "text":
        zero_middle(shard)
        assert "has SHA-256" in message(train_tokenizer.main, ["--data", "d", "--out", "t.json"])


def about(directory):
    source = open_directory(str(directory))
    model = GPT2Config(vocab_size=64).complete(64)
    config = to_dict(Config(model=model, data=DataConfig(dir=str(directory))))
    values = {"config": config, "data_sha256": source.digest, "data_files": source.files, "tokenizer": None}
    return json.loads(json.dumps(values))


def test_a_resume_on_other_content_without_a_manifest_is_refused():
    """Faults: F1, C34, C73."""
    write_nanogpt("d")
    before = about("d")
    assert list_changes(before, before, 5, Path("run")) == ""
    zero_middle("d/train.bin")
    now = about("d")
    assert now["data_sha256"] == before["data_sha256"]  # both ends are as they were
    found = message(list_changes, before, now, 5, Path("run"))
    assert found.startswith("the data in d/train.bin changed since checkpoint 5 of run (SHA-256 ")
    del before["data_files"]  # an older checkpoint says nothing of the content
    assert list_changes(before, now, 5, Path("run")) == ""


@pytest.mark.parametrize("name", ["manifest.json", "train_000000.bin", "meta.pkl", "train.bin", "text.json"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_at_once(name, kind):
    """Faults: C36, C43."""
    if name == "text.json":
        write_jsonl("x.jsonl", DOCUMENTS)
        assert run("x", "--input", "x.jsonl", "--format", "text", "--out", "d") == 0
        add_tokenizer("d")
    elif name in ("meta.pkl", "train.bin"):
        write_nanogpt("d")
    else:
        write_jsonl("x.jsonl", DOCUMENTS)
        assert run("x", "--input", "x.jsonl", "--out", "d") == 0
    path = Path("d", name)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert name.partition(".")[0].partition("_")[0] in message(open_directory, "d")


def test_only_regular_files_are_opened():
    os.mkfifo("pipe")
    for path, what in (("pipe", "a pipe"), ("/dev/zero", "a device"), (".", "a directory")):
        with pytest.raises(OSError, match=f"it is {what}, not a file"):
            open_regular(path)
    with pytest.raises(FileNotFoundError):
        open_regular("nothing")


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_text_shard_that_was_deleted_is_missed(which):
    """The last one is for validation: without it another would be, and a run would train on. Faults: C20, C35."""
    write_jsonl("x.jsonl", DOCUMENTS)
    run("x", "--input", "x.jsonl", "--format", "text", "--shard-chars", 800, "--group-documents", 2)
    add_tokenizer("data/x_text")
    open_directory("data/x_text")
    shards = sorted(Path("data/x_text").glob("*.parquet"))
    assert len(shards) > 3
    shards[which].unlink()
    assert f"shard {shards[which]} is missing, and text.json names it; restore it" in message(
        open_directory, "data/x_text"
    )
