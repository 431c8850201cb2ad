"""nanoGPT's ckpt.pt: a run goes on here, and there again, as if it had never moved."""

import copy
import dataclasses
import math

import jax
import numpy as np
import pytest
import torch

from jaxgpt.compare import tolerances
from jaxgpt.compare.trajectories import to_arrays
from jaxgpt.config import GPT2Config
from jaxgpt.config.schedule import hyper_at
from jaxgpt.convert.__main__ import main
from jaxgpt.convert.foreign import read_foreign, write_foreign
from jaxgpt.convert.runs import place_state, read_run, write_run
from jaxgpt.data.batch import Batch
from jaxgpt.errors import InputError
from jaxgpt.formats.nanogpt import load_nanogpt
from jaxgpt.formats.nanogpt_run import EMBEDDINGS
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.training.step import make_step
from torch_ref import models
from torch_ref.models.loss import cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")
SEQ_LEN, VOCAB = 16, 48
SETTINGS = {
    "dataset": "shakespeare_char", "gradient_accumulation_steps": 2, "batch_size": 2, "learning_rate": 2e-3,
    "max_iters": 60, "weight_decay": 0.2, "beta1": 0.9, "beta2": 0.98, "grad_clip": 0.4, "decay_lr": True,
    "warmup_iters": 12, "lr_decay_iters": 50, "min_lr": 3e-4, "dtype": "float32",
}  # fmt: skip


class Original:
    """nanoGPT's training in float64: AdamW's two groups, its schedule, its file. The modules are torch_ref's."""

    def __init__(self, *, is_old=False, n_layer=2, seed=0):
        self.iter_num, self.is_old = 0, is_old
        config = GPT2Config(vocab_size=VOCAB, seq_len=SEQ_LEN, n_layer=n_layer, n_head=2, n_embd=8, bias=True)
        self.config = dataclasses.replace(config, gelu="tanh" if is_old else "erf")
        self.model = models.build(self.config, dtype=torch.float64, param_dtype=torch.float64, seed=0)
        noise = torch.Generator().manual_seed(seed)
        self.params = dict(self.model.named_parameters())
        with torch.no_grad():
            for param in self.params.values():
                param.add_(0.1 * torch.randn(param.shape, generator=noise, dtype=torch.float64))
        kinds = [f"{kind}.{part}" for kind in ("wte", "wpe") for part in ("weight",)]
        for i in range(n_layer):
            names = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
            kinds += [f"h.{i}.{name}.{part}" for name in names for part in ("weight", "bias")]
        kinds += ["ln_f.weight", "ln_f.bias"]
        assert set(kinds) == set(self.params)
        if is_old:  # Linear's weights decay, and each group is sorted by name
            decayed = sorted(k for k in kinds if ".c_" in k and k.endswith("weight"))
            rest = sorted(set(kinds) - set(decayed))
        else:
            decayed = [k for k in kinds if self.params[k].dim() >= 2]
            rest = [k for k in kinds if self.params[k].dim() < 2]
        groups = [
            {"params": [self.params[k] for k in decayed], "weight_decay": SETTINGS["weight_decay"]},
            {"params": [self.params[k] for k in rest], "weight_decay": 0.0},
        ]
        betas = (SETTINGS["beta1"], SETTINGS["beta2"])
        self.optimizer = torch.optim.AdamW(groups, lr=SETTINGS["learning_rate"], betas=betas)

    def _lr(self):
        it, end, low = self.iter_num, SETTINGS["lr_decay_iters"], SETTINGS["min_lr"]
        if it < SETTINGS["warmup_iters"]:
            return SETTINGS["learning_rate"] * (it + 1) / (SETTINGS["warmup_iters"] + 1)
        if it > end:
            return low
        ratio = (it - SETTINGS["warmup_iters"]) / (end - SETTINGS["warmup_iters"])
        return low + 0.5 * (1 + math.cos(math.pi * ratio)) * (SETTINGS["learning_rate"] - low)

    def train(self, batches):
        losses = []
        for batch_BT in batches:
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr()
            tokens_BT = torch.from_numpy(batch_BT)
            x_BTD = self.model(tokens_BT[:, :-1])
            total, n_tokens = cross_entropy(x_BTD, self.params["wte.weight"], tokens_BT[:, 1:])
            (total / n_tokens).backward()
            losses.append(float(total.detach() / n_tokens))
            torch.nn.utils.clip_grad_norm_(list(self.params.values()), SETTINGS["grad_clip"])
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.iter_num += 1
        return losses

    def save(self, path, prefix="", **options):
        model = {f"{prefix}transformer.{k}": p.detach() for k, p in self.params.items()}
        model[f"{prefix}lm_head.weight"] = model[f"{prefix}transformer.wte.weight"]
        args = {
            "n_layer": self.config.n_layer,
            "n_head": 2,
            "n_embd": 8,
            "block_size": SEQ_LEN,
            "bias": True,
            "vocab_size": VOCAB,
        }
        args["dropout"] = 0.0
        if self.is_old:
            del args["bias"]
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = {
            "model": model, "optimizer": self.optimizer.state_dict(), "model_args": args, "iter_num": self.iter_num,
            "best_val_loss": torch.tensor(3.25), "config": SETTINGS,
        }  # fmt: skip
        torch.save(checkpoint, path, **options)
        return path

    def load(self, path):
        """As train.py does with --init_from=resume."""
        checkpoint = torch.load(path, weights_only=True)
        for name in ("n_layer", "n_head", "n_embd", "bias", "vocab_size"):
            assert checkpoint["model_args"][name] == getattr(self.config, name)
        assert checkpoint["model_args"]["block_size"] == SEQ_LEN and checkpoint["best_val_loss"] == 3.25
        with torch.no_grad():
            for name, tensor in checkpoint["model"].items():
                if name != "lm_head.weight":
                    self.params[name.removeprefix("transformer.")].copy_(tensor)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.iter_num = checkpoint["iter_num"]
        return self


def batches(n, seed=0):
    """Rows that count up from anywhere, which can be learned."""
    starts = np.random.default_rng(seed).integers(0, VOCAB, (n, 4, 1))
    return list(((starts + np.arange(SEQ_LEN + 1)) % VOCAB).astype(np.int32))


@pytest.fixture(scope="module")
def original():
    trained = Original()
    trained.train(batches(10))
    return trained


@pytest.fixture(scope="module")
def old():
    trained = Original(is_old=True, n_layer=11)  # 10 comes before 2
    trained.train(batches(3))
    return trained


def go_on(run, n, seed):
    """Steps from a checkpoint in torch_ref's state and jaxgpt's program."""
    mesh, losses = make_mesh(dataclasses.replace(run.config.mesh, data=1, platform="cpu")), []
    with jax.enable_x64(True), jax.default_matmul_precision("highest"), jax.set_mesh(mesh):
        step = make_step(run.config, mesh)
        state = place_state(run.leaves, step.state_shapes)
        for i, batch in enumerate(batches(n, seed), run.step):
            rows = Batch(batch.reshape(2, 2, SEQ_LEN + 1))
            state, metrics = step.train(state, rows, step.hyper(hyper_at(run.config, i)))
            losses.append(float(metrics["loss"]))
        return losses, dataclasses.replace(run, step=run.step + n, leaves=to_arrays(state))


def test_a_run_moves_here_and_back(original, tmp_path):
    """10 iterations in nanoGPT, 30 here, 3 in nanoGPT; the other makes all 43."""
    original.save(tmp_path / "out" / "ckpt.pt", "_orig_mod.")
    assert main(["--from", str(tmp_path / "out"), "--to", "jax", str(tmp_path / "run")]) == 0
    ours, moved = go_on(read_run(tmp_path / "run"), 30, seed=1)
    uninterrupted = copy.deepcopy(original)
    theirs = uninterrupted.train(batches(30, seed=1))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < tolerances.FP64
    assert theirs[-1] < theirs[0] - 0.1, "nothing was learned, so nothing was tested"
    write_run(moved, "jax", tmp_path, tmp_path / "later")
    assert main(["--from", str(tmp_path / "later"), "--to", "nanogpt", str(tmp_path / "back")]) == 0
    back = Original(seed=5).load(tmp_path / "back" / "ckpt.pt")
    ours, theirs = back.train(batches(3, seed=2)), uninterrupted.train(batches(3, seed=2))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < tolerances.FP64
    for path, param in uninterrupted.params.items():
        assert (param - back.params[path]).abs().max() < tolerances.FP64, path


@pytest.mark.parametrize(
    ("version", "prefix", "is_zip"),
    [
        ("original", "", True),
        ("original", "module.", True),
        ("original", "_orig_mod.module.", False),
        ("old", "", False),
    ],
    ids=["plain", "ddp", "old format", "old version"],
)
def test_in_out_and_in_again(version, prefix, is_zip, original, old, tmp_path):
    """Bit for bit, from each version, prefix and format; before the bias was an option it was there, and GELU tanh."""
    trained = old if version == "old" else original
    path = trained.save(tmp_path / "a.pt", prefix, _use_new_zipfile_serialization=is_zip)
    first = read_foreign(path)
    assert first and first.step == trained.iter_num and first.val_loss == 3.25 and first.config.train.steps == 60
    assert first.config.model == trained.config
    for k, param in trained.params.items():
        held = trained.optimizer.state[param]
        flip = (lambda a: a.T) if ".c_" in k and param.dim() == 2 else (lambda a: a)
        wanted = {f"params.{k}": param.detach(), f"opt_state.mu.{k}": held["exp_avg"]}
        wanted[f"opt_state.nu.{k}"] = held["exp_avg_sq"]
        for name, tensor in wanted.items():
            assert np.array_equal(first.leaves[name], flip(tensor.numpy())), name
    if version == "old":
        assert first.config.optim.groups == (EMBEDDINGS,)
        with pytest.raises(InputError, match="nanoGPT computes erf"):
            write_foreign("nanogpt", tmp_path / "b", first, None, n_ranks=1, weights_only=False)
        model = dataclasses.replace(first.config.model, gelu="erf")
        first = dataclasses.replace(first, config=dataclasses.replace(first.config, model=model))
    write_foreign("nanogpt", tmp_path / "b", first, None, n_ranks=1, weights_only=False)
    again = read_foreign(tmp_path / "b")
    assert again and (again.step, again.config, again.val_loss) == (first.step, first.config, first.val_loss)
    assert again.leaves.keys() == first.leaves.keys()
    for name, leaf in first.leaves.items():
        assert leaf.dtype == again.leaves[name].dtype and leaf.tobytes() == again.leaves[name].tobytes(), name


def test_weights_only(original, tmp_path, capsys):
    run = read_foreign(original.save(tmp_path / "a.pt"))
    assert run
    write_foreign("nanogpt", tmp_path / "b", run, None, n_ranks=1, weights_only=True)
    assert "optimizer" not in torch.load(tmp_path / "b" / "ckpt.pt", weights_only=True)
    again = read_foreign(tmp_path / "b")
    assert again and "has no optimizer, so it starts anew" in capsys.readouterr().out
    assert not again.leaves["opt_state.mu.wte.weight"].any() and again.leaves["opt_state.count"] == 0
    with pytest.raises(InputError, match=r"c_attn.bias is torch.float64; convert it to float32"):
        load_nanogpt(tmp_path / "b" / "ckpt.pt")  # to sample from: float64 is for runs


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["optimizer"]["state"].pop(3), "its optimizer has no state of h.0.attn.c_proj.weight"),
        (lambda c: c["optimizer"]["param_groups"].pop(), "its optimizer has groups of [10] parameters"),
        (lambda c: c.update(optimizer=7), "has no optimizer with param_groups and state"),
        (lambda c: c["optimizer"]["state"][0].update(step=-1), "step of wte.weight is -1, not a count"),
        (lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.ones(2)), "exp_avg of wte.weight is torch.float32"),
        (lambda c: c["optimizer"]["state"][0]["exp_avg"].fill_(float("nan")), "exp_avg of wte.weight is not finite"),
        (lambda c: c.update(iter_num="x"), "iter_num='x' is not a number of steps"),
        (lambda c: c["config"].update(batch_size="x"), "config has batch_size='x', not a int"),
    ],
)
def test_damaged_files_are_one_line(change, expected, original, tmp_path):
    path = original.save(tmp_path / "a.pt")
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(InputError) as caught:
        read_foreign(path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_what_nanogpt_cannot_do_is_named(original, tmp_path):
    run = read_foreign(original.save(tmp_path / "a.pt"))
    assert run
    optim = dataclasses.replace(run.config.optim, algorithm="muon", eps=1e-6)
    muon = dataclasses.replace(run, config=dataclasses.replace(run.config, optim=optim))
    with pytest.raises(InputError, match=r"it has no optim.algorithm=muon, no optim.eps=1e-06; --weights-only"):
        write_foreign("nanogpt", tmp_path / "b", muon, None, n_ranks=1, weights_only=False)
    with pytest.raises(InputError, match="--to=nanochat writes nanochat models, this one is of gpt2"):
        write_foreign("nanochat", tmp_path / "b", run, None, n_ranks=1, weights_only=False)
    assert not (tmp_path / "b").exists()
