"""The names of an optimizer's state, which checkpoints, shardings and torch_ref rely on."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgpt.optim
from jaxgpt.config import Config, GPT2Config, MeshConfig, MuonConfig, OptimConfig
from jaxgpt.config.param_groups import param_groups
from jaxgpt.models import param_shapes
from jaxgpt.optim.optimizer import optimizer
from jaxgpt.optim.state_names import from_names, to_names, with_names
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.training import step as step_module

SHAPES = {"wte.weight": (20, 8), "h.0.mlp.c_fc.weight": (8, 32), "ln_f.weight": (8,)}
MATRIX = "h.0.mlp.c_fc.weight"


def zeros(shapes):
    return {path: jnp.zeros(shape) for path, shape in shapes.items()}


def names(state):
    found = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in found}


@pytest.mark.parametrize("norm_beta2", [0.0, 0.9])
def test_the_names_of_a_run(norm_beta2):
    """Those of every checkpoint so far; with weights in two groups of AdamW the count is one."""
    config = OptimConfig(algorithm="muon", muon=MuonConfig(norm_beta2=norm_beta2))
    state = optimizer(config, param_groups(config, SHAPES)).init(zeros(SHAPES))
    expected = {"count": (), f"momentum.{MATRIX}": SHAPES[MATRIX]}
    expected |= {f"square.{MATRIX}": (1, 32)} if norm_beta2 else {}
    for path in ("wte.weight", "ln_f.weight"):
        expected |= {f"mu.{path}": SHAPES[path], f"nu.{path}": SHAPES[path]}
    assert names(state) == expected


def nested():
    params = {"a": {"w": jnp.ones((4, 6)), "b": jnp.ones(6)}, "c": [jnp.ones((4, 6)), jnp.ones((6, 2))]}
    tx = optax.partition(
        {
            "matrix": optax.chain(optax.clip_by_global_norm(1.0), jaxgpt.optim.muon(0.02, norm_beta2=0.9)),
            "vector": optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(optax.constant_schedule(0.1))),
        },
        jax.tree.map(lambda p: "matrix" if p.ndim == 2 else "vector", params),
    )
    return params, tx


def test_there_and_back():
    """Through optax's own nesting: partition, masked, chain, and trees of parameters."""
    params, tx = nested()
    _, state = tx.update(params, tx.init(params), params)
    state = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape)), state)
    named = to_names(state, params)
    assert names(named).keys() == {
        "count", "momentum.a.w", "momentum.c.0", "momentum.c.1", "square.a.w", "square.c.0", "square.c.1",
        "mu.a.b", "nu.a.b",
    }  # fmt: skip
    back = from_names(named, jax.eval_shape(tx.init, params), params)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_transformation_by_names_is_the_same():
    params, tx = nested()
    named = with_names(tx)
    ours: Any = named.init(params)
    theirs = tx.init(params)
    for i in range(3):
        grads = jax.tree.map(lambda p, i=i: jnp.cos(p * jnp.arange(p.size).reshape(p.shape) + i), params)
        a, ours = named.update(grads, ours, params)
        b, theirs = tx.update(grads, theirs, params)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    jax.tree.map(np.testing.assert_array_equal, ours, to_names(theirs, params))
    assert int(ours["count"]) == 3


def test_two_leaves_of_one_name_are_refused():
    params = {"w": jnp.ones((4, 6))}
    with pytest.raises(AssertionError, match=r"two states have a leaf mu\.w"):
        with_names(optax.chain(optax.scale_by_adam(), optax.scale_by_adam())).init(params)


def test_the_state_of_any_optimizer_is_split_like_the_parameters():
    """Of one that jaxgpt does not know, from the rule alone."""
    config = Config(
        model=GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=32, vocab_size=64), mesh=MeshConfig(data=1, fsdp=8)
    )
    shapes = param_shapes(config.model)
    transform = with_names(optax.chain(optax.scale_by_lion(), optax.scale_by_schedule(optax.constant_schedule(0.1))))
    init = functools.partial(step_module.init_state, config, transform)
    state = step_module.place_state(config, init, shapes, make_mesh(config.mesh))
    assert state.opt_state.keys() == {"count", "mu"} and state.opt_state["mu"].keys() == shapes.keys()
    for path, leaf in state.params.items():
        assert leaf.sharding == state.opt_state["mu"][path].sharding, path
        is_split = np.prod(leaf.sharding.shard_shape(leaf.shape)) < np.prod(leaf.shape)
        assert is_split == (leaf.ndim == 2), path
    assert state.opt_state["count"].sharding.is_fully_replicated


def test_squares_of_normuon_are_whole_on_each_device():
    """Named by a matrix, but not of its shape."""
    optim = OptimConfig(algorithm="muon", muon=MuonConfig(norm_beta2=0.9))
    model = GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=32, vocab_size=64)
    config = Config(model=model, optim=optim, mesh=MeshConfig(data=1, fsdp=8))
    shapes = param_shapes(config.model)
    init = functools.partial(step_module.init_state, config, step_module.make_optimizer(config, shapes))
    state = step_module.place_state(config, init, shapes, make_mesh(config.mesh))
    assert state.opt_state["square"] and all(s.sharding.is_fully_replicated for s in state.opt_state["square"].values())
    assert not any(leaf.sharding.is_fully_replicated for leaf in state.opt_state["momentum"].values())
