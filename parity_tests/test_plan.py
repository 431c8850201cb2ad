"""The verb, and the compilers behind it where their plug-ins are installed (extras plan-gpu, plan-tpu)."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt import config as config_lib
from jaxgpt.config import Config, DataConfig, GPT2Config, MeshConfig, TrainConfig
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.errors import Failure, InputError
from jaxgpt.plan import __main__ as plan
from jaxgpt.plan.compiler import FIRST_MODULE, CompileCache, hash_sources
from jaxgpt.plan.estimate import known_gap
from jaxgpt.plan.footprint import bytes_wanted
from jaxgpt.plan.forecast import look
from jaxgpt.plan.report import NEAR, PODS, RECIPES
from jaxgpt.plan.topology import missing_plugin, parse_topology
from jaxgpt.run.console import console

REPO = Path(__file__).parents[1]
NEEDS_GPU_COMPILER = pytest.mark.skipif(bool(missing_plugin("gpu")), reason=f"needs {missing_plugin('gpu')}")
NEEDS_TPU_COMPILER = pytest.mark.skipif(bool(missing_plugin("tpu")), reason=f"needs {missing_plugin('tpu')}")
SMALL = Config(
    model=GPT2Config(seq_len=1024, n_layer=1, n_head=8, n_embd=512, vocab_size=1024),
    train=TrainConfig(steps=10, batch_tokens=8 * 1024, micro_batch_size=1, loss_chunk_tokens=256),
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return CompileCache(tmp_path_factory.mktemp("compiles"))


def run(*args):
    with console.capture() as captured:
        code = plan.main(list(args))
    return code, captured.get()


ARGS = ("--config", str(REPO / "configs/gpt2_124m.py"), "--estimate")


def test_one_picture_shows_the_sweep_on_every_device(tmp_path):
    sizes = []
    for devices in (["h100"], ["h100", "a100-40gb"]):
        named = [word for device in devices for word in ("--device", device)]
        code, out = run(*ARGS, *named, "--sweep", "micro_batch_size=2,4", "--png", str(tmp_path / "sweep.png"))
        with (tmp_path / "sweep.png").open("rb") as file:
            sizes.append(int.from_bytes(file.read(24)[20:], "big"))
        assert code == 0 and out.count("picture: ") == 1
    assert sizes[1] == 2 * sizes[0]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ((*ARGS,), "--device is missing"),
        ((*ARGS, "--device", "a200"), "--device=a200 is not known"),
        ((*ARGS, "--device", "h100x8", "--mesh.tensor=16"), "16 devices, but --device=h100x8 has 8"),
        ((*ARGS, "--device", "h100x7"), "batch_tokens=491520 is not a multiple of"),
        ((*ARGS, "--device", "h100", "--max-depth"), "model.family=gpt2 has none"),
        ((*ARGS, "--device", "h100", "--sweep", "n_layers=2"), "--sweep n_layers=2 names no config field n_layers"),
        ((*ARGS, "--device", "h100", "--sweep", "n_layer"), "--sweep n_layer has no values"),
        ((*ARGS, "--device", "h100", "--sweep", "every=2"), "may mean optim.adam.every, eval.every, "),
        ((*ARGS, "--device", "h100x8", "--mesh.fsdp=5"), "5 devices, but --device=h100x8 has 8"),
        (
            (*ARGS, "--device", "h100x8", "--mesh.fsdp=8", "--model.n_embd=780", "--train.micro_batch_size=10"),
            "mesh.fsdp=8 does not divide",
        ),
        ((*ARGS, "--device", "h100", "--dollars-per-hour", "much"), "--dollars-per-hour=much is not a number"),
        ((*ARGS, "--device", "h100", "--dollars-per-hour", "0"), "--dollars-per-hour=0 is not above 0"),
        ((*ARGS, "--device", "h100", "--memory-fraction", "2"), "is above 1"),
        ((*ARGS, "--device"), "--device needs a value"),
        ((*ARGS, "--device", "l4", "--train.dtype=float64"), "train.dtype=float64 has no peak on l4"),
    ],
)
def test_what_cannot_be_planned_is_one_line(args, part):
    with pytest.raises(InputError) as error:
        run(*args)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_an_estimate_says_that_it_is_one():
    code, out = run(*ARGS, "--device", "a100-40gb", "--dollars-per-hour", "2")
    assert code == 0 and "ESTIMATE" in out and "fits" in out and "$" in out
    _, out = run(*ARGS, "--device", "a100-40gb", "--device", "rtx4090")
    assert out.count("ESTIMATE") == 2 and "rtx4090" in out


def test_a_device_that_cannot_is_told_and_the_others_are_shown():
    code, out = run(*ARGS, "--device", "t4", "--device", "a100-40gb")
    assert code == 0 and "t4: train.dtype=bfloat16 has no peak on t4" in out and out.count("ESTIMATE") == 1
    with pytest.raises(InputError, match="the reason of each is above"):
        run(*ARGS, "--device", "t4", "--device", "h100x7")


def test_an_estimate_that_is_known_to_be_off_says_so():
    _, out = run(*ARGS, "--device", "v5e")
    assert "too low" in out
    _, out = run(*ARGS, "--device", "h100")
    assert "too low" not in out


def test_the_estimate_is_near_the_compilers_figures_on_the_page():
    """docs/memory.md, which a compiler's figures fill, against the estimate of today, except where the verb warns."""
    rows = [line.split(" | ") for line in (REPO / "docs/memory.md").read_text().splitlines() if line.startswith("| ")]
    compiled = {row[0].removeprefix("| "): row[6] for row in rows if len(row) > 10}
    errors = {}
    for recipe in (*RECIPES, *PODS):
        logits = (
            {} if recipe.title.startswith(("record 62", "track 3")) else {"train.logits_dtype": "float32"}
        )  # as the page says
        config = apply_overrides(config_lib.load(REPO / f"configs/{recipe.config}.py"), recipe.overrides | logits)
        forecast = look(config, parse_topology(recipe.device), None)
        if not known_gap(forecast.config, forecast.topology.platform):
            errors[recipe.title] = forecast.footprint.total_bytes / 2**30 / float(compiled[recipe.title]) - 1
    assert len(errors) > 15
    assert {title: error for title, error in errors.items() if abs(error) > NEAR} == {}


def test_without_a_plugin_it_names_the_install_and_estimates(monkeypatch):
    monkeypatch.setattr(plan, "missing_plugin", lambda platform: "pip install cudnn")
    code, out = run(*ARGS[:2], "--device", "h100")
    assert code == 0 and "pip install cudnn" in out and "ESTIMATE" in out


def test_fit_prints_what_to_paste():
    _, out = run(*ARGS, "--device", "rtx3090", "--fit")
    pasted = out.strip().splitlines()[-1]
    assert pasted.startswith("--train.micro_batch_size=") and "--train.remat=none" in pasted
    _, again = run(*ARGS, "--device", "rtx3090", *pasted.split())
    assert "fits" in again and "491,520 tokens" in again


def test_sweep_draws_a_picture(tmp_path):
    png = tmp_path / "sweep.png"
    code, out = run(*ARGS, "--device", "l4", "--sweep", "micro_batch_size=4,12", "remat=none,block", "--png", str(png))
    assert code == 0 and out.count("micro_batch_size=") == 4 and png.read_bytes().startswith(b"\x89PNG")


def test_a_tpu_compiler_out_of_memory_says_how_much_it_needed():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. Exceeded by 5.7G."
    assert bytes_wanted(message) == 21.5 * 2**30
    assert bytes_wanted("INTERNAL: Mosaic failed") is None


def test_a_dead_compiler_is_a_failure_and_is_not_remembered(monkeypatch, tmp_path):
    monkeypatch.setattr("jaxgpt.plan.compiler.missing_plugin", lambda platform: "")
    dead = subprocess.CompletedProcess([], -6, "", "F0000 Check failed: something\n")
    monkeypatch.setattr("jaxgpt.plan.compiler.subprocess.run", lambda *args, **kwargs: dead)
    with pytest.raises(Failure, match=r"died \(signal 6\): F0000 Check failed"):
        CompileCache(tmp_path).footprints(SMALL, parse_topology("h100"))
    assert not list(tmp_path.iterdir())


def test_programs_with_and_without_a_mask_are_kept_apart(monkeypatch, tmp_path):
    """Conversations have a mask, which is in no field of the model."""
    cache, card = CompileCache(tmp_path), parse_topology("h100")
    chat = dataclasses.replace(SMALL, data=DataConfig(sampling="conversations"))
    monkeypatch.setattr(CompileCache, "_compile", lambda self, config, topology: {"footprints": []})
    cache.footprints(SMALL, card)
    assert cache.knows(SMALL, card) and not cache.knows(chat, card)
    cache.footprints(chat, card)
    assert cache.knows(chat, card) and len(list(tmp_path.iterdir())) == 2


def sharded(n_devices):
    return dataclasses.replace(SMALL, mesh=MeshConfig(data=1, fsdp=n_devices))


@NEEDS_GPU_COMPILER
def test_fsdp_divides_the_state_of_a_gpu_step(answers):
    whole = look(sharded(1), parse_topology("h100"), answers).footprint
    part = look(sharded(8), parse_topology("h100x8"), answers).footprint
    for name in ("params_bytes", "opt_state_bytes", "gradients_bytes"):
        assert getattr(whole, name) / 8 == pytest.approx(getattr(part, name), rel=0.05), name
    assert part.attention[0] == "cudnn" and whole.collectives == ()
    kinds = {kind for kind, *_ in part.collectives}
    assert {"all-gather", "reduce-scatter"} <= kinds
    assert sum(part.gathered_whole.values()) < 0.3 * whole.params_bytes


@NEEDS_GPU_COMPILER
def test_flash_attention_keeps_temporaries_linear_in_time(answers):
    """Eight times the context, eight times the memory, and far less than one layer's scores would take."""

    model = dataclasses.replace(SMALL.model, seq_len=8192)
    config = dataclasses.replace(SMALL, model=model, train=dataclasses.replace(SMALL.train, batch_tokens=8192))
    long, short = (
        look(one, parse_topology("h100"), answers).footprint.activations_bytes for one in (config, sharded(1))
    )
    assert short < long < 8.5 * short
    assert long < 0.2 * SMALL.model.n_head * 8192**2 * 4


@pytest.mark.parametrize(
    "name",
    ["config/families/nanochat.py", "config/param_groups.py", "config/settings.py", "config/optimizer.py",
     "config/schedule.py", "config/flops.py", "models/layers.py", "optim/orthogonalize.py", "training/step.py"],
)  # fmt: skip
def test_an_edit_of_what_the_step_is_built_from_is_noticed(tmp_path, name):
    package = tmp_path / "jaxgpt"
    shutil.copytree(REPO / "jaxgpt", package, ignore=shutil.ignore_patterns("__pycache__"))
    before = hash_sources(FIRST_MODULE, package)
    for other in ("sample.py", "bench/record.py", "prepare/corpora.py"):
        (package / other).write_text((package / other).read_text() + "# another comment\n")
    assert hash_sources(FIRST_MODULE, package) == before, "the step is not built from these"
    (package / name).write_text((package / name).read_text() + "# another comment\n")
    assert hash_sources(FIRST_MODULE, package) != before


@NEEDS_GPU_COMPILER
def test_an_answer_is_remembered_and_a_comment_in_the_config_forgets_nothing(answers, monkeypatch):
    topology = parse_topology("h100")
    first = answers.footprints(sharded(1), topology)
    assert answers.knows(sharded(1), topology)
    monkeypatch.setattr("jaxgpt.plan.compiler.subprocess.run", None)
    assert answers.footprints(sharded(1), topology) == first


@NEEDS_TPU_COMPILER
@pytest.mark.slow  # test_fsdp_divides_the_state_of_a_gpu_step stays
def test_fsdp_divides_the_state_of_a_tpu_step(answers):
    part = look(sharded(8), parse_topology("v5e-8"), answers).footprint
    whole = look(sharded(1), parse_topology("h100"), None).footprint
    for name in ("params_bytes", "opt_state_bytes"):
        assert getattr(whole, name) / 8 == pytest.approx(getattr(part, name), rel=0.05), name
    assert part.attention[0] == "splash" and part.collectives and part.compile_s > 0


def test_the_verb_runs_as_a_command():
    """In a fresh process, as a user does; the plug-ins must not disturb it."""
    command = [sys.executable, "-m", "jaxgpt.plan", *ARGS, "--device", "v5e-8", "--train.micro_batch_size=10"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0 and "ESTIMATE" in done.stdout and done.stderr == "", done.stderr
