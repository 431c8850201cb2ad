"""What is prepared is the text that was given, whole, in two splits; what cannot be is one line that says why."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.data.digests import sha256_of
from jaxgpt.data.shards import open_dataset
from jaxgpt.errors import InputError
from jaxgpt.prepare import __main__ as prepare
from jaxgpt.prepare import corpora, encode, readers, source
from jaxgpt.prepare.corpora import SHAKESPEARE_BYTES, SHAKESPEARE_SHA256
from jaxgpt.prepare.source import is_val
from parity_tests.helpers.prepare_runs import (
    DOCUMENTS,
    leftovers,
    manifest,
    refused,
    run,
    texts,
    write_jsonl,
    write_parquet,
)

pytestmark = pytest.mark.usefixtures("in_tmp_path")


# Exact counts


def test_shakespeare_char(shakespeare, capsys):
    assert run("shakespeare_char", "--input", shakespeare) == 0
    data = open_dataset("data/shakespeare_char")
    assert (data.train.n_tokens, data.val.n_tokens, data.vocab_size) == (1_003_854, 111_540, 65)
    got, text = texts("data/shakespeare_char"), shakespeare.read_text()
    assert got["train"] + got["val"] == text and len(got["train"]) == int(len(text) * 0.9)
    assert (shakespeare.stat().st_size, sha256_of(shakespeare)) == (SHAKESPEARE_BYTES, SHAKESPEARE_SHA256)
    out = capsys.readouterr().out
    assert "1,003,854" in out and "111,540" in out and "note:" not in out
    assert "next: jaxgpt train --config shakespeare_char\n" in out


def test_shakespeare_bpe(shakespeare, gpt2_vocabulary):
    assert run("shakespeare", "--input", shakespeare, "--out", "s") == 0
    data = open_dataset("s")
    assert (data.train.n_tokens, data.val.n_tokens, data.vocab_size) == (301_966, 36_059, 50257)
    assert "".join(texts("s").values()) == shakespeare.read_text()
    splits = manifest("s")["splits"]
    assert splits["train"]["n_bytes"] + splits["val"]["n_bytes"] == SHAKESPEARE_BYTES


def test_another_shakespeare_is_noted(capsys):
    Path("mine.txt").write_text("To be, or not to be.\n" * 20)
    assert run("shakespeare_char", "--input", "mine.txt") == 0
    assert f"note: --input has 420 bytes, shakespeare_char has {SHAKESPEARE_BYTES}" in capsys.readouterr().out


def test_pydocs(tmp_path):
    assert run("pydocs") == 0
    data, got = open_dataset("data/pydocs"), texts("data/pydocs")
    assert data.vocab_size == 96
    assert 1_500_000 < data.train.n_tokens + data.val.n_tokens < 5_000_000
    assert 0.05 < data.val.n_tokens / data.train.n_tokens < 0.2
    for said in ("json.dumps\n\n", 'The "if" statement', "Traceback"):
        assert said in got["train"] + got["val"]
    assert leftovers() == [] and sorted(os.listdir("data/pydocs")) == [
        "manifest.json",
        "train_000000.bin",
        "val_000000.bin",
    ]


def test_pydocs_reads_sources_without_running_them(monkeypatch):
    Path("lib/test").mkdir(parents=True)
    Path("lib/test/x.py").write_text('"""' + "Not documentation but a test. " * 9 + '"""')
    Path("lib/broken.py").write_text("def (")
    Path("lib/unicode.py").write_text(
        '"""' + "Sm\u00f8rrebr\u00f8d is not in the alphabet. " * 9 + '"""', encoding="utf-8"
    )
    Path("lib/a.py").write_text(
        '"""The module a, which would stop the test if it ran."""\nraise SystemExit\n'
        'class B:\n    def c(self):\n        """The method c, with\n\ta tab \u2014 and \u201cquotes\u201d."""\n'
        '    def d(self):\n        """The module a, which would stop the test if it ran."""\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: "lib")
    assert run("pydocs") == 0
    got = texts("data/pydocs")
    assert sorted((got["train"], got["val"])) == [
        "a\n\nThe module a, which would stop the test if it ran.\n\n",
        'a.B.c\n\nThe method c, with\na tab -- and "quotes".\n\n',
    ]


# Any text


@pytest.mark.parametrize("kind", ["char", "byte", "gpt2"])
def test_one_text_is_split_by_position(kind, request):
    if kind == "gpt2":
        request.getfixturevalue("gpt2_vocabulary")
    text = "".join(DOCUMENTS) + "<|endoftext|>"
    Path("book.txt").write_text("\ufeff" + text, encoding="utf-8")
    assert run("book", "--input", "book.txt", "--tokenizer", kind, "--val-fraction", "0.25") == 0
    got = texts("data/book")
    assert got["train"] + got["val"] == text and len(got["train"]) == int(len(text) * 0.75)
    splits = manifest("data/book")["splits"]
    assert [splits[s]["n_bytes"] for s in got] == [len(got[s].encode()) for s in got]
    assert [splits[s]["n_documents"] for s in got] == [1, 1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "files", "directory", "glob", "mixed"])
@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_documents_stay_whole(kind, tokenizer, request):
    if tokenizer == "gpt2":
        request.getfixturevalue("gpt2_vocabulary")
    documents = list(DOCUMENTS)
    if kind == "jsonl":
        write_jsonl("x.jsonl", ["", *DOCUMENTS])
        inputs = ["x.jsonl"]
    elif kind in ("parquet", "mixed"):
        write_parquet("x.parquet", ["", None, *DOCUMENTS])
        write_jsonl("y.jsonl", ["one more", "and another"])
        inputs = ["x.parquet"] if kind == "parquet" else ["x.parquet", "y.jsonl"]
        documents += [] if kind == "parquet" else ["one more", "and another"]
    else:
        Path("docs/sub").mkdir(parents=True)
        for i, text in enumerate(DOCUMENTS):
            Path(f"docs/{'sub/' * (i % 2)}{i:02d}.txt").write_text(text, encoding="utf-8")
        Path("docs/image.png").write_bytes(b"\xff\xd8")
        documents = DOCUMENTS[::2] + DOCUMENTS[1::2]
        inputs = {
            "files": sorted(Path("docs").glob("*.txt")) + sorted(Path("docs/sub").glob("*")),
            "directory": ["docs"],
        }
        inputs = inputs.get(kind, ["docs/*.txt", "docs/sub/*.txt", "docs/00.txt"])
    assert run("x", "--input", *inputs, "--tokenizer", tokenizer, "--val-fraction", "0.2") == 0
    got, splits = texts("data/x"), manifest("data/x")["splits"]
    for name in got:
        own = [text for i, text in enumerate(documents) if is_val(i, 0.2) == (name == "val")]
        ends = ["<|endoftext|>" if tokenizer == "gpt2" else "\n" if t.endswith("\n") else "\n\n" for t in own]
        assert got[name] == "".join(text + end for text, end in zip(own, ends, strict=True))
        assert splits[name]["n_documents"] == len(own) > 0
        assert splits[name]["n_bytes"] == len(got[name].replace("<|endoftext|>", "").encode())


def test_val_gets_its_fraction():
    assert [is_val(i, 0.0005) for i in range(2)] == [False, True]
    for fraction in (0.0005, 0.1):
        n = sum(is_val(i, fraction) for i in range(200_000))
        assert abs(n - fraction * 200_000) < 5 * (fraction * 200_000) ** 0.5


@pytest.mark.parametrize("newlines", [True, False])
def test_long_texts_go_through_in_pieces(monkeypatch, newlines):
    text = "".join(f"line {i} \U0001f600{chr(10) if newlines else ''}" for i in range(400))
    Path("book.txt").write_text(text, encoding="utf-8")
    write_jsonl("docs.jsonl", [text.upper(), text[::-1], "short"])
    for name, *inputs in (("book", "book.txt"), ("docs", "docs.jsonl"), ("files", "book.txt", "docs.jsonl")):
        assert run(name, "--input", *inputs) == 0
    monkeypatch.setattr(source, "PIECE_CHARS", 100)
    monkeypatch.setattr(encode, "PIECE_CHARS", 100)
    seen, piece = [], source.Piece
    for module in (source, readers):
        monkeypatch.setattr(module, "Piece", lambda *a: seen.append(len(a[0])) or piece(*a))
    for name, *inputs in (("book", "book.txt"), ("docs", "docs.jsonl"), ("files", "book.txt", "docs.jsonl")):
        assert run(name, "--input", *inputs, "--out", f"cut/{name}", "--shard-tokens", 77) == 0
        assert texts(f"cut/{name}") == texts(f"data/{name}")
        one, other = manifest(f"cut/{name}")["splits"]["train"], manifest(f"data/{name}")["splits"]["train"]
        assert (one["n_bytes"], one["n_documents"]) == (other["n_bytes"], other["n_documents"])
    assert max(seen) <= 100 and len(seen) > 100
    assert len(os.listdir("cut/book")) > 40


def test_many_characters_need_wide_tokens():
    Path("all.txt").write_text("".join(chr(i) for i in range(0x10000, 0x21000)) * 2, encoding="utf-8")
    assert run("all", "--input", "all.txt") == 0
    assert open_dataset("data/all").train.dtype == np.uint32
    assert "".join(texts("data/all").values()) == Path("all.txt").read_text(encoding="utf-8")


def test_lone_surrogates_in_json_are_replaced():
    """Faults: C51."""
    Path("x.jsonl").write_text('{"text": "a \\ud83d b"}\n{"text": "pair \\ud83d\\ude00"}\n')
    assert run("x", "--input", "x.jsonl") == 0
    assert texts("data/x") == {"train": "a \ufffd b\n\n", "val": "pair \U0001f600\n\n"}


# Text that will not do


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.txt", b"", "x.txt is empty"),
        ("x.txt", b"\xef\xbb\xbf", "x.txt is empty; give a file with text"),
        ("x.txt", b"a", "nothing is left for train"),
        ("x.txt", b"good\xffbad", "x.txt is not UTF-8: byte 0xff at offset 4"),
        ("x.txt", b"\xff\xfeh\0i\0\0\xd8", "x.txt begins as UTF-16 and is not at offset 6"),
        (
            "x.txt",
            b"a" * ((1 << 20) - 1) + b"\xc3\xa9" + b"\xe4\xbd",
            f"byte 0xe4 at offset {(1 << 20) + 1} (unexpected end",
        ),
        ("x.txt", b"\xef\xbb\xbf" + b"a" * (1 << 20) + b"\x80", f"byte 0x80 at offset {(1 << 20) + 3}"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "x.jsonl:2 is not JSON"),
        ("x.jsonl", b'{"text": "a"}\n\n{"text": "\xff"}\n', "x.jsonl:3 is not UTF-8: byte 0xff at offset 10"),
        ("x.jsonl", b'{"body": "a", "id": 1}\n', "x.jsonl:1 has no text in field 'text' (it has: body, id)"),
        ("x.jsonl", b'{"text": 7}\n', "x.jsonl:1 has no text in field 'text'"),
        ("x.jsonl", b'["a"]\n', "(it has: a list); see --text-field"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl:1 is not JSON"),
        ("x.jsonl", b"\n \n", "x.jsonl has no documents"),
        ("x.jsonl", b'{"text": "only one"}\n', "nothing is left for val (val_fraction=0.1); give two documents"),
        ("x.parquet", b"PAR1 is not all it takes", "x.parquet cannot be read as parquet"),
    ],
)
def test_bad_input(name, content, expected):
    """Faults: C19, C40."""
    Path(name).write_bytes(content)
    assert expected in refused("mine", "--input", name)
    assert not Path("data/mine").exists()


def test_bad_parquet_columns():
    write_parquet("x.parquet", ["a", "b"], column="content")
    assert "column 'text' is missing (it has: id, content); see --text-field" in refused("m", "--input", "x.parquet")
    assert "column 'id' is int64" in refused("m", "--input", "x.parquet", "--text-field", "id")
    assert run("m", "--input", "x.parquet", "--text-field", "content") == 0


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            ["shakespeare_chr"],
            "no corpus shakespeare_chr; did you mean shakespeare_char? corpora: pydocs, shakespeare_char",
        ),
        (["zzz"], "no corpus zzz; corpora: pydocs"),
        ([], "the following arguments are required: NAME"),
        (["pydocs", "--shrads", "3"], "--shrads is no flag of prepare; did you mean --shards?"),
        (["pydocs", "--shards", "3"], "--shards=3 is not for pydocs as tokens; options: --input, --tokenizer"),
        (["pydocs", "--input", "x"], "pydocs reads no --input"),
        (["../x", "--input", "x"], "'../x' is not a name"),
        (["pydocs", "--tokenizer", "bpe"], "--tokenizer=bpe is not one of char, byte, gpt2, nor a directory with"),
        (["pydocs", "--val-fraction", "1"], "--val-fraction=1.0 is outside (0, 1)"),
        (["pydocs", "--val-fraction", "nan"], "--val-fraction=nan is outside (0, 1)"),
        (["pydocs", "--shard-tokens", "0"], "--shard-tokens=0"),
        (["pydocs", "--workers", "0"], "--workers=0"),
        (["fineweb10B", "--shards", "104"], "--shards=104 is outside [1, 103]"),
        (
            ["fineweb10B", "--tokenizer", "char"],
            "--tokenizer=char is not for fineweb10B; options: --input, --shards",
        ),
        (["fineweb10B", "--val-fraction", "0"], "--val-fraction=0.0 is not for fineweb10B"),
        (["fineweb10B", "--format", "text"], "fineweb10B is published as tokens; --format text is not available"),
        (["pydocs", "--shard-chars", "9"], "--shard-chars=9 is not for pydocs as tokens"),
        (["pydocs", "--format", "text", "--tokenizer", "gpt2"], "--tokenizer=gpt2 is not for pydocs as text"),
        (["pydocs", "--format", "text", "--group-documents", "0"], "--group-documents=0 is not positive; 1000 is"),
        (["climbmx"], "did you mean climbmix?"),
        (["climbmix"], "--shards is missing: climbmix has 6542 files"),
        (["climbmix", "--shards", "6543"], "--shards=6543 is outside [1, 6542]"),
        (["fineweb-edu", "--shards", "0"], "--shards=0 is outside [1, 1822]"),
        (["climbmix", "--shards", "1", "--format", "tokens"], "published as text; --format tokens is not available"),
        (["climbmix", "--shards", "1", "--input", "a", "b"], "--input=a b is not for climbmix; options: --shards"),
        (["climbmix", "--shards", "1", "--force"], "--force does not apply to climbmix"),
        (["x", "--input", "no.txt"], "--input no.txt matches no file"),
        (["x", "--input", "*.txt"], "--input *.txt matches no file"),
        (["x", "--input", "."], "--input . has no .txt, .text, .md, .jsonl, "),
    ],
)
def test_bad_command_line(args, expected):
    assert expected in refused(*args)
    assert os.listdir() == []


def test_an_error_is_one_line_and_code_2():
    env = {**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[2])}
    command = [sys.executable, "-m", "jaxgpt.prepare", "shakespere"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith("error: no corpus shakespere; did you mean shakespeare?")
        and done.stderr.count("\n") == 1
    )


# Once more, instead, interrupted


def test_asked_again_it_does_nothing(capsys):
    Path("book.txt").write_text("".join(DOCUMENTS))
    assert run("book", "--input", "book.txt") == 0
    before = {path: path.stat().st_mtime_ns for path in Path("data/book").iterdir()}
    assert run("book", "--input", "book.txt", "--workers", "3") == 0
    assert {path: path.stat().st_mtime_ns for path in Path("data/book").iterdir()} == before
    assert "data/book is already prepared" in capsys.readouterr().out


def test_other_data_are_replaced_by_force_only():
    Path("book.txt").write_text("".join(DOCUMENTS))
    assert run("book", "--input", "book.txt", "--shard-tokens", "500") == 0
    Path("data/book/notes.md").write_text("mine")
    old = texts("data/book")
    found = refused("book", "--input", "book.txt", "--tokenizer", "byte", "--shard-tokens", "500")
    assert "has other data (tokenizer=char, not tokenizer=byte); --force replaces it" in found
    Path("book.txt").write_text("Another text altogether. " * 90)
    assert "input=1 files (" in refused("book", "--input", "book.txt", "--shard-tokens", "500")
    assert texts("data/book") == old
    assert run("book", "--input", "book.txt", "--force") == 0
    assert "".join(texts("data/book").values()) == "Another text altogether. " * 90
    assert sorted(os.listdir("data/book")) == ["manifest.json", "notes.md", "train_000000.bin", "val_000000.bin"]


def test_damaged_data_are_not_taken_for_done():
    """Faults: C34."""
    Path("book.txt").write_text("".join(DOCUMENTS))
    run("book", "--input", "book.txt")
    Path("data/book/val_000000.bin").unlink()
    assert "val_000000.bin is missing" in refused("book", "--input", "book.txt")
    assert "(--force prepares data/book again)" in refused("book", "--input", "book.txt")
    assert run("book", "--input", "book.txt", "--force") == 0
    Path("data/book/manifest.json").write_text("{")
    assert "is not JSON" in refused("book", "--input", "book.txt")
    Path("data/book/manifest.json").unlink()
    assert "has shards but no manifest.json; --force" in refused("book", "--input", "book.txt")
    assert run("book", "--input", "book.txt", "--force") == 0
    assert "".join(texts("data/book").values()) == "".join(DOCUMENTS)


def test_a_directory_with_other_files_is_left_alone():
    Path("book.txt").write_text("".join(DOCUMENTS))
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("everything")
    for force in ([], ["--force"]):
        assert "holds thesis.tex, which prepare did not write" in refused(
            "b", "--input", "book.txt", "--out", "mine", *force
        )
    assert "--out book.txt is a file" in refused("b", "--input", "book.txt", "--out", "book.txt")
    assert os.listdir("mine") == ["thesis.tex"]


@pytest.mark.parametrize("error", [SystemExit, MemoryError, OSError(28, "No space left on device")])
def test_interrupted_work_changes_nothing(monkeypatch, error):
    """A signal raises SystemExit. Faults: C41."""
    Path("book.txt").write_text("".join(DOCUMENTS))
    run("book", "--input", "book.txt")
    old = texts("data/book")
    calls = []
    write = encode.ShardWriter.write

    def interrupted(self, tokens):
        calls.append(len(tokens))
        write(self, tokens)
        if len(calls) == 2:
            raise error

    monkeypatch.setattr(encode.ShardWriter, "write", interrupted)
    for name, force in (("new", []), ("book", ["--force"])):
        calls.clear()
        args = (name, "--input", "book.txt", "--tokenizer", "byte", *force)
        if error in (SystemExit, MemoryError):
            with pytest.raises(error):
                run(*args)
        else:
            assert "No space left on device; free space" in refused(*args)
    assert not Path("data/new").exists() and leftovers() == []
    assert texts("data/book") == old


def test_what_a_kill_leaves_behind_is_not_picked_up():
    """Faults: C41."""
    Path("book.txt").write_text("".join(DOCUMENTS))
    code = (
        "import os, sys; from jaxgpt.prepare import __main__ as prepare, encode\n"
        "write = encode.ShardWriter.write\n"
        "encode.ShardWriter.write = lambda self, tokens: (write(self, tokens), os.kill(os.getpid(), 9))\n"
        "prepare.main(['book', '--input', 'book.txt', '--shard-tokens', '100'])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=False).returncode == -9
    assert leftovers("data/book")
    with pytest.raises(InputError, match=r"has no train shards"):
        open_dataset("data/book")
    assert run("book", "--input", "book.txt") == 0
    assert leftovers() == [] and "".join(texts("data/book").values()) == "".join(DOCUMENTS)


def test_two_at_a_time_are_one_too_many():
    fcntl = pytest.importorskip("fcntl")
    Path("book.txt").write_text("".join(DOCUMENTS))
    Path("data/book/.tmp").mkdir(parents=True)
    with open("data/book/.tmp/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another prepare is writing data/book" in refused("book", "--input", "book.txt")
    assert run("book", "--input", "book.txt") == 0
