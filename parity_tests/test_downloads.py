"""Corpora from elsewhere: Hugging Face's datasets without it, and downloads from a server that misbehaves."""

import contextlib
import hashlib
import os
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import HTTPError

from jaxgpt.data.download import download
from jaxgpt.data.shards import LLMC_MAGIC, open_dataset, verify
from jaxgpt.data.tokenizer import tokenizer_from_json
from jaxgpt.errors import InputError
from jaxgpt.prepare import corpora
from parity_tests.helpers.hub_server import use_hub
from parity_tests.helpers.prepare_runs import (
    DOCUMENTS,
    Server,
    leftovers,
    manifest,
    refused,
    run,
    texts,
)

pytestmark = pytest.mark.usefixtures("in_tmp_path")


# Hugging Face's datasets, without it


def test_openwebtext_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'datasets>=3', or give local files" in refused("openwebtext", "--tokenizer", "byte")
    assert not Path("data").exists() or os.listdir("data") == []


def test_openwebtext(monkeypatch):
    asked = []

    def load_dataset(name, *, split, streaming, revision):
        asked.append((name, split, streaming, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found openwebtext.py")
        return ({"text": text} for text in DOCUMENTS)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert run("openwebtext", "--tokenizer", "byte") == 0
    assert asked[0] == ("Skylion007/openwebtext", "train", True, None) and asked[1][3] == "refs/convert/parquet"
    splits = manifest("data/openwebtext")["splits"]
    assert (splits["train"]["n_documents"], splits["val"]["n_documents"]) == (39, 1)
    assert texts("data/openwebtext")["val"] == DOCUMENTS[1] + "\n"


@pytest.mark.parametrize("kind", [ConnectionError, HTTPError])
def test_openwebtext_that_breaks_off(monkeypatch, kind):
    def load_dataset(*args, **kwargs):
        yield {"text": "the first"}
        raise kind("reset")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert f"cannot be read after 1 documents ({kind.__name__}: reset)" in refused("openwebtext", "--tokenizer", "byte")


# Downloads


CONTENT = np.random.default_rng(0).bytes(700_000)
CHECKS = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT)}


@pytest.mark.parametrize(
    ("plan", "part", "ranges"),
    [
        ([], None, [None]),
        (["cut"], None, [None, "bytes=350000-"]),
        (["cut", "cut", 503], None, [None, "bytes=350000-", "bytes=525000-", "bytes=525000-"]),
        ([500, 429, 503], None, [None] * 4),
        (["cut", "ignore range"], None, [None, "bytes=350000-"]),
        (["cut", "wrong range"], None, [None, "bytes=350000-", None]),
        ([], CONTENT[:1000], ["bytes=1000-"]),
        ([], CONTENT, ["bytes=700000-"]),
        ([], CONTENT + b"more", ["bytes=700004-", None]),
        ([], b"of another file", ["bytes=15-", None]),
    ],
)
def test_download_arrives_whole(plan, part, ranges):
    with Server({"x.bin": CONTENT}, plan) as server:
        if part is not None:
            Path("x.bin.part").write_bytes(part)
        seen = []
        download(f"{server.url}/x.bin", Path("x.bin"), **CHECKS, wait_s=0.001, progress=lambda *a: seen.append(a))
        assert Path("x.bin").read_bytes() == CONTENT and leftovers() == []
        assert [asked for _, asked in server.log] == ranges
        assert not seen or seen[-1] == (700_000, 700_000)
        download(f"{server.url}/x.bin", Path("x.bin"), **CHECKS)
        assert len(server.log) == len(ranges)  # what is there is not fetched again


def test_an_overlong_part_starts_over_even_if_nothing_is_known():
    with Server({"x.bin": CONTENT}) as server:
        Path("x.bin.part").write_bytes(CONTENT + b"more")
        download(f"{server.url}/x.bin", Path("x.bin"))
        assert Path("x.bin").read_bytes() == CONTENT


def test_download_of_something_else_is_refused():
    """Faults: C42."""
    with Server({"x.bin": CONTENT[:-1] + b"?"}) as server:
        with pytest.raises(InputError, match=r"has SHA-256 .*, not .*try again, or give a copy by --input"):
            download(f"{server.url}/x.bin", Path("x.bin"), **CHECKS)
        with pytest.raises(InputError, match=r"sends 700000 bytes or more, of which at most 5 are expected"):
            download(f"{server.url}/x.bin", Path("x.bin"), size=5)
        assert os.listdir() == []


def test_download_gives_up_and_keeps_what_it_has():
    with Server({"x.bin": CONTENT}, ["cut", *[503] * 5]) as server:
        with pytest.raises(InputError, match=r"5 tries; 350000 bytes are kept in x.bin.part"):
            download(f"{server.url}/x.bin", Path("x.bin"), **CHECKS, wait_s=0.001)
        assert len(server.log) == 5 and os.listdir() == ["x.bin.part"]
        with pytest.raises(InputError, match=r"returned 404; check whether it moved"):
            download(f"{server.url}/gone.bin", Path("gone.bin"))
        address = server.url
    with pytest.raises(InputError, match=r"cannot be fetched .*2 tries; try again"):
        download(f"{address}/y.bin", Path("y.bin"), n_tries=2, wait_s=0.001)


@pytest.mark.parametrize("length", ["abc", "-5", "1e9", "9" * 30])
def test_a_length_that_is_no_number(length, monkeypatch):
    """Faults: F22, C42."""
    monkeypatch.setattr("parity_tests.helpers.prepare_runs.BAD_LENGTH", length)
    with Server({"x.bin": CONTENT}, ["bad length"]) as server:
        download(f"{server.url}/x.bin", Path("x.bin"), **CHECKS, wait_s=0.001)  # the second try
        server.plan = ["bad length"] * 5
        with pytest.raises(InputError, match=r"the server sent Content-Length .*5 tries"):
            download(f"{server.url}/x.bin", Path("y.bin"), wait_s=0.001)


def test_a_file_without_end_is_refused():
    """Faults: F22, C42."""
    with Server({"x.bin": CONTENT}) as server:
        with pytest.raises(InputError, match=r"sends 700000 bytes or more, of which at most 1000 are expected"):
            download(f"{server.url}/x.bin", Path("x.bin"), limit_bytes=1000)

        def endless(request):
            request.send_response(200)
            request.end_headers()  # no length
            request.close_connection = True
            with contextlib.suppress(OSError):
                while True:
                    request.wfile.write(bytes(1 << 16))

        server.answer = endless
        with pytest.raises(InputError, match=r"of which at most 1000000 are expected"):
            download(f"{server.url}/x.bin", Path("x.bin"), limit_bytes=1_000_000)
    assert os.listdir() == []


def test_a_server_that_drips_has_failed(monkeypatch):
    """Faults: F22."""
    monkeypatch.setattr("jaxgpt.data.download.WINDOW_S", 0.05)

    def drip(request):
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.close_connection = True
        with contextlib.suppress(OSError):
            for _ in range(1000):
                request.wfile.write(b"x")
                time.sleep(0.01)

    with Server({"x.bin": CONTENT}) as server:
        server.answer = drip
        with pytest.raises(InputError, match=r"fewer than 1024 bytes/s for 0 s\), 2 tries; \d+ bytes are kept"):
            download(f"{server.url}/x.bin", Path("x.bin"), n_tries=2, wait_s=0.001)


def test_what_is_not_the_expected_file_gets_no_name():
    """Faults: F22."""

    def check(path):
        raise InputError(f"{path} is a login page; fetch it again")

    with Server({"x.json": b"<html>"}) as server, pytest.raises(InputError, match="is a login page"):
        download(f"{server.url}/x.json", Path("x.json"), check=check)
    assert os.listdir() == []


def test_shakespeare_comes_over_the_network(monkeypatch, shakespeare, capsys):
    with Server({"input.txt": shakespeare.read_bytes()}, ["cut"]) as server:
        monkeypatch.setattr(corpora, "SHAKESPEARE_URL", f"{server.url}/input.txt")
        monkeypatch.setattr("jaxgpt.data.download.time.sleep", lambda s: None)
        assert run("shakespeare_char") == 0
        assert open_dataset("data/shakespeare_char").val.n_tokens == 111_540 and leftovers() == []
        assert run("shakespeare_char") == 0 and len(server.log) == 2


def fineweb_shard(n: int, seed: int) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = LLMC_MAGIC, 1, n
    tokens = np.random.default_rng(seed).integers(0, 50256, n).astype("<u2")
    tokens[::10] = 50256
    return header.tobytes() + tokens.tobytes()


def test_fineweb(monkeypatch, gpt2_vocabulary):
    names = ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06d}.bin" for i in (1, 2, 3))]
    files = {name: fineweb_shard(1000 + i, i) for i, name in enumerate(names)}
    monkeypatch.setattr("jaxgpt.data.download.time.sleep", lambda s: None)
    with Server(dict(files), ["serve", "cut", *[503] * 9]) as server:
        use_hub(monkeypatch, server.url, Path("hub").absolute())
        assert "cannot be fetched" in refused("fineweb10B", "--shards", "2")
        assert os.listdir("data/fineweb10B") == [".tmp"]
        assert sorted(os.listdir("data/fineweb10B/.tmp")) == ["downloads", "lock"]
        server.plan.clear()
        server.log.clear()
        assert run("fineweb10B", "--shards", "2") == 0
        assert server.log == [(names[1], f"bytes={len(files[names[1]]) // 2}-"), (names[2], None)]
        data = open_dataset("data/fineweb10B")
        verify(data)
        assert (data.train.n_tokens, data.val.n_tokens, data.vocab_size) == (2003, 1000, 50257)
        about = manifest("data/fineweb10B")["splits"]["val"]
        assert about["files"][0]["format"] == "llmc" and about["n_documents"] == 100
        expected = (
            tokenizer_from_json({"kind": "gpt2"}).decode_bytes(data.val.read(0, 1000)).replace(b"<|endoftext|>", b"")
        )
        assert about["n_bytes"] == len(expected)

        assert "shards=2, not shards=3" in refused("fineweb10B", "--shards", "3")
        server.log.clear()
        assert run("fineweb10B", "--shards", "3", "--force") == 0
        assert server.log == [(names[3], None)]  # the others stayed
        assert open_dataset("data/fineweb10B").train.n_tokens == 1001 + 1002 + 1003 and leftovers() == []
        assert "has no fineweb_train_000004.bin" in refused("fineweb10B", "--shards", "4", "--out", "other")

    assert run("fineweb10B", "--input", "data/fineweb10B", "--out", "copy") == 0
    assert open_dataset("copy").digest == open_dataset("data/fineweb10B").digest
    assert "--input has no fineweb_train_000004.bin" in refused(
        "fineweb10B", "--input", "copy", "--shards", "4", "--out", "more"
    )
    content = bytearray(files[names[2]])
    content[1024:1026] = (60_000).to_bytes(2, "little")
    Path("copy", names[2]).write_bytes(content)
    assert "token 0 is id 60000" in refused("fineweb10B", "--input", "copy", "--out", "bad")
    Path("copy", names[2]).write_bytes(content[:-100])
    assert "the file was cut short" in refused("fineweb10B", "--input", "copy", "--out", "bad")
