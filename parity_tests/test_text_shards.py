"""A directory of text holds what was given, once, in order, the last file for validation; also while it changes."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from jaxgpt import signals
from jaxgpt.data.shards import open_dataset
from jaxgpt.data.text_data import open_splits, verify_text
from jaxgpt.errors import InputError
from jaxgpt.prepare import __main__ as prepare
from jaxgpt.prepare import corpora, destination, source, text_shards
from jaxgpt.prepare.corpora import TEXT_CORPORA, TextCorpus
from jaxgpt.prepare.source import is_val
from jaxgpt.prepare.text_shards import PAGE_CHARS, check_text_shard
from parity_tests.helpers.hub_server import use_hub
from parity_tests.helpers.prepare_runs import (
    COMMIT,
    DOCUMENTS,
    Server,
    leftovers,
    refused,
    run,
    write_jsonl,
    write_parquet,
)

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def texts(directory) -> dict[str, list[str]]:
    """The documents of each split, as a reader finds them."""
    return {
        split.name: [text for group in range(split.n_groups) for text in split.read_group(group).to_pylist()]
        for split in open_splits(Path(directory))
    }


def manifest(directory) -> dict:
    return json.loads(Path(directory, "text.json").read_text())


def files(directory) -> list[str]:
    return sorted(os.listdir(directory))


# What is written


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "files"])
def test_documents_keep_their_order(kind, capsys):
    if kind == "jsonl":
        write_jsonl("x.jsonl", ["", *DOCUMENTS])
    elif kind == "parquet":
        write_parquet("x.parquet", ["", None, *DOCUMENTS])
    else:
        for i, text in enumerate(DOCUMENTS):
            Path(f"x{i:02d}.txt").write_text(text, encoding="utf-8")
    options = ("--val-fraction", 0.2, "--shard-chars", 500, "--group-documents", 3)
    assert run("x", "--input", "x*", "--format", "text", *options) == 0
    expected = {
        name: [text for i, text in enumerate(DOCUMENTS) if is_val(i, 0.2) == (name == "val")]
        for name in ("train", "val")
    }
    assert texts("data/x_text") == expected
    train, val = open_splits(Path("data/x_text"))
    assert len(train.files) > 3
    assert all({*file.group_rows[:-1]} <= {3} and 1 <= file.group_rows[-1] <= 3 for file in train.files + val.files)
    entries = manifest("data/x_text")["files"]
    assert [entry["name"] for entry in entries] == [file.path.name for file in train.files + val.files]
    assert all(500 <= entry["n_chars"] < 1000 for entry in entries[:-2]) and entries[-2]["n_chars"] < 1000
    assert sum(entry["n_chars"] for entry in entries) == sum(map(len, DOCUMENTS))
    assert [entry["size_bytes"] for entry in entries] == [file.size_bytes for file in train.files + val.files]
    out = capsys.readouterr().out
    assert f"train         {len(expected['train'])}" in out and f"{sum(map(len, expected['val'])):,}" in out
    assert out.endswith("next: jaxgpt train_tokenizer --data data/x_text --vocab-size 4096\n")


def test_files_are_zstd_with_checksums():
    write_jsonl("x.jsonl", DOCUMENTS)
    run("x", "--input", "x.jsonl", "--format", "text")
    assert files("data/x_text") == ["shard_00000.parquet", "shard_00001.parquet", "text.json"]
    path = Path("data/x_text/shard_00000.parquet")
    column = parquet.read_metadata(path).row_group(0).column(0)
    assert column.compression == "ZSTD" and str(parquet.read_schema(path)) == "text: string"
    check_text_shard(path)
    content, end = bytearray(path.read_bytes()), column.data_page_offset + column.total_compressed_size
    for place in range(column.data_page_offset + 80, end, 13):  # behind the page's header
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"fetch it again"):
            check_text_shard(path)
        content[place] ^= 1


@pytest.mark.parametrize("mark", ["\n\n", "\n", " ", ""])
def test_one_text_becomes_pages(monkeypatch, mark):
    text = "".join(f"Part {i}, with \U0001f600 and so on.{mark}" for i in range(900))
    Path("book.txt").write_text("\ufeff" + text, encoding="utf-8")
    for piece_chars in (8 << 20, 5000):
        monkeypatch.setattr(source, "PIECE_CHARS", piece_chars)
        out = f"p{piece_chars}"
        assert run("book", "--input", "book.txt", "--format", "text", "--val-fraction", 0.25, "--out", out) == 0
        got = texts(out)
        assert "".join(got["train"]) == text[: int(len(text) * 0.75)]
        assert "".join(got["train"] + got["val"]) == text
        pages = got["train"][:-1] + got["val"][1:-1]
        assert max(map(len, pages)) <= PAGE_CHARS and len(pages) > 8
        whole = [page for page in got["train"][:-1] if piece_chars > 5000]
        assert all(len(page) >= PAGE_CHARS // 2 and page.endswith(mark) for page in whole)


def test_long_documents_are_cut_into_rows(monkeypatch):
    long = "".join(f"line {i}\n" for i in range(60))
    write_jsonl("x.jsonl", [long, "short", *DOCUMENTS, long[::-1]])
    monkeypatch.setattr(source, "PIECE_CHARS", 200)
    monkeypatch.setattr(text_shards, "_GROUP_CHARS", 300)
    run("x", "--input", "x.jsonl", "--format", "text")
    got = texts("data/x_text")
    expected = ["", ""]
    for i, text in enumerate([long, "short", *DOCUMENTS, long[::-1]]):
        expected[is_val(i, 0.1)] += text
    assert ["".join(got["train"]), "".join(got["val"])] == expected
    assert max(map(len, got["train"])) <= 200
    train, _ = open_splits(Path("data/x_text"))
    assert all(sum(len(t) for t in train.read_group(i).to_pylist()) < 500 for i in range(train.n_groups))


def test_a_corpus_as_text_has_the_documents_of_its_tokens(monkeypatch):
    monkeypatch.setattr(corpora, "python_docs", lambda stdlib: DOCUMENTS)
    assert run("pydocs", "--format", "text") == 0
    assert run("pydocs", "--tokenizer", "byte") == 0
    data = open_dataset("data/pydocs")
    for split, part in ((data.train, "train"), (data.val, "val")):
        tokens = split.read(0, split.n_tokens).astype("uint8").tobytes().decode()
        assert tokens == "".join(f"{text}\n" for text in texts("data/pydocs_text")[part])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.txt", b"good\xffbad", "x.txt is not UTF-8: byte 0xff at offset 4"),
        ("x.txt", b"a", "nothing is left for train (val_fraction=0.1); give more text"),
        ("x.jsonl", b'{"text": "only one"}\n', "nothing is left for val (val_fraction=0.1); give two documents"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "x.jsonl:2 is not UTF-8"),
        ("x.jsonl", b'{"body": "a"}\n', "has no text in field 'text'"),
        ("x.parquet", b"PAR1 is not all it takes", "x.parquet cannot be read as parquet"),
    ],
)
def test_bad_input(name, content, expected):
    Path(name).write_bytes(content)
    assert expected in refused("mine", "--input", name, "--format", "text")
    assert not Path("data/mine_text").exists()


# Once more, instead, interrupted


def test_the_same_again_does_nothing(capsys):
    write_jsonl("x.jsonl", DOCUMENTS)
    run("x", "--input", "x.jsonl", "--format", "text")
    before = {path: path.stat().st_mtime_ns for path in Path("data/x_text").iterdir()}
    Path("data/x_text/tokenizer.json").write_text("{}")
    capsys.readouterr()
    assert run("x", "--input", "x.jsonl", "--format", "text") == 0
    out = capsys.readouterr().out
    assert "data/x_text is already prepared" in out
    assert out.endswith("--config nanochat_cpu --data.dir=data/x_text\n")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_text_takes_its_place_by_force_only():
    write_jsonl("x.jsonl", DOCUMENTS)
    run("x", "--input", "x.jsonl", "--format", "text", "--shard-chars", 500)
    Path("data/x_text/tokenizer.json").write_text("{}")
    Path("data/x_text/notes.md").write_text("mine")
    old = texts("data/x_text")
    found = refused("x", "--input", "x.jsonl", "--format", "text")
    assert "has other data (shard_chars=500, not shard_chars=250000000); --force replaces it" in found
    assert texts("data/x_text") == old
    assert run("x", "--input", "x.jsonl", "--format", "text", "--force") == 0
    assert texts("data/x_text") == old
    assert files("data/x_text") == [
        "notes.md", "shard_00000.parquet", "shard_00001.parquet", "text.json", "tokenizer.json",
    ]  # fmt: skip


def test_tokens_and_text_do_not_mix():
    write_jsonl("x.jsonl", DOCUMENTS)
    run("x", "--input", "x.jsonl", "--out", "a")
    run("x", "--input", "x.jsonl", "--out", "b", "--format", "text")
    for force in ([], ["--force"]):
        found = refused("x", "--input", "x.jsonl", "--out", "a", "--format", "text", *force)
        assert found == "--out a holds tokens (manifest.json); choose another --out for text"
        found = refused("x", "--input", "x.jsonl", "--out", "b", *force)
        assert found == "--out b holds text (text.json); choose another --out for tokens"
    Path("c").mkdir()
    write_parquet("c/shard_00000.parquet", ["mine"])
    assert "--out c has shards but no text.json" in refused("x", "--input", "x.jsonl", "--out", "c", "--format", "text")
    Path("c/thesis.tex").write_text("")
    found = refused("x", "--input", "x.jsonl", "--out", "c", "--format", "text", "--force")
    assert "--out c holds thesis.tex, which prepare did not write" in found


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda d: (d / "shard_00001.parquet").unlink(),
            "shard_00001.parquet has size_bytes=missing, text.json says",
        ),
        (lambda d: (d / "shard_00000.parquet").write_bytes(b"x"), "shard_00000.parquet has size_bytes=1, text.json"),
        (lambda d: (d / "text.json").write_text("{"), "text.json is not JSON"),
        (lambda d: (d / "text.json").write_text("[1]"), "text.json is not of format 1"),
        (lambda d: (d / "text.json").write_text('{"format": 2}'), "text.json is not of format 1"),
        (lambda d: (d / "text.json").write_text('{"format": 1, "files": 7}'), "text.json is not of format 1"),
        (
            lambda d: (d / "text.json").write_text('{"format": 1, "files": [{"name": "../x", "n_chars": 1}]}'),
            "describes no shard",
        ),
        (lambda d: (d / "text.json").write_text('{"format": 1, "files": [7]}'), "text.json: 7 describes no shard"),
        (lambda d: (d / "text.json").write_text('{"format": 1}'), "has other data (corpus=None, not corpus=x"),
    ],
    ids=range(9),
)
def test_damage_is_named(damage, expected):
    write_jsonl("x.jsonl", DOCUMENTS)
    run("x", "--input", "x.jsonl", "--format", "text")
    old = texts("data/x_text")
    damage(Path("data/x_text"))
    found = refused("x", "--input", "x.jsonl", "--format", "text")
    assert expected in found and "--force" in found
    assert run("x", "--input", "x.jsonl", "--format", "text", "--force") == 0 and texts("data/x_text") == old


@pytest.mark.parametrize("error", [SystemExit, MemoryError, OSError(28, "No space left on device")])
def test_interrupted_work_changes_nothing(monkeypatch, error):
    """A signal raises SystemExit. Faults: C41."""
    write_jsonl("x.jsonl", DOCUMENTS)
    run("x", "--input", "x.jsonl", "--format", "text")
    old = texts("data/x_text")
    write = text_shards._Writer.write

    def interrupted(self, text):
        write(self, text)
        if text == DOCUMENTS[20]:
            raise error

    monkeypatch.setattr(text_shards._Writer, "write", interrupted)
    for name, force in (("new", []), ("x", ["--force"])):
        args = (name, "--input", "x.jsonl", "--format", "text", "--group-documents", 4, *force)
        if error in (SystemExit, MemoryError):
            with pytest.raises(error):
                run(*args)
        else:
            assert "No space left on device; free space" in refused(*args)
    assert not Path("data/new_text").exists() and leftovers() == []
    assert texts("data/x_text") == old


def test_the_last_file_is_for_validation_at_every_moment(monkeypatch):
    """A kill between any two steps of putting new text in the place of old: no reader trains on validation text."""
    write_jsonl("old.jsonl", DOCUMENTS)
    write_jsonl("new.jsonl", [text.upper() for text in DOCUMENTS])
    for_validation = {text for i, text in enumerate(DOCUMENTS) if is_val(i, 0.1)}
    for_validation |= {text.upper() for text in for_validation}
    steps = {"n": 0, "kill_at": -1}

    def counted(function):
        def step(*args, **kwargs):
            if "mine" in str(args[-1]):
                steps["n"] += 1
                if steps["n"] == steps["kill_at"]:
                    raise SystemExit("killed")
            return function(*args, **kwargs)

        return step

    monkeypatch.setattr(destination.os, "replace", counted(os.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    args = ("mine", "--format", "text", "--shard-chars", 600, "--out", "mine", "--input")
    for kill_at in range(1, 40):
        steps["kill_at"] = -1
        assert run(*args, "old.jsonl", "--force") == 0
        steps.update(n=0, kill_at=kill_at)
        try:
            run(*args, "new.jsonl", "--force", "--group-documents", 3)
        except SystemExit:
            shards = sorted(Path("mine").glob("*.parquet"))
            parts = [parquet.read_table(path)["text"].to_pylist() for path in shards]
            assert all(set(part) <= for_validation for part in parts[-1:])
            assert not any(set(part) & for_validation for part in parts[:-1])
        else:
            break
    assert kill_at > 10 and texts("mine")["val"][0] == DOCUMENTS[1].upper()


def test_what_a_kill_leaves_behind_is_not_picked_up():
    """Faults: C41."""
    write_jsonl("x.jsonl", DOCUMENTS)
    code = (
        "import os; from jaxgpt.prepare import __main__ as prepare, text_shards\n"
        "end = text_shards._Writer._end_file\n"
        "text_shards._Writer._end_file = lambda self: (end(self), os.kill(os.getpid(), 9))\n"
        "prepare.main('x --input x.jsonl --format text --shard-chars 300'.split())"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=False).returncode == -9
    assert leftovers("data/x_text")
    with pytest.raises(InputError):
        open_splits(Path("data/x_text"))
    assert run("x", "--input", "x.jsonl", "--format", "text") == 0 and leftovers() == []
    assert sorted(t for part in texts("data/x_text").values() for t in part) == sorted(DOCUMENTS)


# What is fetched


def shard(number: int, column="text") -> bytes:
    sink = pa.BufferOutputStream()
    rows = [f"shard {number} document {i} {'text ' * (i % 9)}" for i in range(400)]
    parquet.write_table(pa.table({column: rows}), sink, row_group_size=100)
    return sink.getvalue().to_pybytes()


NAMES = [f"shard_{i:05d}.parquet" for i in range(6)]


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serves a corpus of five files for training and one for validation."""
    monkeypatch.setitem(TEXT_CORPORA, "climbmix", TextCorpus("small", "owner/name", 6))
    monkeypatch.setattr("jaxgpt.data.download.time.sleep", lambda s: None)
    with Server({name: shard(i) for i, name in enumerate(NAMES)}) as server:
        use_hub(monkeypatch, server.url, tmp_path / "hub")
        yield server


def asked(server) -> list[str]:
    return sorted(name for name, _ in server.log if name != "agent-harnesses")  # huggingface_hub names itself


def test_fetching_brings_what_is_missing(server, capsys):
    assert run("climbmix", "--shards", 2) == 0
    assert (NAMES[5], None) in server.log and asked(server) == [NAMES[0], NAMES[1], NAMES[5]]
    assert files("data/climbmix") == [NAMES[0], NAMES[1], NAMES[5], "text.json"] and leftovers() == []
    out = capsys.readouterr().out
    assert "data/climbmix: 3 files fetched" in out and out.endswith("train_tokenizer --data data/climbmix\n")
    got = texts("data/climbmix")
    assert got["val"][0].startswith("shard 5 document 0") and (len(got["train"]), len(got["val"])) == (800, 400)
    server.log.clear()
    for _ in range(2):
        assert run("climbmix", "--shards", 2) == 0
    assert "already has the 2 shards for training, and the one for validation" in capsys.readouterr().out
    assert server.log == []
    assert run("climbmix", "--shards", 4) == 0
    assert asked(server) == [NAMES[2], NAMES[3]] and len(texts("data/climbmix")["train"]) == 1600
    server.log.clear()
    Path("data/climbmix", NAMES[1]).write_bytes(server.files[NAMES[1]][:-50])
    Path("data/climbmix", NAMES[5]).unlink()
    assert run("climbmix", "--shards", 1) == 0 and asked(server) == [NAMES[1], NAMES[5]]
    for name in files("data/climbmix")[:-1]:
        assert Path("data/climbmix", name).read_bytes() == server.files[name]


def test_the_address_is_the_hubs(server, monkeypatch):
    seen = []

    def fetch(url, path, **_):
        seen.append(url.removeprefix(server.url))
        path.write_bytes(shard(0))

    server.files |= {text_shards.shard_name(1822): shard(0)}
    monkeypatch.setattr("jaxgpt.data.hub.download", fetch)
    with pytest.raises(InputError):  # two files alike
        run("climbmix", "--shards", 1)
    with pytest.raises(InputError):
        run("fineweb-edu", "--shards", 1)
    assert seen[0] == f"/datasets/owner/name/resolve/{COMMIT}/shard_00005.parquet"
    hub = f"/datasets/karpathy/fineweb-edu-100b-shuffle/resolve/{COMMIT}"
    assert seen[2:] == [f"{hub}/shard_01822.parquet", f"{hub}/shard_00000.parquet"]
    assert (TEXT_CORPORA["fineweb-edu"].n_train, text_shards.shard_name(6542)) == (1822, "shard_06542.parquet")


def test_what_was_fetched_is_remembered_and_checked(server, capsys):
    """The hub's SHA-256 decides, its commit is kept for the next time, and what changed is fetched again.

    Faults: F1, F22, C34, C42.
    """
    asked_paths, answer, commit = [], server.answer, COMMIT
    server.answer = lambda request: (asked_paths.append(request.path), answer(request))
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in server.files.items()}
    server.sums = sums
    assert run("climbmix", "--shards", 1) == 0
    about = json.loads(Path("data/climbmix/text.json").read_text())
    assert {entry["name"]: entry["sha256"] for entry in about["files"]} == {n: sums[n] for n in (NAMES[5], NAMES[0])}
    assert about["request"]["revision"] == commit
    asked_paths.clear()
    assert run("climbmix", "--shards", 2) == 0
    assert f"/datasets/owner/name/resolve/{commit}/{NAMES[1]}" in asked_paths
    content = bytearray(server.files[NAMES[0]])
    content[len(content) // 2] ^= 1
    Path("data/climbmix", NAMES[0]).write_bytes(content)
    found = refused_by(open_checked)
    assert f"{NAMES[0]} has SHA-256" in found and "text.json says" in found
    capsys.readouterr()
    assert run("climbmix", "--shards", 2) == 0
    assert f"{NAMES[0]} changed since it was fetched; fetching it again" in capsys.readouterr().out
    open_checked()
    server.files[NAMES[2]] = bytes(content)  # well formed or not: the hub says that it is another
    assert "has SHA-256" in refused("climbmix", "--shards", 3)


def open_checked():
    return verify_text(*open_splits(Path("data/climbmix")))


def refused_by(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


def test_an_interrupted_download_goes_on(server):
    server.plan = ["cut", *[503] * 9]
    assert "cannot be fetched" in refused("climbmix", "--shards", 1)
    assert files("data/climbmix") == [".tmp"] and leftovers() == [
        f"data/climbmix/.tmp/downloads/{NAMES[5]}.part",
        "data/climbmix/.tmp/lock",
    ]
    server.plan, server.log = ["serve", "cut", *[503] * 9], []
    assert "bytes are kept in data/climbmix/.tmp/downloads/" in refused("climbmix", "--shards", 1)
    half = len(server.files[NAMES[5]]) // 2
    assert server.log[0] == (NAMES[5], f"bytes={half}-") and files("data/climbmix") == [".tmp", NAMES[5], "text.json"]
    server.plan, server.log = [], []
    assert run("climbmix", "--shards", 1) == 0
    assert server.log == [(NAMES[0], f"bytes={len(server.files[NAMES[0]]) // 2}-")] and leftovers() == []
    assert Path("data/climbmix", NAMES[0]).read_bytes() == server.files[NAMES[0]]


def test_damaged_downloads_get_no_place(server):
    good = server.files[NAMES[1]]
    flipped = bytearray(good)
    flipped[len(good) // 4] ^= 0x10
    for content, expected in (
        (good[: len(good) // 2], "is damaged, or not the expected file: "),
        (bytes(flipped), "is damaged, or not the expected file: "),
        (b"<html>", "is damaged, or not the expected file: "),
        (shard(1, column="content"), "column 'text' is missing, not text"),
    ):
        server.files[NAMES[1]] = content
        assert expected in refused("climbmix", "--shards", 2)
        assert NAMES[1] not in files("data/climbmix")
        assert not Path("data/climbmix/.tmp/downloads", NAMES[1]).exists()
    server.files[NAMES[1]] = good
    assert run("climbmix", "--shards", 2) == 0 and leftovers() == []
    del server.files[NAMES[3]]
    assert f"has no {NAMES[3]}; check the name" in refused("climbmix", "--shards", 4)
    assert len(texts("data/climbmix")["train"]) >= 800  # what is there serves


def test_four_files_come_at_once_and_one_failure_ends_all(server, monkeypatch):
    together = threading.Barrier(4)
    answer = server.answer

    def meet(request):
        name = request.path.rpartition("/")[2]
        if name != NAMES[5]:
            together.wait(timeout=60)
        if name == NAMES[3]:
            server.plan.insert(0, 404)
            return answer(request)
        if name != NAMES[5]:  # slow, without end
            request.send_response(200)
            request.send_header("Content-Length", str(1 << 29))
            request.end_headers()
            request.close_connection = True
            try:
                while True:
                    request.wfile.write(bytes(1 << 18))
            except OSError:
                return None
        return answer(request)

    monkeypatch.setattr(server, "answer", meet)
    assert "returned 404" in refused("climbmix", "--shards", 5)
    assert not together.broken
    assert len(list(Path("data/climbmix/.tmp/downloads").glob("*.part"))) == 3


def test_a_signal_keeps_what_came(server, monkeypatch):
    check = text_shards.check_text_shard

    def interrupted(path):
        check(path)
        if path.name == NAMES[1]:
            raise signals.Interrupted(130)

    monkeypatch.setattr(text_shards, "check_text_shard", interrupted)
    with pytest.raises(signals.Interrupted):
        run("climbmix", "--shards", 2, "--workers", 1)
    says = signals.enter(signals.RUNNING).says
    assert says == "interrupted; data/climbmix keeps what was fetched; run the same command to continue"
    assert [n for n in files("data/climbmix") if n.endswith("parquet")] == [NAMES[0], NAMES[5]]


def test_fetching_does_not_mix_corpora(server):
    Path("data/mine").mkdir(parents=True)
    Path("data/mine/shard_00000.parquet").write_bytes(shard(0))
    assert "data/mine holds shard_00000.parquet, and nothing says that this is climbmix" in refused(
        "climbmix", "--shards", 1, "--out", "data/mine"
    )
    Path("file").write_text("")
    assert "--out file is a file" in refused("climbmix", "--shards", 1, "--out", "file")
    run("climbmix", "--shards", 1)
    found = refused("fineweb-edu", "--shards", 1, "--out", "data/climbmix")
    assert found == "--out data/climbmix holds climbmix; choose another --out for fineweb-edu"
    write_jsonl("x.jsonl", DOCUMENTS)
    found = refused("x", "--input", "x.jsonl", "--format", "text", "--out", "data/climbmix")
    assert "has other data (corpus=climbmix, not corpus=x" in found
