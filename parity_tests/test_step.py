"""The training step: k microbatches = one batch, 8 devices = 1, skipped steps change nothing, fp16 scales."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.compare import tolerances
from jaxgpt.compare.trajectories import to_arrays
from jaxgpt.config import Config, GPT2Config, MeshConfig, OptimConfig, ScheduleConfig, TrainConfig
from jaxgpt.data.batch import Batch
from jaxgpt.errors import InputError
from jaxgpt.models.loss import cross_entropy
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.sharding import put_rows, shard_params
from jaxgpt.training.step import make_step

VOCAB = 64
N_ROWS = 16
N_STEPS = 5


def make_config(*, n_micro=1, n_devices=1, mesh=None, algorithm: Any = "adamw", dropout=0.0, **train):
    rows = N_ROWS // n_micro // n_devices
    return Config(
        model=GPT2Config(seq_len=16, n_layer=2, n_head=2, n_embd=32, bias=True, dropout=dropout, vocab_size=VOCAB),
        train=TrainConfig(
            steps=N_STEPS, batch_tokens=N_ROWS * 16, micro_batch_size=rows,
            **{"dtype": "float32", "loss_chunk_tokens": 4 * rows, **train},
        ),
        optim=OptimConfig(lr=1e-2, algorithm=algorithm, schedule=ScheduleConfig(kind="constant")),
        mesh=mesh or MeshConfig(data=1),
    )  # fmt: skip


def batches():
    rng = np.random.default_rng(0)
    return rng.integers(0, VOCAB, (N_STEPS, N_ROWS, 17)).astype(np.int32)


def run(config, n_micro=1):
    """Losses and the final state of a few steps."""
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        step = make_step(config, mesh)
        state = step.init_state(step.init_params(0))
        metrics = []
        for rows in batches():
            batch = rows.reshape(n_micro, -1, 17)
            batch = put_rows(Batch(batch), batch.shape[1], mesh, axis=1)
            hyper = step.hyper({"lr_scale": 1.0, "momentum": 0.95, "decay_scale": 1.0})
            state, values = step.train(state, batch, hyper)
            metrics.append({name: float(value) for name, value in values.items()})
    return metrics, jax.tree.map(np.asarray, state)


def check_equal(ours, theirs):
    """Loss and gradient norm at each step; every parameter and moment at the end."""
    (metrics, state), (expected_metrics, expected) = ours, theirs
    for a, b in zip(metrics, expected_metrics, strict=True):
        assert abs(a["loss"] - b["loss"]) < tolerances.FP32_LOSS, "loss"
        assert abs(a["grad_norm"] / b["grad_norm"] - 1) < tolerances.FP32_GRAD, "gradient norm"
    mine, leaves = (to_arrays((s.params, s.opt_state)) for s in (state, expected))
    assert mine.keys() == leaves.keys()
    for path, value in leaves.items():
        ours = mine[path]
        if path.endswith("c_attn.bias"):
            # The true gradient of the key bias is zero; Adam turns its rounding into steps.
            ours, value = (np.delete(array, np.s_[32:64]) for array in (ours, value))
        limit = tolerances.FP32_PARAMS * (2 if path.startswith("1.nu.") else 1)  # of squares
        assert np.linalg.norm(ours - value) / np.linalg.norm(value) < limit, path


@pytest.fixture(scope="module", params=["adamw", "muon"])
def algorithm(request):
    return request.param


@pytest.fixture(scope="module")
def plain(algorithm):
    return run(make_config(algorithm=algorithm))


@pytest.mark.parametrize("n_micro", [2, 4])
def test_microbatches_equal_one_batch(algorithm, plain, n_micro):
    check_equal(run(make_config(n_micro=n_micro, algorithm=algorithm), n_micro), plain)


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor"),
    [(1, 8, 1), (2, 2, 2), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((8, 1, 1), (4, 1, 2)))],
    ids=str,
)
def test_eight_devices_equal_one(algorithm, plain, data, fsdp, tensor):
    mesh = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    check_equal(run(make_config(n_devices=data * fsdp, mesh=mesh, algorithm=algorithm)), plain)


def test_dropout_does_not_depend_on_the_mesh():
    one = run(make_config(dropout=0.2))
    check_equal(run(make_config(dropout=0.2, n_devices=8, mesh=MeshConfig(data=4, fsdp=2))), one)
    assert abs(one[0][0]["loss"] - run(make_config())[0][0]["loss"]) > 1e-4


def test_fsdp_splits_parameters_and_moments():
    config = make_config(n_devices=8, mesh=MeshConfig(data=1, fsdp=8))
    mesh = make_mesh(config.mesh)
    step = make_step(config, mesh)
    for tree in (step.state_shapes.params, step.state_shapes.opt_state["mu"]):
        for path, leaf in tree.items():
            if leaf.ndim == 2:
                assert np.prod(leaf.sharding.shard_shape(leaf.shape)) * 8 == np.prod(leaf.shape), path


def patch_loss(monkeypatch, change):
    """change(summed loss, count) -> the two that the step sees, of a loss that skips another number in each row."""

    def masked(x, weight, targets, _mask=None, **settings):
        return change(*cross_entropy(x, weight, targets, targets > VOCAB // 4, **settings))

    monkeypatch.setattr("jaxgpt.training.step.cross_entropy", masked)


def test_masked_microbatches_equal_one_batch_and_a_mean_of_means_would_not(monkeypatch):
    patch_loss(monkeypatch, lambda nats, count: (nats, count))
    one, four = run(make_config()), run(make_config(n_micro=4), 4)
    check_equal(four, one)
    patch_loss(monkeypatch, lambda nats, count: (nats / count, jnp.ones_like(count)))
    with pytest.raises(AssertionError, match="loss"):
        check_equal(run(make_config(n_micro=4), 4), one)


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_a_non_finite_step_changes_nothing_but_counters(algorithm):
    config = make_config(algorithm=algorithm)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        step = make_step(config, mesh)
        params = step.init_params(0)
        params["ln_f.weight"] = params["ln_f.weight"].at[0].set(jnp.inf)
        state = step.init_state(params)
        before = jax.tree.map(np.asarray, state)
        hyper = step.hyper({"lr_scale": 1.0, "momentum": 0.95, "decay_scale": 1.0})
        for count in (1, 2):
            state, metrics = step.train(state, Batch(batches()[:1]), hyper)
            assert not np.isfinite(float(metrics["loss"]))
            assert int(metrics["n_skipped_in_row"]) == int(metrics["n_skipped"]) == count
    after = jax.tree.map(np.asarray, state)
    assert after.step == 2
    for old, new in zip(*(jax.tree.leaves((s.params, s.opt_state)) for s in (before, after)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_float16_halves_its_scale_on_overflow_and_goes_on():
    """Faults: C78."""
    config = make_config(dtype="float16")
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        step = make_step(config, mesh)
        state = step.init_state(step.init_params(0))
        state = state._replace(loss_scale=state.loss_scale._replace(scale=jnp.float32(2.0**40)))
        hyper = step.hyper({"lr_scale": 1.0, "momentum": 0.95, "decay_scale": 1.0})
        before = jax.tree.map(np.asarray, state.params)
        state, metrics = step.train(state, Batch(batches()[:1]), hyper)
        assert float(state.loss_scale.scale) == 2.0**39
        assert int(metrics["n_skipped"]) == 1 and int(metrics["n_skipped_in_row"]) == 0
        for path, value in before.items():
            np.testing.assert_array_equal(value, state.params[path])
        state = state._replace(loss_scale=state.loss_scale._replace(scale=jnp.float32(2.0**16)))
        state, metrics = step.train(state, Batch(batches()[:1]), hyper)
        assert int(metrics["n_skipped"]) == 1
        assert any((before[path] != np.asarray(state.params[path])).any() for path in before)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 3e-2)])
def test_half_precision_follows_float32(dtype, tolerance):
    metrics, state = run(make_config(dtype=dtype))
    expected, _ = run(make_config())
    for a, b in zip(metrics, expected, strict=True):
        assert abs(a["loss"] - b["loss"]) < tolerance
    assert all(value.dtype == np.float32 for value in jax.tree.leaves((state.params, state.opt_state["mu"])))


def test_nothing_recompiles():
    config = make_config()
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        step = make_step(config, mesh)
        state = step.init_state(step.init_params(0))
        for i, rows in enumerate(batches()):
            hyper = step.hyper({"lr_scale": 1.0 / (i + 1), "momentum": 0.9, "decay_scale": 1.0})
            state, _ = step.train(state, Batch(rows[None]), hyper)
    assert step.train._cache_size() == 1


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(data=16), r"mesh.data=16 x mesh.fsdp=1 x mesh.tensor=1 = 16 devices, but there are 8"),
        (MeshConfig(fsdp=3), r"= 6 devices of the 8 available; choose axes that multiply to 8"),
        (MeshConfig(platform="tpu"), "mesh.platform=tpu is not available"),
    ],
)
def test_devices_that_are_not_there(mesh, message):
    with pytest.raises(InputError, match=message):
        make_mesh(mesh)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What `make_mesh` asks of a TPU chip."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0


def test_slices_hold_whole_copies():
    chips: list[Any] = [Chip(number, number // 8) for number in range(16)]
    with pytest.raises(InputError, match=r"mesh.data=1 is no .* 2 TPU slices, .*; --mesh.data=2 --mesh.fsdp=8 is"):
        make_mesh(MeshConfig(fsdp=16), chips)
    mesh = make_mesh(MeshConfig(fsdp=4), chips)
    assert [{chip.slice_index for chip in copy.flat} for copy in mesh.devices] == [{0}, {0}, {1}, {1}]
    assert make_mesh(MeshConfig(fsdp=8), chips[:8]).shape["fsdp"] == 8


def test_sharding_errors_name_the_path():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with pytest.raises(InputError, match=r"tensor=2 x mesh.fsdp=2 does not divide h.0.mlp.c_proj.weight's axis of 6"):
        shard_params({"h.0.mlp.c_proj.weight": (6, 32)}, GPT2Config(), mesh)
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    with pytest.raises(InputError, match=r"mesh.tensor=8 does not divide wte.weight's axis of 65; choose a divisor"):
        shard_params({"wte.weight": (65, 32)}, GPT2Config(), mesh)
    with pytest.raises(KeyError, match=r"no sharding rule matches the parameter h\.0\.gate"):
        shard_params({"h.0.gate": (65, 32)}, GPT2Config(), mesh)
    with pytest.raises(KeyError, match="sharding rules that match no parameter"):
        shard_params({"wte.weight": (64, 32)}, GPT2Config(), mesh)


def test_stages_share_one_state():
    """A later batch size is another compiled step on the same state."""
    config = make_config()
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        step = make_step(dataclasses.replace(config), mesh)
        state = step.init_state(step.init_params(0))
        hyper = step.hyper({"lr_scale": 1.0, "momentum": 0.95, "decay_scale": 1.0})
        state, _ = step.train(state, Batch(batches()[:1]), hyper)
        state, metrics = step.train(state, Batch(batches()[:2]), hyper)
    assert int(state.step) == 2 and np.isfinite(float(metrics["loss"]))
