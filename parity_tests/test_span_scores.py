"""Spans scored in padded batches agree with one by one, and with GPT-2 written out in NumPy; so do CORE's answers."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

from jaxgpt.chat.core import evaluate_core
from jaxgpt.chat.core_prompts import ask
from jaxgpt.chat.core_tasks import choose_tasks, read_items
from jaxgpt.chat.span import Span, SpanScore, score_logits
from jaxgpt.chat.span_scores import SpanScorer
from jaxgpt.config import GPT2Config, MeshConfig, NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.formats.hugging_face import save_hf
from jaxgpt.inference.trained import Trained, open_trained
from jaxgpt.models import init_params
from jaxgpt.parallel.mesh import make_mesh
from parity_tests.helpers.chat_data import BYTES, CHAT_DATA

BUNDLE = CHAT_DATA / "eval_bundle"
MODEL = GPT2Config(seq_len=96, n_layer=2, n_head=2, n_embd=32, vocab_size=272)


class PlainGPT2:
    """A `Scorer` that reads model.safetensors itself and computes one row at a time, in float64."""

    max_tokens = MODEL.seq_len

    def __init__(self, directory):
        weights = load_file(directory / "model.safetensors")
        self.w = {name.removeprefix("transformer."): leaf.astype(np.float64) for name, leaf in weights.items()}

    def __call__(self, spans, on_progress=None):
        return [self.score(span) for span in spans]

    def score(self, span):
        w, ids, n = self.w, span.ids, len(span.ids)
        x_TD = w["wte.weight"][ids] + w["wpe.weight"][:n]
        for i in range(MODEL.n_layer):
            block = f"h.{i}."
            q, k, v = np.split(self.linear(self.norm(x_TD, f"{block}ln_1"), f"{block}attn.c_attn"), 3, axis=1)
            heads = []
            for h in range(MODEL.n_head):
                part = slice(h * MODEL.head_dim, (h + 1) * MODEL.head_dim)
                scores = q[:, part] @ k[:, part].T / np.sqrt(MODEL.head_dim)
                scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
                probs = np.exp(scores - scores.max(axis=1, keepdims=True))
                heads.append(probs / probs.sum(axis=1, keepdims=True) @ v[:, part])
            x_TD = x_TD + self.linear(np.concatenate(heads, axis=1), f"{block}attn.c_proj")
            h_TF = self.linear(self.norm(x_TD, f"{block}ln_2"), f"{block}mlp.c_fc")
            h_TF = 0.5 * h_TF * (1 + np.tanh(np.sqrt(2 / np.pi) * (h_TF + 0.044715 * h_TF * h_TF * h_TF)))
            x_TD = x_TD + self.linear(h_TF, f"{block}mlp.c_proj")
        logits_TV = np.zeros((n, 1))
        if len(span):
            at = slice(span.start - 1, span.end - 1)
            logits_TV = np.zeros((n, len(w["wte.weight"])), np.float32)
            logits_TV[at] = self.norm(x_TD[at], "ln_f") @ w["wte.weight"].T
        return score_logits(logits_TV, span)

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def norm(self, x, name):
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Random GPT-2 weights as a Hugging Face directory; larger than fresh ones, so that answers differ clearly."""
    directory = tmp_path_factory.mktemp("hf")
    params = {path: 3 * np.asarray(leaf) for path, leaf in init_params(MODEL, seed=3).items() if leaf.ndim == 2}
    params |= {path: np.asarray(leaf) for path, leaf in init_params(MODEL, seed=3).items() if leaf.ndim == 1}
    save_hf(directory, MODEL, params)
    return dataclasses.replace(open_trained(str(directory)), tokenizer=BYTES), PlainGPT2(directory)


def random_spans(n_spans, vocab_size, max_tokens):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, max_tokens + 1, n_spans)
    starts = [int(rng.integers(1, n)) for n in lengths]
    ends = [min(start + int(rng.integers(0, 30)), n) for start, n in zip(starts, lengths, strict=True)]
    rows = [rng.integers(0, vocab_size, n).astype(np.int32) for n in lengths]
    return [Span(*span) for span in zip(rows, starts, ends, strict=True)]


@pytest.mark.parametrize("max_per_task", [12, pytest.param(0, marks=pytest.mark.slow)], ids=["some", "all"])
def test_core_of_imported_weights_is_that_of_a_plain_gpt2(imported, max_per_task):
    """All tasks that are here, cropped to a short context: batched, one by one, and in NumPy. All: 52,400 items."""
    if not BUNDLE.is_dir():
        pytest.skip(f"no {BUNDLE}")
    tasks, (trained, plain_model) = choose_tasks(BUNDLE, ["present"]), imported
    scorer = SpanScorer(trained)
    batched, plain = (
        evaluate_core(tasks, BUNDLE, model, BYTES, max_per_task=max_per_task) for model in (scorer, plain_model)
    )
    for ours, theirs in zip(batched, plain, strict=True):
        assert (ours.answers, ours.n_cropped) == (theirs.answers, theirs.n_cropped), ours.name
    assert any(result.n_cropped for result in batched) and {"0", "1"} <= set("".join(r.answers for r in batched))
    assert len(scorer.shapes) < 12
    items = read_items(BUNDLE, tasks[2], 12)
    questions = [ask(tasks[2], item, items.shots_of(i), BYTES, MODEL.seq_len) for i, item in enumerate(items.items)]
    spans = [span for question in questions for span in question.spans]
    check_close(SpanScorer(trained, batch_tokens=1)(spans), scorer(spans))


def check_close(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.n_tokens, ours.is_greedy) == (theirs.n_tokens, theirs.is_greedy)
        assert ours.nats == pytest.approx(theirs.nats, rel=1e-4, abs=1e-4)


def test_random_spans_and_greedy_ones(imported):
    trained, plain = imported
    scorer, told = SpanScorer(trained), []
    spans = [*random_spans(40, MODEL.vocab_size, MODEL.seq_len), Span(np.arange(9), 5, 5)]
    found = scorer(spans, told.append)
    check_close(found, plain(spans))
    assert told == sorted(told) and told[-1] == len(spans)
    assert scorer([]) == []
    row = np.array([5, 6, 7], np.int32)
    for _ in range(4):  # what is most likely, token after token
        (logits_V,) = scorer.next_logits([row], [range(MODEL.vocab_size)])
        row = np.append(row, np.int32(np.argmax(logits_V)))
    changed = np.append(row[:-1], (row[-1] + 1) % MODEL.vocab_size).astype(np.int32)
    scores = scorer([Span(row, 3, 7), Span(changed, 3, 7), Span(changed, 3, 6)])
    assert [score.is_greedy for score in scores] == [True, False, True]


def test_rows_beyond_nanochats_context_are_not_cropped():
    """Its positions are rotations: the same tokens score alike in a model of a longer context."""
    config = NanochatConfig(
        era="2025", depth=2, n_embd=32, head_dim=16, n_kv_head=2, vocab_size=272, seq_len=32
    ).complete(272)
    mesh, params = make_mesh(MeshConfig(data=1)), init_params(config, seed=0)
    short = SpanScorer(Trained(None, config, params, BYTES, "float32", mesh, "short"))
    longer = dataclasses.replace(config, seq_len=64)
    spans = random_spans(6, 265, 64)
    check_close(short(spans), SpanScorer(Trained(None, longer, params, BYTES, "float32", mesh, "long"))(spans))
    assert short.max_tokens == 320


def test_several_devices_score_as_one(imported):
    spans = random_spans(10, MODEL.vocab_size, 40)
    trained, plain = imported
    mesh = make_mesh(MeshConfig(data=8))
    params = {path: jax.device_put(np.asarray(leaf), NamedSharding(mesh, P())) for path, leaf in trained.params.items()}
    eight = SpanScorer(dataclasses.replace(trained, mesh=mesh, params=params), batch_tokens=64)
    check_close(eight(spans), plain(spans))


def test_broken_weights_are_said(imported):
    trained, _ = imported
    broken = dataclasses.replace(trained, params=trained.params | {"ln_f.bias": trained.params["ln_f.bias"] * np.nan})
    with pytest.raises(InputError, match="logits are not finite"):
        SpanScorer(broken)([Span(np.arange(9), 3, 9)])
    assert SpanScore(0.0, 0, True).mean_nats != SpanScore(0.0, 0, True).mean_nats
