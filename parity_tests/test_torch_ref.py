"""torch_ref against jaxgpt, number by number, and against itself computed in another way."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from jaxgpt.compare import tolerances
from jaxgpt.config import (
    Config,
    GPT2Config,
    MeshConfig,
    MuonConfig,
    NanochatConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from jaxgpt.data.batch import Batch
from jaxgpt.data.batches import Batches, eval_rows
from jaxgpt.data.shards import Split, inspect_shard
from jaxgpt.errors import InputError
from jaxgpt.models.loss import cross_entropy as jax_cross_entropy
from jaxgpt.optim.clip import global_norm as jax_global_norm
from jaxgpt.parallel.mesh import make_mesh as make_jax_mesh
from jaxgpt.prepare.shard_writer import write_shard
from jaxgpt.training import step as jax_step
from jaxgpt.training.validation import evaluate_split as jax_evaluate_split
from torch_ref.models import Model, attention, init_params, loss, weights
from torch_ref.optim.adamw import adamw_fused, adamw_step
from torch_ref.optim.clip import global_norm
from torch_ref.parallel.mesh import make_mesh
from torch_ref.training import step as torch_step
from torch_ref.training.validation import evaluate_split

torch.set_num_threads(1)  # two threads that wait for each other on busy cores are fifty times slower


VOCAB = 61
N_STEPS = 4
HYPER = {"lr_scale": 0.7, "momentum": 0.9, "decay_scale": 0.8}


def make_config(*, dtype="float64", algorithm: Any = "adamw", n_micro=2, dropout=0.0, **train):
    return Config(
        model=GPT2Config(seq_len=24, n_layer=2, n_head=2, n_embd=32, bias=True, dropout=dropout, vocab_size=VOCAB),
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
    return torch_step.make_step(config, make_mesh(config.mesh), **more)


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
            step = jax_step.make_step(config, mesh)
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
                state, metrics = step.train(state, Batch(batch), step.hyper(HYPER))
                self.states.append(to_arrays(state))
                self.metrics.append({name: float(value) for name, value in metrics.items()})

    @staticmethod
    def _first(config, model, params, batch):
        def loss(params):
            return jax_step.loss_sum(config, model, params, batch)[0]

        module = model.bind(params)
        logits = module.logits(module(batch[:, :-1]))
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
        logits = module.logits(module(batch[:, :-1])).numpy()
    loss_nats, n_tokens = torch_step.loss_sum(config, step.model, params, batch)
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
        state, values = step.train(state, Batch(torch.from_numpy(batch)), step.hyper(HYPER))
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
    batch, masks = torch.from_numpy(batches()[0, 0]), torch.ones(4, 24, 1)
    a, b = (s.evaluate(s.init_state(params).params, batch, masks) for s in (step, plain))
    assert a.shape == (1,) and a == b


@pytest.mark.slow  # torch.compile takes a quarter of a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own code, while it loads its compiler
def test_compiled_equals_eager(start):
    config = make_config(dtype="float32")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, n_layer=1))
    torch.compiler.reset()
    ours = torch_run(config, start(config), batches(), is_compiled=True)
    check_equal(ours, torch_run(config, start(config), batches()), "float32")


def test_the_gradient_norm_of_large_tensors_is_not_rounded_away():
    """torch's own, of the first of these alone, is 2e-5 low."""
    rng = np.random.default_rng(0)
    grads = {"wte": rng.standard_normal((8192, 256)), "bias": rng.standard_normal(256), "lambda": np.array(0.5)}
    expected = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
    as_float32 = {path: grad.astype(np.float32) for path, grad in grads.items()}
    ours = jax.jit(jax_global_norm)({path: jnp.asarray(grad) for path, grad in as_float32.items()})
    theirs = global_norm({path: torch.from_numpy(np.asarray(grad)) for path, grad in as_float32.items()})
    for norm in (float(ours), float(theirs)):
        assert abs(norm / expected - 1) < tolerances.FP32_OP


def test_fused_adamw_is_the_one_spelled_out():
    """Twenty steps in float64 of the kernel that float32 takes; then a step that is not finite changes nothing."""
    settings = {"lr": 5e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}
    rng = torch.Generator().manual_seed(0)
    params = {
        path: torch.randn(shape, generator=rng, dtype=torch.float64) for path, shape in (("w", (5, 3)), ("b", (3,)))
    }
    moments = ({path: torch.zeros_like(p) for path, p in params.items()} for _ in range(2))
    state: dict[str, Any] = dict(zip(("mu", "nu"), moments, strict=True))
    for n_taken in range(20):
        state["count"] = torch.tensor(n_taken)
        grads = {path: torch.randn(p.shape, generator=rng, dtype=p.dtype) for path, p in params.items()}
        expected = {
            path: adamw_step(
                p, grads[path], state["mu"][path], state["nu"][path], torch.tensor(n_taken + 1), **settings
            )
            for path, p in params.items()
        }
        expected = {path: (params[path] + step, mu, nu) for path, (step, mu, nu) in expected.items()}
        adamw_fused(params, grads, state, torch.tensor(True), **settings)
        for path, values in expected.items():
            for ours, other in zip((params[path], state["mu"][path], state["nu"][path]), values, strict=True):
                torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-9)
    before = {path: p.clone() for path, p in params.items()}
    adamw_fused(params, grads, state, torch.tensor(False), **settings)
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
        state, metrics = step.train(state, Batch(torch.from_numpy(batches()[1])), step.hyper(HYPER))
        assert not np.isfinite(float(metrics["loss"]))
        assert int(metrics["n_skipped"]) == int(metrics["n_skipped_in_row"]) == count
    with torch.no_grad():
        state.params["ln_f.weight"][0] = good
    after = weights.to_numpy(weights.by_path(state))
    counters = {"step": 3, "n_skipped": 2, "n_skipped_in_row": 2}
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], counters.get(path, leaf), err_msg=path)
    state, metrics = step.train(state, Batch(torch.from_numpy(batches()[1])), step.hyper(HYPER))
    assert int(metrics["n_skipped"]) == 2 and int(metrics["n_skipped_in_row"]) == 0
    assert int(state.opt_state["count"]) == 2


def test_float16_halves_its_scale_on_overflow_and_goes_on(start):
    """Faults: C78."""
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


def test_validation_counts_each_row_once(tmp_path):
    """However many rows go through at a time; padding counts neither tokens nor bytes."""
    write_shard(tmp_path / "val.bin", np.random.default_rng(2).integers(0, VOCAB, 500).astype(np.uint16))
    split = Split("val", tmp_path, (inspect_shard(tmp_path / "val.bin"),))
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
        theirs = jax_step.make_step(config, make_jax_mesh(config.mesh))
        theirs_params = {p: jnp.asarray(value) for p, value in weights.to_numpy(params).items()}
        other = jax_evaluate_split(theirs, theirs_params, source, starts, n_rows=4, token_bytes=token_bytes)
    assert other.n_tokens == 240 and other.bits_per_byte == pytest.approx(one.bits_per_byte)
    assert abs(one.loss - other.loss) < tolerances.FP64


def test_masks_of_another_shape_are_not_broadcast():
    """One per row would count each row as often as there are rows."""
    config, batch = make_config(), batches()[0, 0]
    step = make_torch_step(config)
    params = step.init_state(step.init_params(0)).params
    with jax.enable_x64(True), jax.set_mesh(make_jax_mesh(config.mesh)):
        theirs = jax_step.make_step(config, make_jax_mesh(config.mesh))
        theirs_params = {p: jnp.asarray(value) for p, value in weights.to_numpy(params).items()}
        for shape in ((4,), (4, 24), (4, 1, 1), (1, 24, 2)):
            with pytest.raises(AssertionError, match="masks"):
                step.evaluate(params, torch.from_numpy(batch), torch.ones(shape))
            with pytest.raises(AssertionError, match="masks"):
                theirs.evaluate(theirs_params, batch, np.ones(shape, np.bool_))


@pytest.mark.parametrize(
    "model",
    [
        make_config().model,
        NanochatConfig(era="2026", depth=3, head_dim=16, n_embd=32, seq_len=32, short_window=5, window_pattern="SL"),
    ],
    ids=["gpt2", "nanochat"],
)
def test_cached_decode_equals_the_whole_forward(model):
    """Rows of different lengths: prompts padded at their ends, then pieces at each row's own position."""
    model = model.complete(VOCAB)
    params = init_params(model, param_dtype=torch.float64)
    params = {path: nn.Parameter(leaf + 0.1 * torch.randn_like(leaf)) for path, leaf in params.items()}
    module = Model(model, dtype=torch.float64).bind(params)
    tokens = torch.from_numpy(batches()[0, 0])[:, :20]
    offsets, rows = torch.tensor([1, 7, 4, 7]), torch.arange(4)[:, None]
    with torch.no_grad():
        expected = module(tokens)
        padded = torch.where(torch.arange(7) < offsets[:, None], tokens[:, :7], 3)
        x_BTD, cache = module.decode(padded, module.init_cache(4, 20), torch.zeros(4, dtype=torch.int64))
        for row, n in enumerate(offsets):
            torch.testing.assert_close(x_BTD[row, :n], expected[row, :n], rtol=tolerances.FP64, atol=tolerances.FP64)
        for n in (1, 8, 1, 1):
            at = offsets[:, None] + torch.arange(n)
            x_BTD, cache = module.decode(tokens[rows, at], cache, offsets)
            torch.testing.assert_close(x_BTD, expected[rows, at], rtol=tolerances.FP64, atol=tolerances.FP64)
            offsets = offsets + n


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
