"""Cached generation with the modded family: documents, windows, paired heads, key offset, bigrams and smear."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.row_cache import decode_step, make_cache, prefill
from jaxgpt.models import Model
from parity_tests.helpers.modded_cases import BOS, params_of, record, track3
from torch_ref.models import Model as TorchModel
from torch_ref.models.weights import to_torch

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (24, 5)
N_STEPS = 20


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def case(name):
    """A config whose rows are short, and two rows of five and of two documents."""
    config = track3() if name == "track3" else record(name)
    config = dataclasses.replace(config, seq_len=64)
    tokens = np.random.default_rng(3).integers(0, config.vocab_size - 1, size=(2, 64)).astype(np.int32)
    tokens[0, [0, 7, 8, 30, 41]] = tokens[1, [2, 20]] = BOS
    return config, params_of(name), tokens


def whole_forward(config, params, tokens) -> np.ndarray:
    """Logits without a cache; the mirror's, which need no compiling."""
    tensors = {k: torch.nn.Parameter(p, requires_grad=False) for k, p in to_torch(params).items()}
    module = TorchModel(config, dtype=torch.float64).bind(tensors)
    return module.logits(module(torch.from_numpy(tokens))).numpy()


@pytest.mark.parametrize("name", ["62", "46", "track3"])
def test_decoding_equals_the_forward_pass(name):
    """Rows of 24 and of 5 tokens, padded with others, then 20 more of each at once."""
    config, params, tokens = case(name)
    model, params = Model(config, dtype=jnp.float64), {k: jnp.asarray(p) for k, p in params.items()}
    full_BTV = whole_forward(config, params_of(name), tokens)
    rows, offset_B, filled = np.arange(2), np.array(LENGTHS, np.int32), []
    for row, n in zip(tokens, offset_B, strict=True):
        padded_1T = np.full((1, 32), BOS, np.int32)
        padded_1T[0, :n] = row[:n]
        filled.append(prefill(model, params, make_cache(model, params, n_positions=64), padded_1T, n, 0))
    logits_BV, cache = jax.tree.map(lambda *parts: jnp.concatenate(parts), *filled)
    for _ in range(N_STEPS):
        np.testing.assert_allclose(logits_BV, full_BTV[rows, offset_B - 1], rtol=1e-9, atol=1e-10)
        logits_BV, cache = decode_step(model, params, cache, tokens[rows, offset_B], offset_B)
        offset_B = offset_B + 1


@pytest.mark.parametrize("name", ["62", "46", "track3"])
def test_decoding_in_torch(name):
    config, params, tokens = case(name)
    tensors = {k: torch.nn.Parameter(p, requires_grad=False) for k, p in to_torch(params).items()}
    module, tokens_BT = TorchModel(config, dtype=torch.float64).bind(tensors), torch.from_numpy(tokens)
    with torch.no_grad():
        full_BTD, cache, rows = module(tokens_BT), module.init_cache(2, 64), torch.arange(2)
        first_BTD, cache = module.decode(tokens_BT[:, :5], cache, torch.zeros(2, dtype=torch.int32))
        torch.testing.assert_close(first_BTD, full_BTD[:, :5], rtol=1e-9, atol=1e-10)
        offset_B = torch.tensor([5, 4])  # the second row's last token once more, as after a padded prompt
        for _ in range(N_STEPS):
            x_B1D, cache = module.decode(tokens_BT[rows, offset_B][:, None], cache, offset_B)
            torch.testing.assert_close(x_B1D[:, 0], full_BTD[rows, offset_B], rtol=1e-9, atol=1e-10)
            offset_B = offset_B + 1


def test_an_engine_samples():
    """Greedy text by the engine is that of full forwards, past a BOS of its own prompt."""
    config, params, tokens = case("62")
    prompt, wanted = tokens[0, :12].tolist(), []
    for _ in range(6):
        wanted.append(int(whole_forward(config, params, np.array([[*prompt, *wanted]]))[0, -1].argmax()))
    params = {k: jnp.asarray(p) for k, p in params.items()}
    engine = Engine(config, params, dtype="float64")
    assert [ids[0] for ids in engine.generate(prompt, max_tokens=6, temperature=0)] == wanted


@pytest.mark.parametrize("name", ["62", "46"])
def test_documents_and_windows_keep_apart(name):
    """By the gradient in PyTorch: attention sees neither a document before nor a key beyond its window.

    What else crosses documents does so by one token a layer at most, so only later tokens can tell.
    """
    config, params, _ = case(name)
    config = dataclasses.replace(config, smear=False, key_offset=False, bigram=False, bigram_rows=0)
    tokens = np.random.default_rng(0).integers(0, BOS, size=(1, 64))
    tokens[0, [0, 30]] = BOS
    tensors = {k: p for k, p in to_torch(params).items() if "smear" not in k and "bigram" not in k}
    module: Any = TorchModel(config, dtype=torch.float64).bind(
        {k: torch.nn.Parameter(p, requires_grad=False) for k, p in tensors.items()}
    )
    seen = []
    module.embed = lambda *args: seen.append(type(module).embed(module, *args).requires_grad_()) or seen[-1]
    module.value_embed = lambda *args: None
    module(torch.from_numpy(tokens))[0, 40].square().sum().backward()
    touched = seen[0].grad[0].abs().sum(-1) > 0
    assert not touched[:30].any() and touched[30:41].all() and not touched[41:].any()
