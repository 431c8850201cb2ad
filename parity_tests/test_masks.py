"""A masked token contributes nothing: from the reader through feed, sharding and step, in both frameworks."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from jaxgpt.compare import tolerances
from jaxgpt.compare.trajectories import to_arrays
from jaxgpt.config import (
    Config,
    DataConfig,
    GPT2Config,
    MeshConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from jaxgpt.config.steps import Plan
from jaxgpt.data.batch import Batch
from jaxgpt.parallel.mesh import count_batch_devices, make_mesh
from jaxgpt.run.opening import open_run
from jaxgpt.training.feed import make_feed
from jaxgpt.training.step import make_step
from parity_tests.helpers.train_runs import TEXT, write_text
from torch_ref.models import weights
from torch_ref.parallel.mesh import make_mesh as make_torch_mesh
from torch_ref.training import feed as torch_feed
from torch_ref.training import step as torch_step

N_STEPS, SEQ_LEN, N_ROWS = 3, 16, 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = Config(
        run=RunConfig(dir="run"),
        data=DataConfig(dir=str(write_text(tmp_path_factory.mktemp("masks"), TEXT))),
        model=GPT2Config(seq_len=SEQ_LEN, n_layer=1, n_head=2, n_embd=16),
        train=TrainConfig(steps=N_STEPS, batch_tokens=N_ROWS * SEQ_LEN, micro_batch_size=N_ROWS // 2, dtype="float64"),
        optim=OptimConfig(lr=1e-2, schedule=ScheduleConfig(kind="constant")),
        mesh=MeshConfig(data=1, platform="cpu"),
    )
    return open_run(config)


class Masking:
    """A reader whose batches have a mask: the real rows, and which of their targets count."""

    def __init__(self, reader, choose, change=lambda tokens, mask: tokens):
        self._reader, self._choose, self._change = reader, choose, change

    def read(self, planned, lo, hi):
        tokens = self._reader.read(planned, lo, hi).tokens
        mask = self._choose(tokens)
        return Batch(self._change(tokens, mask), mask)

    def cursors(self):
        return self._reader.cursors()

    def summary(self):
        return self._reader.summary()

    def close(self):
        self._reader.close()


def without_vowels(tokens):
    return (tokens[..., 1:] % 5 != 0).astype(np.int32)


def train_jax(run, choose, change=lambda tokens, mask: tokens, mesh=None, n_devices=1):
    """Losses, and parameters and moments after the last step."""
    config = run.config if mesh is None else dataclasses.replace(
        run.config, mesh=mesh, train=dataclasses.replace(run.config.train, micro_batch_size=N_ROWS // 2 // n_devices)
    )  # fmt: skip
    mesh = make_mesh(config.mesh)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        step, losses = make_step(config, mesh), []
        state = step.init_state(step.init_params(0))
        plan = Plan(config, count_batch_devices(mesh))
        for planned, batch, _ in make_feed(plan, Masking(run.source.reader(config), choose, change), mesh):
            assert batch.mask.sharding.is_equivalent_to(batch.tokens.sharding, 3)
            state, metrics = step.train(state, batch, step.hyper(planned.hyper))
            losses.append(float(metrics["loss"]))
        return losses, to_arrays({"params": state.params, "opt_state": state.opt_state})


def train_torch(run, choose):
    mesh = make_torch_mesh(run.config.mesh)
    step, losses = torch_step.make_step(run.config, mesh), []
    with jax.enable_x64(True), jax.set_mesh(make_mesh(run.config.mesh)):
        fresh = make_step(run.config, make_mesh(run.config.mesh)).init_params(0)
        state = step.init_state(weights.to_torch({path: np.asarray(leaf) for path, leaf in fresh.items()}))
    reader = Masking(run.source.reader(run.config), choose)
    for planned, batch, _ in torch_feed.make_feed(Plan(run.config, 1), reader, mesh):
        assert isinstance(batch.mask, torch.Tensor)
        state, metrics = step.train(state, batch, step.hyper(planned.hyper))
        losses.append(float(metrics["loss"]))
    return losses, weights.to_numpy(weights.by_path({"params": state.params, "opt_state": state.opt_state}))


def check_equal(ours, theirs, tolerance):
    assert np.abs(np.subtract(ours[0], theirs[0])).max() < tolerance
    assert ours[1].keys() == theirs[1].keys()
    for path, value in theirs[1].items():
        assert np.linalg.norm(ours[1][path] - value) <= tolerance * max(np.linalg.norm(value), 1e-30), path


@pytest.fixture(scope="module")
def masked(run):
    return train_jax(run, without_vowels)


def test_both_frameworks_agree_under_a_mask(run, masked):
    check_equal(masked, train_torch(run, without_vowels), tolerances.FP64)


def test_the_mask_counts(run, masked):
    everything = train_jax(run, lambda tokens: np.ones_like(tokens[..., 1:]))
    assert min(abs(a - b) for a, b in zip(masked[0], everything[0], strict=True)) > 1e-4


def test_a_masked_target_may_be_anything(run, masked):
    """The last target of a row is no input: where it is masked, another id changes nothing, to the last bit."""

    def change(tokens, mask):
        tokens = tokens.copy()
        tokens[..., -1] = np.where(mask[..., -1] == 0, (tokens[..., -1] + 3) % 7, tokens[..., -1])
        return tokens

    changed = train_jax(run, without_vowels, change)
    assert changed[0] == masked[0]
    assert all(np.array_equal(changed[1][path], value) for path, value in masked[1].items())


@pytest.mark.parametrize(("data", "fsdp"), [(4, 1), (2, 2)])
def test_devices_whose_rows_count_differently_equal_one(run, masked, data, fsdp):
    mesh = MeshConfig(data=data, fsdp=fsdp, platform="cpu")
    check_equal(train_jax(run, without_vowels, mesh=mesh, n_devices=4), masked, tolerances.FP64)


def test_where_nothing_counts_the_loss_is_0_and_no_gradient_is_nan(run):
    losses, leaves = train_jax(run, lambda tokens: np.zeros_like(tokens[..., 1:]))
    assert losses == [0.0] * N_STEPS
    assert all(np.isfinite(leaf).all() for leaf in leaves.values())
    assert not any(leaf.any() for path, leaf in leaves.items() if path.startswith("opt_state.mu"))


def test_microbatches_count_differently(run):
    """Else the comparisons above could not tell a mean of means from the mean over tokens."""
    reader, plan = run.source.reader(run.config), Plan(run.config, 1)
    counts = [without_vowels(reader.read(plan.at(i), 0, plan.at(i).n_rows).tokens).sum((1, 2)) for i in range(N_STEPS)]
    assert all(a != b for a, b in counts)
