"""prepare --format modded: what modded-nanogpt reads, a token in front of every document, from any text."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.config import Config, DataConfig, GPT2Config, TrainConfig
from jaxgpt.config.steps import Plan
from jaxgpt.data.manifest import read_manifest
from jaxgpt.data.shards import LLMC_MAGIC, open_dataset
from jaxgpt.data.sources import open_source
from jaxgpt.data.tokenizer import BPETokenizer, tokenizer_from_json
from jaxgpt.prepare import encode, source
from jaxgpt.prepare.smoke import write_data
from jaxgpt.prepare.source import is_val
from parity_tests.helpers.prepare_runs import DOCUMENTS, refused, run, write_jsonl

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def documents_of(directory) -> dict[str, list[str]]:
    """The documents of each split, cut at the token in front of them and decoded."""
    data = open_dataset(directory)
    tokenizer = tokenizer_from_json(data.tokenizer_json)
    found = {}
    for split in (data.train, data.val):
        tokens = split.read(0, split.n_tokens)
        starts = np.flatnonzero(tokens == tokenizer.stop_ids()[0])
        assert starts[0] == 0
        found[split.name] = [tokenizer.decode(part[1:]) for part in np.split(tokens, starts[1:])]
    return found


EXPECTED = {
    name: [d for i, d in enumerate(DOCUMENTS) if is_val(i, 0.1) == (name == "val")] for name in ("train", "val")
}


def test_documents_become_header_shards(gpt2_vocabulary):
    write_jsonl("docs.jsonl")
    assert run("mine", "--input", "docs.jsonl", "--format", "modded", "--shard-tokens", 500) == 0
    assert documents_of("data/mine_modded") == EXPECTED
    for path in Path("data/mine_modded").glob("*.bin"):
        words = np.fromfile(path, "<i4", 256)
        assert words[:3].tolist() == [LLMC_MAGIC, 1, (path.stat().st_size - 1024) // 2] and not words[3:].any()
    names = [entry.name for entry in read_manifest(Path("data/mine_modded")).splits["train"]]
    assert len(names) > 1 and open_dataset("data/mine_modded").train.read(0, 1)[0] == 50256
    # fewer shards the next time: none is left from before
    assert run("mine", "--input", "docs.jsonl", "--format", "modded", "--force") == 0
    assert sorted(path.name for path in Path("data/mine_modded").glob("*.bin")) == [
        "train_000000.bin",
        "val_000000.bin",
    ]
    # without the manifest it is a directory as modded-nanogpt has it
    Path("data/mine_modded/manifest.json").unlink()
    assert documents_of("data/mine_modded") == EXPECTED


def test_bytes_or_a_tokenizer_of_ones_own(tmp_path):
    write_jsonl("docs.jsonl")
    assert run("mine", "--input", "docs.jsonl", "--format", "modded", "--tokenizer", "byte", "--out", "b") == 0
    assert documents_of("b") == EXPECTED and open_dataset("b").vocab_size == 257
    specials = ("<|bos|>", "<|user_start|>")
    own = BPETokenizer([*(bytes([b]) for b in range(256)), b"ti", b"ck", b"tick"], specials)
    Path("own.json").write_text(json.dumps(own.to_json()))
    command = ("mine", "--input", "docs.jsonl", "--format", "modded", "--tokenizer", "own.json", "--out", "o")
    assert run(*command) == 0
    assert documents_of("o") == EXPECTED and open_dataset("o").vocab_size == 261
    assert open_source(DataConfig(dir="o", sampling="bos_aligned")).bos_id() == 259
    assert open_dataset("o").train.n_tokens < open_dataset("b").train.n_tokens
    assert run(*command) == 0  # prepared already
    Path("own.json").write_text(json.dumps(BPETokenizer([bytes([b]) for b in range(256)], specials).to_json()))
    assert "has other data (tokenizer=own.json" in refused(*command)


def test_one_text_is_cut_into_pages(monkeypatch):
    text = "".join(f"Line {i} of a book.\n" + "\n" * (i % 9 == 0) for i in range(2000))
    Path("book.txt").write_text(text)
    assert run("book", "--input", "book.txt", "--format", "modded", "--tokenizer", "byte") == 0
    found = documents_of("data/book_modded")
    assert "".join(found["train"] + found["val"]) == text
    assert len("".join(found["train"])) == int(len(text) * 0.9)
    assert len(found["train"]) > 15 and max(map(len, found["train"])) <= 2048


def test_a_document_in_pieces_begins_once(monkeypatch):
    monkeypatch.setattr(source, "PIECE_CHARS", 50)
    monkeypatch.setattr(encode, "PIECE_CHARS", 50)
    write_jsonl("docs.jsonl")
    assert run("mine", "--input", "docs.jsonl", "--format", "modded", "--tokenizer", "byte") == 0
    assert documents_of("data/mine_modded") == EXPECTED


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokenizer", "char"], "--tokenizer=char has no token that separates documents"),
        (["--tokenizer", "none.json"], "--tokenizer=none.json is not one of char, byte, gpt2, nor a directory"),
        (["--shard-tokens", 2**31], f"--shard-tokens={2**31} is above {2**31 - 1}"),
        (["--shards", 3], "--shards=3 is not for mine as modded"),
    ],
    ids=["char", "no_file", "large_shards", "shards"],
)
def test_what_cannot_be_is_refused(flags, message):
    write_jsonl("docs.jsonl")
    assert message in refused("mine", "--input", "docs.jsonl", "--format", "modded", *flags)


def test_a_tokenizer_file_is_for_modded_only():
    write_jsonl("docs.jsonl")
    assert "--tokenizer=own.json is not one of char, byte, gpt2" in refused(
        "mine", "--input", "docs.jsonl", "--tokenizer", "own.json"
    )


def test_smoke_writes_documents_for_bos_aligned(tmp_path):
    write_data(tmp_path, is_text=False, is_modded=True)
    model = GPT2Config(n_layer=1, n_head=1, n_embd=8, seq_len=64)
    data = DataConfig(dir=str(tmp_path), sampling="bos_aligned")
    config = Config(model=model, data=data, train=TrainConfig(steps=3, batch_tokens=256, micro_batch_size=2))
    found = open_source(data)
    config = Config(model=model.complete(found.n_ids), data=data, train=config.train)
    reader, plan = found.reader(config), Plan(config, 1)
    rows = reader.read(plan.at(0), 0, 2).tokens
    assert rows.shape == (2, 2, 65) and (rows[..., 0] == 256).all()
