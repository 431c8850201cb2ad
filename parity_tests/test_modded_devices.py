"""Record 62 on 1, 2, 4 and 8 simulated devices: the trainer's own rows, state and step, the same losses."""

import dataclasses

import numpy as np
import pytest

from jaxgpt.compare import tolerances
from jaxgpt.compare.trajectories import run_jax, run_torch
from jaxgpt.config import MeshConfig
from jaxgpt.models import param_shapes
from parity_tests.helpers.small_records import make_config, read_steps, write_data
from parity_tests.helpers.tiers import one_in

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = range(6)
MESHES = {
    1: MeshConfig(data=1, platform="cpu"),
    2: MeshConfig(data=1, fsdp=2, platform="cpu"),
    4: MeshConfig(data=2, fsdp=2, platform="cpu"),
    8: MeshConfig(data=2, fsdp=2, tensor=2, platform="cpu"),
}
MODELS = {
    "shallow": {
        "n_layer": 3, "window_pattern": "SL-", "paired_heads": "P--", "value_embeds": "0--", "skip_from": 0,
        "skip_to": 2, "backout_from": 1, "n_embd": 64, "bigram_rows": 640,
    },
    "whole": {"n_embd": 16, "head_dim": 4},
}  # fmt: skip
"""Every mechanism once: pairs, a long window with its key offset, a layer without attention, skip and backout. And all
of the record's layers, as narrow as its gates (12 channels) and pairs (an even number of heads) allow."""


def in_six_steps(name, directory, mesh):
    """A model of MODELS in float32; its first two steps are tied."""
    config = make_config("62", str(directory), dtype="float32", mesh=mesh)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **MODELS[name]),
        train=dataclasses.replace(config.train, steps=len(STEPS), stages=()),
        optim=dataclasses.replace(
            config.optim, tie_until=2, muon=dataclasses.replace(config.optim.muon, ns_dtype="float32")
        ),
    )


@pytest.fixture(scope="module")
def reference(name, tmp_path_factory):
    """The directory of the data, the weights, and the mirror's run in one process."""
    directory = write_data(tmp_path_factory.mktemp("62"), "62")
    config, rng = in_six_steps(name, directory, MESHES[1]), np.random.default_rng(0)
    params = {
        path: 0.2 * rng.standard_normal(leaf.shape, np.float32) for path, leaf in param_shapes(config.model).items()
    }
    params["wte.weight"] = params["lm_head.weight"].copy()
    batches = [reading.batch for reading in read_steps(config, STEPS).values()]
    return directory, params, run_torch(config, params, batches)


@pytest.mark.parametrize("n_devices", one_in(4, sorted(MESHES, reverse=True)))
@pytest.mark.parametrize("name", one_in(2, MODELS), scope="module")
def test_every_number_of_devices_gives_the_losses(name, n_devices, reference):
    """Rows of one stream, split among devices and microbatches; parameters and moments split as the trainer does."""
    directory, params, theirs = reference
    mesh = MESHES[n_devices]
    config = in_six_steps(name, directory, mesh)
    n_batch = mesh.data * mesh.fsdp
    batches = [reading.batch for reading in read_steps(config, STEPS, n_devices=n_batch).values()]
    assert batches[0].tokens.shape == (8 // n_batch, n_batch, 33)
    ours = run_jax(config, params, batches, known=theirs)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=0, atol=tolerances.FP32_LOSS)
    # Five updates by Muon in float32 leave weights, and so gradients, as far apart: 1.3e-5 on one device too.
    np.testing.assert_allclose(ours.grad_norms, theirs.grad_norms, rtol=3 * tolerances.FP32_GRAD)
    assert ours.losses[-1] < ours.losses[0] - 0.1, "nothing was learned"
