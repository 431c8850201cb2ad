"""fsdp on devices that are absent: gradients reduce-scattered, nothing large all-reduced, few gathers of a weight."""

import collections
import json
import math
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
below, each other matrix of the models is above."""
N_MICRO = 2

COMPILE = """
import dataclasses, json, sys
import jax
from jaxgpt.config import Config, GPT2Config, MeshConfig, NanochatConfig, OptimConfig, TrainConfig
from jaxgpt.config.derive import derive
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.plan.census import gathered_whole, take_census
from jaxgpt.plan.topology import open_devices, parse_topology
from jaxgpt.training.programs import lower_train
from jaxgpt.training.step import make_step
family, device, data, fsdp, n_micro = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
model = {
    "gpt2": GPT2Config(seq_len=128, n_layer=2, n_head=4, n_embd=512),
    "nanochat": NanochatConfig(era="2025", seq_len=256, depth=2, n_embd=512),
}[family]
rows = 4 * data * fsdp
config = Config(
    model=model,
    optim=OptimConfig(algorithm="muon" if family == "nanochat" else "adamw"),
    train=TrainConfig(
        steps=1, batch_tokens=n_micro * rows * model.seq_len, micro_batch_size=4, attention="xla", dtype="bfloat16"
    ),
    mesh=MeshConfig(data=data, fsdp=fsdp),
)
config = derive(config, 8192).config
mesh = make_mesh(config.mesh, open_devices(parse_topology(device)))
with jax.set_mesh(mesh):
    step = make_step(config, mesh)
    found = take_census(lower_train(step, n_micro, rows).compile().as_text(), mesh.size)
shapes = {path: leaf.shape for path, leaf in step.state_shapes.params.items()}
print(json.dumps([[dataclasses.asdict(one) for one in found], gathered_whole(found, shapes), shapes]))
"""


def needs(platform: str):
    missing = missing_plugin(platform)
    return pytest.mark.skipif(bool(missing), reason=f"compiling for it needs: {missing}")


def compile_for(family: str, device: str, data: int, fsdp: int):
    """The census of a step, parameters gathered whole in float32, and the shapes of all."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | ENVIRONMENT
    asked = [family, device, str(data), str(fsdp), str(N_MICRO)]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *asked], capture_output=True, text=True, cwd=REPO, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def count_gathers(found, shapes) -> dict[str, float]:
    """How often a microbatch gathers a weight whole, by shape and per weight of that shape."""
    n_weights = collections.Counter(tuple(sorted(shape)) for shape in shapes.values() if len(shape) == 2)
    n_gathers = collections.Counter()
    for one in found:
        for dtype, shape in one["arrays"]:
            if dtype == "bf16":
                n_gathers[tuple(sorted(size for size in shape if size > 1))] += one["count"]
    return {str(shape): n_gathers[shape] / N_MICRO / n for shape, n in n_weights.items()}


@pytest.mark.slow
@needs("tpu")
def test_fsdp_on_eight_chips_reduces_and_scatters():
    found, whole, shapes = compile_for("gpt2", "v5ex8", 1, 8)
    kinds = {one["kind"] for one in found}
    assert "reduce-scatter" in kinds and "all-gather" in kinds, kinds
    assert "collective-permute" not in kinds
    large = [one for one in found if one["kind"] == "all-reduce" and one["sent_bytes"] > LIMIT_BYTES]
    assert large == []
    assert {path: n for path, n in whole.items() if n > LIMIT_BYTES} == {}, "held whole in float32 on each device"
    assert max(count_gathers(found, shapes).values()) <= 2


@pytest.mark.slow
@needs("tpu")
def test_copies_of_a_split_model_sum_up_parts_alone():
    """No table whole in float32, only sums of parts between copies, and few exchanges for Muon's stacks."""
    data, fsdp = 4, 4
    found, whole, shapes = compile_for("nanochat", "v5e-16", data, fsdp)
    assert {path: n for path, n in whole.items() if n > LIMIT_BYTES} == {}, "held whole in float32 on each device"
    assert max(count_gathers(found, shapes).values()) <= 2
    large = [one for one in found if one["kind"] == "all-reduce" and one["sent_bytes"] > LIMIT_BYTES]
    assert {one["n_devices"] for one in large} == {data}
    part = 4 * sum(math.prod(shape) for shape in shapes.values()) / fsdp
    assert sum(one["count"] * one["sent_bytes"] for one in large) <= N_MICRO * 2 * part * (data - 1) / data
    n_stacks = len({tuple(shape) for path, shape in shapes.items() if path.startswith("h.")})
    exchanges = [one["count"] for one in found if one["kind"] == "all-to-all"]
    assert sum(exchanges) <= 3 * n_stacks + 2 * N_MICRO, "of stacks, and of rows of the table forward and backward"


@needs("gpu")
def test_gpus_gather_about_a_weight_at_a_time():
    """Of 64 cards, eight a copy. By itself XLA would join gathers of up to 30 MiB."""
    found, whole, shapes = compile_for("nanochat", "h100x64", 8, 8)
    assert {path: n for path, n in whole.items() if n > LIMIT_BYTES} == {}, "held whole in float32 on each device"
    assert max(count_gathers(found, shapes).values()) <= 2
    joined = [[2 * math.prod(shape) for _, shape in one["arrays"]] for one in found if one["kind"] == "all-gather"]
    assert all(sum(sizes) <= 8 * MIB for sizes in joined if len(sizes) > 1)
    assert "reduce-scatter" in {one["kind"] for one in found}
