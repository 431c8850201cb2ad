"""A vocabulary is what a slow trainer would learn from the same text, from all of it and from nothing else."""

import json
import logging
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
import regex
import tiktoken
from pyarrow import parquet

from jaxgpt import signals, train_tokenizer
from jaxgpt.data.bpe import train_bpe
from jaxgpt.data.text_data import open_text
from jaxgpt.data.tokenizer import CHAT_SPECIALS, SPLIT_PATTERN, tokenizer_from_json
from jaxgpt.errors import InputError

WORDS = ("the", "a", "tokenizer", "learns", "pieces", "of", "words", "12", "2024", "and", "blanks", "it's", "IT'S")
WORDS += ("(x)", "<|bos|>", "\u00e9t\u00e9", "\u4f60\u597d", "\U0001f600")


def documents(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        "".join(draw.choice(WORDS) + draw.choice((" ", " ", "  ", "\n", ", ")) for _ in range(40)) for _ in range(n)
    ]


def write(path, texts, column="text"):
    Path(path).parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table({column: texts}), path, row_group_size=7)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty directory, text shards in d, and no network."""

    def offline(name):
        raise ConnectionError("name resolution")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    write("d/shard_00000.parquet", documents(20, 0))
    write("d/shard_00001.parquet", [None, "", *documents(20, 1)])
    write("d/shard_00005.parquet", documents(9, 2))


def run(*args) -> int:
    return train_tokenizer.main([str(arg) for arg in args])


def refused(*args) -> str:
    with pytest.raises(InputError) as error:
        run(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def read(path="d/tokenizer.json"):
    return tokenizer_from_json(json.loads(Path(path).read_text()))


def slow_train(texts, n_tokens) -> list[bytes]:
    """The most frequent pair becomes a token, and of equals the one of lower ids; counted anew each time."""
    words = Counter(word for text in texts for word in regex.findall(SPLIT_PATTERN, text))
    parts = {word: list(word.encode()) for word in words}
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < n_tokens:
        counts = Counter()
        for word, ids in parts.items():
            for pair in pairwise(ids):
                counts[pair] += words[word]
        a, b = min(counts, key=lambda pair: (-counts[pair], pair))
        for ids in parts.values():
            i = 0
            while i < len(ids) - 1:
                if ids[i] == a and ids[i + 1] == b:
                    ids[i : i + 2] = [len(tokens)]
                i += 1
        tokens.append(tokens[a] + tokens[b])
    return tokens


# Learning


def test_vocabulary_is_that_of_a_slow_trainer():
    texts = [*documents(30, 3), "aaaaaaa aaaaa", "\n\n\n\n  \n", "7" * 31]
    tokenizer = train_bpe(texts, 350)
    assert tokenizer.vocab_size == 350 and list(tokenizer.specials) == list(CHAT_SPECIALS)
    assert [tokenizer.decode_bytes([i]) for i in range(341)] == slow_train(texts, 341)


def test_training_reports_its_merges_and_leaves_the_log_as_it_was(caplog):
    log, seen = logging.getLogger("rustbpe"), []
    log.setLevel(logging.ERROR)
    before = (log.level, log.propagate, list(log.handlers))
    with caplog.at_level(logging.DEBUG):
        train_bpe(documents(10, 0), 300, progress=lambda n, total: seen.append((n, total)))
    assert seen[-1] == (35, 35) and len(seen) > 10 and sorted(seen) == seen
    assert (log.level, log.propagate, list(log.handlers)) == before and not caplog.records
    log.setLevel(logging.NOTSET)


def test_main_learns_from_all_files_but_the_last(capsys):
    assert run("--data", "d", "--vocab-size", 320) == 0
    expected = train_bpe([*documents(20, 0), *documents(20, 1)], 320)
    assert read().digest() == expected.digest() and read().vocab_size == 320
    out, err = capsys.readouterr()
    val = documents(9, 2)
    n_tokens = sum(len(expected.encode(text)) for text in val)
    per_token = sum(len(text.encode()) for text in val) / n_tokens
    assert "d/tokenizer.json has 320 tokens, learned in " in out
    assert f"of shard_00005.parquet: {per_token:.3f} by this\n" in out
    assert "not compared with GPT-2's: the GPT-2 vocabulary cannot be loaded (ConnectionError)" in out
    assert out.endswith("next: jaxgpt train --config nanochat_cpu --data.dir=d\n") and not err
    data = open_text("d")
    assert (data.tokenizer.digest(), data.delimiter) == (expected.digest(), expected.special_id("<|bos|>"))
    assert sorted(os.listdir("d")) == [f"shard_0000{i}.parquet" for i in (0, 1, 5)] + ["tokenizer.json"]


def test_training_twice_gives_the_same_file():
    for name in ("a.json", "b.json"):
        env = {**os.environ, "PYTHONPATH": str(Path(train_tokenizer.__file__).parents[1]), "TIKTOKEN_CACHE_DIR": "none"}
        env["RAYON_NUM_THREADS"] = "1" if name == "a.json" else "5"
        script = (
            "import tiktoken\ndef offline(name): raise ConnectionError\ntiktoken.get_encoding = offline\n"
            f"from jaxgpt.train_tokenizer import main\nmain('--data d --vocab-size 320 --out {name}'.split())"
        )
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, timeout=60, check=True)
        assert f"--data.dir=d --data.tokenizer={name}".encode() in done.stdout
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_limits_say_what_is_learned_from():
    run("--data", "d", "--vocab-size", 300, "--doc-cap", 50, "--out", "cap.json")
    texts = [*documents(20, 0), *documents(20, 1)]
    assert read("cap.json").digest() == train_bpe([text[:50] for text in texts], 300).digest()
    n_chars = sum(map(len, texts[:13]))
    for limit, n_texts in ((n_chars - 1, 13), (n_chars, 14), (n_chars + 11, 14)):
        run("--data", "d", "--vocab-size", 300, "--max-chars", limit, "--out", "max.json", "--force")
        assert read("max.json").digest() == train_bpe(texts[:n_texts], 300).digest()
    assert read("cap.json").digest() != read("max.json").digest()


@pytest.mark.parametrize(("limit", "merge"), [(7, b"ab"), (8, b"xy"), (9, b"xy"), (15, b"xy"), (16, b"qq")])
def test_the_document_that_passes_the_limit_is_read_whole(limit, merge):
    """nanochat's rule: a document is read whole, then reading stops if that was more than --max-chars in total.

    8, 8 and 10 characters; ab occurs 3 times in the first, xy 4 times in the second, qq 9 times in the third.
    """
    write("three/shard_00000.parquet", ["ab ab ab", "xyxyxyxy", "q" * 10])
    write("three/shard_00001.parquet", ["val"])
    assert run("--data", "three", "--vocab-size", 266, "--max-chars", limit) == 0
    assert read("three/tokenizer.json").decode_bytes([256]) == merge


def test_gpt2_is_compared_where_it_is_at_hand(monkeypatch, capsys):
    by_bytes = tiktoken.Encoding(
        "gpt2", pat_str=".|\n", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: by_bytes)
    run("--data", "d", "--vocab-size", 300)
    assert "by this, 1.000 by GPT-2's 50,257\n" in capsys.readouterr().out


# What will not do


def test_text_too_small_for_the_vocabulary():
    found = refused("--data", "d", "--vocab-size", 2000)
    assert found.startswith("vocab_size=2000 is more than this text can fill: at ")
    reached = int(found.split(" at ")[1].split()[0])
    assert not Path("d/tokenizer.json").exists()
    assert "is more than" in refused("--data", "d", "--vocab-size", reached + 1)
    assert run("--data", "d", "--vocab-size", reached) == 0
    tokenizer = read()
    assert tokenizer.vocab_size == reached and len(tokenizer.encode(" tokenizer")) == 1


def test_another_tokenizer_is_replaced_by_force_only():
    run("--data", "d", "--vocab-size", 300)
    before = Path("d/tokenizer.json").read_bytes()
    assert "--out d/tokenizer.json exists, and runs may need it; pass --force" in refused("--data", "d")
    assert "is more than" in refused("--data", "d", "--vocab-size", 9000, "--force")
    assert Path("d/tokenizer.json").read_bytes() == before
    assert run("--data", "d", "--vocab-size", 310, "--force") == 0
    assert read().vocab_size == 310


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "one of the arguments --data --input is required"),
        (["--data", "none"], "--data none is not a directory; `jaxgpt prepare NAME --format text --out"),
        (["--data", "d", "--vocab", "300"], "--vocab is no flag of train_tokenizer; did you mean --vocab-size?"),
        (["--data", "d", "--vocab-size", "264"], "--vocab-size=264 is outside [265, 1048576]"),
        (["--data", "d", "--vocab-size", "2000000"], "--vocab-size=2000000 is outside"),
        (["--data", "d", "--max-chars", "0"], "--max-chars=0 is outside [1, 2147221503]; 2000000000 is usual"),
        (["--data", "d", "--max-chars", str(2**31)], "--max-chars=2147483648 is outside"),
        (["--data", "d", "--doc-cap", "262145"], "--doc-cap=262145 is outside [1, 262144]; 10000 is usual"),
        (["--data", "d", "--out", "d"], "--out d is a directory; name a file, such as d/tokenizer.json"),
        (["--data", "d", "--out", "x/y.json"], "--out x/y.json has no directory x; name a file"),
    ],
)
def test_bad_command_line(args, expected):
    assert expected in refused(*args)


def test_bad_text():
    write("one/shard_00000.parquet", ["a"])
    assert refused("--data", "one").startswith("--data one has ")
    for name, texts, column in (("column", ["a"], "content"), ("number", [1, 2], "text")):
        write(f"{name}/shard_00000.parquet", texts, column)
        write(f"{name}/shard_00001.parquet", ["b"])
        assert f"{name}/shard_00000.parquet: " in (found := refused("--data", name)) and "column 'text'" in found
    Path("d/shard_00000.parquet").write_bytes(b"PAR1 is not all it takes")
    assert "d/shard_00000.parquet is not a parquet file, or was cut short" in refused("--data", "d")
    strings = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe")]
    )
    write("d/shard_00000.parquet", strings)
    assert "d/shard_00000.parquet row group 0 is not UTF-8" in refused("--data", "d", "--vocab-size", 300)


def test_an_interrupted_training_leaves_nothing(monkeypatch):
    read_group, before = train_tokenizer.TextSplit.read_group, os.listdir("d")

    def interrupted(self, group):
        if group == 3:
            raise signals.Interrupted(130)
        return read_group(self, group)

    monkeypatch.setattr(train_tokenizer.TextSplit, "read_group", interrupted)
    with pytest.raises(signals.Interrupted):
        run("--data", "d", "--vocab-size", 300)
    assert os.listdir("d") == before


def test_a_full_disk_is_one_line_and_keeps_the_old(monkeypatch):
    run("--data", "d", "--vocab-size", 300)
    before = Path("d/tokenizer.json").read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device; choose another --out" in refused("--data", "d", "--vocab-size", 310, "--force")
    assert Path("d/tokenizer.json").read_bytes() == before and not list(Path("d").glob("*.tmp"))


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        run("--help", "all")
    out = capsys.readouterr().out
    assert "jaxgpt prepare pydocs --format text" in out and "32768" in out and "--doc-cap" in out
