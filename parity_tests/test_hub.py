"""Models of the Hugging Face hub: fetched whole or refused in one line, verified, and read again without network."""

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from jaxgpt.config import GPT2Config
from jaxgpt.data import hub
from jaxgpt.errors import InputError
from jaxgpt.formats import hugging_face
from jaxgpt.formats.hugging_face import fetch_hf, fetch_model, save_hf
from jaxgpt.formats.pretrained import load_pretrained
from jaxgpt.models import param_shapes
from parity_tests.helpers.hub_server import COMMIT, TOKEN, HubServer, use_hub

TINY = GPT2Config(vocab_size=97, seq_len=32, n_layer=1, n_head=2, n_embd=32, bias=True, gelu="tanh")
PARAMS = {
    path: np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32)
    for path, leaf in param_shapes(TINY).items()
}
NAME = "owner/small"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("model")
    save_hf(directory, TINY, PARAMS)
    found = {path.name: path.read_bytes() for path in directory.iterdir()}
    return found | {"merges.txt": b"#version\n", "pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit"}


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    """A hub with one model, an empty cache, no token and no waiting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "WAITS_S", (0.001, 0.001))
    monkeypatch.setattr("jaxgpt.data.download.time.sleep", lambda s: None)
    with HubServer() as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        server.repositories[NAME] = dict(files)
        yield server


def refused(source: str = f"hf:{NAME}") -> str:
    with pytest.raises(InputError) as error:
        load_pretrained(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def blob(file: str) -> Path:
    return next(Path("cache/hub/models--owner--small/snapshots").glob(f"*/{file}")).resolve()


def parts() -> list[Path]:
    return list(Path("cache").rglob("*.part"))


# Fetched


def test_a_model_is_fetched_once_and_nothing_that_could_run(server):
    config, params = load_pretrained(f"hf:{NAME}")
    assert config == TINY and all(np.array_equal(params[path], PARAMS[path]) for path in PARAMS)
    assert server.asked("GET") == ["config.json", "merges.txt", "model.safetensors", blob("model.safetensors").name]
    directory = fetch_model(f"hf:{NAME}")
    assert sorted(os.listdir(directory)) == ["config.json", "merges.txt", "model.safetensors"]
    assert directory.name == COMMIT and parts() == []
    server.log.clear()
    assert load_pretrained(f"hf:{NAME}@{COMMIT}")[0] == TINY and server.log == []  # a commit cannot change
    assert load_pretrained(f"hf:{NAME}")[0] == TINY
    assert [(method, path[-11:]) for method, path, _ in server.log] == [("HEAD", "config.json")]


def test_the_cache_is_huggingface_hubs(server, files, monkeypatch):
    load_pretrained(f"hf:{NAME}")
    offline(monkeypatch)
    for file in ("config.json", "model.safetensors"):
        theirs = huggingface_hub.hf_hub_download(NAME, file)
        assert Path(theirs).read_bytes() == files[file] and Path(theirs).parent.name == COMMIT
    (found,) = huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE).repos
    assert found.repo_id == NAME and {revision.commit_hash for revision in found.revisions} == {COMMIT}


def test_what_huggingface_hub_cached_is_used(server, monkeypatch):
    for file in ("config.json", "model.safetensors", "merges.txt"):
        huggingface_hub.hf_hub_download(NAME, file)
    server.log.clear()
    assert load_pretrained(f"hf:{NAME}")[0] == TINY and server.asked("GET") == []


def test_a_model_in_several_files(server, files):
    import json

    from safetensors.numpy import load, save

    tensors = sorted(load(files["model.safetensors"]).items())
    half = len(tensors) // 2
    shards = {"model-1-of-2.safetensors": dict(tensors[:half]), "model-2-of-2.safetensors": dict(tensors[half:])}
    repository = server.repositories[NAME]
    del repository["model.safetensors"]
    repository |= {file: save(part) for file, part in shards.items()}
    weight_map = {name: file for file, part in shards.items() for name in part}
    repository["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    params = load_pretrained(f"hf:{NAME}")[1]
    assert all(np.array_equal(params[path], PARAMS[path]) for path in PARAMS)
    weight_map["x"] = "pytorch_model.bin"
    repository["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    server.branches["main"] = "d" * 40
    assert "names pytorch_model.bin, which is not a safetensors file" in refused()


def test_openais_models_are_pinned_with_their_digest(server, files, monkeypatch):
    server.repositories["openai-community/gpt2"] = dict(files)
    sha256 = hashlib.sha256(files["model.safetensors"]).hexdigest()
    monkeypatch.setitem(hugging_face.PRETRAINED, "gpt2", (COMMIT, sha256))
    assert load_pretrained("gpt2")[0] == TINY
    assert {path.split("/")[4] for _, path, _ in server.log if "resolve" in path} == {COMMIT}
    server.log.clear()
    assert fetch_hf("gpt2").name == COMMIT and server.log == []
    monkeypatch.setitem(hugging_face.PRETRAINED, "gpt2", (COMMIT, "0" * 64))
    with pytest.raises(InputError, match=f"has digest {sha256[:16]}..., not 0000000000000000... as the original"):
        fetch_hf("gpt2")


# Interrupted and damaged


@pytest.mark.parametrize("plan", [["serve", "serve", "cut"], ["serve", "serve", 503, "cut", 429]])
def test_a_cut_download_is_resumed(server, files, plan):
    """Faults: F22."""
    server.plan = plan
    load_pretrained(f"hf:{NAME}")
    half = len(files["model.safetensors"]) // 2
    assert [asked for method, path, asked in server.log if "/cdn/" in path][-1] == f"bytes={half}-"


def test_another_process_resumes_what_one_left(server, files):
    """Faults: F22."""
    server.plan = ["serve", "serve", "cut", 503, 503]
    assert "3 tries" in (message := refused()) and "bytes are kept in" in message
    (part,) = parts()
    server.log.clear()
    load_pretrained(f"hf:{NAME}")
    half = len(files["model.safetensors"]) // 2
    assert [asked for _, path, asked in server.log if "/cdn/" in path] == [f"bytes={half}-"]
    assert not part.exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_cached_file_is_fetched_again_once(server, files, file, capsys, monkeypatch):
    """Faults: F22, C42."""
    load_pretrained(f"hf:{NAME}")
    content = files[file][:-3] + b"?" + files[file][-2:]
    blob(file).write_bytes(content)
    server.log.clear()
    load_pretrained(f"hf:{NAME}@{COMMIT}")
    assert blob(file).read_bytes() == files[file] and server.asked("HEAD") == [file]
    assert "fetching it again" in (said := capsys.readouterr().err) and file in said
    blob(file).write_bytes(content)
    server.plan = ["damage", "damage"]
    assert "has " in (message := refused(f"hf:{NAME}@{COMMIT}")) and "try again" in message
    assert parts() == [] and not list(Path("cache").rglob(f"snapshots/*/{file}"))  # nothing damaged is left


def test_a_damaged_file_without_network_is_refused(server, monkeypatch):
    """Faults: C42."""
    load_pretrained(f"hf:{NAME}")
    blob("model.safetensors").write_bytes(b"x")
    offline(monkeypatch)
    message = refused(f"hf:{NAME}@{COMMIT}")
    assert "has digest 2d711642b726b044..., not" in message and "cannot be fetched again" in message


def test_a_download_that_arrives_damaged_is_fetched_again_once(server, capsys):
    """Faults: F22, C42."""
    server.plan = ["serve", "serve", "damage"]
    assert load_pretrained(f"hf:{NAME}")[0] == TINY and "fetching it again" in capsys.readouterr().err
    server.plan = ["damage", "serve"]
    server.branches["main"] = "d" * 40
    server.repositories[NAME]["config.json"] += b"\n"
    assert load_pretrained(f"hf:{NAME}")[0] == TINY


def test_processes_that_want_the_same_file_fetch_it_once(server):
    """Threads here; the lock is one of files."""
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(load_pretrained, f"hf:{NAME}@{COMMIT}") for _ in range(4)]
        assert all(done.result()[0] == TINY for done in found)
    assert [path for method, path, _ in server.log if "/cdn/" in path] == [f"/cdn/{blob('model.safetensors').name}"]
    assert parts() == []


# Without network


def test_offline_the_cache_is_read(server, monkeypatch, capsys):
    message = None
    load_pretrained(f"hf:{NAME}")
    offline(monkeypatch)
    server.log.clear()
    assert load_pretrained(f"hf:{NAME}")[0] == TINY and server.log == [] and "note" not in capsys.readouterr().err
    message = refused("hf:owner/other")
    assert "HF_HUB_OFFLINE is set" in message and "hf download owner/other --revision main" in message


def test_without_network_the_cached_copy_serves(server, monkeypatch, capsys):
    """Faults: F22."""
    load_pretrained(f"hf:{NAME}")
    use_hub(monkeypatch, "http://127.0.0.1:9", Path("cache").absolute())
    assert load_pretrained(f"hf:{NAME}")[0] == TINY
    assert f"using the cached copy {COMMIT}" in capsys.readouterr().err
    message = refused("hf:owner/other")
    assert "cannot be reached" in message and "hf download owner/other" in message
    monkeypatch.setattr(hugging_face, "PRETRAINED", {"gpt2": (COMMIT, "0" * 64)})
    assert f"hf download openai-community/gpt2 --revision {COMMIT}" in refused("gpt2")


def test_the_variables_of_huggingface_hub_count(server, tmp_path):
    """In a process of its own: they are read when the package is imported."""
    server.private.add(NAME)
    script = f"""
from jaxgpt.data import hub
from jaxgpt.data.hub_repository import Repository
model = hub.pin(Repository({NAME!r}), "config.json")
print(hub.fetch(model, "config.json", limit_bytes=10_000))
"""
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}

    def run(**more: str) -> str:
        given = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment | more
        return subprocess.run([sys.executable, "-c", script], env=given, capture_output=True, text=True).stdout

    place = tmp_path / "home/hub/models--owner--small/snapshots" / COMMIT / "config.json"
    assert run() == f"{place}\n" and place.read_bytes() == server.repositories[NAME]["config.json"]
    server.log.clear()
    assert run(HF_HUB_OFFLINE="1", HF_TOKEN="") == f"{place}\n" and server.log == []


# Refused


def test_a_model_that_does_not_exist_or_is_closed(server, monkeypatch, tmp_path):
    assert f"hf:owner/smal does not exist at {server.url}, or is private" in refused("hf:owner/smal")
    load_pretrained(f"hf:{NAME}")
    assert "did you mean owner/small?" in refused("hf:owner/smal")
    assert "did you mean openai-community/gpt2-medium?" in refused("hf:openai-community/gpt2-mediun")
    assert f"hf:{NAME}@v2 does not exist" in refused(f"hf:{NAME}@v2")
    server.repositories["owner/closed"] = dict(server.repositories[NAME])
    server.private.add("owner/closed")
    assert "set HF_TOKEN, or run `hf auth login`" in refused("hf:owner/closed")
    server.gated.add("owner/closed")
    server.private.clear()
    message = refused("hf:owner/closed")
    assert f"gated; accept its licence at {server.url}/owner/closed, then set HF_TOKEN" in message
    server.gated.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "refuses your token (401); set HF_TOKEN" in refused("hf:owner/closed")
    del server.repositories[NAME]["model.safetensors"]
    server.branches["main"] = "e" * 40
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "has no model.safetensors" in refused()


def test_the_token_goes_to_the_hub_only(server, monkeypatch):
    server.private.add(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load_pretrained(f"hf:{NAME}")
    given = {(host.split(":")[0], token) for host, token in server.tokens}
    assert given == {("127.0.0.1", f"Bearer {TOKEN}"), ("localhost", None)}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:gpt2", "hf=gpt2 is not a name of the hub; write OWNER/NAME"),
        ("hf:a/b/c", "is not a name"),
        ("hf:../../etc", "is not a name"),
        ("hf:a/b@../x", "hf:a/b@='../x' is not a revision; write a branch"),
        ("owner/small", "owner/small does not exist; give one of gpt2"),
    ],
)
def test_names(source, message, server):
    assert message in refused(source) and server.log == []


def test_files_that_are_too_large(server, monkeypatch):
    """Faults: F22, C42."""
    server.lied = {"config.json": 1 << 30}
    assert f"has {1 << 30} bytes, of which at most {16 << 20} are expected" in refused()
    server.lied = {"model.safetensors": 9 << 30}
    assert f"of which at most {8 << 30} are expected" in refused()
    assert blob("config.json").stat().st_size < 1000 and server.asked("GET") == ["config.json", "merges.txt"]
    server.lied = {}
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    assert "has 0.00 GB free; free space, or set HF_HOME to another disk" in refused()


def test_variables_that_cannot_be_used(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_\u00e9")
    assert "has a character that no token has; set HF_TOKEN" in refused()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/proc/none")
    assert "/proc/none/models--owner--small cannot be written" in refused()
    monkeypatch.setenv("HF_ENDPOINT", "http://[")
    assert "huggingface_hub cannot read its variables: Invalid IPv6 URL; check HF_ENDPOINT" in refused()
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    assert refused() == "HF_ENDPOINT=huggingface.co is not the address of a server; write https:// before it"


@pytest.mark.parametrize("behaviour", ["hang", "drip"])
def test_a_hub_that_is_too_slow_ends_in_one_line(server, monkeypatch, behaviour):
    """Faults: F22."""
    monkeypatch.setattr(hub, "ANSWER_S", 0.1)
    server.plan_head = [behaviour] * 3
    began_s = time.monotonic()
    assert "cannot be reached (no complete answer in 0 s); try again" in refused()
    monkeypatch.setattr(hub, "ANSWER_S", 10)
    monkeypatch.setattr("jaxgpt.data.download.WINDOW_S", 0.05)
    monkeypatch.setattr("jaxgpt.data.download.TIMEOUT_S", 0.1)
    server.plan = ["serve", "serve", *[behaviour] * 3]
    assert "3 tries" in refused() and time.monotonic() - began_s < 20


def test_a_page_that_is_no_hub_is_refused(server):
    """A login page of a network, say. Faults: F22."""
    server.plan_head = [200]
    assert "was not answered as the hub does; check HF_ENDPOINT" in refused()
    server.plan_head = [500, 503, 500]
    assert "returned 500; try again" in refused()


def test_a_tokenizer_that_is_not_read_is_refused(server):
    del server.repositories[NAME]["merges.txt"]
    server.repositories[NAME]["spiece.model"] = b"x"
    assert "has its tokenizer in spiece.model, which is not read here" in refused()
