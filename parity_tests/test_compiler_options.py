"""What a run asks of XLA: passes with known wrong results left out, the same bits each time, refusals on one line."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.compare.gates import compare
from jaxgpt.compare.tolerances import PARITY
from jaxgpt.compare.trajectories import draw_params, run_jax
from jaxgpt.config import TrainConfig
from jaxgpt.config.steps import Plan
from jaxgpt.errors import InputError
from jaxgpt.parallel import compiler_options as options_lib
from jaxgpt.parallel.compiler_options import compiler_options, explain_option
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.training.programs import compile_programs
from jaxgpt.training.step import make_step
from parity_tests.helpers.train_runs import TEXT, losses, run, write_text
from parity_tests.small_runs import batches_of, make_config

N_STEPS = 5


def mesh_of(platform: str, size: int, fsdp: int = 1) -> Any:
    devices = np.array([SimpleNamespace(platform=platform)] * size)
    return SimpleNamespace(devices=devices, size=size, shape={"data": size // fsdp, "fsdp": fsdp, "tensor": 1})


@pytest.mark.parametrize(
    ("platform", "size", "guarded", "deterministic"),
    [
        ("cpu", 1, {"xla_cpu_experimental_ynn_fusion_type"}, set()),
        ("tpu", 1, set(), set()),
        ("tpu", 8, {"xla_disable_hlo_passes"}, set()),
        ("gpu", 1, set(), {"xla_gpu_deterministic_ops", "xla_gpu_autotune_level"}),
    ],
)
def test_options_by_platform(platform, size, guarded, deterministic):
    mesh = mesh_of(platform, size)
    assert set(compiler_options(TrainConfig(), mesh)) == guarded
    assert set(compiler_options(TrainConfig(deterministic=True), mesh)) == guarded | deterministic
    assert compiler_options(TrainConfig(guard_miscompiles=False), mesh) == {}
    split = compiler_options(TrainConfig(guard_miscompiles=False), mesh_of(platform, 8, fsdp=8))
    assert split == options_lib.SPLIT_WEIGHTS.get(platform, {}) and bool(split) == (platform != "cpu")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_guard_avoids_a_wrong_sum(dtype):
    """jax issue 39103: a product, its square and the sum of that in one kernel; the last rows are those before them."""
    n = {"float32": 32_769, "float64": 16_385}[dtype]
    with jax.enable_x64(True):
        x_N3 = jnp.zeros((n, 3), dtype).at[:, 0].set(jnp.arange(n, dtype=dtype))
        program = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3, dtype=dtype) @ row) ** 2))).lower(x_N3)
        expected = np.arange(n, dtype=dtype) ** 2
        guard = compiler_options(TrainConfig(), make_mesh(make_config("adamw", 1, dtype).mesh))
        np.testing.assert_array_equal(program.compile(compiler_options=guard)(x_N3), expected)


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        ("adamw", "float64"),
        *(pytest.param("nanochat2026", dtype, marks=pytest.mark.slow) for dtype in ("float64", "float32", "bfloat16")),
    ],
)
def test_with_and_without_the_guard_are_one_run(recipe, dtype):
    config = make_config(recipe, N_STEPS, dtype, is_small=True)
    params, batches = draw_params(config), batches_of(config, N_STEPS)
    bare = dataclasses.replace(config, train=dataclasses.replace(config.train, guard_miscompiles=False))
    ours = run_jax(config, params, batches)
    rows = compare(run_jax(bare, params, batches), ours, PARITY[dtype])
    assert len(rows) >= 8 and [row for row in rows if not row.is_inside] == []


def test_an_option_that_this_xla_lacks_is_one_line(monkeypatch):
    monkeypatch.setitem(options_lib.GUARDS, "cpu", {"xla_no_such_option": 1})
    config = make_config("adamw", N_STEPS, "float32", is_small=True)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh), pytest.raises(InputError) as caught:
        compile_programs(make_step(config, mesh), Plan(config, 1), lambda line: None)
    message = str(caught.value)
    assert message.startswith("train.guard_miscompiles=True sets xla_no_such_option, which the XLA of jaxlib ")
    assert message.endswith("or pass --train.guard_miscompiles=False") and "\n" not in message


def test_a_refused_value_names_its_setting_and_other_errors_none():
    refused = RuntimeError("INVALID_ARGUMENT: While setting option xla_gpu_deterministic_ops, '2' is not a valid bool.")
    assert str(explain_option(refused)).startswith("train.deterministic=True sets xla_gpu_deterministic_ops, which")
    assert explain_option(RuntimeError("RESOURCE_EXHAUSTED: out of memory")) is None


CONFIG = """
from jaxgpt.config import *
config = Config(
    data=DataConfig(dir={data!r}),
    model=GPT2Config(seq_len=64, n_layer=2, n_head=4, n_embd=128, dropout=0.1),
    train=TrainConfig(steps=6, batch_tokens=2048, micro_batch_size=16, dtype="float32", deterministic=True),
    eval=EvalConfig(every=3, tokens=2048),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every=3),
    mesh=MeshConfig(data=1),
)
"""


@pytest.mark.slow
def test_a_deterministic_run_resumes_to_the_bit_with_several_threads(tmp_path, monkeypatch):
    """Four threads, also where there are fewer cores. Another number may split the sums of an evaluation otherwise."""
    monkeypatch.setenv("NPROC", "4")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(data=str(write_text(tmp_path, TEXT))))
    run(config, tmp_path / "straight")
    run(config, tmp_path / "resumed", "--train.steps=3", "--optim.schedule.decay_steps=6")
    run(config, tmp_path / "resumed", "--optim.schedule.decay_steps=6", "--resume")
    assert len(losses(tmp_path / "straight")) == 6
    assert losses(tmp_path / "resumed") == losses(tmp_path / "straight")
