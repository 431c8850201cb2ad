"""The training command: exact resume after kills, other device counts, several processes, and every refusal."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxgpt import signals, train
from jaxgpt.compare import tolerances
from jaxgpt.errors import EXIT_DIVERGED, EXIT_STOPPED, InputError
from jaxgpt.run.history import read_history
from jaxgpt.run.spikes import Spikes
from jaxgpt.run.stop_signal import StopSignal
from parity_tests.helpers.environment import REPO
from parity_tests.helpers.train_runs import TEXT, losses, records, run, start, wait_for_step, write_text

CONFIG = """
from jaxgpt.config import *
config = Config(
    data=DataConfig(dir={data!r}),
    model=GPT2Config(seq_len=16, n_layer=2, n_head=2, n_embd=16, dropout={dropout}),
    train=TrainConfig(steps=40, batch_tokens=128, micro_batch_size=8, dtype="float32"),
    optim=OptimConfig(lr=1e-2, algorithm="muon", schedule=ScheduleConfig(warmup_steps=3)),
    eval=EvalConfig(every=20, tokens=400),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every=5),
    mesh=MeshConfig(data=1),
)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("data"), TEXT)


@pytest.fixture(scope="module")
def config(data):
    path = data.parent / "config.py"
    path.write_text(CONFIG.format(data=str(data), dropout=0.1))
    return path


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """The uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("straight")
    run(config, run_dir)
    return losses(run_dir)


def test_killed_three_times_and_resumed_is_exact_to_the_bit(config, straight, tmp_path):
    """Faults: C67."""
    more = []
    for step in sorted(np.random.default_rng(0).choice(np.arange(6, 38), 3, replace=False).tolist()):
        process = start(config, tmp_path, *more)
        wait_for_step(process, tmp_path, step)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        has_checkpoint = any((tmp_path / "checkpoints").glob("*/manifest.json"))
        more = ["--resume"] if has_checkpoint else []
    run(config, tmp_path, *more)
    assert losses(tmp_path) == straight
    assert [record["step"] for record in records(tmp_path)] == list(range(1, 41))  # none twice


def test_sigterm_saves_and_resume_is_exact(config, straight, tmp_path):
    process = start(config, tmp_path)
    wait_for_step(process, tmp_path, 7)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, shown
    assert "SIGTERM: finishing this step, then saving a checkpoint; send it again to quit without saving" in shown
    assert "Run the same command with --resume to continue" in shown
    last = records(tmp_path)[-1]["step"]
    assert (tmp_path / "checkpoints" / str(last) / "manifest.json").exists() and 7 <= last < 40
    assert f"resuming from step {last}" in run(config, tmp_path, "--resume")[0]
    assert losses(tmp_path) == straight


def test_eight_then_four_then_one_device(config, straight, tmp_path):
    """float32, other orders of sums: within the tolerance. Rows per device change: the batch stays. Faults: C72."""
    same = ["--optim.schedule.decay_steps=40"]
    run(config, tmp_path, *same, "--train.micro_batch_size=1", "--train.steps=14", "--mesh.data=2", "--mesh.fsdp=4",
        n_devices=8)  # fmt: skip
    run(config, tmp_path, *same, "--train.micro_batch_size=2", "--train.steps=27", "--mesh.data=4", "--resume",
        n_devices=4)  # fmt: skip
    shown = run(config, tmp_path, *same, "--resume")[0]
    changed = "changed: train.steps 27 -> 40; train.micro_batch_size 2 -> 8; mesh.data 4 -> 1\n"
    assert f"resuming from step 27; {changed}" in shown
    ours = losses(tmp_path)
    difference = max(abs(ours[step][0] - straight[step][0]) for step in straight)
    assert difference < tolerances.FP32_LOSS


def test_two_processes_equal_one(config, tmp_path):
    """jax.distributed over gloo: train, checkpoint, stop, resume; losses as one process with as many devices."""
    split = ["--mesh.data=1", "--mesh.fsdp=2", "--train.micro_batch_size=4", "--optim.schedule.decay_steps=20"]
    run(config, tmp_path / "one", *split, "--train.steps=20", n_devices=2)
    for steps, more in ((10, []), (20, ["--resume"])):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        settings = [*split, f"--train.steps={steps}", f"--hosts.coordinator={address}", "--hosts.count=2", *more]
        processes = [
            start(config, tmp_path / "two", *settings, f"--hosts.index={i}")
            for i in range(2)
        ]  # fmt: skip
        shown = [process.communicate(timeout=600)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], shown
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert set(one) <= set(two)
    assert max(abs(one[step][0] - two[step][0]) for step in one) < tolerances.FP32_LOSS
    assert abs(one[20][1] - two[20][1]) < tolerances.FP32_LOSS


def main(config, run_dir, *more):
    return train.main([f"--config={config}", f"--run.dir={run_dir}", *more])


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished")
    assert main(config, run_dir, "--train.steps=10") == 0
    return run_dir


def test_run_directory_holds_what_it_promises(finished):
    assert {p.name for p in finished.iterdir()} >= {"config.py", "metrics.jsonl", "checkpoints", "loss.png"}
    assert {"step", "train_loss", "lr", "tokens", "tokens_per_s"} <= set(records(finished)[0])
    last = records(finished)[-1]
    assert last["step"] == 10 and last["tokens"] == 1280
    assert last["val_perplexity"] == pytest.approx(np.exp(last["val_loss"]))
    assert last["val_bits_per_byte"] == pytest.approx(last["val_loss"] / np.log(2))  # characters are bytes here
    (session,), faults = read_history(finished)
    assert (session.first_step, session.last_step, session.was_closed, faults) == (0, 10, True, [])
    assert session.about["stage"] == "base" and session.about["devices"].endswith("x cpu")


def test_written_config_trains_the_same_run(finished, tmp_path):
    assert main(finished / "config.py", tmp_path) == 0
    assert losses(tmp_path) == losses(finished)


def test_divergence_ends_the_run_and_saves_nothing_broken(config, tmp_path):
    assert main(config, tmp_path, "--optim.lr=1e38", "--optim.algorithm=adamw", "--train.max_skips=3") == EXIT_DIVERGED
    last = records(tmp_path)[-1]
    assert last["n_skipped"] == 3
    assert not any((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_diverging_run_keeps_its_good_checkpoints_and_names_the_newest(config, tmp_path, capsys):
    """The state after the first step of an absurd learning rate is finite, and so is its loss, but no gradient is.

    Faults: F3, C77, C80.
    """
    settings = ["--optim.algorithm=adamw", "--checkpoint.every=1", "--train.steps=6"]
    assert main(config, tmp_path, *settings) == 0
    longer = [*settings[:2], "--train.steps=30"]
    assert main(config, tmp_path, *longer, "--optim.lr=1e38", "--resume") == EXIT_DIVERGED
    assert {"5", "6"} <= {path.name for path in (tmp_path / "checkpoints").iterdir()}
    shown = capsys.readouterr().out
    assert "lower optim.lr and continue with --resume-from 6\n" in shown
    assert main(config, tmp_path, *longer[:2], "--train.steps=8", "--resume-from", "6") == 0
    assert all(np.isfinite(loss) for loss, _ in losses(tmp_path).values())


def test_resuming_from_an_older_step(config, straight, tmp_path):
    """Faults: F3."""
    assert main(config, tmp_path, "--train.steps=15", "--optim.schedule.decay_steps=40") == 0
    for wrong, said in (
        (["--resume-from=7"], "--resume-from=7 is not among the checkpoints in .*: 10, 15$"),
        (["--resume-from", "newest"], "--resume-from=newest is no step; give the number of a directory"),
        (["--resume-from=10", "--resume_from=15"], "--resume-from is given twice; keep one"),
    ):
        with pytest.raises(InputError, match=said):
            main(config, tmp_path, *wrong)
    assert main(config, tmp_path, "--resume-from=10") == 0
    assert losses(tmp_path) == straight
    assert (tmp_path / "checkpoints" / "15.rejected").is_dir()


def test_a_spike_is_rolled_back_and_its_data_left_out(config, tmp_path, monkeypatch, capsys):
    """To the bit what a run gives that is stopped at the checkpoint and resumed with those data left out.

    Faults: C79.
    """
    check = Spikes.check

    def find(self, loss):
        check(self, loss)
        return 1.0 if loss == spike else None

    settings = ["--train.steps=24", "--checkpoint.every=5", "--checkpoint.keep=9", "--train.spike_rollback=true"]
    assert main(config, tmp_path / "plain", *settings) == 0
    spike = losses(tmp_path / "plain")[18][0]
    monkeypatch.setattr(Spikes, "check", find)
    assert main(config, tmp_path / "run", *settings) == 0
    assert "going back to step 15; the data of 3 steps are left out\n" in capsys.readouterr().out
    monkeypatch.setattr(Spikes, "check", check)
    assert main(config, tmp_path / "other", *settings) == 0
    (tmp_path / "other" / "skipped.json").write_text("[[15, 3], [16, 100]]")
    assert main(config, tmp_path / "other", *settings, "--resume-from=15") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "other") != losses(tmp_path / "plain")
    assert (tmp_path / "other" / "skipped.json").read_text() == "[[15, 3]]"


def test_a_run_whose_last_steps_were_skipped_diverged(config, tmp_path, capsys):
    """Fewer than train.max_skips of them, and no step after. Faults: F8."""
    settings = ["--optim.lr=1e38", "--optim.algorithm=adamw", "--train.steps=4"]
    assert main(config, tmp_path, *settings) == EXIT_DIVERGED
    assert "stopped: checkpoint 4 is not saved: " in capsys.readouterr().out
    assert not any((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_finished_run_is_not_trained_again(config, finished, capsys):
    before = (finished / "metrics.jsonl").read_bytes()
    assert main(config, finished, "--resume", "--train.steps=10") == 0
    assert "the run is already at step 10 of 10" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_stages_change_batch_and_learning_rate_and_resume_exactly(config, data, tmp_path):
    """Also killed between the stages: here by a run that ends before the second begins."""
    staged = tmp_path / "staged.py"
    stages = "stages=(StageConfig(from_step=5, batch_tokens=256, lr_scale=0.5),)"
    source = config.read_text().replace("steps=40,", f"steps=8, {stages},")
    staged.write_text(source.replace("warmup_steps=3", 'kind="constant"'))
    assert main(staged, tmp_path / "whole") == 0
    whole = records(tmp_path / "whole")
    assert [r["tokens"] for r in whole] == [128, 256, 384, 512, 640, 896, 1152, 1408]
    assert [r["lr"] for r in whole] == [1e-2] * 5 + [5e-3] * 3
    early = tmp_path / "early.py"
    early.write_text(staged.read_text().replace("steps=8", "steps=6"))
    assert main(early, tmp_path / "parts") == 0
    assert main(staged, tmp_path / "parts", "--resume") == 0
    trained = [[r["train_loss"] for r in records(tmp_path / name)] for name in ("whole", "parts")]
    assert trained[0] == trained[1]


def refusal(config, run_dir, *more):
    before = {path: path.stat().st_mtime_ns for path in Path(run_dir).rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        main(config, run_dir, *more)
    message = str(caught.value)
    assert "\n" not in message
    after = {path: path.stat().st_mtime_ns for path in before if path.name != "lock"}
    assert all(before[path] == stamp for path, stamp in after.items()), "a refusal touched the run"
    return message


def test_a_run_is_not_overwritten(config, finished):
    """Faults: C12."""
    assert f"run.dir={finished} already contains a run; pass --resume to continue it" in refusal(config, finished)


def test_resume_without_a_run(config, tmp_path):
    """Faults: C52."""
    assert "has no checkpoint to resume from; start without --resume" in refusal(config, tmp_path, "--resume")


def test_resume_of_another_architecture_names_each_field(config, finished):
    """Faults: C14."""
    message = refusal(config, finished, "--resume", "--model.n_layer=3", "--model.bias=true")
    assert "checkpoint 10 in" in message and "is another model" in message
    assert "to resume it pass --model.n_layer=2 --model.bias=False" in message
    assert "model.n_layer 2 -> 3" in message and "model.bias False -> True" in message


def test_resume_with_another_optimizer(config, finished):
    """Faults: C63."""
    message = refusal(config, finished, "--resume", "--optim.algorithm=adamw", "--train.steps=12")
    assert "does not fit" in message and "use the model and optimizer settings it was written with" in message


def test_resume_on_other_data(config, finished, tmp_path):
    message = refusal(config, finished, "--resume", f"--data.dir={write_text(tmp_path, TEXT[::-1])}")
    assert "the data in data.dir=" in message and "changed since checkpoint 10" in message


def test_resume_that_would_read_other_batches(config, finished, tmp_path, capsys):
    """Refused with the old values, unless a flag allows it; what reads the same is accepted. Faults: F27, C14."""
    message = refusal(config, finished, "--resume", "--run.seed=7", "--train.batch_tokens=256", "--optim.lr=0.02")
    assert "train.batch_tokens 128 -> 256" in message and "run.seed 1337 -> 7" in message and "lr" not in message
    assert "pass --run.seed=1337 --train.batch_tokens=128, or --allow-change to resume with other" in message
    assert main(config, finished, "--resume", "--allow-change", "--run.seed=7", "--train.steps=10") == 0
    assert main(config, finished, "--resume", "--eval.every=5", "--optim.lr=0.02", "--train.steps=10") == 0
    assert "changed: optim.lr 0.01 -> 0.02; eval.every 20 -> 5" in capsys.readouterr().out.replace("\n", " ")


def test_locked_run_directory(config, tmp_path):
    """Faults: C69."""
    script = f"""
import time
from jaxgpt.files import lock_run
with lock_run({str(tmp_path)!r}):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=REPO)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert f"is in use by process {holder.pid} on host" in refusal(config, tmp_path)
    finally:
        holder.kill()
        holder.communicate()


def test_corrupted_checkpoint_is_named_and_nothing_is_lost(config, tmp_path):
    assert main(config, tmp_path, "--train.steps=5") == 0
    payload = max((tmp_path / "checkpoints" / "5").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(payload.read_bytes())
    content[len(content) // 2] ^= 1
    payload.write_bytes(content)
    message = refusal(config, tmp_path, "--resume")
    assert "5 is not a checkpoint" in message and payload.name in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--data.dir=nowhere"], "nowhere"),
        (["--model.vocab_size=5"], "model.vocab_size=5 is below the"),
        (["--model.seq_len=100000", "--train.batch_tokens=800000"], "model.seq_len=100000 needs 100001"),
        (
            ["--mesh.data=64", "--train.batch_tokens=8192"],
            "mesh.data=64 x mesh.fsdp=1 x mesh.tensor=1 = 64 devices, but there are 8",
        ),
        (["--mesh.platform=tpu"], "mesh.platform=tpu is not available"),
        (["--train.attention=cudnn"], "train.attention=cudnn cannot run: the platform is cpu"),
        (["--hosts.count=2"], "hosts.count=2 needs hosts.coordinator=HOST:PORT of process 0"),
        (["--train.init_from=/nowhere/ckpt.pt"], "/nowhere/ckpt.pt"),
        (
            ["--mesh.data=2", "--mesh.tensor=4", "--train.micro_batch_size=4"],
            "mesh.tensor=4 does not divide wte.weight's axis",
        ),
        (["--sample.every=5", "--sample.prompt=Ω"], "sample.prompt='Ω' cannot be read: character 'Ω'"),
        (["--run.dir=/dev/null/x"], "/dev/null/x"),
    ],
)
def test_bad_input_is_one_line(config, tmp_path, settings, message):
    """Faults: C13, C15."""
    if settings[0].startswith("--run.dir"):
        with pytest.raises(InputError) as caught:
            train.main([f"--config={config}", *settings])
        assert message in str(caught.value)
    else:
        assert message in refusal(config, tmp_path, *settings)


def test_id_above_the_vocabulary_names_shard_offset_and_id(config, tmp_path):
    """Faults: C30."""
    tokens = np.arange(5000) % 60
    tokens[1234] = 99
    (tmp_path / "bin").mkdir()
    tokens.astype(np.uint16).tofile(tmp_path / "bin" / "train.bin")
    (np.arange(500) % 60).astype(np.uint16).tofile(tmp_path / "bin" / "val.bin")
    message = refusal(config, tmp_path / "run", f"--data.dir={tmp_path / 'bin'}", "--model.vocab_size=64")
    assert "train.bin" in message and "1234" in message and "99" in message and "64" in message


def test_nanogpt_files_need_a_vocabulary(config, tmp_path):
    for name in ("train", "val"):
        (np.arange(500 + len(name)) % 60).astype(np.uint16).tofile(tmp_path / f"{name}.bin")
    message = refusal(config, tmp_path / "run", f"--data.dir={tmp_path}")
    assert "model.vocab_size=0 means the tokenizer's size" in message and "--model.vocab_size=50304" in message


def test_command_prints_one_line_and_exits_2(config, tmp_path):
    """Faults: C1."""
    shown, errors = run(config, tmp_path, "--model.n_layers=3", expect=2)
    assert errors == "error: no config field model.n_layers; did you mean model.n_layer?\n"
    assert shown == ""


def test_samples_while_training(config, tmp_path, capsys):
    assert (
        main(config, tmp_path, "--train.steps=4", "--sample.every=2", "--sample.max_tokens=5", "--sample.prompt=wall")
        == 0
    )
    assert capsys.readouterr().out.count("wall") >= 2


def test_tensorboard_gets_the_same_numbers(config, tmp_path):
    pytest.importorskip("tensorboardX")
    assert main(config, tmp_path, "--train.steps=3", "--log.tensorboard=true") == 0
    assert any((tmp_path / "tensorboard").glob("events*"))


def test_several_processes_stop_at_one_step(monkeypatch):
    """They ask each other at every fourth step, and stop when any of them was told to."""
    alone, mute, told = (
        StopSignal(4, 1, lambda text: [text]),
        StopSignal(4, 2, lambda text: [text, ""]),
        StopSignal(4, 2, lambda text: [text, "stop"]),
    )
    assert not any(one.is_agreed(n) for one in (alone, mute) for n in range(1, 9))
    assert [n for n in range(1, 9) if told.is_agreed(n)] == [4, 8]
    monkeypatch.setattr(signals, "received", lambda: signal.SIGTERM)
    assert [n for n in range(1, 9) if mute.is_agreed(n)] == [4, 8]
    assert alone.is_agreed(1)
