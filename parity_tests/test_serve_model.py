"""A model behind the API: its numbers are those of the uncached model, its text that of the engine."""

# ruff: noqa: E402 - the libraries are an extra
import dataclasses
import functools

import jax
import numpy as np
import pytest

for library in ("starlette", "uvicorn", "pydantic", "prometheus_client", "openai"):
    pytest.importorskip(library, reason=f"no {library}; the extras serve and dev have it")

import openai

from jaxgpt.config import GPT2Config, MeshConfig
from jaxgpt.inference.trained import Trained
from jaxgpt.models import Model, init_params
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.serve.batching import Batching
from parity_tests.helpers.scripted_server import TOKENIZER, served_at

CONFIG = GPT2Config(seq_len=64, n_layer=1, n_head=2, n_embd=32, vocab_size=272)
TOLERANCE = 1e-4
"""In nats, over a whole text: float32 sums in another order."""


@pytest.fixture(scope="module")
def trained():
    params = {path: leaf * 3 for path, leaf in jax.jit(lambda: init_params(CONFIG, seed=1))().items()}
    mesh = make_mesh(dataclasses.replace(MeshConfig(data=1), platform="cpu"))
    return Trained(None, CONFIG, params, TOKENIZER, "float32", mesh, "fresh")


@pytest.fixture(scope="module")
def client(trained):
    backend = Batching(trained, "fresh", n_slots=2, n_queue=8)
    with (
        served_at(backend) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0) as client,
    ):
        yield client


def complete(client, **options):
    settings = {"prompt": "The answer", "max_tokens": 20, "seed": 5} | options
    return client.completions.create(model="fresh", **settings).choices[0]


def chat(client, **options):
    messages = [{"role": "user", "content": "hi"}]
    return client.chat.completions.create(model="fresh", messages=messages, max_tokens=12, **options)


@functools.cache
def forward():
    @jax.jit
    def logits(params, ids_BT):
        module = Model(CONFIG, dtype="float32").bind(params)
        return module.logits(module(ids_BT))[0]

    return logits


def logits_of(trained, ids):
    """[T, V], by one uncached forward."""
    padded_1T = np.zeros((1, CONFIG.seq_len), np.int32)
    padded_1T[0, : len(ids)] = ids
    return np.asarray(forward()(trained.params, padded_1T))[: len(ids)]


def likelihoods(trained, ids):
    """Log-probabilities of ids[1:]."""
    return np.asarray(jax.nn.log_softmax(logits_of(trained, ids)))[np.arange(len(ids) - 1), ids[1:]]


def test_logprobs_are_those_of_the_uncached_model(client, trained):
    for temperature in (1.0, 0.3):
        answer = chat(client, seed=3, logprobs=True, top_logprobs=20, temperature=temperature).choices[0]
        content = answer.logprobs.content
        ids = [TOKENIZER.specials.get(entry.token, entry.bytes[0]) for entry in content]
        assert len(ids) == 12 or answer.finish_reason == "stop"
        prompt = [256, 257, *b"hi", 258, 259]
        wanted = likelihoods(trained, prompt + ids)[len(prompt) - 1 :]
        assert abs(sum(entry.logprob for entry in content) - wanted.sum()) < TOLERANCE
        logprobs_TV = np.asarray(jax.nn.log_softmax(logits_of(trained, prompt + ids)))[len(prompt) - 1 : -1]
        likeliest_TK = np.sort(logprobs_TV[:, : TOKENIZER.vocab_size])[:, :-21:-1]
        found_TK = [[top.logprob for top in entry.top_logprobs] for entry in content]
        np.testing.assert_allclose(found_TK, likeliest_TK, atol=TOLERANCE)


def test_an_echoed_prompt_is_scored_by_the_uncached_model(client, trained):
    ids = [256, *b"nonsense, a bit"]
    scored = complete(client, prompt=ids, echo=True, logprobs=5, max_tokens=0).logprobs
    assert scored.token_logprobs[0] is None
    np.testing.assert_allclose(scored.token_logprobs[1:], likelihoods(trained, ids), atol=TOLERANCE)
    assert abs(sum(scored.token_logprobs[1:]) - likelihoods(trained, ids).sum()) < TOLERANCE


def test_text_is_that_of_the_engine_and_of_its_seed(client, trained):
    prompt = [256, *b"The answer"]
    options = {"max_tokens": 20, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 5}
    rows = trained.engine().generate(prompt, **options, n_samples=2, stop_ids=TOKENIZER.stop_ids())
    columns = [[token for token in column if token not in (None, 256)] for column in zip(*rows, strict=True)]
    answer = client.completions.create(
        model="fresh", prompt="The answer", max_tokens=20, temperature=0.8, top_p=0.9, seed=5, n=2,
        extra_body={"top_k": 50},
    )  # fmt: skip
    assert [choice.text for choice in answer.choices] == [TOKENIZER.decode(column) for column in columns]
    assert answer.usage.completion_tokens == sum(map(len, columns))
    assert complete(client).text == complete(client).text != complete(client, seed=6).text


def test_streamed_text_is_the_whole_text(client):
    whole = chat(client, seed=1).choices[0].message.content
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chat(client, seed=1, stream=True))
    assert streamed == whole != ""


def test_biases_and_penalties(client, trained):
    biases, presence, frequency = {65: 5.0, 66: 4.5, 67: 4.0}, 1.5, 0.5
    ids, counts_V = [256, *b"The answer"], np.zeros(CONFIG.vocab_size)
    for _ in range(12):
        logits_V = logits_of(trained, ids)[-1] - presence * (counts_V > 0) - frequency * counts_V
        for token_id, bias in biases.items():
            logits_V[token_id] += bias
        ids.append(int(logits_V[: TOKENIZER.vocab_size].argmax()))
        counts_V[ids[-1]] += 1
    text = complete(
        client, logit_bias={str(i): bias for i, bias in biases.items()}, presence_penalty=presence,
        frequency_penalty=frequency, temperature=0, max_tokens=12,
    ).text  # fmt: skip
    assert text == TOKENIZER.decode(ids[-12:]) and len(set(ids[-12:])) > 1
    assert complete(client, logit_bias={"65": 100}, max_tokens=5).text == "AAAAA"


def test_the_context_is_the_models(client):
    assert complete(client, prompt="x" * 10, max_tokens=53).finish_reason in ("length", "stop")
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, prompt="x" * 10, max_tokens=54)
    assert caught.value.code == "context_length_exceeded"
