"""nanoGPT's character runs are read here, meta.pkl with them; a pickle that does more than that runs nothing."""

import io
import json
import math
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from jaxgpt import evaluate, sample, train
from jaxgpt.config import Config, DataConfig, EvalConfig, GPT2Config, MeshConfig, SampleConfig, TrainConfig, to_source
from jaxgpt.data import nanogpt_meta
from jaxgpt.data.nanogpt_meta import read_meta
from jaxgpt.data.shards import open_dataset
from jaxgpt.data.sources import open_directory
from jaxgpt.errors import InputError
from jaxgpt.formats.pretrained import load_pretrained
from jaxgpt.inference.engine import Engine
from jaxgpt.models import init_params
from jaxgpt.run.resume import list_changes

CHARS = "\n !'abcdefgé你"
TEXT = "a bad facé! a fad!\n" * 40


def fields(chars=CHARS):
    """As nanoGPT's prepare.py makes them, in its order."""
    stoi = {ch: i for i, ch in enumerate(chars)}
    return {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi}


def written(directory, content) -> Path:
    path = directory / "meta.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return path


def refused(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("n_chars", [len(CHARS), 3000])
def test_every_protocol_is_read(tmp_path, protocol, n_chars):
    chars = CHARS if n_chars == len(CHARS) else "".join(map(chr, range(0x4E00, 0x4E00 + n_chars)))
    for dump in (pickle.dumps, vars(pickle)["_dumps"]):
        tokenizer = read_meta(written(tmp_path, dump(fields(chars), protocol=protocol)))
        assert tokenizer.chars == chars and tokenizer.vocab_size == n_chars


def test_the_largest_vocabulary_is_below_the_limit(tmp_path):
    chars = "".join(chr(i) for i in range(0x20000, 0x20000 + nanogpt_meta.MAX_VOCAB_SIZE))
    sizes = [len(pickle.dumps(fields(chars), protocol=protocol)) for protocol in range(6)]
    assert max(sizes) < nanogpt_meta.LIMIT_BYTES


# Pickles that are not a vocabulary


class Malice:
    def __reduce__(self):
        return os.system, ("touch executed",)


def put(index):
    return b"\x80\x02}r" + struct.pack("<I", index) + b"."


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (Malice(), "pickle instruction STACK_GLOBAL at byte"),
        (pickle.dumps(Malice(), protocol=0), "pickle instruction GLOBAL at byte 0"),
        (b"cos\nsystem\n(S'touch executed'\ntR.", "pickle instruction GLOBAL at byte 0"),
        (b"(S'touch executed'\nios\nsystem\n.", "pickle instruction STRING at byte 1"),
        (fields() | {"stoi": Malice()}, "pickle instruction STACK_GLOBAL at byte"),
        (b"\x80\x02\x82\x01.", "pickle instruction EXT1 at byte 2"),
        (b"Pname\n.", "pickle instruction PERSID at byte 0"),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "is not a complete pickle"),
        (put(2**32 - 1), "memo index 4294967295 in 9 bytes"),
        (b"", "is not a complete pickle"),
        (b"\x80", "is not a complete pickle"),
        (pickle.dumps(fields())[:-30], "is not a complete pickle"),
        (pickle.dumps(fields())[:-1], "is not a complete pickle"),
        (b"\x80\x04\x8c\xff.", "is not a complete pickle"),
        (b"no pickle at all", "is not a complete pickle"),
        (b"\x80\x02s.", "is not a complete pickle"),
        (b"\x80\x02h\x07.", "is not a complete pickle"),
        (b"\x80\x02}}K\x01s.", "is not a complete pickle"),
        (pickle.dumps(fields()) + b"x", "has data after the end of its pickle"),
        (b"\x80\x04" + b"N" * nanogpt_meta.LIMIT_BYTES, "has more than 4194304 bytes"),
    ],
)
def test_other_pickles_run_nothing(tmp_path, monkeypatch, content, expected):
    monkeypatch.chdir(tmp_path)
    found = refused(read_meta, written(tmp_path, content))
    assert found.startswith(str(tmp_path / "meta.pkl")) and expected in found
    assert os.listdir(tmp_path) == ["meta.pkl"]


def test_the_unpickler_alone_imports_nothing_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        with pytest.raises(pickle.UnpicklingError, match=r"it asks for posix\.system"):
            nanogpt_meta._PlainUnpickler(io.BytesIO(pickle.dumps(Malice(), protocol=protocol))).load()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("vocab", "found: no dict"),
        ({}, "exactly the fields vocab_size, stoi and itos; found: "),
        (fields() | {"extra": 1}, "found: extra, itos, stoi, vocab_size"),
        ({"vocab_size": 13}, "found: vocab_size"),
        (fields() | {"vocab_size": "13"}, "vocab_size is not an integer in [1, 65536]"),
        (fields("") | {"vocab_size": 0}, "vocab_size is not an integer"),
        (fields() | {"vocab_size": -1}, "vocab_size is not an integer"),
        (fields() | {"vocab_size": 2**40}, "vocab_size is not an integer"),
        (fields() | {"vocab_size": 14}, "stoi is not a dict of vocab_size=14 entries"),
        (fields() | {"itos": "abc"}, "itos is not a dict"),
        (fields() | {"itos": dict(enumerate("abc"))}, "itos is not a dict of vocab_size=13 entries"),
        (fields() | {"itos": {i + 1: c for i, c in enumerate(CHARS)}}, "itos gives no single character for id 0"),
        (fields() | {"itos": fields()["itos"] | {3: "ab"}}, "itos gives no single character for id 3"),
        (fields() | {"itos": fields()["itos"] | {3: 7}}, "itos gives no single character for id 3"),
        (fields() | {"stoi": fields()["stoi"] | {"a": 5}}, "itos[4] is 'a', but stoi of it is not 4"),
        (fields() | {"stoi": fields()["stoi"] | {"a": "4"}}, "itos[4] is 'a', but stoi of it is not 4"),
        (fields("a\ud800"), "is a lone surrogate"),
    ],
)
def test_fields_that_are_no_vocabulary(tmp_path, value, expected):
    assert expected in refused(read_meta, written(tmp_path, value))


def test_an_unreadable_file(tmp_path):
    (tmp_path / "meta.pkl").mkdir()
    assert "meta.pkl cannot be read: it is a directory, not a file" in refused(read_meta, tmp_path / "meta.pkl")


# nanoGPT's directories and checkpoints


@pytest.fixture
def place(tmp_path, monkeypatch):
    """What nanoGPT leaves of a character run: data/train.bin, val.bin, meta.pkl, and ckpt.pt."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    ids = np.array([CHARS.index(character) for character in TEXT], np.uint16)
    ids[:600].tofile("data/train.bin")
    ids[600:].tofile("data/val.bin")
    written(Path("data"), fields())
    config = GPT2Config(vocab_size=len(CHARS), seq_len=16, n_layer=1, n_head=2, n_embd=16)
    params = {path: 8 * np.asarray(leaf) for path, leaf in init_params(config).items()}
    state = {
        f"transformer.{path}": torch.from_numpy(np.ascontiguousarray(leaf.T if ".c_" in path else leaf))
        for path, leaf in params.items()
    }
    args = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "bias": False, "vocab_size": len(CHARS)}
    torch.save({"model": state, "model_args": args, "config": {"dataset": "data"}}, "ckpt.pt")
    return tmp_path


def test_a_directory_with_meta_has_its_characters(place):
    source = open_directory("data")
    assert source.tokenizer_json == {"kind": "char", "chars": CHARS} and source.n_ids == 13
    source.check_vocabulary(13)
    data = open_dataset("data")
    assert source.tokenizer is not None and source.tokenizer.decode(data.train.read(0, 20)) == TEXT[:20]
    written(place / "data", Malice())
    assert "data/meta.pkl: pickle instruction" in refused(open_dataset, "data")
    (place / "data" / "meta.pkl").unlink()
    assert open_dataset("data").tokenizer_json is None and open_dataset("data").digest == data.digest
    assert not (place / "executed").exists()


def test_ids_outside_the_characters_are_refused(place):
    written(place / "data", fields(CHARS[:9]))
    assert "is id 9, outside the vocabulary of 9" in refused(open_directory("data").check_vocabulary, 9)


def test_nanogpts_checkpoint_samples_with_its_characters(place, capsys):
    arguments = ["--model", "ckpt.pt", "--prompt", "a bad", "--max-tokens", "30", "--temperature", "0"]
    assert sample.main([*arguments, "--data", "data"]) == 0
    config, params = load_pretrained("ckpt.pt")
    engine = Engine(config, params, dtype="float32", n_valid=13)
    prompt = [CHARS.index(character) for character in "a bad"]
    ids = [row[0] for row in engine.generate(prompt, max_tokens=30, temperature=0.0)]
    text = "a bad" + "".join(CHARS[i] for i in ids if i is not None)
    assert capsys.readouterr().out == text + "\n" * (not text.endswith("\n"))
    assert "has no tokenizer for its 13 ids; give --data DIR" in refused(sample.main, arguments)


def test_nanogpts_checkpoint_is_evaluated_on_its_data(place, capsys):
    assert evaluate.main(["--model", "ckpt.pt", "--data", "data", "--tokens", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["splits"]["val"]
    n_bytes = len(TEXT[601 : 601 + result["n_tokens"]].encode())
    assert n_bytes > result["n_tokens"]
    in_bits = result["loss"] * result["n_tokens"] / math.log(2)
    assert result["bits_per_byte"] == pytest.approx(in_bits / n_bytes, rel=1e-5)


def test_a_run_on_its_data_samples_text_and_older_runs_resume(place, capsys):
    config = Config(
        data=DataConfig(dir="data"),
        model=GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=16),
        train=TrainConfig(steps=1, batch_tokens=32, micro_batch_size=2, dtype="float32", init_from="ckpt.pt"),
        eval=EvalConfig(tokens=0),
        sample=SampleConfig(every=1, prompt="a bad", max_tokens=8),
        mesh=MeshConfig(data=1),
    )
    Path("config.py").write_text(to_source(config))
    assert train.main(["--config=config.py"]) == 0
    printed = capsys.readouterr().out
    assert "vocabulary 13" in printed and "bits/byte" in printed and "\na bad" in printed
    assert sample.main(["--run", "runs/config", "--prompt", "bad", "--max-tokens", "5"]) == 0
    assert len(capsys.readouterr().out) >= 8
    now = json.loads(Path("runs/config/checkpoints/1/manifest.json").read_text())["about"]
    assert list_changes(now | {"tokenizer": None}, now, 1, place) == ""
    assert "the tokenizer in data.dir=data changed" in refused(list_changes, now, now | {"tokenizer": None}, 1, place)
