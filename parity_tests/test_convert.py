"""Runs that change framework: nothing is lost on the way, and the curve is that of a run that never changed."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from jaxgpt import train as jax_train
from jaxgpt.compare import tolerances
from jaxgpt.config import NanochatConfig
from jaxgpt.convert.__main__ import main
from jaxgpt.convert.runs import params_of, read_run
from jaxgpt.errors import InputError
from jaxgpt.formats.hugging_face import load_hf
from parity_tests.helpers.train_runs import TEXT, write_text
from torch_ref import train as torch_train

CONFIG = """
from jaxgpt.config import *
config = Config(
    data=DataConfig(dir={data!r}),
    model=GPT2Config(seq_len=16, n_layer=2, n_head=2, n_embd=16, bias=True),
    train=TrainConfig(steps=30, batch_tokens=128, micro_batch_size=8, dtype="float32", attention="xla"),
    optim=OptimConfig(
        lr=1e-3, algorithm="muon", muon=MuonConfig(lr=5e-3), schedule=ScheduleConfig(warmup_steps=3, decay_steps=30)
    ),
    eval=EvalConfig(every=10, tokens=400),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every=10),
    mesh=MeshConfig(data=1),
)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    data = write_text(tmp_path_factory.mktemp("data"), TEXT)
    path = data.parent / "config.py"
    path.write_text(CONFIG.format(data=str(data)))
    return path


def run(train, config, run_dir, *more):
    assert train.main([f"--config={config}", f"--run.dir={run_dir}", *more]) == 0


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("straight")
    run(jax_train, config, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def changing(config, tmp_path_factory):
    """Steps 1-10 in jaxgpt, 11-20 in torch_ref, 21-30 in jaxgpt."""
    at = tmp_path_factory.mktemp("changing")
    run(jax_train, config, at / "a", "--train.steps=10")
    assert main(["--from", str(at / "a"), "--to", "torch", str(at / "b")]) == 0
    run(torch_train, at / "b" / "config.py", at / "b", "--resume", "--train.steps=20")
    assert main(["--from", str(at / "b"), "--to", "jax", str(at / "c")]) == 0
    run(jax_train, at / "c" / "config.py", at / "c", "--resume", "--train.steps=30")
    return at


def losses(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: (r["train_loss"], r.get("val_loss")) for r in records}


def test_a_run_that_changes_framework_follows_the_uninterrupted_one(straight, changing):
    ours, theirs = losses(changing / "c"), losses(straight)
    assert sorted(ours) == sorted(theirs) == list(range(1, 31))
    assert max(abs(ours[n][0] - theirs[n][0]) for n in theirs) < tolerances.FP32_LOSS
    assert (
        [n for n in theirs if theirs[n][1] is not None] == [n for n in ours if ours[n][1] is not None] == [10, 20, 30]
    )
    assert max(abs(ours[n][1] - theirs[n][1]) for n in (10, 20, 30)) < tolerances.FP32_LOSS
    assert theirs[30][0] < theirs[1][0] - 0.15, "nothing was learned, so nothing was tested"


def test_where_the_run_changes_shows(straight, changing):
    """The torch part is torch's: the last bits differ from jaxgpt's, the first part's do not."""
    ours, theirs = losses(changing / "c"), losses(straight)
    assert all(ours[n][0] == theirs[n][0] for n in range(1, 11))
    assert any(ours[n][0] != theirs[n][0] for n in range(11, 21))


def same(a, b):
    assert (a.step, a.config, a.about, a.val_loss) == (b.step, b.config, b.about, b.val_loss)
    assert a.leaves.keys() == b.leaves.keys()
    for path, leaf in a.leaves.items():
        other = b.leaves[path]
        assert leaf.dtype == other.dtype and leaf.shape == other.shape, path
        assert leaf.tobytes() == other.tobytes(), path


def test_there_and_back_is_the_identity(changing, tmp_path):
    """Optimizer state and counters too, bit for bit, whichever framework wrote last."""
    for start, way in (("a", ("torch", "jax")), ("b", ("jax", "torch"))):
        source = changing / start
        original = read_run(source)
        for i, framework in enumerate(way):
            out = tmp_path / f"{start}{i}"
            assert main([f"--from={source}", f"--to={framework}", str(out)]) == 0
            source = out
            same(read_run(out), original)
        assert read_run(source).framework == original.framework
    assert any(path.startswith("opt_state.momentum.") and leaf.any() for path, leaf in original.leaves.items())


def test_float64_and_float16_states_keep_their_bits(config, tmp_path):
    for dtype in ("float64", "float16"):
        a, b, c = (tmp_path / f"{dtype}{i}" for i in range(3))
        run(torch_train, config, a, "--train.steps=2", f"--train.dtype={dtype}")
        assert main([f"--from={a}", "--to=jax", str(b)]) == 0
        assert main([f"--from={b}", "--to=torch", str(c)]) == 0
        original = read_run(a)
        assert original.leaves["params.wte.weight"].dtype == ("float64" if dtype == "float64" else "float32")
        assert float(original.leaves["loss_scale.scale"]) > 1 or dtype == "float64"
        same(read_run(b), original)
        same(read_run(c), original)


def test_hugging_face_holds_the_same_weights(changing, tmp_path):
    assert main([f"--from={changing / 'b'}", "--to=hf", str(tmp_path / "hf")]) == 0
    _, params = load_hf(tmp_path / "hf")
    expected = params_of(read_run(changing / "b").leaves)
    assert params.keys() == expected.keys()
    assert all(np.array_equal(params[path], leaf) for path, leaf in expected.items())


def refusal(*args):
    with pytest.raises(InputError) as caught:
        main([str(arg) for arg in args])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_hugging_face_has_no_nanochat_of_2026(changing, tmp_path, monkeypatch):
    saved = read_run(changing / "a")
    model = NanochatConfig(depth=4, seq_len=saved.config.model.seq_len).complete(64)
    saved = dataclasses.replace(saved, config=dataclasses.replace(saved.config, model=model))
    monkeypatch.setattr("jaxgpt.convert.__main__.read_run", lambda run, remote: saved)
    expected = "transformers' NanoChat is that of 2025: it has no model.value_embeds=true"
    assert expected in refusal("--from", changing / "a", "--to=hf", tmp_path / "hf")


def test_refusals(changing, tmp_path):
    assert f"{changing / 'b'} already exists" in refusal("--from", changing / "a", "--to=torch", changing / "b")
    assert "does not exist; give a run directory" in refusal("--from", tmp_path / "x", "--to=torch", tmp_path / "y")
    assert "has no checkpoints" in refusal("--from", tmp_path, "--to=torch", tmp_path / "y")
    (tmp_path / "checkpoints").mkdir()
    assert "has no checkpoint yet" in refusal("--from", tmp_path, "--to=torch", tmp_path / "y")
    assert "--to=tf is not one of torch, jax" in refusal("--from", changing / "a", "--to=tf", tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_a_damaged_checkpoint_is_not_converted(changing, tmp_path):
    assert main([f"--from={changing / 'a'}", "--to=torch", str(tmp_path / "b")]) == 0
    state = tmp_path / "b" / "checkpoints" / "10" / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-5] ^= 1
    state.write_bytes(data)
    message = refusal("--from", tmp_path / "b", "--to=jax", tmp_path / "c")
    assert "its file state.safetensors was changed after it was written" in message


def test_without_torch(changing, tmp_path, monkeypatch):
    """Faults: C110."""
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refusal("--from", changing / "a", "--to=torch", tmp_path / "b")
    assert message == "this needs PyTorch; pip install 'torch>=2.10'"
    assert main([f"--from={changing / 'a'}", "--to=hf", str(tmp_path / "hf")]) == 0
