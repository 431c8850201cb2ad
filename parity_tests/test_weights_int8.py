"""Lighter weights: int8 and bfloat16 give nearly the model's scores, rows stay independent, and a fault is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import Config, GPT2Config, MeshConfig, NanochatConfig, TrainConfig
from jaxgpt.errors import InputError
from jaxgpt.inference.prompt_scores import score_prompt
from jaxgpt.inference.request import Request
from jaxgpt.inference.trained import Trained
from jaxgpt.inference.weights import with_weights
from jaxgpt.models import Model, param_shapes
from jaxgpt.models.int8 import Int8Weight, int8_product, quantize
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.sharding import put_rows
from jaxgpt.training.step import make_evaluator
from parity_tests.helpers.modded_cases import record

CONFIGS = {
    "gpt2": GPT2Config(seq_len=64, n_layer=2, n_head=2, n_embd=64, vocab_size=96, bias=True),
    "nanochat": NanochatConfig(
        era="2026", depth=2, head_dim=16, n_embd=64, n_kv_head=2, seq_len=64, vocab_size=96
    ).complete(0),
}  # fmt: skip


def trained(config):
    rng = np.random.default_rng(3)
    params = {
        path: jnp.asarray(0.1 * rng.standard_normal(leaf.shape) + (leaf.ndim == 1), jnp.float32)
        for path, leaf in sorted(param_shapes(config).items())
    }  # fmt: skip
    mesh = make_mesh(dataclasses.replace(MeshConfig(data=1), platform="cpu"))
    return Trained(None, config, params, None, "float32", mesh, "fresh")


def test_a_product_is_that_of_the_rounded_numbers():
    """Each row by its own scale, each column by its own; rows of zeros, and one row alone."""
    rng = np.random.default_rng(1)
    weight_OI = rng.standard_normal((24, 40)) * rng.uniform(0.01, 10, (24, 1))
    x_PI = rng.standard_normal((3, 40)) * np.array([[1], [1000], [0]])
    weight = quantize(jnp.asarray(weight_OI))
    rounded_OI = np.asarray(weight[np.arange(24)])
    assert (np.abs(rounded_OI - weight_OI) <= np.abs(weight_OI).max(axis=1, keepdims=True) / 254 * 1.0001).all()
    assert weight.values_OI.dtype == jnp.int8 and np.abs(weight.values_OI).max(axis=1).tolist() == [127] * 24
    y_PO = np.asarray(int8_product(jnp.asarray(x_PI), weight))
    step_P1 = np.abs(x_PI).max(axis=1, keepdims=True) / 127
    rounded_PI = np.round(x_PI / np.where(step_P1 > 0, step_P1, 1)) * step_P1
    np.testing.assert_allclose(y_PO, rounded_PI @ rounded_OI.T, rtol=1e-4, atol=1e-4)
    assert (np.asarray(int8_product(jnp.asarray(x_PI[:1]), weight)) == y_PO[:1]).all()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.05), ("bfloat16", 0.02)])
def test_scores_are_nearly_the_models(name, kind, tolerance):
    """Relative to the spread of the logits. A scale that is not its channel's gives 0.5 and more."""
    full, ids = trained(CONFIGS[name]), np.random.default_rng(2).integers(96, size=(1, 40))
    light = with_weights(full, kind)

    @jax.jit
    def logits(params):
        module = Model(CONFIGS[name]).bind(params)
        return module.logits(module(ids))

    wanted, found = (np.asarray(logits(model.params)) for model in (full, light))
    assert 0 < np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std() < tolerance
    n_bytes = [sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) for model in (full, light)]
    assert n_bytes[1] < {"int8": 0.6, "bfloat16": 0.56}[kind] * n_bytes[0]
    assert any(isinstance(leaf, Int8Weight) for leaf in light.params.values()) == (kind == "int8")


def test_rows_of_int8_are_independent():
    engine = with_weights(trained(CONFIGS["gpt2"]), "int8").engine()
    requests = [Request([i, 2 * i], 20, seed=i, n_log_probs=2) for i in (1, 2, 3)]

    def tokens_of(asked):
        rows, found = engine.rows(asked), [[] for _ in asked]
        while len(rows.free) < len(asked):
            for row, token in enumerate(rows.step()):
                found[row] += [token] if token else []
        return found

    together = tokens_of(requests)
    assert together == [tokens_of([None] * i + [r] + [None] * (2 - i))[i] for i, r in enumerate(requests)]


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_the_loss_of_an_evaluation_is_what_the_engine_says(kind):
    """Two routes, the chunked loss and the log-probabilities of a prompt, agree better than with the full weights."""
    full, ids_BT = trained(CONFIGS["gpt2"]), np.random.default_rng(5).integers(96, size=(2, 41))
    light = with_weights(full, kind)
    train = TrainConfig(batch_tokens=128, micro_batch_size=2, dtype="float32", loss_chunk_tokens=32)
    evaluator = make_evaluator(Config(model=full.model, train=train, mesh=MeshConfig(data=1)), full.mesh)
    with jax.set_mesh(full.mesh):
        placed = put_rows((ids_BT.astype(np.int32), np.ones((2, 40, 1), np.float32)), 2, full.mesh)
        nats, full_nats = (float(evaluator.evaluate(model.params, *placed)[0]) for model in (light, full))
    said = [score_prompt(light.engine(), row.tolist(), 0) for row in ids_BT]
    wanted = -sum(token.log_prob or 0.0 for tokens in said for token in tokens)
    assert 2 * abs(nats - wanted) < abs(nats - full_nats), (nats, wanted, full_nats)


def test_modded_has_no_int8():
    config = record("62")
    with pytest.raises(InputError, match=r"--weights=int8 cannot serve model\.family=modded; bfloat16 can"):
        with_weights(Trained(None, config, {}, None, "float32", make_mesh(MeshConfig(data=1)), "fresh"), "int8")
