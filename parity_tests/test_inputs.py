"""The files that people have: every format gives the same documents, and what is no text is refused and not learned."""

import bz2
import gzip
import io
import json
import lzma
import os
import shlex
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from jaxgpt import train_tokenizer
from jaxgpt.errors import InputError
from jaxgpt.prepare import inputs, streams
from jaxgpt.prepare.destination import train_command
from jaxgpt.prepare.inputs import detect_format, find_inputs, open_files
from parity_tests.helpers.prepare_runs import refused, run

pytestmark = pytest.mark.usefixtures("in_tmp_path")

TEXTS = ["one, two", 'say "hi"\nand go', "\u00e9\u4f60\U0001f600", "tab\tbed; semi|bar", "x" * 3000]


def rows(*more):
    return [{"id": i, "text": text} for i, text in enumerate([*TEXTS, *more])]


def json_lines(values) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def csv_of(delimiter=",", encoding="utf-8") -> bytes:
    import csv

    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["id", "text"], *([i, text] for i, text in enumerate(TEXTS))])
    return out.getvalue().encode(encoding)


def parquet_of(column) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"id": list(range(len(column))), "text": column}), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def arrow_of(kind="stream", texts=TEXTS) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.table({"text": texts})
    with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def documents(*paths, field="text", input_format=""):
    source = open_files([Path(path) for path in paths], field, input_format)
    pieces = list(source.pieces())
    assert sum(piece.n_read for piece in pieces) <= source.total * 1.01 and all(piece.ends_document for piece in pieces)
    return [piece.text for piece in pieces]


def left_out(*paths, field="text"):
    source = open_files([Path(path) for path in paths], field)
    for _ in range(2):  # counted for each pass, not added up
        list(source.pieces())
    return {what: n for what, n in source.left_out.items() if n}


def message(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


PLAIN = {
    "a.jsonl": json_lines(rows()),
    "a.ndjson": json_lines(rows()),
    "A.JSONL": json_lines(rows()),
    "strings.jsonl": json_lines(TEXTS),
    "a.json": json.dumps(rows(), indent=1).encode(),
    "strings.json": json.dumps(TEXTS).encode(),
    "lines.json": json_lines(rows()),
    "pretty.json": "\n".join(json.dumps(row, indent=2) for row in rows()).encode(),
    "a.csv": csv_of(),
    "semicolon.csv": csv_of(";"),
    "a.tsv": csv_of("\t"),
    "a.parquet": parquet_of(TEXTS),
    "A.PARQUET": parquet_of(pa.array(TEXTS).dictionary_encode()),
    "large.parquet": parquet_of(pa.array(TEXTS, pa.large_string())),
    "bytes.parquet": parquet_of([text.encode() for text in TEXTS]),
    "lists.parquet": parquet_of([text.split("\n") for text in TEXTS]),
    "lists.jsonl": json_lines({"text": text.split("\n")} for text in TEXTS),
    "a.arrow": arrow_of(),
    "file.arrow": arrow_of("file"),
    "dictionary.arrow": arrow_of(texts=pa.array(TEXTS).dictionary_encode()),
    "says_nothing": json_lines(rows()),
    "array_says_nothing": json.dumps(rows()).encode(),
    "parquet_says_nothing": parquet_of(TEXTS),
    "arrow_says_nothing": arrow_of(),
    "wrong.txt": json_lines(rows()),
    "wrong.jsonl": parquet_of(TEXTS),
    "bom.jsonl": b"\xef\xbb\xbf" + json_lines(rows()),
    "utf16.jsonl": json_lines(rows()).decode().encode("utf-16"),
    "utf32.json": json.dumps(rows()).encode("utf-32"),
    "excel.csv": b"\xff\xfe" + csv_of("\t", "utf-16-le"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_every_format_gives_the_same_documents(name):
    """Faults: C40."""
    Path(name).write_bytes(PLAIN[name])
    assert documents(name) == TEXTS


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "zst.zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "utf16.jsonl", "text.txt"])
def test_compressed_files_are_read_as_what_they_hold(name, suffix, monkeypatch):
    """Several frames one after another too. Faults: C40."""
    monkeypatch.setattr(streams, "BLOCK_BYTES", 100)
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(
        suffix, lambda data: pa.compress(data, "zstd", asbytes=True)
    )
    content = PLAIN.get(name, "\n".join(TEXTS).encode())
    halves = [content] if suffix != "zst.zst" else [content[:1000], content[1000:]]
    path = f"{name}.{suffix[:3]}"
    Path(path).write_bytes(b"".join(map(compress, halves)))
    assert documents(path) == (TEXTS if name in PLAIN else ["\n".join(TEXTS)])
    Path("no_suffix").write_bytes(Path(path).read_bytes())
    if name in ("a.jsonl", "a.json"):
        assert documents("no_suffix") == TEXTS
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) * 2 // 3])
    assert f"{path} " in message(documents, path)


def test_a_bomb_is_refused_before_it_fills_anything(monkeypatch):
    """Faults: C42."""
    monkeypatch.setattr(streams, "RATIO_FROM_BYTES", 1 << 20)
    for suffix, compress in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        Path(f"b.txt.{suffix}").write_bytes(compress(b"a" * (8 << 20)))
        assert "grows more than 200 times when it is decompressed" in message(documents, f"b.txt.{suffix}")
        Path(f"b.jsonl.{suffix}").write_bytes(compress(b"[" * (8 << 20)))
        assert "grows more than 200 times" in message(documents, f"b.jsonl.{suffix}")


def test_a_table_that_names_one_text_again_and_again_is_refused(monkeypatch):
    """Faults: C42."""
    monkeypatch.setattr(inputs, "RATIO_FROM_BYTES", 1 << 20)
    table = pa.table({"text": pa.DictionaryArray.from_arrays([0] * 2000, ["ab" * (5 << 20)])})
    parquet.write_table(table, "b.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)
    with pa.ipc.new_stream("b.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    for name in ("b.parquet", "b.arrow"):
        assert "holds more than 200 times as much text as its size" in message(documents, name)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "hello you".encode("utf-16-le"),
            "looks like UTF-16LE without a byte order mark; convert it (iconv ",
        ),
        ("hello you".encode("utf-16-be"), "looks like UTF-16BE without a byte order mark"),
        (b"\x7fELF\x02\x01\0\0", "is a program; leave it out"),
        (b"abc\0\0\0def\0", "is binary (it has zero bytes)"),
        (b"PK\x03\x04rest", "is a zip archive; unpack it, or leave it out"),
        (b"%PDF-1.7\n", "is a PDF; extract its text"),
        (b"{\\rtf1 hello}", "is rich text"),
        (b"\x80\x04\x95abc", "is a pickle, which is not read"),
        (gzip.compress(b"PK\x03\x04rest", mtime=0), "is a zip archive"),
        (gzip.compress(b"x" * 257 + b"ustar", mtime=0), "is a tar archive"),
        (gzip.compress(parquet_of(TEXTS), mtime=0), "is compressed with gzip as a whole"),
        (b"\xff\xfe" + "hello".encode("utf-16-le") + b"\0\xd8", "begins as UTF-16 and is not at offset 12"),
        (gzip.compress(b"hello", mtime=0)[:-4], "cannot be decompressed (gzip)"),
        (b"JGPT" + bytes(1020), "is a token shard"),
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "x"])
def test_what_is_no_text_is_refused(name, content, expected):
    """Faults: C40, C31."""
    Path(name).write_bytes(content)
    assert expected in message(documents, name)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.json", b'[{"text": "a"}', "x.json is an array, and it is not closed"),
        ("x.json", b'[{"text": "a"}] x', "and something follows"),
        ("x.json", b'[{"text": "a"} {"text": "b"}]', "x.json[1] is not JSON (a comma is missing"),
        ("x.json", b'[{"text": ', "x.json[0] is not JSON"),
        ("x.json", b"[" * 200_000, "x.json[0] is not JSON"),
        ("x.json", b'{"rows": []}', "x.json[0] has no text in field 'text' (it has: rows)"),
        ("x.json", b'[{"text": [1]}]', "x.json[0] has no text in field 'text'"),
        ("x.json", b'"\xff"', "x.json is not UTF-8"),
        ("x.csv", b"id,body\n1,a\n", "x.csv:1 has no column 'text' (it has: id, body); see --text-field"),
        ("x.csv", b'id,text\n1,"a\n', "x.csv is not CSV (unexpected end of data)"),
        ("x.csv", b"id,text\n1,a\n2\n", "x.csv:3 has 1 cells, its header 2"),
        ("x.csv", b"id,text\n1,\xff\n", "x.csv is not UTF-8"),
        ("x.arrow", b"\xff\xff\xff\xff1234", "x.arrow cannot be read as Arrow"),
        ("x.arrow", arrow_of()[:200], "x.arrow cannot be read as Arrow"),
        ("x.arrow", b"hello", "x.arrow cannot be read as Arrow"),
        ("x.parquet", parquet_of([[{"role": "user"}]]), "column 'text' is list<"),
        ("x.parquet", parquet_of([b"\xff"]), "x.parquet rows 0 to 0 is not UTF-8"),
    ],
)
def test_damaged_files_are_named(name, content, expected):
    """Faults: C40, C45."""
    Path(name).write_bytes(content)
    assert expected in message(documents, name)


def test_documents_without_text_are_left_out_and_counted(capsys):
    """Faults: C40."""
    Path("a.jsonl").write_bytes(json_lines([*rows(), {"text": None}, {"text": ""}, None]))
    Path("a.json").write_bytes(json.dumps([*rows(), {"text": None}, {"text": ""}, None]).encode())
    Path("a.parquet").write_bytes(parquet_of([*TEXTS, None, "", None]))
    Path("lists.parquet").write_bytes(parquet_of([["a", None, "b"], None, [], None]))
    for name in ("a.jsonl", "a.json", "a.parquet", "lists.parquet"):
        assert left_out(name) == {"documents without text (null)": 2, "empty documents": 1}
    assert documents("lists.parquet") == ["a\nb"]
    Path("a.csv").write_bytes(b"text,id\na,1\n,2\n\nb,3\n")
    assert left_out("a.csv") == {"empty documents": 1}
    Path("e.txt").write_bytes(b"")
    Path("e.jsonl.gz").write_bytes(gzip.compress(b"", mtime=0))
    Path("n.jsonl").write_bytes(b'{"text": null}\n')
    assert run("x", "--input", "a.jsonl", "e.txt", "e.jsonl.gz", "n.jsonl", "--out", "d") == 0
    said = "left out: 2 empty files, 3 documents without text (null), 1 empty documents, 1 files without documents\n"
    assert said in capsys.readouterr().out
    assert "e.txt and 1 more files are empty; give a file with text" in refused("x", "--input", "e.txt", "e.jsonl.gz")
    assert "n.jsonl has no documents" in refused("x", "--input", "n.jsonl", "e.txt")


def test_what_is_guessed_is_said(capsys):
    """Faults: C40."""
    Path("a.log").write_text("plain words\n" * 20)
    Path("a.txt").write_bytes(json_lines(rows()))
    assert run("x", "--input", "a.log", "a.txt", "--out", "d") == 0
    assert "note: reading 1 file as text, 1 file as jsonl; --input-format" in capsys.readouterr().out
    assert run("x", "--input", "a.log", "a.txt", "--out", "e", "--input-format", "text") == 0
    assert "note: " not in capsys.readouterr().out
    assert documents("a.txt", input_format="text") == ["".join(map(chr, Path("a.txt").read_bytes()))]
    for text in ("[1] a footnote\n", "{ a }", "[link](x)", '{"not json', "{} and []", "[]"):
        Path("a.txt").write_text(text)
        assert detect_format(Path("a.txt")) == "text"
    Path("a.txt").write_bytes(json.dumps([{"text": "x" * 100_000}]).encode())
    assert detect_format(Path("a.txt")) == "json"


def test_a_long_value_is_read_in_linear_time():
    Path("a.json").write_bytes(json.dumps([{"text": "ab\n" * 2_000_000}, {"text": "b"}]).encode())
    assert [len(text) for text in documents("a.json")] == [6_000_000, 1]


def test_linked_directories_are_read_once_and_loops_end():
    """Faults: C43."""
    Path("in/sub").mkdir(parents=True)
    Path("other").mkdir()
    Path("other/b.txt").write_text("b")
    Path("in/a.txt").write_text("a")
    Path("in/sub/loop").symlink_to(Path("in").resolve())
    Path("in/linked").symlink_to(Path("other").resolve())
    Path("in/again").symlink_to(Path("other").resolve())
    Path("in/gone.txt").symlink_to("nowhere")
    Path("in/.hidden").mkdir()
    Path("in/.hidden/c.txt").write_text("c")
    os.mkfifo("in/pipe.txt")
    left = Counter()
    assert sorted(path.name for path in find_inputs(["in"], left_out=left)) == ["a.txt", "b.txt"]
    Path("in/x.py").write_text("")
    find_inputs(["in"], left_out=left)
    assert left["files of other kinds (.py)"] == 1
    assert "in/pipe.txt is a pipe, which can be read only once" in message(find_inputs, ["in/pipe.txt"])
    assert "/dev/zero is no regular file" in message(find_inputs, ["/dev/zero"])


def saved(directory, texts=TEXTS):
    """As `datasets` saves it, in two files."""
    Path(directory).mkdir(parents=True)
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (texts[:2], texts[2:]), strict=True):
        Path(directory, name).write_bytes(arrow_of(texts=part))
    Path(directory, "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    Path(directory, "dataset_info.json").write_text('{"features": {}}')


def test_directories_of_datasets_are_read():
    """Faults: C43."""
    saved("d")
    assert documents(*find_inputs(["d"])) == TEXTS
    saved("all/train")
    saved("all/test", ["t"] * 4)
    Path("all/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert documents(*find_inputs(["all"])) == TEXTS
    assert documents(*find_inputs(["all/test"])) == ["t"] * 4
    Path("all/dataset_dict.json").write_text('{"splits": ["test"]}')
    assert "has test and no train; name one of its directories" in message(find_inputs, ["all"])
    Path("d/data-00001-of-00002.arrow").unlink()
    assert "is missing, but state.json names it" in message(find_inputs, ["d"])
    for state in ("{", "[]", '{"_data_files": [{"filename": "../x.arrow"}]}', '{"_data_files": 7}', "[" * 200_000):
        Path("d/state.json").write_text(state)
        assert "state.json" in message(find_inputs, ["d"])


def test_a_snapshot_of_the_hub_gives_its_train_split(capsys):
    Path("blobs").mkdir()
    Path("s/data").mkdir(parents=True)
    for split, texts in (("train", TEXTS), ("test", ["t"])):
        Path("blobs", split).write_bytes(parquet_of(texts))
        Path(f"s/data/{split}-00000-of-00001.parquet").symlink_to(Path("blobs", split).resolve())
    Path("s/README.md").write_text("# about it")
    assert run("x", "--input", "s", "--out", "d") == 0
    said = "left out: 1 files about the data (README.md and so on), 1 files of other splits (test)"
    assert said in capsys.readouterr().out
    assert documents(*find_inputs(["s"])) == TEXTS


def test_what_is_left_out_is_one_short_line_that_no_terminal_obeys(capsys):
    """Faults: C109."""
    Path("in").mkdir()
    Path("in/a.jsonl").write_bytes(json_lines(rows()))
    for suffix in (".\x1b[31mx", *(f".k{i}" for i in range(20))):
        Path(f"in/b{suffix}").write_text("b")
    assert run("x", "--input", "in", "--out", "d") == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: "))
    assert "1 files of other kinds (.\\x1b[31mx)" in said and said.endswith(" and 13 more kinds") and said.isprintable()


def test_the_package_datasets_saves_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    assert documents(*find_inputs([str(tmp_path / "saved")])) == TEXTS
    assert "datasets" in sys.modules


def test_a_tokenizer_is_learned_from_the_same_files(capsys, monkeypatch):
    """The same documents give the same tokenizer, whatever holds them."""
    monkeypatch.setattr(train_tokenizer, "compare", lambda *_: None)
    lines = json_lines([*rows(), {"text": None}] * 20)
    Path("a.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    Path("a.parquet").write_bytes(parquet_of([*TEXTS, None] * 20))
    for name in ("a.jsonl.gz", "a.parquet"):
        args = ["--input", name, "--vocab-size", "280", "--out", f"{name}.json"]
        assert train_tokenizer.main(args) == 0
        assert "left out: 20 documents without text (null)" in capsys.readouterr().out
    assert Path("a.jsonl.gz.json").read_bytes() == Path("a.parquet.json").read_bytes()
    Path("book.txt").write_text("a rose is a rose " * 5000)
    assert train_tokenizer.main(["--input", "book.txt", "--vocab-size", "270", "--out", "t.json"]) == 0
    for args in (["--input", "a.parquet"], ["--input", "no", "--out", "x"], ["--input", "a", "--data", "b"], []):
        with pytest.raises(InputError):
            train_tokenizer.main(args)


def test_what_to_type_next_can_be_pasted_and_names_what_is_there(capsys):
    Path("a.jsonl").write_bytes(json_lines(rows()))
    assert train_command(Path("data/pydocs"), "tokens") == "jaxgpt train --config quickstart"
    assert train_command(Path("data/openwebtext"), "tokens") == "jaxgpt train --config gpt2_124m"
    for form, config in (("tokens", "quickstart"), ("text", "nanochat_cpu")):
        out = f"my $HOME's {form}"
        words = shlex.split(train_command(Path(out), form, ["--data.tokenizer=a b"]))
        assert words == ["jaxgpt", "train", "--config", config, f"--data.dir={out}", "--data.tokenizer=a b"]
        assert run("x", "--input", "a.jsonl", "--out", out, "--format", form) == 0
        said = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ")
        assert out in shlex.split(said)[-3 if form == "text" else -1].removeprefix("--data.dir=")
