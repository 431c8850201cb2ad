"""Data sets of the hub: fetched once, complete or not at all, checked each time, or read from local copies."""

import gzip
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest

from jaxgpt.data import hub
from jaxgpt.errors import InputError
from jaxgpt.tasks import gsm8k, mmlu
from jaxgpt.tasks.hub_files import BRANCH, HubSplit, fetch_split, hub_rows, read_rows
from parity_tests.helpers.hub_server import COMMIT, TOKEN, HubServer, use_hub

NAME = "datasets/owner/sums"
WANTED = HubSplit("owner/sums", "main", "train", ("question", "answer"), 5)
ROWS = [{"question": f"{i}+{i}?", "answer": f"#### {2 * i}"} for i in range(5)]


def parquet(rows) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub with one data set of two files, an empty cache, no token and no waiting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "WAITS_S", (0.001, 0.001))
    monkeypatch.setattr("jaxgpt.data.download.time.sleep", lambda s: None)
    with HubServer() as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        server.branches[BRANCH] = COMMIT
        server.repositories[NAME] = {
            "main/train/0001.parquet": parquet([{**row, "more": 1} for row in ROWS[3:]]),
            "main/train/0000.parquet": parquet([{**row, "more": 1} for row in ROWS[:3]]),
            "main/test/0000.parquet": parquet(ROWS[:1]),
            "README.md": b"x",
        }
        yield server


def fetched() -> list[dict]:
    rows = hub_rows(WANTED)
    return [rows[i] for i in range(len(rows))]


def refused(match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        fetched()
    assert "\n" not in str(error.value)


def test_a_split_is_fetched_once_in_order_with_its_manifest_last(server, capsys):
    assert fetched() == ROWS
    folder = Path("data/tasks/owner--sums/main/train")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["commit"] == COMMIT and list(manifest["files"]) == ["00000.parquet", "00001.parquet"]
    assert (folder / "manifest.json").stat().st_mtime_ns >= (folder / "00001.parquet").stat().st_mtime_ns
    assert "file 2 of 2" in capsys.readouterr().err
    server.log.clear()
    assert fetched() == ROWS and server.log == [] and capsys.readouterr().err == ""


def test_a_download_that_is_cut_goes_on_where_it_was(server):
    server.plan = ["cut", "serve", 404]
    refused("returned 404")
    folder = Path("data/tasks/owner--sums/main/train")
    assert (folder / "00000.parquet").is_file() and not (folder / "manifest.json").exists()
    assert any(byte_range for _, _, byte_range in server.log)
    server.log.clear()
    assert fetched() == ROWS
    assert sum("cdn" in path for method, path, _ in server.log if method == "GET") == 1  # the second file only


def test_a_busy_hub_is_asked_again_and_a_wrong_name_is_not(server):
    server.plan_head = [503, 500]
    assert fetched() == ROWS
    del server.repositories[NAME]
    server.log.clear()
    with pytest.raises(InputError, match="does not exist at"):
        fetch_split(WANTED, Path("elsewhere"))
    assert len(server.log) == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda files: [files.pop(f"main/train/000{i}.parquet") for i in (0, 1)], "has no files of main/train; give"),
        (lambda files: files.update({"main/train/0001.parquet": b"PAR1 no"}), "cannot be read as parquet"),
        (lambda files: files.update({"main/train/0001.parquet": parquet([{"question": "?"}])}), "no column answer"),
    ],
    ids=["no_split", "damaged", "no_column"],
)
def test_what_the_hub_lacks_is_named(server, change, match):
    change(server.repositories[NAME])
    refused(match)


def test_without_network_only_a_complete_split_is_read(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set; unset it, or give local copies by --input")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    fetched()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetched() == ROWS


def test_the_token_is_sent_to_the_hub_and_to_no_other_host(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.private.add(NAME)
    assert fetched() == ROWS
    assert {token for host, token in server.tokens if host.startswith("127")} == {f"Bearer {TOKEN}"}
    assert {token for host, token in server.tokens if host.startswith("localhost")} == {None}


def test_a_file_that_changed_or_is_gone_is_named(server):
    fetched()
    path = Path("data/tasks/owner--sums/main/train/00001.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    refused("00001.parquet changed since it was fetched; remove")
    path.unlink()
    refused("00001.parquet is missing; remove")
    (path.parent / "manifest.json").write_text('{"files": {"../x": ""}}')
    refused("is not a manifest of files")


def test_two_that_want_a_split_fetch_it_once(server, capsys):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetched())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [ROWS, ROWS]
    assert sum("/api/" in path for _, path, _ in server.log) == 1
    assert sum("cdn" in path for method, path, _ in server.log if method == "GET") == 2


def test_a_lock_of_another_process_is_waited_for(server, capfd):
    folder = Path("data/tasks/owner--sums/main/train")
    folder.mkdir(parents=True)
    script = "import sys, jaxgpt.files; f = open(sys.argv[1], 'a+'); jaxgpt.files.take_lock(f); print(1); input()"
    holder = subprocess.Popen(
        [sys.executable, "-u", "-c", script, str((folder / "lock").resolve())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "1\n"
        thread = threading.Thread(target=fetched)
        thread.start()
        printed, deadline = "", time.monotonic() + 60
        while "waiting" not in printed and time.monotonic() < deadline:
            time.sleep(0.05)
            printed += capfd.readouterr().err
        assert re.search(r"waiting for process \d+ on host \S+, which fetches data", printed)
        assert not (folder / "manifest.json").exists()
        holder.communicate("\n")
    thread.join()
    assert (folder / "manifest.json").exists()


def test_local_copies_are_read_instead(tmp_path, capsys):
    lines = "".join(json.dumps(row | {"more": 1}) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.parquet").write_bytes(parquet(ROWS))
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        rows = hub_rows(WANTED, inputs=[tmp_path / name])
        assert [rows[i] for i in range(5)] == ROWS
    assert capsys.readouterr().err == ""
    assert len(hub_rows(WANTED, inputs=[tmp_path / "a.jsonl", tmp_path / "c.parquet"])) == 10
    assert capsys.readouterr().err == (
        "note: owner/sums main/train has 10 rows here, 5 in nanochat's runs; the order differs\n"
    )


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", b"x", "is not a .parquet, .jsonl or .jsonl.gz file"),
        ("a.jsonl", b'{"question": "q"}\n', "line 1 lacks one of question, answer"),
        ("a.jsonl", b"\n{", "line 2 is not JSON"),
        ("a.jsonl", b"\n", "has no rows"),
        ("a.jsonl.gz", b"x", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"x" * 1000)[:-9], "cannot be read"),
        ("a.parquet", b"x", "cannot be read as parquet"),
    ],
    ids=["csv", "column", "json", "empty", "gzip", "gzip_cut", "parquet"],
)
def test_a_local_file_that_does_not_fit_is_named(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=match) as error:
        read_rows(tmp_path / name, WANTED.columns)
    assert "\n" not in str(error.value)


def test_tasks_read_tables_also_in_mmlus_older_layout(tmp_path):
    row = {"question": "Q", "choices": list("wxyz"), "answer": 1, "subject": "law"}
    for i, rows in enumerate([[row] * 3, [{"train": row}] * 3]):
        (tmp_path / f"{i}.parquet").write_bytes(parquet(rows))
        task = mmlu.mmlu(read_rows(tmp_path / f"{i}.parquet", mmlu.COLUMNS))
        assert len(task) == 3 and task[2]["messages"][1]["content"] == "B"
    (tmp_path / "sums.parquet").write_bytes(parquet(ROWS))
    assert gsm8k.gsm8k(read_rows(tmp_path / "sums.parquet", gsm8k.COLUMNS))[0]["messages"][0]["content"] in {
        row["question"] for row in ROWS
    }
