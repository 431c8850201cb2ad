"""torch_ref trains: exact resume, torchrun, damaged checkpoints, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from jaxgpt.compare import tolerances
from jaxgpt.errors import EXIT_DIVERGED, EXIT_STOPPED, InputError
from jaxgpt.prepare.__main__ import main as prepare
from jaxgpt.run.history import read_history
from jaxgpt.run.manifest import FORMAT, MANIFEST, read_manifest, write_manifest
from torch_ref import train
from torch_ref.training.checkpoint import STATE, CheckpointError, Checkpoints

torch.set_num_threads(1)  # two threads that wait for each other on busy cores are fifty times slower

REPO = Path(__file__).parents[1]


CONFIG = """
from jaxgpt.config import *
config = Config(
    data=DataConfig(dir={data!r}),
    model=GPT2Config(seq_len=16, n_layer=2, n_head=2, n_embd=16, dropout={dropout}),
    train=TrainConfig(steps=20, batch_tokens=128, micro_batch_size=4, dtype="float32", attention="xla"),
    optim=OptimConfig(lr=1e-2, algorithm="muon", schedule=ScheduleConfig(warmup_steps=3, decay_steps=20)),
    eval=EvalConfig(every=10, tokens=400),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every=5),
    mesh=MeshConfig(platform="cpu"),
)
"""
TEXT = "".join(f"{i} green bottles, hanging on the wall; {i * 7 % 13} fell.\n" for i in range(400))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A prepared character-level directory and two configs."""
    home = tmp_path_factory.mktemp("home")
    (home / "text.txt").write_text(TEXT)
    assert prepare(["x", "--input", str(home / "text.txt"), "--out", str(home / "x"), "--tokenizer", "char"]) == 0
    for name, dropout in (("config", 0.1), ("plain", 0.0)):
        (home / f"{name}.py").write_text(CONFIG.format(data=str(home / "x"), dropout=dropout))
    return home


def run(config, run_dir, *more):
    return train.main([f"--config={config}", f"--run.dir={run_dir}", *more])


def losses(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: (record["train_loss"], record.get("val_loss")) for record in records}


def state_bytes(run_dir, step):
    return (run_dir / "checkpoints" / str(step) / STATE).read_bytes()


@pytest.fixture(scope="module")
def straight(home, tmp_path_factory):
    """The uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("straight")
    assert run(home / "config.py", run_dir) == 0
    return run_dir


def test_resume_is_exact_to_the_bit(home, straight, tmp_path):
    assert run(home / "config.py", tmp_path, "--train.steps=7") == 0
    assert run(home / "config.py", tmp_path, "--resume") == 0
    ours, expected = losses(tmp_path), losses(straight)
    assert {step: pair[0] for step, pair in ours.items()} == {step: pair[0] for step, pair in expected.items()}
    assert ours[20][1] == expected[20][1] is not None
    assert state_bytes(tmp_path, 20) == state_bytes(straight, 20)


def test_sigterm_saves_and_resume_is_exact(home, straight, tmp_path):
    process = start_command([sys.executable, "-m", "torch_ref.train", *command(home / "config.py", tmp_path)])
    path = tmp_path / "metrics.jsonl"
    while not (path.exists() and '"step": 3,' in path.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=60)
    if process.returncode != 0:  # a run this short may have ended before the signal came
        assert process.returncode == EXIT_STOPPED, shown
        assert "Run the same command with --resume to continue" in shown
        assert run(home / "config.py", tmp_path, "--resume") == 0
    assert losses(tmp_path) == losses(straight)


def command(config, run_dir, *more):
    return [f"--config={config}", f"--run.dir={run_dir}", *more]


def start_command(args):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        args, env=environment, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def test_torchrun_with_two_processes_equals_one(home, tmp_path):
    """Two processes go on where one stopped; each reads half of the rows, and only one writes."""
    assert run(home / "plain.py", tmp_path / "one") == 0
    assert run(home / "plain.py", tmp_path / "two", "--train.steps=8") == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    settings = command(home / "plain.py", tmp_path / "two", "--resume")
    process = start_command([*launcher, "-m", "torch_ref.train", *settings])
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert shown.count("resuming from step 8") == 1 and "1 x 4 rows x 16 x 2 device(s)" in shown
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(1, 21))
    assert max(abs(one[step][0] - two[step][0]) for step in one) < tolerances.FP32_LOSS
    assert abs(one[20][1] - two[20][1]) < tolerances.FP32_LOSS


def test_run_directory_and_metrics_are_jaxgpts(straight):
    assert {path.name for path in straight.iterdir()} >= {"config.py", "metrics.jsonl", "checkpoints", "loss.png"}
    last = json.loads((straight / "metrics.jsonl").read_text().splitlines()[-1])
    expected = {"step", "train_loss", "lr", "tokens", "tokens_per_s", "mfu", "n_skipped", "grad_norm"}
    assert set(last) == expected | {"val_loss", "val_perplexity", "val_bits_per_byte"}
    assert last["step"] == 20 and last["tokens"] == 20 * 128
    assert last["val_bits_per_byte"] == pytest.approx(last["val_loss"] / np.log(2))  # characters are bytes here
    assert losses(straight)[20][0] < losses(straight)[1][0] - 0.5
    (session,), faults = read_history(straight)
    assert (session.last_step, session.was_closed, session.about["devices"], faults) == (20, True, "1 x cpu", [])


def test_default_run_directory_is_beside_jaxgpts(home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert train.main([f"--config={home / 'plain.py'}", "--train.steps=1"]) == 0
    assert (tmp_path / "runs" / "plain-torch" / "metrics.jsonl").exists()
    assert train.main(["--config", "runs/plain-torch/config.py", "--train.steps=2", "--resume"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["plain-torch"]


def test_divergence_ends_the_run_and_saves_nothing_broken(home, tmp_path):
    settings = ["--optim.lr=1e38", "--optim.algorithm=adamw", "--train.max_skips=3"]
    assert run(home / "plain.py", tmp_path, *settings) == EXIT_DIVERGED
    assert not any((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_diverging_run_keeps_its_good_checkpoints_and_names_the_newest(home, tmp_path, capsys):
    """Faults: F3, C77, C80."""
    settings = ["--optim.algorithm=adamw", "--checkpoint.every=1"]
    assert run(home / "plain.py", tmp_path, *settings, "--train.steps=6") == 0
    assert run(home / "plain.py", tmp_path, *settings, "--optim.lr=1e38", "--resume") == EXIT_DIVERGED
    assert {"5", "6"} <= {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert "continue with --resume-from 6\n" in capsys.readouterr().out
    assert run(home / "plain.py", tmp_path, *settings, "--train.steps=8", "--resume-from=5") == 0
    assert losses(tmp_path).keys() == set(range(1, 9))


def test_neither_jax_nor_its_kin_are_loaded(home, tmp_path):
    """In a fresh interpreter, after a whole run."""
    script = f"""
import sys
import torch_ref.train
assert torch_ref.train.main({command(home / "plain.py", tmp_path, "--train.steps=1")!r}) == 0
print("loaded:", sorted({{"jax", "jaxlib", "flax", "optax", "orbax"}} & set(sys.modules)))
"""
    process = start_command([sys.executable, "-c", script])
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and shown.endswith("loaded: []\n"), shown


# Refusals


@pytest.fixture
def copied(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    return tmp_path / "run"


def refusal(config, run_dir, *more):
    with pytest.raises(InputError) as caught:
        run(config, run_dir, *more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoint_is_named_and_the_one_before_taken(home, copied, straight, capsys):
    flip_a_bit(copied / "checkpoints" / "20" / STATE)
    assert run(home / "config.py", copied, "--resume") == 0
    shown = capsys.readouterr()
    assert f"20 is not a checkpoint: its file {STATE} was changed after it was written" in shown.err
    assert "20 is renamed to 20.rejected" in shown.err and "resuming from step 15" in shown.out
    assert losses(copied) == losses(straight)
    flip_a_bit(copied / "checkpoints" / "20" / STATE)
    flip_a_bit(copied / "checkpoints" / "15" / STATE)
    message = refusal(home / "config.py", copied, "--resume")
    assert "20 is not a checkpoint" in message and "15 is not a checkpoint" in message


def replace_state(directory, write):
    """Another file under a manifest that vouches for it, as whoever can write files could make."""
    manifest = read_manifest(directory)
    (directory / MANIFEST).unlink()
    write(directory / STATE)
    write_manifest(directory, manifest)


def test_pickle_is_refused_and_not_opened(home, copied, tmp_path):
    """Faults: C75."""

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    replace_state(copied / "checkpoints" / "20", lambda path: torch.save({"params": Bomb()}, path))
    message = refusal(home / "config.py", copied, "--resume")
    assert f"20 cannot be read: {STATE} is not a safetensors file" in message
    assert not (tmp_path / "executed").exists()


def test_checkpoint_of_jaxgpt_is_refused_with_the_way_out(home, copied):
    directory = copied / "checkpoints" / "20"
    manifest = read_manifest(directory)
    for path in directory.iterdir():
        path.unlink()
    (directory / "d").write_bytes(b"orbax")
    write_manifest(directory, manifest | {"format": FORMAT})
    message = refusal(home / "config.py", copied, "--resume")
    assert f"20 is jaxgpt's, it holds no {STATE}; jaxgpt convert --from {copied}" in message


def test_checkpoints_keep_the_newest_and_the_best(tmp_path):
    saved = Checkpoints(tmp_path, keep=2)
    state = {"params": {"wte.weight": torch.ones(2, 3)}}
    for step, val_loss in ((1, 2.0), (2, 1.0), (3, 3.0), (4, 4.0), (5, None)):
        saved.save(step, state, {"n": step}, val_loss=val_loss)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]
    chosen = saved.choose(2)
    assert chosen and chosen.about == {"n": 2}
    restored = saved.restore(state, chosen)
    assert torch.equal(restored["params"]["wte.weight"], torch.ones(2, 3))
    assert {path.name for path in tmp_path.iterdir()} == {"2", "4.rejected", "5.rejected"}
    with pytest.raises(CheckpointError, match="2 already exists"):
        saved.save(2, state, {})
    with pytest.raises(CheckpointError, match=r"checkpoint 3 is not saved: params.wte.weight is not finite"):
        saved.save(3, {"params": {"wte.weight": torch.tensor([np.nan])}}, {})
    with pytest.raises(InputError, match=r"params.wte.weight has shape \(2, 3\), not \(3, 2\)"):
        saved.restore({"params": {"wte.weight": torch.ones(3, 2)}}, chosen)


def test_a_run_is_neither_overwritten_nor_made_up(home, straight, tmp_path):
    assert f"run.dir={straight} already contains a run; pass --resume" in refusal(home / "config.py", straight)
    assert "has no checkpoint to resume from" in refusal(home / "config.py", tmp_path, "--resume")


def test_a_finished_run_is_told_so(home, straight, capsys):
    before = losses(straight)
    assert run(home / "config.py", straight, "--resume") == 0
    assert "the run is already at step 20 of 20" in capsys.readouterr().out and losses(straight) == before


def test_resume_of_another_model_or_optimizer_names_it(home, straight):
    message = refusal(home / "config.py", straight, "--resume", "--model.n_layer=3")
    assert "is another model: model.n_layer 2 -> 3" in message
    message = refusal(home / "config.py", straight, "--resume", "--optim.algorithm=adamw")
    assert "does not fit: opt_state.mu.h.0" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--data.dir=nowhere"], "nowhere"),
        (["--model.vocab_size=5"], "model.vocab_size=5 is below the"),
        (["--mesh.data=2"], "mesh.data=2, but there are 1 process(es); start them with torchrun --nproc_per_node=2"),
        (["--mesh.fsdp=2"], "mesh.fsdp=2: torch_ref splits no parameters"),
        (["--mesh.platform=gpu"], "mesh.platform=gpu is not available; torch sees cpu"),
        (["--train.attention=cudnn"], "train.attention=cudnn cannot run: the platform is cpu"),
        (["--hosts.coordinator=a:1"], "start torch_ref with torchrun"),
        (["--train.init_from=gpt2"], "train.init_from=gpt2 is for jaxgpt"),
        (["--compile", "--no_compile"], "--compile and --no-compile are both given"),
        (["--train.batch_tokens=100"], "train.batch_tokens=100 is not a multiple"),
    ],
)
def test_bad_input_is_one_line(home, tmp_path, settings, message):
    if "gpu" in settings[0] and torch.cuda.is_available():
        pytest.skip("there is one")
    assert message in refusal(home / "plain.py", tmp_path / "run", *settings)
