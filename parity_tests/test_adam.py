"""modded-nanogpt's Adam and the tied start: as a stranger uses them, and in whole runs of a model.

The figures of the originals are in test_modded_optim.py.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgpt.optim
from jaxgpt.compare.gates import compare
from jaxgpt.compare.tolerances import PARITY
from jaxgpt.compare.trajectories import enter_jax, run_jax, run_torch
from jaxgpt.config import AdamConfig, Config, GroupConfig, OptimConfig, schedule
from jaxgpt.config.param_groups import param_groups
from jaxgpt.errors import InputError
from jaxgpt.models import param_shapes
from jaxgpt.optim.adam import weight_of
from jaxgpt.optim.optimizer import optimizer
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import TrainState
from parity_tests.helpers.saved_states import assert_same_bits, restore
from parity_tests.small_runs import make_batches, make_config

N_STEPS = 6
TIE_UNTIL = 4
SHAPES = {"wte.weight": (64, 16), "lm_head.weight": (64, 16), "h.0.mlp.c_fc.weight": (16, 64), "scalars": (8,)}
GROUPS = (
    GroupConfig(match=r"^(wte|lm_head)\.", algorithm="adam", lr=0.01, beta1=0.5, beta2=0.95, weight_decay=0.75),
    GroupConfig(match="^(value_embeds|scalars)", algorithm="adam", lr=0.04, weight_decay=0.025),
)


def tied_run(dtype: str) -> tuple[Config, dict[str, np.ndarray]]:
    """A small nanochat whose embeddings and head are Adam's, tied for four of six steps; and its first weights."""
    config = make_config("nanochat2026", N_STEPS, dtype, is_small=True)
    groups = (GROUPS[0], dataclasses.replace(GROUPS[1], match="^value_embeds"))
    kept = tuple(group for group in config.optim.groups if group.name not in ("wte", "lm_head", "value_embeds"))
    config = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, groups=groups + kept, tie_until=TIE_UNTIL)
    )
    rng, shapes = np.random.default_rng(0), param_shapes(config.model)
    params = {path: (0.2 * rng.standard_normal(leaf.shape)).astype(dtype) for path, leaf in shapes.items()}
    return config, params | {"wte.weight": params["lm_head.weight"].copy()}


def test_a_run_through_the_split_agrees_with_torch_ref():
    config, params = tied_run("float64")
    theirs = run_torch(config, params, make_batches(N_STEPS))
    ours = run_jax(config, params, make_batches(N_STEPS), known=theirs)
    rows = compare(ours, theirs, PARITY["float64"])
    assert all(row.is_inside for row in rows)
    assert {path.split(".")[0] for path in ours.opt_state} == {"count", "mu", "nu", "grad_sum", "momentum", "square"}
    assert not np.array_equal(ours.last["wte.weight"], ours.last["lm_head.weight"])


@pytest.fixture(scope="module")
def trained():
    """The states after each step of an uninterrupted run, and how to continue from one."""
    config, params = tied_run("float32")
    batches = make_batches(N_STEPS)
    with enter_jax(config, params) as (step, placed):

        def train(state: TrainState, first: int):
            for i in range(first, N_STEPS):
                state, _ = step.train(state, batches[i], step.hyper(schedule.hyper_at(config, i)))
                yield state

        states = []
        for state in train(step.init_state(placed), 0):
            states.append(jax.tree.map(np.array, state))
        yield states, step, train


@pytest.mark.parametrize("step", [2, 3, 4, 5])
def test_a_run_resumes_bit_for_bit_before_at_and_after_the_split(trained, step, tmp_path):
    """Odd counts hold gradients of a step whose update is still to come."""
    states, made, train = trained
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(step, jax.tree.map(jnp.asarray, states[step - 1]), {})
        checkpoints.wait()
        _, state = restore(checkpoints, made.state_shapes)
    assert state.opt_state["grad_sum"]["wte.weight"].any() == (step % 2 == 1)
    *_, last = train(state, step)
    assert_same_bits(last, states[-1])


def test_tied_tensors_are_one_until_the_split(trained):
    """Bit for bit; the first step apart only adds up gradients, the second one updates."""
    states, *_ = trained
    for step, state in enumerate(states):
        found = {"params": state.params} | {name: state.opt_state[name] for name in ("mu", "nu", "grad_sum")}
        same = {
            name for name, leaves in found.items() if np.array_equal(leaves["wte.weight"], leaves["lm_head.weight"])
        }
        expected = {4: {"params", "mu", "nu"}, 5: {"grad_sum"}}  # of zeros
        assert same == expected.get(step, set(found)), step


def test_a_split_state_gives_the_same_updates():
    """Eight devices, of which each holds an eighth of every table and of its sums, against one."""
    config = OptimConfig(algorithm="muon", groups=GROUPS, tie_until=2)
    transform: Any = optimizer(config, param_groups(config, SHAPES))
    rng = np.random.default_rng(0)
    start = {path: rng.standard_normal(shape).astype(np.float32) for path, shape in SHAPES.items()}
    start["wte.weight"] = start["lm_head.weight"].copy()
    grads = [{path: rng.standard_normal(p.shape).astype(np.float32) for path, p in start.items()} for _ in range(4)]
    hyper = {"lr_scale": 1.0, "momentum": 0.9, "decay_scale": 1.0}

    def run(place):
        params, update = place(start), jax.jit(transform.update)
        state = jax.jit(transform.init)(params)
        for grad in grads:
            updates, state = update(place(grad), state, params, hyper=hyper)
            params = {path: leaf + updates[path] for path, leaf in params.items()}
        return params, state

    expected = run(functools.partial(jax.tree.map, jnp.asarray))
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        rows = jax.NamedSharding(mesh, jax.P("fsdp"))
        found = run(lambda tree: jax.device_put(tree, rows))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
    assert not found[1]["mu"]["wte.weight"].sharding.is_fully_replicated


# As a stranger uses it


def test_it_trains_in_a_chain_and_by_partition():
    target = jax.random.normal(jax.random.key(0), (4, 6))
    tx: Any = optax.chain(
        optax.clip_by_global_norm(10.0), jaxgpt.optim.adam(optax.linear_schedule(0.1, 0.0, 200), every=2)
    )
    params: Any = {"w": jnp.zeros((4, 6)), "b": jnp.ones(6)}
    state, update = tx.init(params), jax.jit(tx.update)
    loss = jax.jit(jax.value_and_grad(lambda p: ((p["w"] + p["b"] - target) ** 2).sum()))
    first = float(loss(params)[0])
    for _ in range(200):
        updates, state = update(loss(params)[1], state, params)
        params = optax.apply_updates(params, updates)
    assert float(loss(params)[0]) < 1e-3 * first


def test_steps_between_leave_every_bit():
    """Of zeros too: -0.0 + 0.0 would be 0.0."""
    params: Any = {"w": jnp.asarray([0.0, -0.0, 1.0, -1e-30])}
    tx: Any = jaxgpt.optim.adam(0.1, every=3, weight_decay=0.1)
    state = tx.init(params)
    for step in range(6):
        updates, state = tx.update({"w": jnp.full(4, step + 1.0)}, state, params)
        after: Any = optax.apply_updates(params, updates)
        is_same = np.asarray(after["w"]).tobytes() == np.asarray(params["w"]).tobytes()
        assert is_same == (step % 3 < 2)
        params = after
    assert not state.grad_sum["w"].any()


def test_rows_without_a_gradient_stay_zero_and_others_keep_moving():
    params: Any = {"w": jnp.zeros((3, 4))}
    tx: Any = jaxgpt.optim.adam(0.1, weight_decay=0.1)
    state = tx.init(params)
    for row in (1, 0, 0):
        updates, state = tx.update({"w": jnp.zeros((3, 4)).at[row].set(1.0)}, state, params)
        assert updates["w"][1].all() and not updates["w"][2].any()
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.99, 0.9999])
def test_the_correction_keeps_float32s_digits(beta):
    """1 - beta^count by itself loses four of seven for beta 0.9999."""
    for count in (1, 2, 7, 1000):
        found = float(weight_of(beta, jnp.float32(count)))
        assert found == pytest.approx(-math.expm1(count * math.log(beta)) if beta else 1.0, rel=3e-7)


def test_parameters_are_needed_only_for_decay():
    params: Any = {"w": jnp.ones((4, 6))}
    tx: Any = jaxgpt.optim.adam(0.02)
    assert jnp.abs(tx.update(params, tx.init(params))[0]["w"]).max() > 1e-3
    tx = jaxgpt.optim.adam(0.02, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"adam: weight_decay=0\.1 needs the parameters"):
        tx.update(params, tx.init(params))


# What is refused


def test_groups_take_adams_settings_from_its_section():
    config = OptimConfig(groups=(GroupConfig(match="^scalars", algorithm="adam"),), adam=AdamConfig(lr=0.5, eps=1e-4))
    found = param_groups(config, SHAPES)["scalars"]
    assert (found.algorithm, found.lr, found.beta2, found.eps, found.weight_decay) == ("adam", 0.5, 0.99, 1e-4, 0.0)


@pytest.mark.parametrize(
    ("config", "without", "message"),
    [
        (OptimConfig(tie_until=4), "lm_head.weight", r"optim\.tie_until=4 ties .* the model has no lm_head\.weight"),
        (OptimConfig(tie_until=4, groups=(GroupConfig(match="wte", lr=1.0),)), "", r"optim\.tie_until=4 .* differ"),
        (OptimConfig(tie_until=5, groups=GROUPS), "", r"=5 is not a multiple of optim\.adam\.every=2; nearest: 4, 6"),
    ],
    ids=["one tensor", "settings", "odd"],
)
def test_what_cannot_be_tied_is_refused(config, without, message):
    with pytest.raises(InputError, match=message):
        param_groups(config, {path: shape for path, shape in SHAPES.items() if path != without})


def test_tables_of_two_shapes_are_not_tied():
    with pytest.raises(InputError, match=r"wte\.weight \(64, 16\) and lm_head\.weight \(16, 64\); set"):
        param_groups(OptimConfig(tie_until=4), SHAPES | {"lm_head.weight": (16, 64)})
