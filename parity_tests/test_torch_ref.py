"""torch_ref against jaxgpt, number by number; and that it trains: exact resume, torchrun, damaged checkpoints."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgpt import step as jax_step
from jaxgpt.config import Config, GPT2Config, MeshConfig, MuonConfig, OptimConfig, ScheduleConfig, TrainConfig
from jaxgpt.data.batches import Batches, eval_rows
from jaxgpt.data.shards import open_dataset
from jaxgpt.errors import EXIT_DIVERGED, EXIT_STOPPED, InputError
from jaxgpt.loss import cross_entropy as jax_cross_entropy
from jaxgpt.param_groups import param_groups
from jaxgpt.prepare import main as prepare
from jaxgpt.sealed import FORMAT, MANIFEST, read_seal, write_seal
from jaxgpt.sharding import make_mesh as make_jax_mesh
from jaxgpt.validation import evaluate_split as jax_evaluate_split
from parity_tests import tolerances
from torch_ref import attention, loss, optim, sharding, train, weights
from torch_ref import step as torch_step
from torch_ref.checkpoint import STATE, CheckpointError, Checkpoints
from torch_ref.validation import evaluate_split

torch.set_num_threads(1)  # two threads that wait for each other on busy cores are fifty times slower

REPO = Path(__file__).parents[1]
VOCAB = 61
N_STEPS = 4
HYPER = {"lr_scale": 0.7, "momentum": 0.9, "decay_scale": 0.8}


def make_config(*, dtype="float64", algorithm: Any = "adamw", n_micro=2, dropout=0.0, **train):
    return Config(
        model=GPT2Config(seq_len=24, n_layer=2, n_head=2, n_embd=32, bias=True, dropout=dropout),
        train=TrainConfig(
            steps=N_STEPS, batch_tokens=8 * 24, micro_batch_size=8 // n_micro,
            **{"dtype": dtype, "loss_chunk_tokens": 40, "attention": "xla", **train},
        ),
        optim=OptimConfig(
            lr=1e-2, algorithm=algorithm, grad_clip=0.2, schedule=ScheduleConfig(kind="constant"),
            muon=MuonConfig(ns_dtype="float64" if dtype == "float64" else "float32", weight_decay=0.1),
        ),
        mesh=MeshConfig(data=1, platform="cpu"),
    )  # fmt: skip


def batches(n_micro=2):
    """[steps, M, B, T + 1], the same rows whatever n_micro is."""
    rows = np.random.default_rng(0).integers(0, VOCAB, (N_STEPS, 8, 25)).astype(np.int32)
    return rows.reshape(N_STEPS, n_micro, 8 // n_micro, 25)


def make_torch_step(config, **more):
    return torch_step.make_step(config, VOCAB, sharding.make_mesh(config.mesh), **more)


def to_arrays(tree):
    """A jaxgpt tree as path -> numpy, by the names that its checkpoints use."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def perturbed(params):
    """Biases and norms too are away from the zeros and ones at which errors hide."""
    rng = np.random.default_rng(1)
    return {path: value + 0.05 * rng.standard_normal(value.shape).astype(value.dtype) for path, value in params.items()}


def find_worst(ours, theirs):
    """The largest relative distance (L2) of a tensor, and its path; key biases apart: their true gradient is zero."""
    assert ours.keys() == theirs.keys()
    found = []
    for path in theirs:
        a, b = (np.asarray(tree[path], np.float64) for tree in (ours, theirs))
        if path.endswith("c_attn.bias"):
            a, b = (np.delete(value, np.s_[32:64]) for value in (a, b))
        found.append((float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)), path))
    return max(found)


class Jax:
    """jaxgpt's run: the state after each step; on demand logits, loss and gradients of the first microbatch."""

    def __init__(self, config, *, has_grads=False):
        mesh = make_jax_mesh(config.mesh)
        with jax.enable_x64(config.train.dtype == "float64"), jax.set_mesh(mesh):
            step = jax_step.make_step(config, VOCAB, mesh)
            self.params = perturbed({path: np.asarray(p) for path, p in step.init_params(0).items()})
            params = {path: jnp.asarray(value) for path, value in self.params.items()}
            first = jnp.asarray(batches()[0, 0])
            if has_grads:
                logits, loss, grads = jax.jit(self._first, static_argnums=(0, 1))(config, step.model, params, first)
                self.logits, self.loss = np.asarray(logits), float(loss)
                self.grads = {path: np.asarray(grad) for path, grad in grads.items()}
            state = step.init_state(params)
            self.states, self.metrics = [to_arrays(state)], []
            for batch in batches():
                state, metrics = step.train(state, batch, step.hyper(HYPER))
                self.states.append(to_arrays(state))
                self.metrics.append({name: float(value) for name, value in metrics.items()})

    @staticmethod
    def _first(config, model, params, batch):
        def loss(params):
            return jax_step.loss_sum(config, model, "xla", params, batch)[0]

        module = model.bind(params)
        logits = module.logits(module(batch[:, :-1], dtype=config.train.dtype))
        value, grads = jax.value_and_grad(loss)(params)
        return logits, value, grads


@pytest.fixture(scope="module", params=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=["adamw", "muon"])
def algorithm(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(dtype, algorithm):
    return Jax(make_config(dtype=dtype, algorithm=algorithm), has_grads=algorithm == "adamw")


def gate(dtype, in_float32):
    return tolerances.FP64 if dtype == "float64" else in_float32


# The same numbers as jaxgpt


@pytest.mark.parametrize("algorithm", ["adamw"], indirect=True)  # it takes no part
def test_logits_loss_and_every_gradient(dtype, algorithm, theirs):
    config = make_config(dtype=dtype, algorithm=algorithm)
    step = make_torch_step(config)
    params = step.init_state(weights.to_torch(theirs.params)).params
    module = step.model.bind(params)
    assert dict(module.named_parameters()).keys() == theirs.params.keys()
    batch = torch.from_numpy(batches()[0, 0])
    with torch.no_grad():
        logits = module.logits(module(batch[:, :-1], dtype=getattr(torch, dtype))).numpy()
    loss_nats, n_tokens = torch_step.loss_sum(config, step.model, step.attention[0], params, batch)
    loss_nats.backward()
    grads = weights.to_numpy({path: torch_step.take_grad(param) for path, param in params.items()})
    assert int(n_tokens) == batch[:, 1:].numel()
    assert np.abs(logits - theirs.logits).max() < gate(dtype, tolerances.FP32_LOGITS)
    assert abs(loss_nats.item() / theirs.loss - 1) < gate(dtype, tolerances.FP32_OP)
    error, path = find_worst(grads, theirs.grads)
    assert error < gate(dtype, tolerances.FP32_GRAD), path


def torch_run(config, state, batches, **more):
    """Metrics and the final leaves, by jaxgpt's layout, of steps from leaves by jaxgpt's layout."""
    step = make_torch_step(config, **more)
    state = step.put_state(weights.with_leaves(step.state_shapes, weights.to_torch(state)))
    metrics = []
    for batch in batches:
        state, values = step.train(state, torch.from_numpy(batch), step.hyper(HYPER))
        metrics.append({name: float(value) for name, value in values.items()})
    return metrics, weights.to_numpy(weights.by_path(state))


def check_equal(ours, theirs, dtype):
    (metrics, leaves), (expected_metrics, expected) = ours, theirs
    for a, b in zip(metrics, expected_metrics, strict=True):
        assert a.keys() == b.keys()
        assert abs(a["loss"] - b["loss"]) < gate(dtype, tolerances.FP32_LOSS)
        assert abs(a["grad_norm"] / b["grad_norm"] - 1) < gate(dtype, tolerances.FP32_GRAD)
    error, path = find_worst(leaves, expected)
    assert error < gate(dtype, tolerances.FP32_PARAMS), path


@pytest.mark.parametrize("first_step", [0, 2])
def test_steps(dtype, algorithm, theirs, first_step):
    """Every metric, parameter, moment and counter; from the start, and going on in the middle of jaxgpt's run."""
    config = make_config(dtype=dtype, algorithm=algorithm)
    ours = torch_run(config, theirs.states[first_step], batches()[first_step:])
    check_equal(ours, (theirs.metrics[first_step:], theirs.states[-1]), dtype)
    assert all(values["grad_norm"] > config.optim.grad_clip for values in ours[0]), "clipping takes no part"


def test_steps_in_bfloat16():
    """Each side rounds on its own, to the same size."""
    config = make_config(dtype="bfloat16")
    expected = Jax(config)
    metrics, leaves = torch_run(config, expected.states[0], batches())
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(metrics, expected.metrics, strict=True)]
    assert max(differences) < tolerances.BF16_LOSS_MAX
    assert all(leaf.dtype == np.float32 for path, leaf in leaves.items() if path.startswith(("params", "opt_state.mu")))


def test_loss_of_bfloat16_is_summed_in_float32():
    """Logits of moderate size, where those rounded to bfloat16 would be off by 1e-3."""
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((2, 10, 16)), rng.standard_normal((40, 16)).astype(np.float32)
    targets = rng.integers(0, 40, (2, 10))
    ours_x = torch.tensor(x, dtype=torch.bfloat16, requires_grad=True)
    ours_weight = torch.tensor(weight, requires_grad=True)
    ours = loss.cross_entropy(ours_x, ours_weight, torch.from_numpy(targets), chunk_len=4)[0]
    ours.backward()
    assert ours_x.grad is not None and ours_weight.grad is not None

    def summed(x, weight):
        return jax_cross_entropy(x, weight, jnp.asarray(targets), chunk_len=4)[0]

    theirs, grads = jax.value_and_grad(summed, (0, 1))(jnp.asarray(x, jnp.bfloat16), jnp.asarray(weight))
    assert abs(ours.item() / float(theirs) - 1) < tolerances.FP32_OP
    for a, b in zip((ours_x.grad, ours_weight.grad), grads, strict=True):
        b = np.asarray(b, np.float32)
        assert np.abs(a.float().numpy() - b).max() < tolerances.BF16_OP * np.abs(b).max()
    assert ours_x.grad.dtype == torch.bfloat16 and ours_weight.grad.dtype == torch.float32


def test_weights_there_and_back_are_the_same_bits(dtype, algorithm, theirs):
    """jaxgpt -> torch_ref -> jaxgpt, optimizer state and counters included."""
    leaves = theirs.states[2]
    step = make_torch_step(make_config(dtype=dtype, algorithm=algorithm))
    state = step.put_state(weights.with_leaves(step.state_shapes, weights.to_torch(leaves)))
    for path, leaf in weights.by_path(state).items():
        is_linear = ".c_" in path and path.endswith(".weight")
        assert tuple(leaf.shape) == (leaves[path].shape[::-1] if is_linear else leaves[path].shape), path
    back = weights.to_numpy(weights.by_path(state))
    assert back.keys() == leaves.keys()
    for path, leaf in leaves.items():
        assert back[path].dtype == leaf.dtype and back[path].tobytes() == leaf.tobytes(), path
    assert any(path.startswith("opt_state.momentum.") for path in leaves) == (algorithm == "muon")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("h.1.ln_2.bias"), "lacks h.1.ln_2.bias"),
        (lambda w: w.update({"lm_head.weight": w["wte.weight"]}), "holds lm_head.weight, which this model does not"),
        (lambda w: w.update({"h.2.ln_1.weight": w["h.1.ln_1.weight"]}), "holds h.2.ln_1.weight"),
        (
            lambda w: w.update({"h.0.mlp.c_fc.weight": w["h.0.mlp.c_fc.weight"].T}),
            "(32, 128), this model has (128, 32)",
        ),
        (lambda w: w.update({"wpe.weight": w["wpe.weight"][:5]}), "wpe.weight is (5, 32), this model has (24, 32)"),
    ],
)
def test_foreign_weights_are_named(change, message):
    step = make_torch_step(make_config())
    arrays = weights.to_numpy(step.init_params(0))
    change(arrays)
    with pytest.raises(InputError) as caught:
        step.init_state(weights.to_torch(arrays))
    assert message in str(caught.value) and "\n" not in str(caught.value)


# Two routes within torch_ref


@pytest.fixture(scope="module")
def start():
    """Leaves of a fresh state, float64, by jaxgpt's layout."""

    def fresh(config):
        step = make_torch_step(config)
        params = weights.to_torch(perturbed(weights.to_numpy(step.init_params(0))))
        return weights.to_numpy(weights.by_path(step.init_state(params)))

    return fresh


@pytest.mark.parametrize("n_micro", [1, 4])
def test_microbatches_equal_one_batch(algorithm, start, n_micro):
    config = make_config(algorithm=algorithm)
    expected = torch_run(config, start(config), batches())
    other = make_config(algorithm=algorithm, n_micro=n_micro)
    check_equal(torch_run(other, start(other), batches(n_micro)), expected, "float64")


@pytest.mark.parametrize("changes", [{"attention": "auto"}, {"remat": "block"}, {"remat": "dots"}], ids=str)
def test_other_ways_to_compute_the_same(start, changes):
    """Fused attention, and activations that are computed again. In float32: auto takes math in float64."""
    config = make_config(dtype="float32")
    expected = torch_run(config, start(config), batches())
    config = make_config(dtype="float32", **changes)
    ours = torch_run(config, start(config), batches())
    check_equal(ours, expected, "float32")
    if "remat" in changes:
        assert ours[0] == expected[0]
    else:
        assert make_torch_step(config).attention == ("sdpa", "flash")


@pytest.mark.parametrize("remat", ["block", "dots"])
def test_dropout_is_the_same_when_computed_again(start, remat):
    """And differs by seed, and is off in evaluation."""
    config = make_config(dropout=0.3)
    expected = torch_run(config, start(config), batches())[0]
    assert torch_run(make_config(dropout=0.3, remat=remat), start(config), batches())[0] == expected
    reseeded = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=2))
    other = torch_run(reseeded, start(config), batches())[0]
    assert abs(other[0]["loss"] - expected[0]["loss"]) > 1e-4
    step, plain = make_torch_step(config), make_torch_step(make_config())
    params = step.init_params(0)
    batch, mask = torch.from_numpy(batches()[0, 0]), torch.ones(4)
    a, b = (s.evaluate(s.init_state(params).params, batch, mask)[0] for s in (step, plain))
    assert a == b


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own code, while it loads its compiler
def test_compiled_equals_eager(start):
    config = make_config(dtype="float32")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, n_layer=1))
    torch.compiler.reset()
    ours = torch_run(config, start(config), batches(), is_compiled=True)
    check_equal(ours, torch_run(config, start(config), batches()), "float32")


def test_fused_adamw_is_the_one_spelled_out():
    """Twenty steps in float64 of the kernel that float32 takes; then a step that is not finite changes nothing."""
    config = OptimConfig(lr=1e-2, eps=1e-3)
    rng = torch.Generator().manual_seed(0)
    params = {
        path: torch.randn(shape, generator=rng, dtype=torch.float64) for path, shape in (("w", (5, 3)), ("b", (3,)))
    }
    groups = param_groups(config, {path: tuple(p.shape) for path, p in params.items()})
    state = optim.optimizer(config, groups).init(params)
    assert len(set(groups.values())) == 2
    for count in range(1, 21):
        grads = {path: torch.randn(p.shape, generator=rng, dtype=p.dtype) for path, p in params.items()}
        expected = {
            path: optim.adamw(
                params[path], grads[path], state.mu[path], state.nu[path], torch.tensor(count), lr=0.5 * setting.lr,
                beta1=setting.beta1, beta2=setting.beta2, eps=setting.eps, weight_decay=setting.weight_decay,
            )
            for path, setting in groups.items()
        }  # fmt: skip
        expected = {path: (params[path] + step, mu, nu) for path, (step, mu, nu) in expected.items()}
        optim.adamw_fused(params, grads, state, groups, params, torch.tensor(0.5), torch.tensor(True))
        state = state._replace(count=state.count + 1)
        for path, values in expected.items():
            for ours, other in zip((params[path], state.mu[path], state.nu[path]), values, strict=True):
                torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-9)
    before = {path: p.clone() for path, p in params.items()}
    optim.adamw_fused(params, grads, state, groups, params, torch.tensor(0.5), torch.tensor(False))
    assert all(torch.equal(before[path], p) for path, p in params.items())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_non_finite_step_changes_nothing_but_counters(algorithm, start, dtype):
    config = make_config(dtype=dtype, algorithm=algorithm)
    leaves = start(config)
    before = torch_run(config, leaves, batches()[:1])[1]
    step = make_torch_step(config)
    state = step.put_state(weights.with_leaves(step.state_shapes, weights.to_torch(before)))
    good = state.params["ln_f.weight"][0].item()
    for count in (1, 2):
        with torch.no_grad():
            state.params["ln_f.weight"][0] = np.inf
        state, metrics = step.train(state, torch.from_numpy(batches()[1]), step.hyper(HYPER))
        assert not np.isfinite(float(metrics["loss"]))
        assert int(metrics["n_skipped"]) == int(metrics["n_skipped_in_row"]) == count
    with torch.no_grad():
        state.params["ln_f.weight"][0] = good
    after = weights.to_numpy(weights.by_path(state))
    counters = {"step": 3, "n_skipped": 2, "n_skipped_in_row": 2}
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], counters.get(path, leaf), err_msg=path)
    state, metrics = step.train(state, torch.from_numpy(batches()[1]), step.hyper(HYPER))
    assert int(metrics["n_skipped"]) == 2 and int(metrics["n_skipped_in_row"]) == 0
    assert int(state.opt_state.count) == 2


def test_float16_halves_its_scale_on_overflow_and_goes_on(start):
    config = make_config(dtype="float16")
    leaves = start(config)
    assert leaves["loss_scale.scale"] == torch_step.LOSS_SCALE_INIT
    leaves["loss_scale.scale"] = np.array(2.0**40, np.float32)
    metrics, after = torch_run(config, leaves, batches()[:1])
    assert after["loss_scale.scale"] == 2.0**39 and np.isfinite(metrics[0]["loss"])
    assert metrics[0]["n_skipped"] == 1 and metrics[0]["n_skipped_in_row"] == 0
    np.testing.assert_array_equal(after["params.wte.weight"], leaves["params.wte.weight"])
    after["loss_scale.scale"] = np.array(1024, np.float32)
    metrics, after = torch_run(config, after, batches()[1:])
    assert after["loss_scale.scale"] == 1024 and after["loss_scale.n_good"] == 3 and metrics[-1]["n_skipped"] == 1
    exact = torch_run(make_config(dtype="float32"), start(make_config(dtype="float32")), batches()[:1])[0]
    scaled = torch_run(config, start(config), batches()[:1])[0]
    assert abs(scaled[0]["grad_norm"] / exact[0]["grad_norm"] - 1) < 1e-2


def test_loss_scale_follows_jaxgpts():
    for n_good in (0, 1998, 1999):
        for is_finite in (True, False):
            for scale in (1.0, 2.0**16):
                theirs = jax_step.next_loss_scale(jax_step.LossScale(jnp.float32(scale), jnp.int32(n_good)), is_finite)
                current = torch_step.LossScale(torch.tensor(scale), torch.tensor(n_good, dtype=torch.int32))
                ours = torch_step.next_loss_scale(current, torch.tensor(is_finite))
                assert (float(ours.scale), int(ours.n_good)) == (float(theirs.scale), int(theirs.n_good))


def test_validation_counts_each_row_once(home):
    """However many rows go through at a time; padding counts neither tokens nor bytes."""
    split = open_dataset(home / "x").val
    source = Batches(split, 24, 0, "sequential", VOCAB)
    starts = eval_rows(split, 24, 24 * 10)
    token_bytes = np.arange(VOCAB) % 3
    config = make_config()
    step = make_torch_step(config)
    params = step.init_state(step.init_params(0)).params
    one, four = (
        evaluate_split(step, params, source, starts, n_rows=n_rows, token_bytes=token_bytes) for n_rows in (1, 4)
    )
    assert one.n_tokens == four.n_tokens == 240
    assert abs(one.loss - four.loss) < tolerances.FP64
    assert one.bits_per_byte == pytest.approx(four.bits_per_byte)
    with jax.enable_x64(True), jax.set_mesh(make_jax_mesh(config.mesh)):
        theirs = jax_step.make_step(config, VOCAB, make_jax_mesh(config.mesh))
        theirs_params = {p: jnp.asarray(value) for p, value in weights.to_numpy(params).items()}
        other = jax_evaluate_split(theirs, theirs_params, source, starts, n_rows=4, token_bytes=token_bytes)
    assert other.n_tokens == 240 and other.bits_per_byte == pytest.approx(one.bits_per_byte)
    assert abs(one.loss - other.loss) < tolerances.FP64


def test_cached_decode_equals_the_whole_forward():
    config = make_config()
    step = make_torch_step(config)
    module = step.model.bind(step.init_state(step.init_params(0)).params)
    tokens = torch.from_numpy(batches()[0, 0])[:, :20]
    with torch.no_grad():
        expected = module(tokens, dtype=torch.float64)
        cache, parts = module.init_cache(4, 20, torch.float64), []
        for lo, hi in ((0, 7), (7, 8), (8, 20)):
            x_BTD, cache = module.decode(tokens[:, lo:hi], cache, lo, dtype=torch.float64)
            parts.append(x_BTD)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=tolerances.FP64, atol=tolerances.FP64)


def test_targets_that_do_not_count_are_not_read():
    x, weight = torch.randn(2, 5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    targets, mask = torch.randint(0, 7, (2, 5)), torch.ones(2, 5)
    mask[1, 2:] = 0
    total = loss.cross_entropy(x, weight, targets, mask, chunk_len=2)
    targets[1, 2:] = 10**6
    again = loss.cross_entropy(x, weight, targets, mask, chunk_len=3)
    torch.testing.assert_close(again, total)
    again[0].backward()
    assert x.grad is not None and not x.grad[1, 2:].any() and x.grad[1, :2].any()
    with torch.no_grad():
        torch.testing.assert_close(loss.cross_entropy(x, weight, targets, mask), total)
        assert loss.cross_entropy(x, weight, targets, 0 * mask) == (0, 0)


@pytest.mark.parametrize(
    ("platform", "changes", "expected"),
    [
        ("cuda", {"dtype": "bfloat16", "attention": "auto"}, "sdpa"),
        ("cuda", {"dtype": "bfloat16", "attention": "auto", "dropout": 0.1}, "sdpa"),
        ("cuda", {"dtype": "float32", "attention": "auto"}, "math"),
        ("cuda", {"dtype": "float16", "attention": "cudnn"}, "sdpa"),
        ("cpu", {"dtype": "float32", "attention": "auto"}, "sdpa"),
        ("cpu", {"dtype": "float32", "attention": "auto", "dropout": 0.1}, "math"),
        ("cpu", {"dtype": "float32", "attention": "xla"}, "math"),
        ("cpu", {"dtype": "float32", "attention": "cudnn"}, "the platform is cpu, not gpu"),
        ("cuda", {"dtype": "float32", "attention": "cudnn"}, "train.dtype=float32"),
        ("cuda", {"dtype": "bfloat16", "attention": "splash"}, "the platform is gpu, not tpu"),
    ],
)
def test_choice_of_attention(platform, changes, expected):
    config = make_config(**changes)
    if expected in ("sdpa", "math"):
        assert attention.choose_attention(config, platform)[0] == expected
    else:
        with pytest.raises(InputError, match=expected):
            attention.choose_attention(config, platform)


# It trains


CONFIG = """
from jaxgpt.config import *
config = Config(
    data=DataConfig(dir={data!r}),
    model=GPT2Config(seq_len=16, n_layer=2, n_head=2, n_embd=16, dropout={dropout}),
    train=TrainConfig(steps=20, batch_tokens=128, micro_batch_size=4, dtype="float32", attention="xla"),
    optim=OptimConfig(lr=1e-2, algorithm="muon", schedule=ScheduleConfig(warmup_steps=3, decay_steps=20)),
    eval=EvalConfig(every=10, tokens=400),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every=5),
    mesh=MeshConfig(platform="cpu"),
)
"""
TEXT = "".join(f"{i} green bottles, hanging on the wall; {i * 7 % 13} fell.\n" for i in range(400))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A prepared character-level directory and two configs."""
    home = tmp_path_factory.mktemp("home")
    (home / "text.txt").write_text(TEXT)
    assert prepare(["x", "--input", str(home / "text.txt"), "--out", str(home / "x"), "--tokenizer", "char"]) == 0
    for name, dropout in (("config", 0.1), ("plain", 0.0)):
        (home / f"{name}.py").write_text(CONFIG.format(data=str(home / "x"), dropout=dropout))
    return home


def run(config, run_dir, *more):
    return train.main([f"--config={config}", f"--run.dir={run_dir}", *more])


def losses(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: (record["train_loss"], record.get("val_loss")) for record in records}


def state_bytes(run_dir, step):
    return (run_dir / "checkpoints" / str(step) / STATE).read_bytes()


@pytest.fixture(scope="module")
def straight(home, tmp_path_factory):
    """The uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("straight")
    assert run(home / "config.py", run_dir) == 0
    return run_dir


def test_resume_is_exact_to_the_bit(home, straight, tmp_path):
    assert run(home / "config.py", tmp_path, "--train.steps=7") == 0
    assert run(home / "config.py", tmp_path, "--resume") == 0
    ours, expected = losses(tmp_path), losses(straight)
    assert {step: pair[0] for step, pair in ours.items()} == {step: pair[0] for step, pair in expected.items()}
    assert ours[20][1] == expected[20][1] is not None
    assert state_bytes(tmp_path, 20) == state_bytes(straight, 20)


def test_sigterm_saves_and_resume_is_exact(home, straight, tmp_path):
    process = start_command([sys.executable, "-m", "torch_ref.train", *command(home / "config.py", tmp_path)])
    path = tmp_path / "metrics.jsonl"
    while not (path.exists() and '"step": 3,' in path.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=60)
    if process.returncode != 0:  # a run this short may have ended before the signal came
        assert process.returncode == EXIT_STOPPED, shown
        assert "the same command with --resume goes on" in shown
        assert run(home / "config.py", tmp_path, "--resume") == 0
    assert losses(tmp_path) == losses(straight)


def command(config, run_dir, *more):
    return [f"--config={config}", f"--run.dir={run_dir}", *more]


def start_command(args):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        args, env=environment, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def test_torchrun_with_two_processes_equals_one(home, tmp_path):
    """Two processes go on where one stopped; each reads half of the rows, and only one writes."""
    assert run(home / "plain.py", tmp_path / "one") == 0
    assert run(home / "plain.py", tmp_path / "two", "--train.steps=8") == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    settings = command(home / "plain.py", tmp_path / "two", "--resume")
    process = start_command([*launcher, "-m", "torch_ref.train", *settings])
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert shown.count("resuming from step 8") == 1 and "1 x 4 rows x 16 x 2 device(s)" in shown
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(1, 21))
    assert max(abs(one[step][0] - two[step][0]) for step in one) < tolerances.FP32_LOSS
    assert abs(one[20][1] - two[20][1]) < tolerances.FP32_LOSS


def test_run_directory_and_metrics_are_jaxgpts(straight):
    assert {path.name for path in straight.iterdir()} >= {"config.py", "metrics.jsonl", "checkpoints", "loss.png"}
    last = json.loads((straight / "metrics.jsonl").read_text().splitlines()[-1])
    expected = {"step", "train_loss", "lr", "tokens", "tokens_per_s", "mfu", "n_skipped", "grad_norm"}
    assert set(last) == expected | {"val_loss", "val_perplexity", "val_bits_per_byte"}
    assert last["step"] == 20 and last["tokens"] == 20 * 128
    assert last["val_bits_per_byte"] == pytest.approx(last["val_loss"] / np.log(2))  # characters are bytes here
    assert losses(straight)[20][0] < losses(straight)[1][0] - 0.5


def test_default_run_directory_is_beside_jaxgpts(home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert train.main([f"--config={home / 'plain.py'}", "--train.steps=1"]) == 0
    assert (tmp_path / "runs" / "plain-torch" / "metrics.jsonl").exists()
    assert train.main(["--config", "runs/plain-torch/config.py", "--train.steps=2", "--resume"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["plain-torch"]


def test_divergence_ends_the_run_and_saves_nothing_broken(home, tmp_path):
    settings = ["--optim.lr=1e38", "--optim.algorithm=adamw", "--train.max_skips=3"]
    assert run(home / "plain.py", tmp_path, *settings) == EXIT_DIVERGED
    assert not any((tmp_path / "checkpoints").glob("[0-9]*"))


def test_neither_jax_nor_its_kin_are_loaded(home, tmp_path):
    """In a fresh interpreter, after a whole run."""
    script = f"""
import sys
import torch_ref.train
assert torch_ref.train.main({command(home / "plain.py", tmp_path, "--train.steps=1")!r}) == 0
print("loaded:", sorted({{"jax", "jaxlib", "flax", "optax", "orbax"}} & set(sys.modules)))
"""
    process = start_command([sys.executable, "-c", script])
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and shown.endswith("loaded: []\n"), shown


# Refusals


@pytest.fixture
def copied(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    return tmp_path / "run"


def refusal(config, run_dir, *more):
    with pytest.raises(InputError) as caught:
        run(config, run_dir, *more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoint_is_named_and_the_one_before_taken(home, copied, straight, capsys):
    flip_a_bit(copied / "checkpoints" / "20" / STATE)
    assert run(home / "config.py", copied, "--resume") == 0
    shown = capsys.readouterr()
    assert f"20 is not a checkpoint: its file {STATE} was changed after it was written" in shown.err
    assert "20 is set aside as 20.rejected" in shown.err and "resuming from step 15" in shown.out
    assert losses(copied) == losses(straight)
    flip_a_bit(copied / "checkpoints" / "20" / STATE)
    flip_a_bit(copied / "checkpoints" / "15" / STATE)
    message = refusal(home / "config.py", copied, "--resume")
    assert "20 is not a checkpoint" in message and "15 is not a checkpoint" in message


def replace_state(directory, write):
    """Another file under a manifest that vouches for it, as whoever can write files could make."""
    manifest = read_seal(directory)
    (directory / MANIFEST).unlink()
    write(directory / STATE)
    write_seal(directory, manifest)


def test_pickle_is_refused_and_not_opened(home, copied, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    replace_state(copied / "checkpoints" / "20", lambda path: torch.save({"params": Bomb()}, path))
    message = refusal(home / "config.py", copied, "--resume")
    assert f"20 cannot be read: {STATE} is not a safetensors file" in message
    assert not (tmp_path / "executed").exists()


def test_checkpoint_of_jaxgpt_is_refused_with_the_way_out(home, copied):
    directory = copied / "checkpoints" / "20"
    manifest = read_seal(directory)
    for path in directory.iterdir():
        path.unlink()
    (directory / "d").write_bytes(b"orbax")
    write_seal(directory, manifest | {"format": FORMAT})
    message = refusal(home / "config.py", copied, "--resume")
    assert f"20 is jaxgpt's, it holds no {STATE}; python -m parity_tests.convert --from {copied}" in message


def test_checkpoints_keep_the_newest_and_the_best(tmp_path):
    saved = Checkpoints(tmp_path, keep=2)
    state = {"params": {"wte.weight": torch.ones(2, 3)}}
    for step, val_loss in ((1, 2.0), (2, 1.0), (3, 3.0), (4, 4.0), (5, None)):
        saved.save(step, state, {"n": step}, val_loss=val_loss)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]
    step, restored, about = saved.restore(state, step=2)
    assert (step, about) == (2, {"n": 2}) and torch.equal(restored["params"]["wte.weight"], torch.ones(2, 3))
    assert {path.name for path in tmp_path.iterdir()} == {"2", "4.rejected", "5.rejected"}
    with pytest.raises(CheckpointError, match="2 is there already"):
        saved.save(2, state, {})
    with pytest.raises(CheckpointError, match=r"checkpoint 3 is not saved: params.wte.weight is not finite"):
        saved.save(3, {"params": {"wte.weight": torch.tensor([np.nan])}}, {})
    with pytest.raises(InputError, match=r"params.wte.weight has shape \(2, 3\), not \(3, 2\)"):
        saved.restore({"params": {"wte.weight": torch.ones(3, 2)}})


def test_a_run_is_neither_overwritten_nor_made_up(home, straight, tmp_path):
    assert f"run.dir={straight} holds a run already; --resume goes on" in refusal(home / "config.py", straight)
    assert "has no checkpoint to resume from" in refusal(home / "config.py", tmp_path, "--resume")


def test_a_finished_run_is_told_so(home, straight, capsys):
    before = losses(straight)
    assert run(home / "config.py", straight, "--resume") == 0
    assert "the run is at step 20 of 20 already" in capsys.readouterr().out and losses(straight) == before


def test_resume_of_another_model_or_optimizer_names_it(home, straight):
    message = refusal(home / "config.py", straight, "--resume", "--model.n_layer=3")
    assert "is another model: model.n_layer 2 -> 3" in message
    message = refusal(home / "config.py", straight, "--resume", "--optim.algorithm=adamw")
    assert "does not fit: opt_state.mu.h.0" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--data.dir=nowhere"], "nowhere"),
        (["--model.vocab_size=5"], "model.vocab_size=5 is below the"),
        (["--mesh.data=2"], "mesh.data=2, but there are 1 process(es); start them with torchrun --nproc_per_node=2"),
        (["--mesh.fsdp=2"], "mesh.fsdp=2: torch_ref splits no parameters"),
        (["--mesh.platform=gpu"], "mesh.platform=gpu is not here; torch sees cpu"),
        (["--train.attention=cudnn"], "train.attention=cudnn cannot run: the platform is cpu"),
        (["--hosts.coordinator=a:1"], "start torch_ref with torchrun"),
        (["--train.init_from=gpt2"], "train.init_from=gpt2 is for jaxgpt"),
        (["--compile", "--no_compile"], "--compile and --no_compile are both given"),
        (["--train.batch_tokens=100"], "train.batch_tokens=100 is not a multiple"),
    ],
)
def test_bad_input_is_one_line(home, tmp_path, settings, message):
    if "gpu" in settings[0] and torch.cuda.is_available():
        pytest.skip("there is one")
    assert message in refusal(home / "plain.py", tmp_path / "run", *settings)
