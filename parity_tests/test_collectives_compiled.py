"""fsdp on a TPU that is absent: gradients reduce-scattered, nothing large all-reduced, no chains of permutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt.plan.topology import ENVIRONMENT, missing_plugin

REPO = Path(__file__).parents[1]
MIB = 2**20
LIMIT_BYTES = MIB
"""Of one all-reduce, and of a parameter gathered in float32: norms, sums, counts and the 128 positions (0.25 MiB) are
below, each other matrix of the model is above."""

COMPILE = """
import dataclasses, json
import jax
from jaxgpt.config import Config, GPT2Config, MeshConfig, TrainConfig
from jaxgpt.config.derive import derive
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.plan.census import gathered_whole, take_census
from jaxgpt.plan.topology import open_devices, parse_topology
from jaxgpt.training.programs import lower_train
from jaxgpt.training.step import make_step
config = Config(
    model=GPT2Config(seq_len=128, n_layer=2, n_head=4, n_embd=512),
    train=TrainConfig(steps=1, batch_tokens=2 * 4 * 128 * 8, micro_batch_size=4, attention="xla"),
    mesh=MeshConfig(data=1, fsdp=8),
)
config = derive(config, 8192).config
mesh = make_mesh(config.mesh, open_devices(parse_topology("v5ex8")))
with jax.set_mesh(mesh):
    step = make_step(config, mesh)
    found = take_census(lower_train(step, 2, 32).compile().as_text(), 8)
shapes = {path: leaf.shape for path, leaf in step.state_shapes.params.items()}
print(json.dumps([[dataclasses.asdict(one) for one in found], gathered_whole(found, shapes)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_plugin("tpu")), reason=f"compiling for a TPU needs: {missing_plugin('tpu')}")
def test_fsdp_on_eight_chips_reduces_and_scatters():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | ENVIRONMENT
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, cwd=REPO, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, whole = json.loads(done.stdout)
    kinds = {one["kind"] for one in found}
    assert "reduce-scatter" in kinds and "all-gather" in kinds, kinds
    assert "collective-permute" not in kinds
    large = [one for one in found if one["kind"] == "all-reduce" and one["sent_bytes"] > LIMIT_BYTES]
    assert large == []
    assert {path: n for path, n in whole.items() if n > LIMIT_BYTES} == {}, "held whole in float32 on each device"
