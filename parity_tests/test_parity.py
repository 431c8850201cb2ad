"""jaxgpt and torch_ref inside all gates, for every recipe; and the trace, which names the first place that differs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.compare.gates import compare, trace
from jaxgpt.compare.tolerances import PARITY
from jaxgpt.compare.trajectories import draw_params, run_jax, run_torch
from jaxgpt.compare.walks import walk
from jaxgpt.config import MeshConfig
from jaxgpt.models import Model, gpt2, layers, nanochat
from parity_tests.mutation_trials import run_reference, run_unmutated
from parity_tests.small_runs import CLIP, RECIPES, batches_of, make_batches, make_config

pytestmark = pytest.mark.usefixtures("one_thread")

N_STEPS = {"float64": 200, "float32": 200, "bfloat16": 40}


def outside(rows):
    return [row for row in rows if not row.is_inside]


# The gates


BOTH = [(recipe, dtype) for dtype in N_STEPS for recipe in RECIPES]
SLOW = {("nanochat2025", "float32"), ("nanochat2025", "bfloat16"), ("muon", "bfloat16"), ("adamw", "float32"),
        ("muon", "float32"), ("nanochat2026", "float32"), ("nanochat2026", "bfloat16"),
        ("muon", "float64")}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "dtype"), [pytest.param(*both, marks=pytest.mark.slow) if both in SLOW else both for both in BOTH]
)
def test_inside_all_gates(recipe, dtype):
    n_steps = N_STEPS[dtype]
    params, theirs = run_reference(recipe, n_steps, dtype)
    ours = run_unmutated(recipe, params, n_steps, dtype)
    rows = compare(ours, theirs, PARITY[dtype])
    assert not outside(rows)
    extra = {"key biases, gradients", f"key biases, step {n_steps}", "lambdas, gradients"}
    found = {row.quantity for row in rows} & extra
    assert found == {"nanochat2025": set(), "nanochat2026": {"lambdas, gradients"}}.get(
        recipe, extra - {"lambdas, gradients"}
    )
    assert len(rows) == 8 + len(found) and len(ours.losses) == n_steps
    assert ours.losses[-1] < ours.losses[0] - (0.5 if n_steps == 200 else 0.1), "nothing was learned"
    assert recipe == "nanochat2026" or min(ours.grad_norms) > CLIP, "clipping has no part in it"
    trees = {"count", "mu", "nu", *["momentum"] * (recipe != "adamw"), *["square"] * (recipe == "nanochat2026")}
    assert {path.partition(".")[0] for path in ours.opt_state} == trees


def test_eight_sharded_devices_against_one_process():
    """data x fsdp x tensor of 2 each, Muon: every collective there is."""
    params, theirs = run_reference("muon", 20, "float32")
    config = make_config("muon", 20, "float32")
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, micro_batch_size=1),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2, platform="cpu"),
    )
    assert not outside(compare(run_jax(config, params, make_batches(20)), theirs, PARITY["float32"]))


# --trace


def traced(run, recipe="adamw"):
    config = make_config(recipe, 2, "float64", is_small=recipe != "adamw")
    return run(config, draw_params(config), make_batches(2), is_traced=True)


@pytest.fixture(scope="module")
def reference():
    return traced(run_torch)


def find_first(reference):
    return trace(traced(run_jax), reference, PARITY["float64"])


def test_trace_without_a_bug(reference):
    assert find_first(reference) == "no difference"


def only_in(layer, mutant, original):
    """The bug in one layer: modules are told apart by the number of calls in one forward pass."""
    calls = iter(range(1000))

    def call(*args, **settings):
        return (mutant if next(calls) % 2 == layer else original)(*args, **settings)

    return call


def test_trace_finds_a_bug_in_the_forward_pass(reference, monkeypatch):
    monkeypatch.setattr(gpt2, "gelu", only_in(1, lambda x, kind: layers.gelu(x, "tanh"), layers.gelu))
    assert find_first(reference).startswith("forward: h.1.mlp (")


def test_trace_finds_a_bug_in_the_backward_pass(reference, monkeypatch):
    """The forward pass is right to the last bit; the gradient behind h.0's GELU is 1 % too large."""

    @jax.custom_vjp
    def scaled(x):
        return x

    scaled.defvjp(lambda x: (x, None), lambda _, d: (1.01 * d,))
    mutant = only_in(0, lambda x, kind: scaled(layers.gelu(x, kind)), layers.gelu)
    monkeypatch.setattr(gpt2, "gelu", mutant)
    assert find_first(reference).startswith("backward: h.0.mlp.c_fc.weight (")


@pytest.mark.slow
def test_trace_finds_what_no_layer_has(reference, monkeypatch):
    """A call of the model that is not the sum of its layers, and an update."""
    original = gpt2.GPT2.__call__
    monkeypatch.setattr(gpt2.GPT2, "__call__", lambda self, *args, **more: 1.001 * original(self, *args, **more))
    assert find_first(reference).startswith("gradient of the whole model: ")
    monkeypatch.undo()
    monkeypatch.setattr("jaxgpt.optim.clip.CLIP_EPS", 0.0)
    assert find_first(reference).startswith("update of step 1: ")


@pytest.mark.slow
def test_trace_of_nanochat(monkeypatch):
    """Layers 0 and 2 of 3 have value embeddings."""
    theirs = traced(run_torch, "nanochat2026")
    ours = traced(run_jax, "nanochat2026")
    assert trace(ours, theirs, PARITY["float64"]) == "no difference"
    monkeypatch.setattr(nanochat, "VALUE_GATE_SCALE", 2.0)
    assert trace(traced(run_jax, "nanochat2026"), theirs, PARITY["float64"]).startswith("forward: h.0.attn (")


@pytest.mark.parametrize("recipe", ["adamw", "nanochat2026", "modded62"])
def test_walk_is_the_model(recipe):
    """The layer by layer pass of --trace computes what the model's own call does."""
    config = make_config(recipe, 1, "float64", is_small=recipe == "modded62")
    with jax.enable_x64(True):
        params = {path: jnp.asarray(leaf) for path, leaf in draw_params(config).items()}
        tokens, module = batches_of(config, 1)[0].tokens[0, :, :-1], Model(config.model, dtype=jnp.float64).bind(params)
        walked = walk(module, tokens, lambda name, x: x)
        assert np.array_equal(walked, module(tokens))
