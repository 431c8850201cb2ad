"""convert --push: what cannot work is refused before the model is written, and what arrives is what was written."""

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from jaxgpt.config import Config, GPT2Config
from jaxgpt.convert import __main__ as convert
from jaxgpt.convert.runs import Saved
from jaxgpt.data import hub
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.errors import InputError
from jaxgpt.formats import push
from jaxgpt.formats.pretrained import load_pretrained
from jaxgpt.models import param_shapes
from parity_tests.helpers.hub_server import COMMIT, TOKEN, HubServer, use_hub

CHARS = CharTokenizer("abcdefgh\n")
TINY = GPT2Config(vocab_size=CHARS.vocab_size, seq_len=16, n_layer=1, n_head=2, n_embd=16, bias=True, gelu="tanh")
PARAMS = {
    path: np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32)
    for path, leaf in param_shapes(TINY).items()
}
NAME = "me/small"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to httpx2


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub without models, a login, and a run of 7 steps to convert."""
    leaves = {f"params.{path}": leaf for path, leaf in PARAMS.items()}
    about = {"tokenizer": CHARS.to_json()}
    saved = Saved("jax", 7, Config(model=TINY), about, 1.25, leaves)
    monkeypatch.setattr(convert, "read_foreign", lambda run: saved)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "WAITS_S", (0.001, 0.001))
    with HubServer() as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache", TOKEN)
        yield server


def run(*more: str, to: str = "hf", name: str = NAME) -> None:
    assert convert.main(["--from", "run", "--to", to, "out", "--push", name, *more]) == 0


def refused(*more: str, to: str = "hf", name: str = NAME) -> str:
    with pytest.raises(InputError) as error:
        run(*more, to=to, name=name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_arrives_is_what_was_written(server, capsys):
    run("--private")
    arrived = server.repositories[NAME]
    assert arrived == {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= arrived.keys()
    assert b"| validation loss | 1.2500 nats per token |" in arrived["README.md"]
    assert server.asked("PUT") and server.commits == [{"revision": "main", "summary": "step 7 of a run of jaxgpt"}]
    assert server.private == {NAME}
    out, err = capsys.readouterr()
    assert out.splitlines()[-2:] == [f"uploading 0.0 MB to hf:{NAME}", f"uploaded: {server.url}/{NAME}"] and err == ""
    config, params = load_pretrained(f"hf:{NAME}")
    assert config == TINY and all(np.array_equal(params[path], PARAMS[path]) for path in PARAMS)


def test_a_branch(server, capsys):
    server.repositories[NAME] = {}
    run("--revision", "step-7")
    assert server.commits[0]["revision"] == "step-7" and server.branches["step-7"] == COMMIT
    assert capsys.readouterr().out.endswith(f"uploaded: {server.url}/{NAME}/tree/step-7\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"name": "small"}, "--push=small is not a name of the hub; write OWNER/NAME"),
        ({"name": "them/small"}, "--push=them/small: your token is for me, us, not for them"),
        ({"to": "gguf"}, "--push=me/small needs --to hf, not --to gguf"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(server, args, message):
    assert message in refused(**args) and not Path("out").exists() and server.commits == []


def test_a_revision_is_a_name(server):
    assert "--revision='../x' is not a revision" in refused("--revision", "../x")


def test_private_needs_push(server):
    with pytest.raises(InputError, match="--private and --revision belong to --push"):
        convert.main(["--from", "run", "--to", "hf", "out", "--private"])


def test_a_login_is_needed_first(server, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "needs a login; set HF_TOKEN to a token that may write, or run `hf auth login`" in refused()
    assert server.log == []
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "refuses your token (401); set HF_TOKEN" in refused()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "needs the network, and HF_HUB_OFFLINE is set; unset it" in refused()
    assert not Path("out").exists()


def test_private_weights_do_not_go_to_a_public_repository(server):
    server.repositories[NAME] = {}
    assert "exists and is public, which --private does not change; choose another name" in refused("--private")
    assert not Path("out").exists() and server.commits == []


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (["serve", "serve", 403], "refuses your token (403); set HF_TOKEN"),
        (["serve", "serve", 413], "returned 413 (no reason)"),
        (["serve", "serve", "hang"], "cannot be reached (no complete answer in 1 s)"),
    ],
)
def test_an_upload_that_fails_leaves_the_directory(server, monkeypatch, plan, message):
    """Faults: F22."""
    monkeypatch.setattr(push, "UPLOAD_S", 0.5)
    server.plan = plan
    found = refused()
    assert message in found and Path("out", "model.safetensors").is_file() and server.commits == []


def test_weights_that_are_refused(server):
    server.plan_put = [403]
    assert "refuses your token (403); set HF_TOKEN" in refused() and server.commits == []


def test_a_hub_that_hangs_ends_before_anything_is_written(server, monkeypatch):
    """Faults: F22."""
    monkeypatch.setattr(push, "ANSWER_S", 0.1)
    server.plan = ["hang"]
    assert "cannot be reached (no complete answer in 0 s); try again, or run --push again later" in refused()
    assert not Path("out").exists()
