"""The comparison as a tool: jaxgpt and torch_ref inside all gates, and every planted bug outside of one."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgpt import layers
from jaxgpt.config import MeshConfig, to_source
from jaxgpt.errors import InputError
from jaxgpt.models import gpt2
from parity_tests import compare, tolerances
from parity_tests.mutations import (
    MUTATIONS,
    VOCAB,
    find_loudest,
    make_batches,
    make_config,
    run_reference,
    run_unmutated,
    set_up_bench,
)
from parity_tests.test_train import TEXT, write_text
from torch_ref import step as torch_step
from torch_ref import weights

N_STEPS = {"float64": 200, "float32": 200, "bfloat16": 60}
N_MUTANT_STEPS = 8


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outside(rows):
    return [row for row in rows if not row.is_inside]


# The gates


@pytest.mark.parametrize("dtype", N_STEPS)
@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_inside_all_gates(algorithm, dtype):
    n_steps = N_STEPS[dtype]
    params, theirs = run_reference(algorithm, n_steps, dtype)
    ours = run_unmutated(algorithm, params, n_steps, dtype)
    rows = compare.compare(ours, theirs, tolerances.PARITY[dtype])
    assert not outside(rows)
    assert len(rows) == 10 and len(ours.losses) == n_steps
    assert ours.losses[-1] < ours.losses[0] - (0.5 if n_steps == 200 else 0.1), "nothing was learned"
    assert min(ours.grad_norms) > 0.5, "clipping has no part in it"
    assert {path.partition(".")[0] for path in ours.opt_state} >= {"mu", "nu", "count"}
    assert any(path.startswith("momentum.") for path in ours.opt_state) == (algorithm == "muon")


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_is_seen(name):
    mutation = MUTATIONS[name]
    bench = set_up_bench(mutation.algorithm, mutation.is_masked, "float64", N_MUTANT_STEPS)
    assert not outside(compare.compare(bench.unmutated, bench.reference, tolerances.PARITY["float64"]))
    loudest = find_loudest(bench.judge(mutation))
    assert loudest is not None and not loudest.margin < 100, "seen by no gate, or only just"


def test_mutations_are_gone_afterwards():
    bench = set_up_bench("adamw", False, "float64", N_MUTANT_STEPS)
    again = run_unmutated("adamw", bench.params, N_MUTANT_STEPS, "float64", n_layer=1)
    assert again.losses == bench.unmutated.losses


def test_eight_sharded_devices_against_one_process():
    """data x fsdp x tensor of 2 each, Muon: every collective there is."""
    params, theirs = run_reference("muon", 20, "float32")
    config = make_config("muon", 20, "float32")
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, micro_batch_size=1),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2, platform="cpu"),
    )
    ours = compare.run_jax(config, VOCAB, params, make_batches(20))
    assert not outside(compare.compare(ours, theirs, tolerances.PARITY["float32"]))


# --trace


def traced(run):
    config = make_config("adamw", 2, "float64")
    return run(config, VOCAB, compare.draw_params(config, VOCAB), make_batches(2), is_traced=True)


@pytest.fixture(scope="module")
def reference():
    return traced(compare.run_torch)


def find_first(reference):
    return compare.trace(traced(compare.run_jax), reference, tolerances.PARITY["float64"])


def test_trace_without_a_bug(reference):
    assert find_first(reference) == "no difference"


def only_in(layer, mutant, original):
    """The bug in one layer: modules are told apart by the number of calls in one forward pass."""
    calls = iter(range(1000))

    def call(*args, **settings):
        return (mutant if next(calls) % 2 == layer else original)(*args, **settings)

    return call


def test_trace_finds_a_bug_in_the_forward_pass(reference, monkeypatch):
    monkeypatch.setattr(gpt2, "gelu", only_in(1, lambda x, kind: layers.gelu(x, "tanh"), layers.gelu))
    assert find_first(reference).startswith("forward: h.1.mlp (")


def test_trace_finds_a_bug_in_the_backward_pass(reference, monkeypatch):
    """The forward pass is right to the last bit; the gradient behind h.0's GELU is 1 % too large."""

    @jax.custom_vjp
    def scaled(x):
        return x

    scaled.defvjp(lambda x: (x, None), lambda _, d: (1.01 * d,))
    mutant = only_in(0, lambda x, kind: scaled(layers.gelu(x, kind)), layers.gelu)
    monkeypatch.setattr(gpt2, "gelu", mutant)
    assert find_first(reference).startswith("backward: h.0.mlp.c_fc.weight (")


def test_trace_finds_what_no_layer_has(reference, monkeypatch):
    """A call of the model that is not the sum of its layers, and an update."""
    original = gpt2.GPT2.__call__
    monkeypatch.setattr(gpt2.GPT2, "__call__", lambda self, *args, **more: 1.001 * original(self, *args, **more))
    assert find_first(reference).startswith("gradient of the whole model: ")
    monkeypatch.undo()
    monkeypatch.setattr("jaxgpt.optim.CLIP_EPS", 0.0)
    assert find_first(reference).startswith("update of step 1: ")


# The command


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
    arguments = [f"--config={config_path}", "--steps", "4", "--dtype=float64", "--trace", "--out", str(tmp_path)]
    assert compare.main(arguments) == 0
    shown = capsys.readouterr().out
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
    assert "metrics.jsonl is not there" in refusal("--runs", a, tmp_path, "--dtype=float32")
    assert "--trace needs both models" in refusal("--runs", a, b, "--trace")
    assert "has no meaning beside --runs" in refusal("--runs", a, b, "--optim.lr=1")
    config = {"model": {"n_layer": 2}, "optim": {"lr": 1e-3}, "run": {"dir": "x"}, "train": {"dtype": "float32"}}
    other = {"model": {"n_layer": 3}, "optim": {"lr": 1e-3}, "run": {"dir": "y"}, "train": {"dtype": "bfloat16"}}
    monkeypatch.setattr(compare, "read_config", lambda run: config if run.name == "a" else other)
    message = refusal("--runs", a, b)
    assert message == f"--runs: {a} and {b} are not the same run: model.n_layer 2 and 3"


def test_tf32_is_refused(config_path, monkeypatch):
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
    assert "invalid choice: 'float16'" in refusal(f"--config={config_path}", "--dtype=float16")
    assert "train.dtype=float16 has no gates" in refusal(f"--config={config_path}", "--train.dtype=float16")
    assert "mesh.platform=gpu is not here" in refusal(f"--config={config_path}", "--mesh.platform=gpu")


def test_without_torch(config_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refusal(f"--config={config_path}") == "this needs PyTorch; pip install 'jaxgpt[torch]'"


def test_foreign_weights():
    config = make_config("adamw", 1, "float32", n_layer=1)
    params = compare.draw_params(config, VOCAB)

    def refuse(changed):
        with pytest.raises(InputError) as caught:
            compare.run_torch(config, VOCAB, changed, make_batches(1))
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
        step = torch_step.make_step(config, VOCAB, compare_mesh(config))
        step.init_state(weights.to_torch(params | {"h.1.ln_1.bias": params["ln_f.bias"]}))


def compare_mesh(config):
    from torch_ref.sharding import make_mesh

    return make_mesh(config.mesh)


def test_two_models_are_not_compared():
    """Trajectories of different models or lengths: named, not broadcast."""
    one = set_up_bench("adamw", False, "float64", N_MUTANT_STEPS).unmutated
    gates = tolerances.PARITY["float64"]
    with pytest.raises(InputError, match=r"two models: ln_f\.bias is None in x"):
        compare.compare(
            dataclasses.replace(one, name="x", last={}),
            dataclasses.replace(one, last={"ln_f.bias": one.last["ln_f.bias"]}),
            gates,
        )
    with pytest.raises(InputError, match=f"two lengths: jaxgpt took 1 steps, jaxgpt {N_MUTANT_STEPS}"):
        compare.compare(dataclasses.replace(one, losses=[1.0]), one, gates)


def test_nan_is_outside():
    row = compare.Row("loss, max", "step 1", float("nan"), 0.0, 1e-5)
    assert not row.is_inside
    tree = {"a": np.ones(3), "b": np.array([1.0, np.nan, 1.0])}
    worst, figure = compare.find_worst(tree, {"a": np.zeros(3), "b": np.ones(3)})
    assert worst == "b" and np.isnan(figure)


def test_key_biases_stand_apart():
    theirs = {"h.0.attn.c_attn.bias": np.arange(1.0, 10.0)}
    ours = {"h.0.attn.c_attn.bias": np.arange(1.0, 10.0) + np.array([0, 0, 0, 1, 1, 1, 0, 0, 0])}
    assert compare.find_worst(ours, theirs)[1] == 0
    assert compare.find_worst_key_bias(ours, theirs, theirs)[1] == pytest.approx(
        3**0.5 / np.linalg.norm(theirs["h.0.attn.c_attn.bias"])
    )


def test_walk_is_the_model():
    """The layer by layer pass of --trace computes what the model's own call does."""
    config = make_config("adamw", 1, "float64")
    with jax.enable_x64(True):
        model = gpt2_model(config)
        params = {path: jnp.asarray(leaf) for path, leaf in compare.draw_params(config, VOCAB).items()}
        tokens, module = make_batches(1)[0][0, :, :-1], model.bind(params)
        walked = compare.walk(module, tokens, jnp.float64, "xla", lambda name, x: x)
        assert np.array_equal(walked, module(tokens, dtype=jnp.float64))


def gpt2_model(config):
    from jaxgpt.models import Model

    return Model(config.model, VOCAB)
