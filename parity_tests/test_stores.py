"""Object stores and copies of what lies there: S3 by a local server, and memory://, give what was written to them."""

import builtins
import os
import shutil
from pathlib import Path

import pytest

from jaxgpt import mirror, stores
from jaxgpt.data.shards import Dataset, open_dataset
from jaxgpt.data.sources import open_directory
from jaxgpt.errors import Failure, InputError
from jaxgpt.files import user_location, user_path
from jaxgpt.mirror import fetch_directory, fetch_file, mirror_path
from jaxgpt.prepare.__main__ import main as prepare
from jaxgpt.stores import Store
from jaxgpt.streams import one_line
from parity_tests.helpers.object_store import BUCKET, Proxy, environment_of, s3_server
from parity_tests.helpers.text_directories import read_marked, write_data
from parity_tests.helpers.train_runs import TEXT, write_text


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture
def proxy(server, tmp_path):
    """Before the server, and in the environment."""
    found = Proxy(server)
    with environment_of(found.address, tmp_path / "cache"):
        yield found
    found.close()


@pytest.fixture(params=["s3", "memory"])
def location(request, proxy):
    """A place at which nothing is, in each kind of store."""
    return f"{request.param}://{BUCKET}/{request.node.name}".replace("[", "-").rstrip("]")


def test_objects(location, tmp_path):
    """Objects that were written, uploaded and copied are read, listed and deleted."""
    store, nearby = Store(location), Store(f"{location}-2")
    assert store.list() == {}
    files = {}
    for name in ("a", "b/c"):
        files[name] = tmp_path / name.replace("/", "-")
        files[name].write_text(name * 1000)
    store.upload(files)
    store.write("d", b"new")
    nearby.write("a", b"of another location")
    store.copy({"d": "b/e"})
    assert {name: entry.size_bytes for name, entry in store.list().items()} == {
        "a": 1000,
        "b/c": 3000,
        "d": 3,
        "b/e": 3,
    }
    assert set(store.list("b")) == {"b/c", "b/e"}
    assert (store.read("d", 3), store.read("nothing", 3), store.entry("nothing")) == (b"new", None, None)
    with pytest.raises(InputError, match="has more than 2 bytes"):
        store.read("d", 2)
    store.download(store.list(), tmp_path / "copy")
    assert (tmp_path / "copy" / "b" / "c").read_text() == "b/c" * 1000
    store.delete(["d", "nothing"])
    assert set(store.list()) == {"a", "b/c", "b/e"}


def test_names_that_leave_the_directory_are_left_out(proxy, monkeypatch):
    store = Store("memory://names/x")
    names = ("../x", "a/../../x", "b//c", "new\nline", "back\\slash", "/abs", "good")
    found = {f"/names/x/{name}": {"size": 1, "type": "file"} for name in names}
    monkeypatch.setattr(store._files, "find", lambda path, detail: found | {"/names/xy": {"size": 1, "type": "file"}})
    assert set(store.list()) == {"good"}


def test_a_download_that_was_cut_continues(proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "BLOCK_BYTES", 1000)
    store, content = Store(f"s3://{BUCKET}/cut"), os.urandom(3500)
    store.write("x", content)
    (entry,) = store.list().values()
    part = tmp_path / stores.partial_name("x", entry)
    part.write_bytes(content[:2000])  # as a process that was killed leaves it
    proxy.requests.clear()
    store.download({"x": entry}, tmp_path)
    assert [request for request in proxy.requests if "GET" in request] == [f"GET /{BUCKET}/cut/x"] * 2
    assert (tmp_path / "x").read_bytes() == content
    assert not part.exists()


def test_an_object_that_changes_while_it_is_read(proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "BLOCK_BYTES", 1000)
    store = Store(f"s3://{BUCKET}/changing")
    store.write("x", b"a" * 3500)
    entries = store.list()
    store.write("x", b"b" * 3500)
    with pytest.raises(InputError, match="x changed while it was read"):
        store.download(entries, tmp_path)
    assert list(tmp_path.glob("x*")) == []


DENIED = b"<Error><Code>InvalidAccessKeyId</Code><Message>The key does not exist in our records.</Message></Error>"


@pytest.mark.parametrize(
    ("location", "answer", "kind", "message"),
    [
        ("s3://bucket-that-is-none/x", None, InputError, "does not exist.*; create the bucket bucket-that-is-none"),
        (f"s3://{BUCKET}/x", (403, DENIED), InputError, "access is denied.*key does not exist.*; check AWS_PROFILE"),
        (f"s3://{BUCKET}/x", (0, b""), Failure, "cannot be reached.*; check the network"),
        ("abc://bucket/x", None, InputError, "is not at s3://, gs:// or file://"),
        ("s3:///", None, InputError, "names no bucket; write s3://BUCKET/path"),
    ],
    ids=["bucket", "key", "cut", "protocol", "empty"],
)
def test_errors_are_one_line(proxy, monkeypatch, location, answer, kind, message):
    monkeypatch.setattr(stores, "RETRIES", 1)
    proxy.answer = answer
    with pytest.raises(kind, match=message) as caught:
        Store(location, "run.dir").list()
    assert str(caught.value).startswith(f"run.dir={location.rstrip('/')}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_no_credentials_and_no_package(proxy, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"no credentials were found .*; check AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        Store(f"s3://{BUCKET}/x").list()
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name == "fsspec":
            raise ModuleNotFoundError("No module named 's3fs'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"needs s3fs \(No module named 's3fs'\); pip install 's3fs>=2025.3'"):
        Store(f"s3://{BUCKET}/x")


def test_paths_and_locations():
    assert user_location("s3://b/x") == "s3://b/x"
    assert user_location("file:///a/b") == user_location("file://localhost/a/b") == user_path("file:///a/b") == "/a/b"
    for text, function, message in (
        ("file://a/b", user_location, "names no absolute path"),
        ("gs://b/x", user_path, "is not on this machine; copy it here"),
        ("s3://b/\x1b", user_location, "control character"),
    ):
        with pytest.raises(InputError, match=message):
            function(text)


# Data


@pytest.fixture
def data(tmp_path, location):
    """A prepared directory, and the location it was uploaded to."""
    directory = write_text(tmp_path, TEXT)
    Store(location).upload({path.name: path for path in directory.iterdir() if path.is_file()})
    return directory, location


def test_prepared_data_are_uploaded(location, tmp_path):
    """prepare --out LOCATION puts there what it writes into a directory; other data replace it whole."""
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ["x", "--input", str(tmp_path / "text.txt"), "--tokenizer", "char"]
    for more in (["--shard-tokens", "9000"], ["--force"]):
        for out in (str(tmp_path / "x"), location):
            assert prepare([*arguments, *more, "--out", out]) == 0
        written = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir() if path.is_file()}
        assert {name: Store(location).read(name, 2**20) for name in Store(location).list()} == written
    assert prepare([*arguments, "--out", location]) == 0


def test_data_are_those_of_the_directory(data):
    directory, location = data
    ours, theirs = open_directory(str(directory)), open_directory(location)
    assert ours.digest == theirs.digest
    assert isinstance(ours.data, Dataset)
    assert isinstance(theirs.data, Dataset)
    assert (ours.data.train.read(5, 1000) == theirs.data.train.read(5, 1000)).all()
    assert location in one_line(theirs.describe())
    assert "mirrors" not in one_line(theirs.describe())


def test_data_are_fetched_once(data, proxy):
    directory, location = data
    if location.startswith("memory"):
        pytest.skip("no requests to count")

    def count():
        return sum(f"{location[5:]}/train" in request for request in proxy.requests if request.startswith("GET"))

    copy = fetch_directory(location, "data.dir")
    assert count() == 1
    fetch_directory(location, "data.dir")
    assert count() == 1
    shard = next(copy.glob("train*"))
    shard.write_bytes(shard.read_bytes()[::-1])  # the copy is damaged
    fetch_directory(location, "data.dir")
    assert count() == 2
    assert shard.read_bytes() == (directory / shard.name).read_bytes()
    Store(location).write("val_000009.bin", b"1")
    Store(location).delete(["val_000000.bin"])
    fetch_directory(location, "data.dir")
    assert {path.name for path in copy.glob("val*")} == {"val_000009.bin"}


def test_data_that_changed_are_refused(data):
    directory, location = data
    content = bytearray((directory / "train_000000.bin").read_bytes())
    content[-1] ^= 1
    Store(location).write("train_000000.bin", bytes(content))
    with pytest.raises(InputError, match="has SHA-256") as caught:
        open_directory(location)
    assert one_line(caught.value).startswith(f"shard {location}/train_000000.bin has SHA-256")


def test_text_and_its_tokenizer(location, tmp_path, monkeypatch):
    read_marked(monkeypatch)
    directory = write_data(tmp_path / "text", ["one", "two"] * 5, ["three"] * 5)
    Store(location).upload({path.name: path for path in directory.iterdir() if path.is_file()})
    ours, theirs = open_directory(str(directory)), open_directory(location)
    assert ours.digest == theirs.digest
    assert ours.files == theirs.files
    tokenizer = fetch_file(f"{location}/tokenizer.json", "data.tokenizer")
    assert tokenizer.read_bytes() == (directory / "tokenizer.json").read_bytes()
    with pytest.raises(InputError, match=r"data\.tokenizer=.*/nothing\.json does not exist"):
        fetch_file(f"{location}/nothing.json", "data.tokenizer")


def test_nothing_there(location, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="has no data; copy a directory that"):
        open_directory(location)
    Store(location).write("train.bin", b"12")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1))
    with pytest.raises(Failure, match=r"GB to fetch, .* has 0.0 GB free; set XDG_CACHE_HOME to a larger disk"):
        fetch_directory(location, "data.dir")


def test_endpoints_have_copies_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = {mirror_path("s3://b/x", "data"), mirror_path("s3://b/x", "runs"), mirror_path("s3://b/y", "data")}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    assert len(paths | {mirror_path("s3://b/x", "data")}) == 4
    assert mirror_path("s3://b/x/", "data") == mirror_path("s3://b/x", "data")
    assert one_line(mirror_path("s3://b/x", "data") / "a.bin") == "s3://b/x/a.bin"
    assert mirror.directory_of("/plain", "data") == Path("/plain")


def test_plain_directories_need_no_store(tmp_path, monkeypatch):
    """A run on a disk imports no fsspec."""
    monkeypatch.setattr(stores, "Store", None)
    assert open_dataset(write_text(tmp_path, TEXT)).train.n_tokens > 1000
