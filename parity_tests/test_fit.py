"""Searches and bounds, against brute force and arithmetic by hand; no compiler."""

import dataclasses
import math

import jax
import pytest

from jaxgpt.config import Config, GPT2Config, NanochatConfig, StageConfig, TrainConfig
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.errors import InputError
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.plan.estimate import estimate_run
from jaxgpt.plan.fit import fit_depth, fit_micro_batch, largest_true, row_choices
from jaxgpt.plan.forecast import look, place
from jaxgpt.plan.roofline import bound_step, reached_links, transfer_s
from jaxgpt.plan.topology import parse_topology
from jaxgpt.training.step import make_step

SMALL = Config(
    model=GPT2Config(seq_len=256, n_layer=2, n_head=4, n_embd=128, vocab_size=512),
    train=TrainConfig(steps=100, batch_tokens=256 * 96, micro_batch_size=12),
)


@pytest.mark.parametrize("point", range(8))
@pytest.mark.parametrize("guess", [None, 1, 30, 100])
def test_largest_true_is_what_looking_at_all_finds(point, guess):
    candidates = [1, 2, 3, 8, 24, 48, 96]
    probed = []

    def is_good(value):
        probed.append(value)
        return value in candidates[:point]

    assert largest_true(candidates, is_good, guess) == (candidates[point - 1] if point else None)
    assert len(probed) == len(set(probed)) <= 6


def test_rows_divide_every_stage():
    train = dataclasses.replace(SMALL.train, stages=(StageConfig(from_step=10, batch_tokens=256 * 36),))
    config = dataclasses.replace(SMALL, train=train)
    assert row_choices(config, parse_topology("h100")) == [1, 2, 3, 4, 6, 12]
    assert row_choices(config, parse_topology("h100x4")) == [1, 3]
    with pytest.raises(InputError, match=r"train.batch_tokens=24576 is not a multiple .* 64 devices"):
        row_choices(SMALL, parse_topology("h100x64"))


def test_fit_takes_the_cheapest_remat_that_fits_and_keeps_the_batch():
    """A look that admits so many rows for each policy; the search must find its edge."""
    topology = parse_topology("h100")
    allowed = {"none": 0, "dots": 24, "block": 96}
    asked = []

    def ask(config):
        asked.append((config.train.micro_batch_size, config.train.remat))
        forecast = look(config, topology, None)
        is_good = config.train.micro_batch_size <= allowed[config.train.remat]
        return dataclasses.replace(forecast, usable_bytes=2**60 if is_good else 0)

    found = fit_micro_batch(SMALL, topology, ask, lambda config: look(config, topology, None))
    assert found.overrides == {"train.micro_batch_size": "24", "train.remat": "dots"} and found.n_micro == [4]
    assert all(remat != "block" for _, remat in asked)
    with pytest.raises(InputError, match=r"even with train.micro_batch_size=1 and train.remat=block"):
        fit_micro_batch(SMALL, topology, lambda config: dataclasses.replace(ask(config), usable_bytes=0), ask)


def test_fit_finds_the_rows_of_each_stage():
    """Rows of 256 tokens, then of 64 and of 256 again: as many tokens at a time, in the last stage of each kind."""
    train = dataclasses.replace(
        SMALL.train,
        stages=(
            StageConfig(from_step=10, batch_tokens=64 * 96, seq_len=64),
            StageConfig(from_step=20, batch_tokens=64 * 96, lr_scale=0.5, micro_batch_size=3),
            StageConfig(from_step=30, seq_len=256),
        ),
    )
    topology = parse_topology("h100")

    def ask(config):
        assert not config.train.stages
        is_good = config.train.micro_batch_size * config.model.seq_len <= 2048
        return dataclasses.replace(look(config, topology, None), usable_bytes=2**60 if is_good else 0)

    found = fit_micro_batch(dataclasses.replace(SMALL, train=train), topology, ask, lambda c: look(c, topology, None))
    rows = {
        "train.micro_batch_size": "8",
        "train.stages.0.micro_batch_size": "32",
        "train.stages.1.micro_batch_size": "0",  # its own 3 would stay
        "train.stages.2.micro_batch_size": "8",
    }
    assert found.overrides == rows | {"train.remat": "none"}
    assert found.n_micro == [12, 3, 3, 12]


def test_max_depth_is_the_last_that_fits():
    topology = parse_topology("rtx4090")
    config = Config(
        model=NanochatConfig(era="2025", seq_len=1024, vocab_size=65_536),
        train=TrainConfig(steps=10, batch_tokens=4096, micro_batch_size=1),
    )

    def ask(candidate):
        forecast = look(candidate, topology, None)
        return dataclasses.replace(forecast, usable_bytes=2**60 if candidate.model.depth <= 22 else 0)

    found = fit_depth(config, topology, ask, lambda candidate: look(candidate, topology, None))
    assert found.overrides == {"model.depth": "22"}
    with pytest.raises(InputError, match=r"model.family=gpt2 has none"):
        fit_depth(SMALL, topology, ask, ask)


@pytest.mark.parametrize("algorithm", ["adamw", "muon", "normuon"])
@pytest.mark.parametrize("overrides", [{}, {"mesh.fsdp": "4"}, {"mesh.data": "2", "mesh.tensor": "2"}])
def test_estimated_state_is_that_of_the_real_step(algorithm, overrides):
    """The estimate counts shapes; `make_step` lays the real state out on simulated devices."""
    second_moment = {"optim.muon.norm_beta2": "0.9"} if algorithm == "normuon" else {}
    config = apply_overrides(SMALL, {"optim.algorithm": algorithm.removeprefix("nor"), **second_moment, **overrides})
    count = config.mesh.fsdp * config.mesh.tensor * max(config.mesh.data, 1)
    config = place(config, parse_topology(f"h100x{count}"))
    guessed = estimate_run(config, "gpu")
    mesh = make_mesh(config.mesh, jax.devices()[:count])
    with jax.set_mesh(mesh):
        state = make_step(config, mesh).state_shapes

    def device_bytes(tree):
        leaves = jax.tree.leaves(tree)
        return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)

    assert guessed.params_bytes == device_bytes(state.params)
    assert guessed.opt_state_bytes == device_bytes(state.opt_state)


def test_bounds_by_hand():
    topology = parse_topology("h100x16")
    config = place(apply_overrides(SMALL, {"train.batch_tokens": str(256 * 12 * 16)}), topology)
    rows = (("all-reduce", 16, 3, 15e9), ("all-gather", 8, 1, 9e9))
    bound = bound_step(
        config, topology, attention="cudnn", state_bytes=(10**9, 2 * 10**9), kept_bytes=1e9, collectives=rows
    )
    n_blocks, n_embd, n_tokens = 12 * 2 * 128**2 + 5 * 128, 128, 256 * 12 * 16
    flops = (6 * (n_blocks + 512 * 128) + 12 * 2 * n_embd * 256 / 2) * n_tokens
    assert bound.compute_s == pytest.approx(flops / (16 * 989e12), rel=1e-6)
    weights = 2 * 2 * (n_blocks + 512 * 128)
    assert bound.memory_s == pytest.approx((weights + 2e9 + 2e9 + 3e9 + 4e9) / 3350e9, rel=1e-6)
    across = 15e9 * 16 / 15 / 2 / 8 / 50e9  # half of the array must leave its host, by eight network cards
    assert bound.collectives_s == pytest.approx(max(15e9 / 450e9, across) + 9e9 / 450e9)
    assert bound.limit == "collectives" and bound.step_s == bound.collectives_s


@pytest.mark.parametrize(
    ("name", "size", "part"),
    [("v5e-256", 16, 1 / 2), ("v5e-256", 32, 1), ("v5e-256", 256, 1), ("v5ex8", 4, 1 / 2), ("v5ex8", 8, 1),
     ("v5p:2x4x4", 4, 1 / 3), ("v5p:2x4x4", 16, 2 / 3), ("v5p:2x4x4", 32, 1), ("v6e", 1, 1), ("h100x8", 2, 1)],
)  # fmt: skip
def test_a_group_on_a_torus_uses_the_links_along_its_axes(name, size, part):
    topology = parse_topology(name)
    assert reached_links(size, topology) == pytest.approx(part)
    seconds = transfer_s(("all-gather", size, 1, 9e9), SMALL, topology)
    assert seconds == pytest.approx(9e9 / (topology.device.link_bytes_s * part))


def test_rematerialised_blocks_cost_a_forward_pass():
    topology = parse_topology("h100")
    none, block = (look(apply_overrides(SMALL, {"train.remat": remat}), topology, None) for remat in ("none", "block"))
    head = 6 * 512 * 128
    causal = none.step_flops / (256 * 96)
    assert block.step_flops / (256 * 96) == pytest.approx(head + (causal - head) * 4 / 3)
    assert block.footprint.activations_bytes < none.footprint.activations_bytes


def test_a_mesh_must_multiply_to_the_devices():
    with pytest.raises(InputError, match=r"mesh.data=2 x mesh.fsdp=1 x mesh.tensor=3 = 6 devices, but --device=h100x8"):
        place(apply_overrides(SMALL, {"mesh.tensor": "3"}), parse_topology("h100x8"))
    with pytest.raises(InputError, match=r"mesh.fsdp=8 does not divide .* axis of 132"):
        wide = apply_overrides(SMALL, {"model.n_embd": "132", "mesh.fsdp": "8"})
        look(wide, parse_topology("h100x8"), None)
