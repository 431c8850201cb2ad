"""What is compiled, and when: programs without an array of all logits, all of them before step 0."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxgpt import config as config_lib
from jaxgpt import train
from jaxgpt.config import (
    NANOCHAT_2026,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    GPT2Config,
    LogConfig,
    MeshConfig,
    NanochatConfig,
    SampleConfig,
    StageConfig,
    TrainConfig,
)
from jaxgpt.config.derive import derive
from jaxgpt.config.steps import Plan
from jaxgpt.parallel.compile_cache import CACHE, MIN_COMPILE_S, remember_programs
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.plan.topology import missing_plugin
from jaxgpt.run import meter
from jaxgpt.training.programs import compile_programs, lower_evaluate, lower_train
from jaxgpt.training.step import make_step
from parity_tests.helpers.tiers import one_in
from parity_tests.helpers.train_runs import TEXT, write_text

REPO = Path(__file__).parents[1]
VOCAB = 1088
MODELS = {
    "gpt2": GPT2Config(seq_len=128, n_layer=1, n_head=2, n_embd=128),
    "nanochat": NanochatConfig(era="2026", depth=2, head_dim=64, n_embd=128, seq_len=128),
}
N_TOKENS = 8 * 128
"""Of a microbatch; more than there are columns in any weight, so that only logits can be as large as the bound."""


def make_config(family, **train_settings):
    config = Config(
        model=MODELS[family],
        train=TrainConfig(
            **{
                "steps": 1,
                "batch_tokens": 2 * N_TOKENS,
                "micro_batch_size": 8,
                "dtype": "float32",
                "loss_chunk_tokens": 64,
            }
            | train_settings,
        ),
        mesh=MeshConfig(data=1),
    )
    config = dataclasses.replace(config, optim=NANOCHAT_2026) if family == "nanochat" else config
    return derive(config, VOCAB).config


def array_sizes(program):
    """Elements of every array that a compiled program names."""
    shapes = re.findall(r"\b(?:f64|f32|bf16|f16|s32|pred)\[([\d,]+)\]", program)
    return [math.prod(map(int, shape.split(","))) for shape in set(shapes)]


def check_logits(program, chunk_tokens):
    sizes = array_sizes(program)
    assert chunk_tokens * VOCAB in sizes, "the chunk's logits were not found: the reader is blind"
    assert max(sizes) < N_TOKENS * VOCAB


def written(program, n_elements):
    """Dtypes of the floating-point arrays of so many elements that a program for a GPU writes between its kernels."""
    inside = set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", program))
    found, is_kernel = set(), False
    for line in program.splitlines():
        if begin := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            is_kernel = begin[1] in inside
        made = re.match(r"\s+(?:ROOT )?%[\w.\-]+ = (.*?) (?:fusion|custom-call|dot|reduce|convert)\(", line)
        if made and not is_kernel:
            arrays = re.findall(r"\b(f32|bf16)\[([\d,]+)\]", made[1])
            found |= {dtype for dtype, shape in arrays if math.prod(map(int, shape.split(","))) == n_elements}
    return found


@pytest.mark.parametrize("family", MODELS)
def test_no_array_of_tokens_times_vocabulary_on_this_machine(family):
    config = make_config(family)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        step = make_step(config, mesh)
        check_logits(lower_train(step, 2, 8).compile().as_text(), 64)
        check_logits(lower_evaluate(step, 8).compile().as_text(), 64)


def test_one_chunk_of_all_tokens_would_be_seen():
    config = make_config("gpt2", loss_chunk_tokens=N_TOKENS)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh), pytest.raises(AssertionError):
        check_logits(lower_train(make_step(config, mesh), 2, 8).compile().as_text(), N_TOKENS)


COMPILE_FOR_A100 = """
import json, sys
import jax
from jaxgpt import config as config_lib
from jaxgpt.training.programs import lower_train
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.training.step import make_step
from jaxgpt.plan.topology import open_devices, parse_topology
config = config_lib.from_dict(json.load(sys.stdin))
mesh = make_mesh(config.mesh, open_devices(parse_topology("a100-40gb")))
with jax.set_mesh(mesh):
    step = make_step(config, mesh)
    assert step.attention[0] == "cudnn", step.attention
    print(lower_train(step, 2, 8).compile().as_text())
"""


@pytest.mark.skipif(bool(missing_plugin("gpu")), reason=f"compiling for a GPU takes: {missing_plugin('gpu')}")
@pytest.mark.parametrize("family", one_in(2, MODELS))
def test_no_array_of_tokens_times_vocabulary_on_an_a100(family):
    from jaxgpt.plan.topology import ENVIRONMENT

    config = make_config(family, dtype="bfloat16")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | ENVIRONMENT
    done = subprocess.run(
        [sys.executable, "-c", COMPILE_FOR_A100], input=json.dumps(config_lib.to_dict(config)),
        capture_output=True, text=True, cwd=REPO, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    check_logits(done.stdout, 64)
    if family == "gpt2":
        # Of so few capped logits, nanochat's, XLA writes the wide ones; of 12,288 x 50,304 it does not.
        assert written(done.stdout, 64 * VOCAB) == {"bf16"}
        joined = re.findall(r"= bf16\[8,128,384\]\S* concatenate\(", done.stdout)
        assert len(joined) == MODELS[family].n_layer, "the gradients of q, k and v are joined once"


def test_programs_are_those_that_were_asked_for():
    """Four stages of two batches: by number, and those of one batch are one program."""
    stages = tuple(StageConfig(from_step=n, batch_tokens=N_TOKENS * (1 + n % 2)) for n in (1, 2, 3))
    config = make_config("gpt2", steps=4, batch_tokens=N_TOKENS, micro_batch_size=8, stages=stages)
    config = dataclasses.replace(config, mesh=MeshConfig(data=1))
    mesh, said = make_mesh(config.mesh), []
    with jax.set_mesh(mesh):
        programs, evaluators = compile_programs(make_step(config, mesh), Plan(config, 1), said.append)
    assert len(programs) == 4 and programs[0] is programs[2] and programs[1] is programs[3]
    for n_micro, program in zip((1, 2), programs, strict=False):
        assert f"s32[{n_micro},8,129]" in program.as_text()
    assert [line for line in said if line.startswith(f"memory for {2 * N_TOKENS:,} tokens a step: ")]
    assert sorted(line.partition(" in ")[0] for line in said if line.startswith("compiled")) == [
        "compiled the evaluation", "compiled the step (1 x 8 rows)", "compiled the step (2 x 8 rows)",
    ]  # fmt: skip
    assert len(evaluators) == 5 and len({id(step) for step in evaluators}) == 1
    assert "s32[8,129]" in evaluators[0].evaluate.as_text()


SMALL_PROGRAMS = {"jit(stage)", "jit(_threefry_seed)", "jit(convert_element_type)"}
"""For the random key and the settings of a sample."""


def test_nothing_is_compiled_after_the_first_step_and_sample(tmp_path, monkeypatch):
    """Three stages, evaluations, samples and checkpoints: each kind of program is compiled when it is first needed."""
    config = Config(
        data=DataConfig(dir=str(write_text(tmp_path, TEXT))),
        model=GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=16),
        train=TrainConfig(
            steps=16,
            batch_tokens=128,
            micro_batch_size=8,
            dtype="float32",
            stages=(StageConfig(from_step=6, batch_tokens=256), StageConfig(from_step=11, batch_tokens=512)),
        ),
        eval=EvalConfig(every=5, tokens=300),
        log=LogConfig(every=1),
        checkpoint=CheckpointConfig(every=4),
        sample=SampleConfig(every=3, max_tokens=40, prompt="g"),
        mesh=MeshConfig(data=1),
    )
    path = tmp_path / "c.py"
    path.write_text(config_lib.to_source(config))
    events = []

    def listen(event, duration_secs, **about):
        if event.endswith("backend_compile_duration"):
            events.append(about["fun_name"])

    original = meter.Meter.push
    monkeypatch.setattr(meter.Meter, "push", lambda self, n, m: (original(self, n, m), events.append(n)))
    jax.clear_caches()  # of the tests before
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert train.main([f"--config={path}", f"--run.dir={tmp_path / 'run'}"]) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    steps = [i for i, event in enumerate(events) if isinstance(event, int)]
    assert len(steps) == 16 and steps[0] > 4, "the listener hears nothing"
    after = {}
    for n, (begin, end) in enumerate(zip(steps, [*steps[1:], len(events)], strict=True), start=1):
        if end - begin > 1:
            after[n] = events[begin + 1 : end]
    assert set(after) == {3}, after  # the first sample
    decoding = {
        f"jit({name})" for name in ("make_cache", "prefill", "make_state", "put_row", "decode_step", "choose_token")
    }
    assert decoding <= set(after[3]) <= decoding | SMALL_PROGRAMS, after


def test_programs_are_remembered_where_the_user_says(monkeypatch):
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [jax.config.values[name] for name in names]
    try:
        for name, value in zip(names, ("elsewhere", 7.0), strict=True):
            monkeypatch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        remember_programs()
        assert [jax.config.values[name] for name in names] == ["elsewhere", 7.0]
        for name in names:
            monkeypatch.delenv(name.upper())
        remember_programs()
        assert [jax.config.values[name] for name in names] == [str(CACHE), MIN_COMPILE_S]
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
