"""Whole training runs of the modded family, in small, against figures measured on the original programs."""

import contextlib
import dataclasses
import functools
from typing import Any, cast

import numpy as np
import pytest

from jaxgpt.compare.trajectories import run_jax, run_torch, settle
from jaxgpt.config import (
    MODDED_46,
    MODDED_62,
    MODDED_TRACK3,
    Config,
    DataConfig,
    EvalConfig,
    ModdedConfig,
    OptimConfig,
    TrainConfig,
    schedule,
    speedrun_stages,
)
from jaxgpt.config.steps import Plan
from jaxgpt.data.batch import Batch
from jaxgpt.data.sources import open_source
from parity_tests.helpers.modded_cases import BOS, fill_record, params_of, record, track3
from parity_tests.helpers.modded_layout import from_original, to_original
from parity_tests.helpers.modded_training_digests import TRAINING

STEPS = 1e-10
"""Relative: the figures' own sensitivity to a rounding is 2.4e-10 in norms after 21 steps, 8e-11 in losses."""
BLOCK, CAP, SCHEDULED, EXTENSION = 2, 24, 18, 3
TOKENS = (256, 512, 768)
WINDOWS = ((3, 7), (5, 11), (6, 13))


def write_shard(path, seed, n_tokens):
    """A shard of random documents, in the originals' form."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, BOS, size=n_tokens)
    is_first = rng.random(n_tokens) < 1 / 18
    is_first[0] = True
    tokens[is_first] = BOS
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, n_tokens
    path.write_bytes(header.tobytes() + tokens.astype(np.uint16).tobytes())


def write_data(directory, seed):
    for k, n_tokens in enumerate((4000, 9000, 30_000)):
        write_shard(directory / f"x_train_{k}.bin", [seed, 100 + k], n_tokens)
    write_shard(directory / "x_val_0.bin", [seed, 200], 3000)
    return str(directory)


def in_small(optim: OptimConfig, tied_steps: int) -> OptimConfig:
    """For 18 steps; the momentum only rises, over 300 steps, as in the figures."""
    muon = dataclasses.replace(optim.muon, momentum_cooldown_steps=0, momentum_end=-1.0)
    schedule = dataclasses.replace(optim.schedule, decay_steps=SCHEDULED)
    return dataclasses.replace(optim, muon=muon, schedule=schedule, tie_until=tied_steps)


def make_config(name, directory):
    """Record 62 or 46 in 18 + 3 steps of 8 rows."""
    model = dataclasses.replace(
        record(name), seq_len=TOKENS[0] // 8, block_tokens=BLOCK, short_window=BLOCK + 1, long_window=3 * BLOCK + 1
    )
    table: dict[str, Any] = {
        "lr_from": (1 / 3, 2 / 3),
        "lr_scales": (1.52, 1.73),
        "target_weights": ((1.0, 0.5), (1.0,)),
    }
    if name == "46":
        table = {"lr_from": (0.33, 0.66), "lr_scales": (1.51, 1.93)}
    stages = speedrun_stages(
        scheduled_steps=SCHEDULED, batch_tokens=TOKENS, windows=WINDOWS, block_tokens=BLOCK, **table
    )
    optim = in_small(MODDED_62, 14) if name == "62" else in_small(MODDED_46, 0)
    return Config(
        model=model, optim=optim,
        data=DataConfig(dir=directory, sampling="bos_aligned", bos_id=BOS, max_document_tokens=CAP),
        train=TrainConfig(
            steps=SCHEDULED + EXTENSION, batch_tokens=TOKENS[0], micro_batch_size=1, dtype="float64",
            loss_chunk_tokens=10**6, stages=stages,
            target_weights=(1.0, 0.5, 0.25) if name == "62" else (1.0,),
        ),
        eval=EvalConfig(seq_len=64, tokens=8 * 64, long_window=20 * BLOCK + 1),
    )  # fmt: skip


def start(name, config):
    """The figures' weights; record 62's embedding begins as its head."""
    tensors = fill_record(name, int(name) + 1)
    if name == "62":
        tensors["embed.weight"] = tensors["lm_head.weight"].T.copy()
    return from_original(config.model, tensors)


@contextlib.contextmanager
def unrounded():
    """The original rounds no length of a descent; at full size it is whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "round", float, raising=False)
        yield


RUNNERS = {"jax": run_jax, "torch": run_torch}


@functools.cache
def run_record(framework, name, directory):
    n_steps = {"62": SCHEDULED + EXTENSION, "46": 20}[name]
    config = settle(make_config(name, directory), n_steps, "float64")
    plan, reader = Plan(config, 1), open_source(config.data).reader(config)  # not by open_run: ids are not GPT-2's
    batches = [reader.read(plan.at(step), 0, 1) for step in range(n_steps)]
    with unrounded():
        found = RUNNERS[framework](config, start(name, config), batches)
    losses = [loss * batch.tokens[..., 1:].size / 8 for loss, batch in zip(found.losses, batches, strict=True)]
    sums = [int(batch.tokens[..., :-1].sum()) for batch in batches]
    return config, found, losses, sums


KINDS = {"attn_gate (all)": "attn_gate", "c_fc (all)": "c_fc", "c_proj (all)": "c_proj", "qkvo_w (all)": "qkvo_w"}


def norm_of(tensors, name):
    """Of a tensor, or of all of a kind together."""
    kind = KINDS.get(name)
    found = [tensor for full, tensor in tensors.items() if (kind in full if kind else full == name)]
    return np.linalg.norm([np.linalg.norm(tensor) for tensor in found])


def decay_unread_row(config, bank, start, n_steps):
    """Record 62's bank of MLPs has a last row that no layer reads: its gradient is 0, and it decays alone."""
    with unrounded():
        rates = [config.optim.muon.lr * schedule.lr_scale_at(config, step) for step in range(n_steps)]
    for k, factor in enumerate((2, 4)):
        row = start["mlp_bank"][11, k]
        for rate in rates:
            row = row - row * (config.optim.muon.weight_decay * rate) * (factor * rate)
        bank[11, k] = row


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return {name: write_data(tmp_path_factory.mktemp(name), int(name) + 1) for name in ("62", "46")}


@pytest.mark.parametrize(("name", "framework"), [("62", "jax"), ("62", "torch"), ("46", "torch")])
def test_a_record_trains_as_the_original(name, framework, directories):
    """Rows, three stages with growing windows and YaRN, several targets, NorMuon, Adam in odd steps, the split."""
    config, found, losses, sums = run_record(framework, name, directories[name])
    wanted = TRAINING[name]
    assert sums == list(wanted["token_sums"])
    np.testing.assert_allclose(losses, wanted["losses"], rtol=STEPS)
    for params, figures, n_steps in ((found.first, wanted["after_1"], 1), (found.last, wanted["last"], len(losses))):
        tensors = to_original(cast(ModdedConfig, config.model), params)
        if name == "62":
            decay_unread_row(config, tensors["mlp_bank"], fill_record("62", 63), n_steps)
        for tensor, norm in figures.items():
            if tensor != "scalars" or name != "46":  # of the empty blocks' scalars nothing is known here
                np.testing.assert_allclose(norm_of(tensors, tensor), norm, rtol=STEPS, err_msg=tensor)


@functools.cache
def run_track3(framework):
    """20 steps of 2 microbatches of 2 rows; a shard is left where it has no whole step and a token more."""
    config = settle(
        Config(
            model=track3(), optim=MODDED_TRACK3, data=DataConfig(sampling="sequential"),
            train=TrainConfig(
                steps=20, batch_tokens=128, micro_batch_size=2, dtype="float64", loss_chunk_tokens=10**6
            ),
        ), 20, "float64",
    )  # fmt: skip
    shards = [np.random.default_rng([36, 100 + k]).integers(0, 512, size=n) for k, n in enumerate((641, 3840))]
    stream = [shards[0][i : i + 129] for i in range(0, 4 * 128, 128)]
    stream += [shards[1][i : i + 129] for i in range(0, 16 * 128, 128)]
    batches = [
        Batch(np.stack([part[i : i + 33] for i in range(0, 128, 32)]).reshape(2, 2, 33).astype(np.int32))
        for part in stream
    ]
    return config, RUNNERS[framework](config, params_of("track3"), batches), batches


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_track_3_trains_as_the_original(framework):
    config, found, batches = run_track3(framework)
    wanted = TRAINING["track3"]
    assert [int(batch.tokens[..., :-1].sum()) for batch in batches] == list(wanted["token_sums"])
    np.testing.assert_allclose(np.array(found.losses) * 128, wanted["losses"], rtol=1e-11)
    for params, figures in ((found.first, wanted["after_1"]), (found.last, wanted["last"])):
        tensors = to_original(cast(ModdedConfig, config.model), params)
        for tensor, norm in figures.items():
            np.testing.assert_allclose(np.linalg.norm(tensors[tensor]), norm, rtol=STEPS, err_msg=tensor)
