"""`jaxgpt.load`: a model says in Python what the commands say, and its module is its only copy of the weights."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import nnx

import jaxgpt
from jaxgpt import sample
from jaxgpt.compare import tolerances
from jaxgpt.config import GPT2Config, NanochatConfig
from jaxgpt.data.tokenizer import BPETokenizer, CharTokenizer
from jaxgpt.inference.text_stream import TextStream
from parity_tests.helpers.saved_runs import save_run

REPO = Path(__file__).parents[1]
CHARS = CharTokenizer("".join(sorted(set("The quick brown fox jumps over the lazy dog.\né€"))))
BPE = BPETokenizer([*(bytes([byte]) for byte in range(256)), b"th", b"the", b" the", b"qu"])
GPT2 = GPT2Config(n_layer=1, n_head=2, n_embd=32, seq_len=32, vocab_size=64, dropout=0.2)
NANOCHAT = NanochatConfig(era="2025", depth=2, n_embd=32, head_dim=16, seq_len=32).complete(BPE.vocab_size)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs of GPT-2 with two checkpoints, and of nanochat."""
    place = tmp_path_factory.mktemp("place")
    save_run(place / "runs" / "chars", GPT2, CHARS, steps=(1, 2))
    save_run(place / "runs" / "nano", NANOCHAT, BPE)
    return place


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def model(place):
    return jaxgpt.load(place / "runs" / "chars")


def message(function, *args, **settings) -> str:
    with pytest.raises(jaxgpt.InputError) as caught:
        function(*args, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# text


def test_text_is_that_of_the_command(model, capsys):
    settings = {"max_tokens": 50, "temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 5}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    sample.main(["--run", "runs/chars", "--prompt", "the quick", *flags])
    text = model.generate("the quick", **settings)
    assert f"the quick{text}\n" == capsys.readouterr().out
    sample.main(["--run", "runs/chars", "--prompt", "the", "--max-tokens", "200"])
    assert capsys.readouterr().out == f"the{model.generate('the')}\n"


def test_a_list_of_prompts_gives_a_list(model):
    texts = model.generate(["the", "the", "fox"], max_tokens=40, temperature=1.5)
    assert texts[0] == model.generate("the", max_tokens=40, temperature=1.5)
    assert len(set(texts)) == 3 and all(len(text) == 40 for text in texts)


def test_a_stream_is_the_text_in_pieces(model):
    pieces = list(model.stream("the", max_tokens=60, temperature=1.0))
    assert len(pieces) == 60
    text = "".join(pieces)
    assert text == model.generate("the", max_tokens=60, temperature=1.0)
    stop = text[20:23]
    assert model.generate("the", max_tokens=60, temperature=1.0, stop=stop) == text[: text.index(stop)]
    stopped = model.stream("the", max_tokens=60, temperature=1.0, stop=[stop, "\0"])
    assert "".join(stopped) == text[: text.index(stop)]


@pytest.mark.parametrize(
    ("stops", "pieces"),
    [
        ((), ["a", "b", "a", "b", "", "€", "c", ""]),
        (("abc",), ["", "", "ab", "", "", "ab€", "c", ""]),
        (("b€c",), ["a", "", "ba", "", "", "", "", ""]),
        (("€", "ba"), ["a", "", "", "", "", "", "", ""]),
    ],
)
def test_what_may_begin_a_stop_text_is_held_back(stops, pieces):
    """abab€c, a byte at a time, but for the whole of €'s first two."""
    stream = TextStream(BPETokenizer([*(bytes([i]) for i in range(256)), "€".encode()[:2]]), stops)
    ids = [*b"abab", 256, "€".encode()[2], *b"c"]
    assert [*map(stream.feed, ids), stream.finish()] == pieces
    assert stream.feed(97) == "" and stream.has_ended


# numbers


def test_logits_and_loss_agree_with_transformers(model, tmp_path):
    model.save_pretrained(tmp_path / "out")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    ids = np.random.default_rng(0).integers(0, 64, (3, 33))
    with torch.no_grad():
        scores_BTV = theirs(torch.from_numpy(ids[:, :-1])).logits
    loss = torch.nn.functional.cross_entropy(scores_BTV.flatten(0, 1), torch.from_numpy(ids[:, 1:]).flatten()).item()
    found_BTV = model.logits(ids[:, :-1])
    assert found_BTV.dtype == jnp.float32 and found_BTV.shape == (3, 32, 64)
    np.testing.assert_allclose(found_BTV, scores_BTV.numpy(), atol=2e-4)
    np.testing.assert_allclose(model.logits(ids[0, :5]), scores_BTV[0, :5].numpy(), atol=2e-4)
    assert abs(model.loss(ids) - loss) < tolerances.FP32_LOSS
    assert abs(float(jaxgpt.next_token_loss(model.module, ids)) - loss) < tolerances.FP32_LOSS


def test_loss_of_short_ids_and_of_a_text(model):
    """Padding counts nothing; a text is its ids, behind the token that begins a text."""
    ids = CHARS.encode("the fox")
    log_probabilities_TV = jax.nn.log_softmax(model.logits(ids)[:-1])
    by_hand = -np.mean(np.asarray(log_probabilities_TV)[np.arange(len(ids) - 1), ids[1:]])
    assert model.loss(ids) == pytest.approx(by_hand, abs=1e-5)
    assert model.loss("the fox") == model.loss(ids) == model.loss(jnp.asarray(ids)) == model.loss(np.array(ids)[None])
    nano = jaxgpt.load("runs/nano")
    assert nano.loss("the fox") == nano.loss([BPE.begin_of_text, *BPE.encode("the fox")])


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([1, 64], "ids hold 64, outside [0, 64)"),
        ([-1, 3], "ids hold -1"),
        ([1.0, 2.0], "ids are float64, not integers"),
        ([True, False], "ids are bool"),
        ("", "the prompt is empty"),
        ([], "ids have the shape (0,)"),
        ([[[1]]], "ids have the shape (1, 1, 1)"),
        ([[1, 2], [3]], "rows of different lengths"),
        ([0] * 34, "ids have 34 tokens, outside [2, 33]"),
        ([0], "ids have 1 tokens, outside [2, 33]"),
        ("the Zebra", "'Z' at position 4"),
    ],
    ids=str,
)
def test_ids_are_checked_on_the_host(model, ids, wanted):
    assert wanted in message(model.loss, ids)
    if not isinstance(ids, str) and "tokens" not in wanted:
        assert wanted in message(model.logits, ids)


# the module


@pytest.mark.parametrize("name", ["chars", "nano"])
def test_an_optimizer_on_the_module_changes_what_the_model_says(name, tmp_path):
    model = jaxgpt.load(f"runs/{name}")
    before, first = model.loss("the lazy dog"), model.generate("the", max_tokens=20, temperature=0.0)
    optimizer = nnx.Optimizer(model.module, optax.adamw(3e-2), wrt=nnx.Param)
    assert model.tokenizer is not None
    ids_BT = np.array([model.tokenizer.encode("the lazy dog.\n" * 2)[:20]] * 2)

    @nnx.jit
    def step(module, optimizer, ids_BT):
        loss, gradients = nnx.value_and_grad(jaxgpt.next_token_loss)(module, ids_BT)
        optimizer.update(module, gradients)
        return loss

    losses = [float(step(model.module, optimizer, ids_BT)) for _ in range(60)]
    assert losses[-1] < 0.1 < losses[0]
    assert model.loss(ids_BT) < losses[-1] + 0.05 < before
    assert model.generate("the", max_tokens=20, temperature=0.0) != first
    assert model.generate("the lazy", max_tokens=4, temperature=0.0) == " dog"
    model.save_pretrained(tmp_path / "tuned")
    again = jaxgpt.load(tmp_path / "tuned")
    np.testing.assert_array_equal(again.logits(ids_BT), model.logits(ids_BT))
    assert again.tokenizer is not None and again.tokenizer.digest() == model.tokenizer.digest()
    assert again.generate("the", max_tokens=20) == model.generate("the", max_tokens=20)
    again.save_pretrained(tmp_path / "twice")
    for file in ("model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "twice" / file).read_bytes() == (tmp_path / "tuned" / file).read_bytes(), file


def test_the_module_is_a_plain_one(model):
    tokens_BT = np.zeros((1, 8), np.int32)
    assert "GPT2" in nnx.tabulate(model.module, tokens_BT)
    scores_BTV = nnx.jit(lambda module, tokens_BT: module.logits(module(tokens_BT)))(model.module, tokens_BT)
    np.testing.assert_allclose(scores_BTV[0], model.logits(tokens_BT[0]), atol=1e-5)
    assert model.n_params == model.config.count_params().total == sum(p.size for p in jax.tree.leaves(model.params))
    dropped = jaxgpt.next_token_loss(model.module, tokens_BT, jax.random.key(0))
    assert float(dropped) != float(jaxgpt.next_token_loss(model.module, tokens_BT))


def test_a_module_may_be_replaced_by_one_of_its_structure():
    model = jaxgpt.load("runs/chars")
    graph, state = nnx.split(model.module)
    model.module = nnx.merge(graph, jax.tree.map(lambda leaf: 0 * leaf, state))
    assert model.loss("the fox") == pytest.approx(np.log(64))
    model.module = jaxgpt.load("runs/nano").module
    assert "keep the structure" in message(model.generate, "the")


# opening


def test_a_second_model_and_a_thread_do_not_disturb_the_first(model):
    text = model.generate("the", max_tokens=20)
    found: list[Any] = []

    def use():
        other = jaxgpt.load("runs/chars", step=1)
        found.extend([other.generate("the", max_tokens=20), model.generate("the", max_tokens=20), other.origin])

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found[1] == text != found[0] and found[2] == "runs/chars step 1"
    assert model.generate("the", max_tokens=20) == text


def test_a_float64_run_beside_a_float32_one(model, tmp_path):
    text, logits_TV = model.generate("the", max_tokens=20), model.logits([1, 2, 3])
    try:
        with jax.enable_x64(True):
            save_run(tmp_path / "wide", GPT2, CHARS, steps=(2,), dtype="float64")
        wide = jaxgpt.load(tmp_path / "wide")
        assert wide.logits([1, 2, 3]).dtype == jnp.float64 and jax.config.read("jax_enable_x64")
        np.testing.assert_array_equal(model.logits([1, 2, 3]), logits_TV)
        assert model.generate("the", max_tokens=20) == text
    finally:
        jax.config.update("jax_enable_x64", False)


def test_the_dtype_is_that_of_the_computation(model):
    half = jaxgpt.load("runs/chars", dtype=jnp.bfloat16)
    assert half.logits([1, 2, 3]).dtype == jnp.float32
    assert {leaf.dtype for leaf in half.params.values()} == {jnp.dtype("float32")}
    difference = np.abs(np.asarray(half.logits([1, 2, 3])) - np.asarray(model.logits([1, 2, 3]))).max()
    assert 1e-4 < difference < 0.02
    assert "bfloat16" in repr(half)


@pytest.mark.parametrize(
    ("source", "settings", "wanted"),
    [
        ("nothing", {}, "source=nothing does not exist; give a run directory (here: runs/chars, runs/nano)"),
        ("~no-one/run", {}, "source=~no-one/run: ~no-one has no home directory here"),
        ("runs/chars", {"step": 7}, "step=7 is not in runs/chars/checkpoints; there: 1, 2"),
        ("runs", {}, "config.json does not exist"),
        ("runs", {"step": 1}, "source=runs has no checkpoints"),
        ("runs/chars", {"dtype": "int8"}, "dtype=int8 is not one of bfloat16"),
        ("runs/chars", {"dtype": "float64"}, "dtype=float64 needs jax.config.update"),
        ("runs/chars", {"platform": "tpu"}, "platform=tpu is not available"),
        ("runs/chars", {"data": "nowhere"}, "nowhere does not exist"),
    ],
    ids=lambda value: str(value),
)
def test_what_cannot_be_opened_is_one_line(source, settings, wanted):
    found = message(jaxgpt.load, source, **settings)
    assert wanted in found and not found.startswith("--")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"prompt": "ß"}, "prompt='ß' cannot be read: character 'ß' at position 0"),
        ({"prompt": ["the", 3]}, "prompt=3 is not a text"),
        ({"prompt": "the " * 20}, "80 tokens, more than model.seq_len=32"),
        ({"prompt": []}, "samples=0 is below 1"),
        ({"prompt": "the", "max_tokens": 0}, "max_tokens=0 is below 1"),
        ({"prompt": "the", "temperature": -1.0}, "temperature=-1.0"),
        ({"prompt": "the", "top_k": 65}, "top_k=65 is above the vocabulary of"),
        ({"prompt": "the", "stop": ["a", ""]}, "stop='' is empty"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_generated_is_one_line(model, settings, wanted):
    assert wanted in message(model.generate, **settings)
    if isinstance(settings["prompt"], str):
        assert wanted in message(model.stream, **settings)  # at the call, not at the first piece


def test_saving_never_overwrites(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "already exists and is not empty" in message(model.save_pretrained, tmp_path)
    assert "already exists" in message(model.save_pretrained, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_package_is_light_and_a_library_takes_no_signals():
    script = """
import signal, sys
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
hook = sys.excepthook
import jaxgpt
assert {"load", "InputError", "LanguageModel"} <= set(dir(jaxgpt)) and issubclass(jaxgpt.InputError, Exception)
assert not {"jax", "flax", "numpy", "torch"} & set(sys.modules)
jaxgpt.load
assert "jax" in sys.modules and not {"torch", "transformers", "matplotlib"} & set(sys.modules)
assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
assert sys.excepthook is hook and not hasattr(jaxgpt, "nothing")
"""
    subprocess.run([sys.executable, "-c", script], cwd=REPO, check=True)
