"""The comparison as a command: what it writes, what it refuses, and how it measures a difference."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from jaxgpt.compare import __main__ as compare
from jaxgpt.compare import finished_runs
from jaxgpt.compare.trajectories import draw_params, run_torch
from jaxgpt.config import to_source
from jaxgpt.errors import InputError
from jaxgpt.models import gpt2, layers
from parity_tests.helpers.train_runs import TEXT, write_text
from parity_tests.small_runs import make_batches, make_config
from torch_ref.models import weights
from torch_ref.training import step as torch_step

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    data = write_text(tmp_path_factory.mktemp("data"), TEXT)
    config = make_config("adamw", 12, "float32")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(data)),
        model=dataclasses.replace(config.model, n_layer=1, dropout=0.1),
    )
    path = data.parent / "tiny.py"
    path.write_text(to_source(config))
    return path


def test_command(config_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare.console, "width", 160)
    monkeypatch.setattr(compare.Progress, "LINE_EVERY_S", 0)
    arguments = [f"--config={config_path}", "--steps", "4", "--dtype=float64", "--trace", "--out", str(tmp_path)]
    assert compare.main(arguments) == 0
    shown, progress = capsys.readouterr()
    assert "jaxgpt: 4 of 4 steps" in progress and "torch_ref: 4 of 4 steps" in progress
    for word in ("quantity", "worst", "floor", "gate", "verdict", "gradients, step 1", "no difference", "inside all"):
        assert word in shown
    written = json.loads((tmp_path / "parity.json").read_text())
    assert written["is_inside"] and written["trace"] == "no difference" and written["dtype"] == "float64"
    assert len(written["curves"]["ours"]) == 4 and len(written["rows"]) == 10
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(gpt2, "gelu", lambda x, kind: layers.gelu(x, "tanh"))
    assert compare.main(arguments) == 1
    shown = capsys.readouterr().out
    assert "outside: logits, loss, max" in shown and "first difference: forward: h.0.mlp" in shown
    assert not json.loads((tmp_path / "parity.json").read_text())["is_inside"]


def write_run(directory, losses, val_losses=()):
    directory.mkdir()
    values = dict(val_losses)
    lines = [{"step": step, "train_loss": loss, "val_loss": values.get(step)} for step, loss in losses]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(directory)


def test_two_finished_runs(tmp_path, capsys):
    a = write_run(tmp_path / "a", [(n, 3 - n / 10) for n in range(1, 9)], [(8, 2.5)])
    b = write_run(tmp_path / "b", [(n, 3 - n / 10 + (1e-4 if n == 6 else 0)) for n in range(2, 12, 2)], [(8, 2.5)])
    out = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "x.json")]
    assert compare.main(["--runs", a, b, "--dtype=bfloat16", *out]) == 0
    assert compare.main(["--runs", a, b, "--dtype=float32", *out]) == 1
    assert "outside: train_loss, max" in capsys.readouterr().out
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["curves"]["steps"] == [2, 4, 6, 8]
    rows = {row["quantity"]: row for row in written["rows"]}
    assert rows["train_loss, max"]["worst"] == "step 6"
    assert rows["train_loss, max"]["figure"] == pytest.approx(1e-4)
    assert rows["val_loss, max"]["figure"] == 0
    assert (tmp_path / "out" / "parity.png").is_file()


# Refusals


def refusal(*args):
    with pytest.raises(InputError) as caught:
        compare.main([str(arg) for arg in args])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_runs_that_cannot_be_compared(tmp_path, monkeypatch):
    a = write_run(tmp_path / "a", [(1, 3.0)])
    b = write_run(tmp_path / "b", [(2, 3.0)])
    assert "have no logged step in common" in refusal("--runs", a, b, "--dtype=float32")
    assert "--dtype is missing" in refusal("--runs", a, b)
    assert "metrics.jsonl does not exist" in refusal("--runs", a, tmp_path, "--dtype=float32")
    assert "--trace needs both models" in refusal("--runs", a, b, "--trace")
    assert "has no meaning beside --runs" in refusal("--runs", a, b, "--optim.lr=1")
    config = {"model": {"n_layer": 2}, "optim": {"lr": 1e-3}, "run": {"dir": "x"}, "train": {"dtype": "float32"}}
    other = {"model": {"n_layer": 3}, "optim": {"lr": 1e-3}, "run": {"dir": "y"}, "train": {"dtype": "bfloat16"}}
    for module in (compare, finished_runs):
        monkeypatch.setattr(module, "read_run", lambda run: config if run.name == "a" else other)
    message = refusal("--runs", a, b)
    assert message == f"--runs: {a} and {b} are not the same run: model.n_layer 2 and 3"


def test_tf32_is_refused(config_path, monkeypatch):
    """Faults: C113."""
    assert "train.matmul_precision=high allows TF32" in refusal(
        f"--config={config_path}", "--train.matmul_precision=high"
    )
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert "NVIDIA_TF32_OVERRIDE=1" in refusal(f"--config={config_path}")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    switch = SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)))
    monkeypatch.setattr(torch, "backends", switch)
    assert "torch.backends.cuda.matmul.allow_tf32=True" in refusal(f"--config={config_path}")


def test_bad_arguments(config_path):
    assert "--steps=0 is below 1" in refusal(f"--config={config_path}", "--steps=0")
    assert "--dtype=float16 is not one of float64, float32, bfloat16" in refusal(
        f"--config={config_path}", "--dtype=float16"
    )
    assert "train.dtype=float16 has no gates" in refusal(f"--config={config_path}", "--train.dtype=float16")
    assert "mesh.platform=gpu is not available" in refusal(f"--config={config_path}", "--mesh.platform=gpu")


def test_without_torch(config_path, monkeypatch):
    """Faults: C110."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refusal(f"--config={config_path}") == "this needs PyTorch; pip install 'torch>=2.10'"


def test_foreign_weights():
    config = make_config("adamw", 1, "float32", is_small=True)
    params = draw_params(config)

    def refuse(changed):
        with pytest.raises(InputError) as caught:
            run_torch(config, changed, make_batches(1))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    fc = "h.0.mlp.c_fc.weight"
    assert "c_fc.weight is (32, 128), this model has (128, 32); transpose it" in refuse(params | {fc: params[fc].T})
    assert "wpe.weight is (16, 32), this model has (32, 32)" in refuse(
        params | {"wpe.weight": params["wpe.weight"][:16]}
    )
    assert "lacks ln_f.bias" in refuse({path: leaf for path, leaf in params.items() if path != "ln_f.bias"})
    assert "h.0.attn.rotary.weight is no parameter of these models" in refuse(
        params | {"h.0.attn.rotary.weight": params["ln_f.bias"]}
    )
    with pytest.raises(InputError, match=r"h\.1\.ln_1\.bias, which this model does not have"):
        step = torch_step.make_step(config, compare_mesh(config))
        step.init_state(weights.to_torch(params | {"h.1.ln_1.bias": params["ln_f.bias"]}))


def compare_mesh(config):
    from torch_ref.parallel.mesh import make_mesh

    return make_mesh(config.mesh)


@pytest.mark.parametrize(
    ("outside", "dtype", "is_hinted"),
    [
        ({"parameters, step 300", "optimizer state"}, "float32", True),
        ({"gradient norm"}, "bfloat16", True),
        ({"parameters, step 300"}, "float64", False),
        ({"parameters, step 300", "loss, max"}, "float32", False),
        ({"parameters, step 1", "parameters, step 300"}, "float32", False),
        (set(), "float32", False),
    ],
)
def test_what_parts_late_only_may_be_rounding(outside, dtype, is_hinted):
    quantities = {*compare.EARLY, "gradient norm", "parameters, step 300", "optimizer state"}
    rows = [compare.Row(name, "w", 2.0 if name in outside else 0.5, 0.1, 1.0) for name in sorted(quantities)]
    assert ("--dtype float64 tells it from a bug" in compare.explain(rows, dtype)) == is_hinted
