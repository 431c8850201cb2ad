"""The bench: turns are taken in turn, figures are what they say, the step is the training loop's, traces add up."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import train
from jaxgpt.bench import __main__ as bench
from jaxgpt.bench import record as benchmarks
from jaxgpt.bench import workload
from jaxgpt.bench.interleave import N_SETTLING_STEPS, Program, interleave, time_steps
from jaxgpt.bench.profile import find_costliest, newest_trace, own_times, read_instructions, record
from jaxgpt.config import flops, load
from jaxgpt.config.derive import derive
from jaxgpt.config.families import GPT2Config
from jaxgpt.errors import Failure, InputError
from parity_tests.helpers.clock import Clock
from parity_tests.helpers.environment import REPO, environment
from parity_tests.helpers.tiers import one_in
from parity_tests.helpers.train_runs import TEXT, records, write_text

CONFIG = """
from jaxgpt.config import *
config = Config(
    data=DataConfig(dir={data!r}),
    model=GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=16),
    train=TrainConfig(steps=12, batch_tokens=256, micro_batch_size=8, dtype="float32"),
    optim=OptimConfig(lr=1e-2, schedule=ScheduleConfig(warmup_steps=3)),
    log=LogConfig(every=1),
    mesh=MeshConfig(data=1),
)
"""
STEP_S = 0.02


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    data = write_text(tmp_path_factory.mktemp("data"), TEXT)
    path = data.parent / "tiny.py"
    path.write_text(CONFIG.format(data=str(data)))
    return path


# Turns


class Sleeping:
    """A step of STEP_S, on a device that works while the host goes on, or on the host."""

    def __init__(self, clock, *, is_asynchronous):
        self.about, self.clock = {}, clock
        self.is_asynchronous, self.is_done_at, self.n = is_asynchronous, 0.0, 0

    def dispatch(self):
        self.n += 1
        if not self.is_asynchronous:
            return self.clock.sleep(STEP_S)
        self.is_done_at = max(self.clock.now_s, self.is_done_at) + STEP_S
        return self.is_done_at

    def settle(self, pending):
        if pending is not None:
            self.clock.sleep(max(0.0, pending - self.clock.now_s))

    def peak_bytes(self):
        return 1

    def trace(self, directory, n_steps):
        return []


@pytest.mark.parametrize("is_asynchronous", [True, False])
def test_every_step_has_its_own_time(is_asynchronous, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("jaxgpt.bench.interleave.time", clock)
    work = Sleeping(clock, is_asynchronous=is_asynchronous)
    times = time_steps(work, 8)
    assert len(times["step_s"]) == len(times["host_s"]) == 8
    assert work.n == 8 + N_SETTLING_STEPS + 1
    assert times["step_s"] == pytest.approx([STEP_S] * 8)
    assert times["host_s"] == pytest.approx([0.0 if is_asynchronous else STEP_S] * 8)


WORKER = """
import sys
from jaxgpt.bench.interleave import serve
name, path = sys.argv[1:]
class Work:
    about = {"device": name}
    def dispatch(self):
        print("this goes to stderr")
        with open(path, "a") as file:
            file.write(name)
    def settle(self, pending): pass
    def peak_bytes(self): return 7
    def trace(self, directory, n_steps): return [{"name": directory, "count": n_steps}]
sys.exit(serve(Work))
"""


def start(name, *more, script=WORKER):
    return Program(name, [sys.executable, "-c", script, name, *map(str, more)])


def test_programs_interleave(tmp_path):
    path = tmp_path / "log"
    with start("a", path) as a, start("b", path) as b:
        for program in (a, b):
            program.wait()
        assert a.about["device"] == "a" and a.about["start_s"] > 0
        told = []
        turns = interleave([a, b], 3, 2, told.append)
        assert a.trace("here", 5) == [{"name": "here", "count": 5}]
    per_turn = 2 + N_SETTLING_STEPS + 1
    assert path.read_text() == ("a" * per_turn + "b" * per_turn) * 3
    assert told == [1, 2, 3]
    assert {name: [len(turn["step_s"]) for turn in of] for name, of in turns.items()} == {"a": [2] * 3, "b": [2] * 3}
    assert turns["a"][0]["peak_bytes"] == 7


@pytest.mark.parametrize(("code", "kind"), [(2, InputError), (1, Failure), (-9, Failure)])
def test_a_program_that_dies_says_why(code, kind):
    end = "import os; os.kill(os.getpid(), 9)" if code == -9 else f"sys.exit({code})"
    script = f"import sys; print('error: no data here', file=sys.stderr); sys.stderr.flush(); {end}"
    with start("x", script=script) as program, pytest.raises(kind, match=f"x ended with code {code}: no data here"):
        program.wait()


# Figures


def turns_of(*rounds):
    return [{"step_s": list(times), "host_s": [0.001] * len(times), "peak_bytes": 5} for times in rounds]


ABOUT = {"device": "NVIDIA A100-SXM4-40GB", "n_devices": 2, "compile_s": 1.0, "start_s": 2.0, "attention": "xla"}


def test_figures_of_a_step(config):
    base = derive(load(config), 100).config
    figures = benchmarks.summarise(base, "step", ABOUT, turns_of((0.1, 0.2), (0.2, 0.4)))
    assert figures["step_s"] == pytest.approx(0.2) and figures["step_s_min"] == 0.1
    assert figures["by_round_s"] == pytest.approx([0.15, 0.3])
    assert figures["tokens_per_s"] == pytest.approx(256 / 0.2)
    model = GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=16, vocab_size=100)
    for name, is_causal in (("full", False), ("causal", True)):
        flops_per_s = 1280 * flops.flops_per_token(model, causal=is_causal)
        assert figures[f"flops_per_s_{name}"] == pytest.approx(flops_per_s)
        assert figures[f"mfu_{name}"] == pytest.approx(flops_per_s / (2 * 19.5e12)), "float32 on two A100s"
    assert figures["mfu_causal"] < figures["mfu_full"]


def test_a_ratio_is_ours_over_the_best_of_torch_ref():
    seconds = {"jaxgpt": (3.0, 4.0, 9.0), "torch_ref eager": (2.0, 4.0, 9.0), "torch_ref compiled": (6.0, 5.0, 4.5)}
    seconds["plain torch"] = (1.0, 1.0, 1.0)
    figures = {name: {"step_s": float(np.median(s)), "by_round_s": list(s)} for name, s in seconds.items()}
    found = benchmarks.compare(figures)
    assert found["ratio"] == pytest.approx(4.0 / 4.0) and found["best_of_torch"] == "torch_ref eager"
    assert found["ratios"]["torch_ref eager"] == {"by_round": [1.5, 1.0, 1.0], "median": 1.0}
    assert found["ratios"]["torch_ref compiled"]["by_round"] == [0.5, 0.8, 2.0]
    assert benchmarks.compare({"jaxgpt": figures["jaxgpt"]}) == {"ratio": None, "best_of_torch": None, "ratios": {}}


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.345, "2.35 s"), (0.0384, "38.4 ms"), (0.95e-3, "950 us"), (5e-8, "50 ns"), (123, "123 s")]
)
def test_times_are_told_with_three_digits(seconds, text):
    assert benchmarks.time_text(seconds) == text


def record_of(config, part, label="", date="2026-01-01T00:00+00:00", **more):
    figures = benchmarks.summarise(derive(load(config), 100).config, part, ABOUT, turns_of((0.1, 0.2), (0.2, 0.4)))
    return {
        "config": str(config), "part": part, "label": label, "command": f"run {part} {label}", "date": date,
        "machine": {"processor": "P", "cores": "2", "memory": "4 GiB", "system": "S", "load before": "0.1"},
        "versions": {"jax": "9.9"}, "programs": {"jaxgpt": figures}, **more,
    }  # fmt: skip


def test_the_page_is_made_of_all_records(config, tmp_path):
    page = tmp_path / "benchmarks.md"
    operations = {"jaxgpt": [{"name": "dot", "self_s": 0.01, "share": 0.5, "count": 4}]}
    benchmarks.write_page(page, record_of(config, "step", "old"))
    benchmarks.write_page(page, record_of(config, "attention"))
    benchmarks.write_page(page, record_of(config, "step", "old", date="2026-02-02T00:00+00:00", operations=operations))
    text = page.read_text()
    assert sorted(path.name for path in (tmp_path / "benchmarks").iterdir()) == [
        "tiny-attention.json",
        "tiny-step-old.json",
    ]
    assert text.index("tiny, one training step: old") < text.index("tiny, attention")
    for shown in ("run step old", "2026-02-02", "jax 9.9", "P, 2 cores", "| 50.0% | 10.0 ms | 4 | dot |", "200 ms"):
        assert shown in text, shown
    assert "2026-01-01" in text and text.count("## ") == 2


# What is timed


def test_the_step_is_the_training_loops(config, tmp_path):
    """Two routes: `jaxgpt.train` and the bench's workload, the same losses to the last bit."""
    assert train.main([f"--config={config}", f"--run.dir={tmp_path / 'run'}", "--eval.every=0"]) == 0
    logged = [r["train_loss"] for r in records(tmp_path / "run")]
    work = workload.prepare(load(config))
    seen = [float(work.dispatch()["loss"]) for _ in range(5)]
    assert seen == logged[workload.WARM_UP_STEPS : workload.WARM_UP_STEPS + 5]
    assert work.about["compile_s"] > 0 and work.about["temporary_bytes"] > 0
    assert work.peak_bytes() > 1e7


@pytest.mark.parametrize("part", workload.PARTS)
def test_parts_run_at_the_shapes_of_the_config(config, part):
    work = workload.prepare(load(config), part)
    result = jax.tree.leaves(work.dispatch())
    work.settle(result)
    shapes = {"attention": (8, 16, 2, 8), "loss": (), "optimizer": ()}
    if part == "decode":
        assert len(result) == 1 and 0 <= result[0] < work.about["vocab_size"]
    else:
        assert result[0].shape == shapes[part] and all(bool(jnp.isfinite(leaf).all()) for leaf in result)
    assert len(time_steps(work, 3)["step_s"]) == 3


def run_bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jaxgpt.bench", *map(str, arguments)],
        cwd=REPO, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_bench_from_the_command_line(config, tmp_path):
    path, page = tmp_path / "out" / "b.json", tmp_path / "page.md"
    done = run_bench("--config", config, "--vs", "plain", "--rounds", 2, "--steps", 5, "--profile", "--json", path,
                     "--report", page, "--optim.lr=2e-3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert set(found["programs"]) == {"jaxgpt", "plain torch"} and set(found["versions"]) == {"jax", "torch"}
    assert found["ratio"] is None and len(found["ratios"]["plain torch"]["by_round"]) == 2
    assert found["programs"]["jaxgpt"]["n_steps"] == 10 and "--optim.lr=2e-3" in found["command"]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    operations = found["operations"]["jaxgpt"]
    assert sum(o["share"] for o in operations) == pytest.approx(1) and len(operations) > 10
    trace = newest_trace(str(tmp_path / "out" / "b" / "jaxgpt"))
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert "jaxgpt over this" in done.stdout and found["command"] in page.read_text()


@pytest.mark.parametrize("part", one_in(4, ["step", "attention", "loss", "optimizer"]))
def test_torch_ref_answers_in_turn(config, part):
    command = [sys.executable, "-m", "jaxgpt.bench.torch_workload", part, "eager", "--config", str(config)]
    with Program(part, command) as program:
        program.wait()
        turn = program.run(2)
        assert len(turn["step_s"]) == 2 and turn["peak_bytes"] > 1e7 and program.about["versions"]["torch"]


def test_the_loader_alone(config, tmp_path):
    path = tmp_path / "d.json"
    done = run_bench("data", "--config", config, "--json", path)
    found = json.loads(path.read_text())
    assert found["tokens_per_s"] > 1e5 and found["step_tokens_per_s"] > 0
    assert done.returncode == (found["appetites"] < bench.WANTED_APPETITES), done.stderr
    assert "M tokens/s" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "bench nothing: no such part; choose one of step, attention"),
        (["--vs=keras"], "--vs=keras is not one of torch, plain"),
        (["--vs=hf"], "--vs=hf is for bench decode --batch; others have torch, plain"),
        (["decode", "--vs=torch"], "bench decode has no --vs; bench decode --batch 1 --vs torch,nanogpt,hf has"),
        (["decode", "--batch=1", "--vs=plain"], "--vs=plain is not one of torch, nanogpt, hf"),
        (["step", "--tokens=3"], "--tokens=3 is for decode --batch; leave it out, or time decode --batch 1"),
        (["decode", "--batch=1", "--tokens=15", "--prompt-tokens=2"], "--prompt-tokens=2 + --tokens=15 do not fit"),
        (["attention", "--vs=plain"], "bench attention has no --vs plain"),
        (["data", "--profile"], "bench data has no --profile"),
        (["step", "--batch=1"], "bench step has no --batch and --weights; bench decode --batch 1,8 has"),
        (["decode", "--batch=0"], "--batch=0 is no number of rows; give some, such as 1,8,32"),
        (["decode", "--batch=1", "--weights=int4"], "--weights=int4 is not bfloat16 or int8"),
        (["decode", "--batch=1", "--steps=3"], "bench decode --batch has no --report and --steps"),
        (["--rounds=0"], "--rounds=0 is too small"),
        (["--rounds=x"], "--rounds=x is not an int"),
        (["--model.n_layers=3"], "no config field model.n_layers; did you mean model.n_layer?"),
    ],
)
def test_refusals(config, arguments, message):
    with pytest.raises(InputError) as caught:
        bench.main([*arguments, "--config", str(config)])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_program_refuses_reaches_the_user(config):
    done = run_bench("--config", config, "--rounds", 1, "--steps", 2, "--mesh.fsdp=2")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: jaxgpt ended with code 2: mesh.data=1 x mesh.fsdp=2")


# Traces


def test_time_inside_is_not_counted_twice():
    events = [("loop", 0.0, 10.0), ("dot", 1.0, 3.0), ("add", 2.0, 1.0), ("dot", 5.0, 2.0), ("copy", 11.0, 1.0)]
    found = {}
    for name, seconds in own_times(events):
        found[name] = found.get(name, 0) + seconds
    assert found == {"loop": 5.0, "dot": 4.0, "add": 1.0, "copy": 1.0}


def test_the_costliest_operation_is_found(tmp_path):
    """A large matrix product beside a small sum."""

    def work(x, y):
        return jax.lax.dot_general(x, x, (((1,), (0,)), ((), ()))), jnp.cumsum(y)

    x, y = jnp.ones((512, 512)), jnp.ones(64)
    compiled = jax.jit(work).lower(x, y).compile()
    program = compiled.as_text() or ""
    jax.block_until_ready(compiled(x, y))
    with record(str(tmp_path)):
        for _ in range(4):
            jax.block_until_ready(compiled(x, y))
    found = find_costliest(str(tmp_path), program, 4)
    assert "f32[512,512]" in found[0]["name"] and "dot_general" in found[0]["name"]
    assert found[0]["share"] > 0.5 and sum(o["share"] for o in found) == pytest.approx(1)
    assert sum(o["count"] for o in found if "512,512" in o["name"]) == pytest.approx(1)
    with pytest.raises(Failure, match="holds no operation of the compiled program"):
        find_costliest(str(tmp_path), "nothing.1 = f32[] constant(0)", 4)


def test_a_program_text_is_read():
    text = """
  %ynn_fusion.75 = f32[768,512]{1,0} fusion(%a, %b), calls=%f, metadata={op_name="jit(w)/while/body/transpose(jvp(BNTS))/dot_general" x=1}
  ROOT %copy.3 = (f32[2]{0}, s32[]) copy(%c)
"""  # noqa: E501
    found = read_instructions(text)
    assert found["ynn_fusion.75"] == ("ynn_fusion", "f32[768,512]", "backward BNTS dot_general")
    assert found["copy.3"] == ("copy", "(f32[2], s32[])", "update")


def test_help_says_how_the_verb_is_called():
    done = run_bench("--help")
    assert done.returncode == 0 and done.stdout.startswith("Times a run on this machine")


def test_the_bench_itself_loads_no_framework():
    """It would take a GPU's memory away from the programs that it times."""
    script = "import sys, jaxgpt.bench.__main__; print(sorted({'jax', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout == "[]\n" and Path(bench.__file__).exists()
