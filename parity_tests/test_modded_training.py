"""Whole training runs of the modded family, in small, against figures measured on the original programs."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from jaxgpt.compare.trajectories import Arrays, run_jax, run_torch, settle
from jaxgpt.config import MODDED_TRACK3, Config, DataConfig, ModdedConfig, TrainConfig, schedule
from jaxgpt.data.batch import Batch
from jaxgpt.training.checkpoint import Checkpoints
from parity_tests.helpers.modded_cases import fill_record, params_of, track3
from parity_tests.helpers.modded_layout import to_original
from parity_tests.helpers.modded_training_digests import TRAINING
from parity_tests.helpers.saved_states import restore
from parity_tests.helpers.small_records import (
    N_STEPS,
    make_config,
    open_runner,
    read_steps,
    start,
    unrounded,
    write_data,
)
from torch_ref.training.checkpoint import Checkpoints as TorchCheckpoints

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 1e-10
"""Relative: the figures' own sensitivity to a rounding is 2.4e-10 in norms after 21 steps, 8e-11 in losses."""
SAVED = {6: (False, True), 13: (True, True), 14: (False, True), 16: (False, False)}
"""Steps done at a checkpoint -> whether Adam's sums of gradients are full there, and whether embedding and head are
equal: before a change of the windows, after one, at the split, after the first update apart."""
RESUMED_TO = 20


class Trained(NamedTuple):
    """What a run leaves behind.

    Attributes:
      losses: of each step, as the original sums them.
      kept: steps done -> parameters and optimizer's state, where there are figures.
      validation: steps done -> loss.
      resumed: steps done at a checkpoint -> losses from there to `RESUMED_TO`, and what `kept` has, of begin and end.
    """

    config: Config
    losses: list[float]
    token_sums: list[int]
    kept: dict[int, tuple[Arrays, Arrays]]
    validation: dict[int, float]
    resumed: dict[int, tuple[list[float], tuple[Arrays, Arrays], tuple[Arrays, Arrays]]]


@functools.cache
def train(framework, name, directory: Path) -> Trained:
    """The run, and from each checkpoint of record 62 a part of it again."""
    config, n_steps, wanted = make_config(name, str(directory)), N_STEPS[name], TRAINING[name]
    readings, saved_steps = read_steps(config, range(n_steps)), SAVED if name == "62" else {}
    open_checkpoints = functools.partial(
        {"jax": Checkpoints, "torch": TorchCheckpoints}[framework], directory / framework
    )
    losses, kept, validation, resumed = [], {}, {}, {}
    with open_runner(framework, config, start(name, config)) as (runner, state):

        def take(state, number, batch):
            state, loss = runner.train(state, number, batch)
            return state, loss * batch.tokens[..., 1:].size / 8

        with open_checkpoints(keep=len(SAVED)) as saved:
            for n_done in range(n_steps + 1):
                if n_done in wanted.get("validation", ()):
                    validation[n_done] = runner.evaluate(state, n_done)
                if n_done in wanted["after"]:
                    kept[n_done] = runner.arrays(state)
                if n_done in saved_steps:
                    saved.save(n_done, state, {"cursors": readings[n_done - 1].cursors})
                if n_done < n_steps:
                    state, loss = take(state, n_done, readings[n_done].batch)
                    losses.append(loss)
        for n_done in saved_steps:
            with open_checkpoints(read_only=True) as saved:
                chosen, state = restore(saved, runner.step.state_shapes, n_done)
            state = state if framework == "jax" else runner.step.put_state(state)
            begin, more = runner.arrays(state), []
            again = read_steps(config, range(n_done, RESUMED_TO), chosen.about["cursors"])
            for number, reading in again.items():
                state, loss = take(state, number, reading.batch)
                more.append(loss)
            resumed[n_done] = more, begin, runner.arrays(state)
    sums = [int(reading.batch.tokens[..., :-1].sum()) for reading in readings.values()]
    return Trained(config, losses, sums, kept, validation, resumed)


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
    return {name: write_data(tmp_path_factory.mktemp(name), name) for name in N_STEPS}


SLOW = pytest.mark.slow
BOTH = pytest.mark.parametrize("framework", [pytest.param(name, marks=SLOW) for name in ("jax", "torch")])
"""Record 62 takes a minute in each framework; test_modded_digests and test_modded_optim have its parts."""


@SLOW
@pytest.mark.parametrize(("name", "framework"), [("62", "jax"), ("62", "torch"), ("46", "torch")])
def test_a_record_trains_as_the_original(name, framework, directories):
    """Rows, three stages with growing windows and YaRN, several targets, NorMuon, Adam in odd steps, the split."""
    trained, wanted = train(framework, name, directories[name]), TRAINING[name]
    assert trained.token_sums == list(wanted["token_sums"])
    np.testing.assert_allclose(trained.losses, wanted["losses"], rtol=STEPS)
    for n_done, figures in wanted["after"].items():
        tensors = to_original(cast(ModdedConfig, trained.config.model), trained.kept[n_done][0])
        if name == "62":
            decay_unread_row(trained.config, tensors["mlp_bank"], fill_record("62", 63), n_done)
        for tensor, norm in figures.items():
            if tensor != "scalars" or name != "46":  # of the empty blocks' scalars nothing is known here
                np.testing.assert_allclose(norm_of(tensors, tensor), norm, rtol=STEPS, err_msg=f"{tensor}, {n_done}")


@BOTH
def test_validation_of_record_62_at_both_ends(framework, directories):
    """With the first windows, and with wider ones than in training, for which YaRN changes nothing."""
    validation, wanted = train(framework, "62", directories["62"]).validation, TRAINING["62"]["validation"]
    np.testing.assert_allclose([validation[n] for n in (0, 21)], [wanted[n] for n in (0, 21)], rtol=STEPS)


def part_of(opt_state, name):
    """path -> leaf of one part of the optimizer's state."""
    return {path.removeprefix(f"{name}."): leaf for path, leaf in opt_state.items() if path.startswith(f"{name}.")}


def to_original_part(trained, opt_state, name):
    """A part of the state that has the parameters' shapes, in the original's layout; 0 where it has no such leaf."""
    zero = {path: np.zeros_like(leaf) for path, leaf in trained.kept[1][0].items()}
    return to_original(cast(ModdedConfig, trained.config.model), zero | part_of(opt_state, name))


@BOTH
def test_the_state_of_record_62_after_its_last_step(framework, directories):
    trained = train(framework, "62", directories["62"])
    opt_state, wanted = trained.kept[21][1], TRAINING["62"]["state"]
    assert int(opt_state["count"]) // trained.config.optim.adam.every == 10
    for name in ("mu", "nu"):
        tensors = to_original_part(trained, opt_state, name)
        for tensor, norm in wanted[name].items():
            np.testing.assert_allclose(np.linalg.norm(tensors[tensor]), norm, rtol=STEPS, err_msg=f"{name} {tensor}")
    for name in ("momentum", "square"):
        for kind, norm in wanted[name].items():
            leaves = [np.linalg.norm(leaf) for path, leaf in part_of(opt_state, name).items() if f".{kind}." in path]
            np.testing.assert_allclose(np.linalg.norm(leaves), norm, rtol=STEPS, err_msg=f"{name} {kind}")


@BOTH
def test_the_first_gradients_of_record_62(framework, directories):
    """As the first state holds them: Adam's are kept for the next step, Muon's are in the momentum.

    Of embedding and head, which are tied, it holds the sum; its parts are in the gradients of the forward pass's test.
    """
    trained, wanted = train(framework, "62", directories["62"]), TRAINING["62"]["grads"]
    opt_state = trained.kept[1][1]
    matrices = to_original_part(trained, opt_state, "momentum")
    tensors = to_original_part(trained, opt_state, "grad_sum")
    tensors |= {name: matrices[name] / (1 - 0.85) for name in ("attn_bank", "mlp_bank")}
    for tensor in wanted.keys() - {"embed.weight", "lm_head.weight"}:
        np.testing.assert_allclose(np.linalg.norm(tensors[tensor]), wanted[tensor], rtol=STEPS, err_msg=tensor)


@pytest.mark.parametrize("n_done", SAVED)
@BOTH
def test_record_62_resumes_bit_for_bit(framework, n_done, directories):
    trained = train(framework, "62", directories["62"])
    losses, (params, opt_state), end = trained.resumed[n_done]
    assert losses == trained.losses[n_done:RESUMED_TO]
    for found, wanted in zip(end, trained.kept[RESUMED_TO], strict=True):
        assert found.keys() == wanted.keys()
        assert not [path for path in wanted if found[path].tobytes() != wanted[path].tobytes()]
    has_sums = any(leaf.any() for leaf in part_of(opt_state, "grad_sum").values())
    assert (has_sums, bool((params["wte.weight"] == params["lm_head.weight"]).all())) == SAVED[n_done]


@SLOW
def test_two_rows_at_once_give_the_same_losses(directories):
    """As two devices do: four microbatches of two rows, up to the end of the first shard, after which the original
    loses a row. Of jaxgpt, on devices, this is in test_modded_devices.py."""
    whole, config = train("torch", "62", directories["62"]), make_config("62", str(directories["62"]))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch_size=2))
    with open_runner("torch", config, start("62", config)) as (runner, state):
        for number, reading in read_steps(config, range(7)).items():
            assert reading.batch.tokens.shape[:2] == (4, 2)
            assert reading.cursors["0"]["shard"] == 0
            state, loss = runner.train(state, number, reading.batch)
            np.testing.assert_allclose(
                loss * reading.batch.tokens[..., 1:].size / 8, whole.losses[number], rtol=1e-12, err_msg=str(number)
            )


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
    return config, {"jax": run_jax, "torch": run_torch}[framework](config, params_of("track3"), batches), batches


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_track_3_trains_as_the_original(framework):
    config, found, batches = run_track3(framework)
    wanted: dict[str, Any] = TRAINING["track3"]
    assert [int(batch.tokens[..., :-1].sum()) for batch in batches] == list(wanted["token_sums"])
    np.testing.assert_allclose(np.array(found.losses) * 128, wanted["losses"], rtol=1e-11)
    for n_done, params in ((1, found.first), (20, found.last)):
        tensors, figures = to_original(cast(ModdedConfig, config.model), params), wanted["after"][n_done]
        for tensor, norm in figures.items():
            np.testing.assert_allclose(np.linalg.norm(tensors[tensor]), norm, rtol=STEPS, err_msg=tensor)
