"""Muon: both frameworks against the originals' step spelled out in numpy, and as a stranger uses it in optax and Flax.

The literal steps below are a second way to each number: they share neither code nor constants with the optimizers.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxgpt.optim
from jaxgpt.compare import tolerances
from jaxgpt.config import NANOCHAT_2026, MeshConfig, MuonConfig, OptimConfig
from jaxgpt.config.param_groups import param_groups
from jaxgpt.optim.optimizer import optimizer
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.sharding import replicated

N_STEPS = 3
PATH = "h.0.attn.c_q.weight"


def draw_matrix(rng, n_out, n_in, kind):
    """A gradient [out, in].

    tiny rows: some below 1e-6, others not. tiny: of a norm near 1e-7. vanishing: so small that even the orthogonalized
    matrix has a norm below 1e-6.
    """
    grad = rng.standard_normal((n_out, n_in))
    if kind == "tiny rows":
        grad[::3] *= 1e-8
        grad[1::3] *= 1e-7
    return grad * {"tiny": 1e-7, "vanishing": 1e-16}.get(kind, 1.0) / math.sqrt(n_out * n_in)


def literal_2025(param, grad, m, v, *, lr, beta, decay):
    """One step of nanochat 2025, which is Keller Jordan's."""
    m = m + (1 - beta) * (grad - m)
    g = grad + beta * (m - grad)
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (np.sqrt((x * x).sum()) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    g = x.T if g.shape[0] > g.shape[1] else x
    return -lr * math.sqrt(max(1, g.shape[0] / g.shape[1])) * g - lr * decay * param, m, v


def literal_2026(param, grad, m, v, *, lr, beta, decay):
    """One step of nanochat 2026's MuonAdamW for one matrix [out, in]."""
    n_out, n_in = param.shape
    m = m + (1 - beta) * (grad - m)
    x = grad + beta * (m - grad)
    rows = np.sqrt((x * x).sum(axis=1, keepdims=True))
    x = x * (np.sqrt((x * x).sum()) / math.sqrt(n_out) / np.maximum(rows, 1e-6))
    x = x / (np.sqrt((x * x).sum()) * 1.01 + 1e-6)
    for a, b, c in (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ):
        if n_out > n_in:
            gram = x.T @ x
            x = a * x + x @ (b * gram + c * gram @ gram)
        else:
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
    x = x * (math.sqrt(min(n_out, n_in)) / max(np.sqrt((x * x).sum()), 1e-6))
    axis = 1 if n_out >= n_in else 0
    squares = (x * x).mean(axis=axis, keepdims=True)
    v = v + (1 - 0.9) * (squares - v)
    root = 1 / np.sqrt(np.maximum(v, 1e-10))
    norm, new_norm = np.sqrt((x * x).sum()), np.sqrt((x * x * root * root).sum())
    x = x * (root * norm / max(new_norm, 1e-10))
    lr = lr * math.sqrt(max(1, n_out / n_in))
    return -lr * x - lr * decay * param * (x * param >= 0), m, v


MUON_2025 = MuonConfig(ns_dtype="float64", lr=0.02, weight_decay=0.1)
MUON_2026 = dataclasses.replace(
    NANOCHAT_2026.muon, ns_dtype="float64", lr=0.03, lr_follows_batch=False, weight_decay=0.4,
    decay_follows_horizon=False,
)  # fmt: skip
ERAS = {"2025": (MUON_2025, literal_2025), "2026": (MUON_2026, literal_2026)}


def schedule_at(step):
    return {"lr_scale": 1 - step / 10, "momentum": 0.85 + step / 100, "decay_scale": 1 - step / 5}


def updates_of_jax(config, groups, start, grads):
    transform: Any = optimizer(config, groups)
    params = {PATH: jnp.asarray(start.T)}
    state = transform.init(params)
    for step, grad in enumerate(grads):
        updates, state = transform.update({PATH: jnp.asarray(grad.T)}, state, params, hyper=schedule_at(step))
        params = {PATH: params[PATH] + updates[PATH]}
        yield np.asarray(updates[PATH]).T


def updates_of_torch(config, groups, start, grads):
    torch = pytest.importorskip("torch")
    from torch_ref.optim.optimizer import optimizer as torch_optimizer

    transform, params = torch_optimizer(config, groups), {PATH: torch.tensor(start)}
    state = transform.init(params)
    for step, grad in enumerate(grads):
        hyper = {name: torch.tensor(value, dtype=torch.float64) for name, value in schedule_at(step).items()}
        before = params[PATH].numpy().copy()
        transform.update({PATH: torch.tensor(grad)}, state, params, hyper=hyper, is_finite=torch.tensor(True))
        yield params[PATH].numpy() - before


@pytest.mark.parametrize("kind", ["plain", "tiny rows", "tiny", "vanishing"])
@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (16, 16)], ids=str)
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("updates_of", [updates_of_jax, updates_of_torch], ids=["jaxgpt", "torch_ref"])
def test_a_step_is_the_literal_one(updates_of, era, shape, kind):
    """Three steps, so that the moments have a past. Parameters are as small as gradients: decay stays in sight."""
    muon, literal = ERAS[era]
    n_out, n_in = shape
    config = OptimConfig(algorithm="muon", muon=muon)
    groups = param_groups(config, {PATH: (n_in, n_out)})
    rng = np.random.default_rng(0)
    param = draw_matrix(rng, n_out, n_in, "plain" if kind == "tiny rows" else kind)
    grads = [draw_matrix(rng, n_out, n_in, kind) for _ in range(N_STEPS)]
    m, v = np.zeros(shape), np.zeros((n_out, 1) if n_out >= n_in else (1, n_in))
    with jax.enable_x64(True):
        found = list(updates_of(config, groups, param, grads))
    for step, ours in enumerate(found):
        at = schedule_at(step)
        theirs, m, v = literal(
            param, grads[step], m, v, lr=muon.lr * at["lr_scale"], beta=at["momentum"],
            decay=muon.weight_decay * at["decay_scale"],
        )  # fmt: skip
        param = param + theirs
        assert np.linalg.norm(ours - theirs) < tolerances.FP64 * np.linalg.norm(theirs), f"step {step}"


# As a stranger uses it


class Perceptron(nnx.Module):
    """A module that knows nothing of jaxgpt."""

    def __init__(self, use_bias=False):
        rngs = nnx.Rngs(0)
        self.inner = nnx.Linear(8, 32, use_bias=use_bias, rngs=rngs)
        self.middle = nnx.List([nnx.Linear(32, 32, use_bias=use_bias, rngs=rngs) for _ in range(2)])
        self.outer = nnx.Linear(32, 4, use_bias=use_bias, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.inner(x))
        for layer in self.middle:
            x = x + jnp.tanh(layer(x))
        return self.outer(x)


def train_perceptron(tx, *, scale=1.0, n_steps=30, use_bias=False, see=lambda grads, model: None):
    """The losses; `see` is called after each step."""
    x = jax.random.normal(jax.random.key(0), (64, 8))
    y = jnp.stack([x[:, 0] * x[:, 1], jnp.sin(x[:, 2]), x[:, 3], jnp.abs(x[:, 4])], axis=1)
    model = Perceptron(use_bias)
    optim = nnx.Optimizer(model, tx, wrt=nnx.Param)
    losses = []
    for _ in range(n_steps):
        loss, grads = nnx.value_and_grad(lambda model: scale * ((model(x) - y) ** 2).mean())(model)
        optim.update(model, grads)
        see(grads, model)
        losses.append(float(loss) / scale)
    return losses


def flatten(tree):
    """A flat dict of copies, as jaxgpt holds parameters, with names that make all of them matrices of blocks."""
    state = nnx.state(tree, nnx.Param) if isinstance(tree, nnx.Module) else tree
    flat = jax.tree.leaves_with_path(nnx.to_pure_dict(state))
    return {f"h.{jax.tree_util.keystr(path, simple=True, separator='.')}": jnp.copy(leaf) for path, leaf in flat}


@pytest.mark.parametrize("scale", [pytest.param(0.1, marks=pytest.mark.slow), 100.0], ids=["below the clip", "clipped"])
def test_a_chain_trains_a_foreign_module_as_the_product_would(scale):
    """Bit for bit where nothing is clipped; optax's clipping lacks torch's 1e-6."""
    config = OptimConfig(algorithm="muon", grad_clip=1.0, muon=MuonConfig(lr=0.02))
    params: Any = flatten(Perceptron())
    groups = param_groups(config, {path: leaf.shape for path, leaf in params.items()})
    transform: Any = optimizer(config, groups)
    state, norms = transform.init(params), []
    hyper = {"lr_scale": jnp.float32(1), "momentum": jnp.float32(0.95), "decay_scale": jnp.float32(1)}

    def see(grads, model):
        nonlocal params, state
        flat = flatten(grads)
        norm = jaxgpt.optim.global_norm(flat)
        norms.append(float(norm))
        clipped = jaxgpt.optim.clip_by_global_norm(flat, norm, config.grad_clip)
        updates, state = transform.update(clipped, state, params, hyper=hyper)
        params = optax.apply_updates(params, updates)
        for path, leaf in flatten(model).items():
            error = float(jnp.linalg.norm(leaf - params[path]) / jnp.linalg.norm(leaf))
            assert error <= (0 if scale < 1 else tolerances.MUON_FP32), path

    tx = optax.chain(optax.clip_by_global_norm(1.0), jaxgpt.optim.muon(0.02))
    losses = train_perceptron(tx, scale=scale, see=see)
    assert losses[-1] < 0.4 * losses[0]
    assert (max(norms) < 1) == (scale < 1) and (min(norms) > 1) == (scale > 1)


def test_biases_go_elsewhere_by_partition():
    with pytest.raises(ValueError, match=r"muon: inner\.bias\S* has shape \(32,\); .*optax\.partition"):
        train_perceptron(jaxgpt.optim.muon(0.02), use_bias=True, n_steps=1)
    tx = optax.partition(
        {"matrix": jaxgpt.optim.muon(0.02), "vector": jaxgpt.optim.adamw(1e-2)},
        lambda params: jax.tree.map(lambda p: "matrix" if p.ndim == 2 else "vector", params),
    )
    losses = train_perceptron(tx, use_bias=True)
    assert losses[-1] < 0.4 * losses[0]


def test_the_rate_can_be_a_schedule():
    """The same as jaxgpt's factor from outside."""
    params, rng = {"w": jnp.ones((4, 6))}, np.random.default_rng(0)
    scheduled: Any = jaxgpt.optim.muon(optax.linear_schedule(0.02, 0.0, 4), weight_decay=0.1)
    constant: Any = jaxgpt.optim.muon(0.02, weight_decay=0.1)
    a, b = scheduled.init(params), constant.init(params)
    for step in range(4):
        grads = {"w": jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)}
        ours, a = scheduled.update(grads, a, params)
        hyper = {"lr_scale": 1 - step / 4, "momentum": 0.95, "decay_scale": 1.0}
        theirs, b = constant.update(grads, b, params, hyper=hyper)
        assert jnp.allclose(ours["w"], theirs["w"], rtol=1e-6) and jnp.abs(ours["w"]).max() > 1e-3


def test_parameters_are_needed_only_for_decay():
    params: Any = {"w": jnp.ones((4, 6))}
    tx: Any
    for tx in (jaxgpt.optim.muon(0.02), jaxgpt.optim.adamw(0.02)):
        assert jnp.abs(tx.update(params, tx.init(params))[0]["w"]).max() > 1e-3
    for tx in (jaxgpt.optim.muon(0.02, weight_decay=0.1), jaxgpt.optim.adamw(0.02, weight_decay=0.1)):
        with pytest.raises(ValueError, match=r"weight_decay=0\.1 needs the parameters"):
            tx.update(params, tx.init(params))


@pytest.mark.parametrize("settings", [{}, {"norm_beta2": 0.9}], ids=["muon", "normuon"])
def test_state_and_updates_keep_the_dtype(settings):
    """The numbers inside are not rounded to bfloat16."""
    params = {"w": jax.random.normal(jax.random.key(0), (8, 16)).astype(jnp.bfloat16)}
    grads = {"w": jax.random.normal(jax.random.key(1), (8, 16)).astype(jnp.bfloat16)}
    tx: Any = jaxgpt.optim.muon(0.02, **settings)
    updates, state = tx.update(grads, tx.init(params))
    assert {leaf.dtype for leaf in jax.tree.leaves((updates, state[1:]))} == {jnp.dtype(jnp.bfloat16)}
    wide = {"w": grads["w"].astype(jnp.float32)}
    expected = tx.update(wide, tx.init(wide))[0]["w"].astype(jnp.bfloat16)
    assert (updates["w"] == expected).all()


@pytest.mark.parametrize("axis", ["batch", "fsdp"])
def test_a_strangers_mesh_is_left_alone(axis):
    """Axes of other names, and axes in explicit mode, which is what jax.make_mesh gives."""
    params = {f"w{i}": jax.random.normal(jax.random.key(i), (8, 16)) for i in range(3)}
    tx: Any = jaxgpt.optim.muon(0.02)
    expected = tx.update(params, tx.init(params))[0]
    with jax.set_mesh(jax.make_mesh((8,), (axis,))):
        placed = jax.device_put(params, jax.NamedSharding(jax.sharding.get_mesh(), jax.P()))
        updates = jax.jit(tx.update)(placed, tx.init(placed))[0]
    assert all(jnp.allclose(updates[path], expected[path], atol=1e-6) for path in params)


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_each_device_orthogonalizes_its_share(axis):
    """Ten matrices on eight devices: two each, the last six of zeros; and the values of one device."""
    params = {f"w{i}": jax.random.normal(jax.random.key(i), (8, 16)) for i in range(10)}
    tx: Any = jaxgpt.optim.muon(0.02)
    expected = tx.update(params, tx.init(params))[0]
    sizes = {"data": (8, 1), "fsdp": (1, 8)}[axis]
    mesh = make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1]))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, replicated(mesh))
        update = jax.jit(tx.update).lower(placed, tx.init(placed)).compile()
        updates = update(placed, tx.init(placed))[0]
    grams = re.findall(r"= f32\[(\d+),8,8\]\S* dot\(", str(update.as_text()))
    assert grams and set(grams) == {"2"}
    assert all(jnp.allclose(updates[path], expected[path], atol=1e-6) for path in params)
