"""Weights of Hugging Face's and nanoGPT's GPT-2 give the same logits here, in both directions, or a one-line error."""

import dataclasses
import functools
import json
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxgpt import train
from jaxgpt.compare import tolerances
from jaxgpt.config import (
    Config,
    DataConfig,
    EvalConfig,
    GPT2Config,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    load,
    to_source,
)
from jaxgpt.errors import InputError
from jaxgpt.formats import hugging_face
from jaxgpt.formats.hugging_face import load_hf, save_hf
from jaxgpt.formats.nanogpt import load_nanogpt
from jaxgpt.formats.pretrained import adapt, crop, gelu_note, load_pretrained
from jaxgpt.models import Model, init_params, param_shapes

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = GPT2Config(vocab_size=211, seq_len=256, n_layer=3, n_head=4, n_embd=64, bias=True, gelu="tanh")


def tokens_of(vocab_size, seq_len=256, n_rows=2):
    return np.random.default_rng(0).integers(vocab_size, size=(n_rows, seq_len))


@functools.cache
def forward(config):
    model = Model(config)

    @jax.jit
    def logits(params, tokens_BT):
        module = model.bind(params)
        return module.logits(module(tokens_BT))

    return logits


def logits_of(config, params, tokens_BT):
    with jax.default_matmul_precision("highest"):
        return np.asarray(
            forward(dataclasses.replace(config, vocab_size=params["wte.weight"].shape[0]))(params, tokens_BT)
        )


def hf_model(gelu="gelu_new"):
    """Hugging Face's GPT-2 with large random weights and biases, so that every tensor matters."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=3, n_embd=64, n_head=4, vocab_size=211, n_positions=256, activation_function=gelu,
        embd_pdrop=0, attn_pdrop=0, resid_pdrop=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def hf_logits(model, tokens_BT):
    with torch.no_grad():
        return model(torch.from_numpy(tokens_BT)).logits.numpy()


def random_params(config):
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return {
        path: np.asarray(leaf + 0.1 * jax.random.normal(next(keys), leaf.shape))
        for path, leaf in init_params(config).items()
    }


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hf")
    hf_model().save_pretrained(directory)
    return directory


def copy_of(hf_dir, tmp_path, change=None, **config_changes):
    """The directory again, with its tensors passed through `change` and entries of its config replaced."""
    tensors = load_file(hf_dir / "model.safetensors")
    tensors = change(tensors) if change else tensors
    config = json.loads((hf_dir / "config.json").read_text()) | config_changes
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def refused(call, *wanted):
    """Checks that the call raises one line of InputError that contains every wanted text."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for text in wanted:
        assert text in message, message
    return message


# Hugging Face -> ours


@pytest.mark.parametrize(("activation", "gelu"), [("gelu_new", "tanh"), ("gelu", "erf")])
def test_logits_agree_with_hf(tmp_path, activation, gelu):
    model = hf_model(activation)
    model.save_pretrained(tmp_path)
    config, params = load_hf(tmp_path)
    assert config == dataclasses.replace(TINY, gelu=gelu)
    tokens = tokens_of(211)
    difference = np.abs(logits_of(config, params, tokens) - hf_logits(model, tokens)).max()
    assert difference < tolerances.FP32_LOGITS
    other = "erf" if gelu == "tanh" else "tanh"
    wrong = logits_of(dataclasses.replace(config, gelu=other), params, tokens)
    assert np.abs(wrong - hf_logits(model, tokens)).max() > 10 * tolerances.FP32_LOGITS


def test_sharded_unprefixed_and_buffered_files_load_alike(hf_dir, tmp_path):
    _, whole = load_hf(hf_dir)
    hf_model().save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()

    def as_openai(tensors):
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        bare |= {f"h.{i}.attn.bias": np.ones((1, 1, 256, 256), np.float32) for i in range(3)}
        bare["h.0.attn.masked_bias"] = np.full((1,), -1e4, np.float32)
        return bare | {"lm_head.weight": bare["wte.weight"].copy()}

    (tmp_path / "bare").mkdir()
    for directory in (tmp_path / "shards", copy_of(hf_dir, tmp_path / "bare", as_openai)):
        _, params = load_hf(directory)
        assert params.keys() == whole.keys()
        assert all(np.array_equal(params[path], whole[path]) for path in whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_float32(tmp_path, dtype):
    model = hf_model().to(dtype)
    model.save_pretrained(tmp_path)
    _, params = load_hf(tmp_path)
    assert {p.dtype for p in params.values()} == {np.dtype(np.float32)}
    assert np.array_equal(params["wte.weight"], model.transformer.wte.weight.detach().float().numpy())


# ours -> Hugging Face


@pytest.mark.parametrize(("bias", "gelu", "n_vocab"), [(True, "tanh", 211), (False, "erf", 256)])
def test_hf_computes_what_we_save(tmp_path, bias, gelu, n_vocab):
    config = dataclasses.replace(TINY, bias=bias, gelu=gelu, vocab_size=n_vocab)
    params = random_params(config)
    save_hf(tmp_path, config, params)
    opened: Any = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    model, report = opened
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens = tokens_of(n_vocab)
    difference = np.abs(logits_of(config, params, tokens) - hf_logits(model.eval(), tokens)).max()
    assert difference < tolerances.FP32_LOGITS
    loaded, back = load_hf(tmp_path)
    assert loaded == dataclasses.replace(config, bias=True)
    assert all(np.array_equal(back[path], params[path]) for path in params)
    assert all(not back[path].any() for path in back.keys() - params.keys())


# nanoGPT


def write_nanogpt(path, config, params, **changes):
    """ckpt.pt as nanoGPT's train.py writes it after torch.compile: [out, in], two prefixes, the head twice."""
    state = {
        f"_orig_mod.transformer.{name}": torch.from_numpy(np.array(p.T if ".c_" in name else p))
        for name, p in params.items()
    }
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    args = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "bias")}
    args |= {"block_size": config.seq_len, "vocab_size": 211, "dropout": 0.2}
    saved = {"model": state, "optimizer": {"state": {}}, "model_args": args, "iter_num": 7, "config": {"out_dir": "x"}}
    torch.save(saved | changes, path)
    return path


class NanoGPT(torch.nn.Module):
    """nanoGPT's arithmetic by torch's own modules, from its state dict."""

    def __init__(self, state, n_head):
        super().__init__()
        self.state = {name.removeprefix("_orig_mod.transformer."): tensor for name, tensor in state.items()}
        self.n_head = n_head

    def get(self, name):
        return self.state[f"{name}.weight"], self.state.get(f"{name}.bias")

    def forward(self, tokens_BT):
        functional = torch.nn.functional
        x = self.state["wte.weight"][tokens_BT] + self.state["wpe.weight"][: tokens_BT.shape[1]]
        n_embd = x.shape[-1]
        for i in range(3):
            h = functional.layer_norm(x, (n_embd,), *self.get(f"h.{i}.ln_1"))
            heads = functional.linear(h, *self.get(f"h.{i}.attn.c_attn")).split(n_embd, dim=2)
            q, k, v = (part.unflatten(2, (self.n_head, -1)).transpose(1, 2) for part in heads)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + functional.linear(y, *self.get(f"h.{i}.attn.c_proj"))
            h = functional.layer_norm(x, (n_embd,), *self.get(f"h.{i}.ln_2"))
            h = functional.gelu(functional.linear(h, *self.get(f"h.{i}.mlp.c_fc")))
            x = x + functional.linear(h, *self.get(f"h.{i}.mlp.c_proj"))
        return functional.layer_norm(x, (n_embd,), *self.get("ln_f")) @ self.state["wte.weight"].T


@pytest.mark.parametrize("bias", [True, False])
def test_logits_agree_with_nanogpt(tmp_path, bias):
    config = dataclasses.replace(TINY, bias=bias, gelu="erf")
    params = random_params(config)
    path = write_nanogpt(tmp_path / "ckpt.pt", config, params)
    loaded, back = load_pretrained(str(path))
    assert loaded == config
    assert all(np.array_equal(back[name], params[name]) for name in params)
    state = torch.load(path, weights_only=True)["model"]
    tokens = tokens_of(211)
    wanted = NanoGPT(state, config.n_head)(torch.from_numpy(tokens)).numpy()
    assert np.abs(logits_of(loaded, back, tokens) - wanted).max() < tolerances.FP32_LOGITS


class Malice:
    def __reduce__(self):
        return open, ("executed", "w")


def test_malicious_pickles_run_nothing(tmp_path, monkeypatch):
    """Faults: C112."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "model_args": Malice()}, "ckpt.pt")
    refused(lambda: load_nanogpt("ckpt.pt"), "ckpt.pt", "might run code")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malice()))
    refused(lambda: load_pretrained("plain.pt"), "plain.pt")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Malice()))
    refused(lambda: load_pretrained("pytorch_model.bin"), "pytorch_model.bin", "save_pretrained")
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 8,
                                                      "vocab_size": 8}))  # fmt: skip
    refused(lambda: load_pretrained(str(tmp_path)), "pytorch_model.bin", "save_pretrained")
    assert not (tmp_path / "executed").exists()


def test_broken_nanogpt_files_are_named(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, gelu="erf")
    params = random_params(config)
    whole = write_nanogpt(tmp_path / "ckpt.pt", config, params).read_bytes()
    for name, content in (("short.pt", whole[: len(whole) // 2]), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: load_nanogpt(tmp_path / name), name, "not a complete torch checkpoint")
    path = write_nanogpt(tmp_path / "other.pt", config, params, model_args=None)
    refused(lambda: load_nanogpt(path), "other.pt", "model_args")
    path = write_nanogpt(tmp_path / "args.pt", config, params, model_args={"n_layer": 3})
    refused(lambda: load_nanogpt(path), "args.pt", "n_head")
    path = write_nanogpt(tmp_path / "wide.pt", dataclasses.replace(config, n_embd=128), params)
    refused(lambda: load_nanogpt(path), "c_attn.bias", "(192,)", "(384,)")
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(lambda: load_nanogpt(tmp_path / "ckpt.pt"), "pip install 'torch>=2.10'")


# what does not fit is named


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def test_missing_extra_and_misshapen_tensors_are_named(hf_dir, tmp_path):
    """Faults: C111."""

    def load(change, **config_changes):
        return lambda: load_hf(copy_of(hf_dir, tmp_path, change, **config_changes))

    path = "transformer.h.1.mlp.c_fc.weight"
    refused(load(without(path)), "lacks h.1.mlp.c_fc.weight", "model")
    refused(load(lambda t: t | {"transformer.h.0.attn.rotary": np.ones(3)}), "transformer.h.0.attn.rotary", "no place")
    refused(load(lambda t: t | {path: t[path].T.copy()}), path, "(256, 64)", "(64, 256)")
    refused(load(lambda t: t | {path: t[path].astype(np.int8)}), path, "I8")
    refused(load(lambda t: t | {path: t[path].astype(np.float64)}), path, "F64")
    untied = {"lm_head.weight": np.ones((211, 64), np.float32)}
    refused(load(lambda t: t | untied), "lm_head.weight", "wte.weight")
    refused(load(None, n_layer=2), "n_layer=2", "holds 3")
    refused(load(None, n_layer=10**9), "n_layer=1000000000")
    refused(load(None, n_embd=128), "c_attn.bias", "(192,)", "(384,)")
    refused(load(None, n_inner=100), "n_inner=100")
    refused(load(None, n_positions=None), "n_positions=None")
    refused(load(None, activation_function="relu"), "activation_function='relu'")
    refused(load(None, layer_norm_epsilon=1e-6), "layer_norm_epsilon=1e-06")
    refused(load(None, model_type="llama"), "model_type='llama'")
    load(None)()


def test_missing_and_broken_files_are_named(hf_dir, tmp_path):
    refused(lambda: load_pretrained(str(tmp_path / "nothing")), "nothing", "gpt2-xl")
    refused(lambda: load_pretrained(str(tmp_path)), "config.json")
    (tmp_path / "config.json").write_text("{")
    refused(lambda: load_hf(tmp_path), "config.json", "JSON")
    (tmp_path / "config.json").write_bytes((hf_dir / "config.json").read_bytes())
    refused(lambda: load_hf(tmp_path), "model.safetensors")
    whole = (hf_dir / "model.safetensors").read_bytes()
    for content in (b"", whole[:100], whole[:-1]):
        (tmp_path / "model.safetensors").write_bytes(content)
        refused(lambda: load_hf(tmp_path), "model.safetensors", "fetch it again")
    (tmp_path / "model.safetensors").unlink()
    for file in ("../model.safetensors", "/etc/passwd"):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": file}}))
        refused(lambda: load_hf(tmp_path), file, "will not be read")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"wte.weight": "gone.safetensors"}})
    )
    refused(lambda: load_hf(tmp_path), "gone", "is missing")


# for a run


def test_cropping_keeps_the_first_positions():
    params = random_params(TINY)
    short = crop(params, 100)
    config = dataclasses.replace(TINY, seq_len=100)
    tokens = tokens_of(211, 100)
    assert np.array_equal(logits_of(config, short, tokens), logits_of(TINY, params, tokens))
    assert params["wpe.weight"].shape == (256, 64)
    refused(lambda: crop(params, 257), "model.seq_len=257", "256")


def test_adapting_names_every_difference():
    params = random_params(TINY)
    wanted = GPT2Config(seq_len=64, n_layer=12, n_head=4, n_embd=64, bias=False, gelu="erf", vocab_size=211)
    message = refused(lambda: adapt(TINY, params, wanted), "model.n_layer=12 but 3", "model.bias=False but True")
    assert message.endswith("set --model.n_layer=3 --model.bias=true")
    refused(
        lambda: adapt(TINY, params, dataclasses.replace(TINY, vocab_size=65)),
        "model.vocab_size=65",
        "below",
        "--model.vocab_size=211",
    )
    refused(
        lambda: adapt(TINY, params, dataclasses.replace(TINY, vocab_size=50257)),
        "model.vocab_size=50257",
        "above the 211",
    )
    refused(lambda: adapt(TINY, params, dataclasses.replace(TINY, seq_len=512)), "model.seq_len=512", "256")


NOTE = "model.gelu={} as nanoGPT does, but {} was trained with tanh; set --model.gelu=tanh for the GELU of its training"


@pytest.mark.parametrize(("gelu", "activation"), [("erf", "gelu"), ("tanh", "gelu_new")])
def test_weights_run_with_either_gelu_and_the_run_says_which_is_not_theirs(
    hf_dir, tmp_path, monkeypatch, capsys, gelu, activation
):
    """Trained with tanh; one step with learning rate 0 and the loss is that of Hugging Face with the GELU asked for."""
    monkeypatch.chdir(tmp_path)
    tokens = tokens_of(211, 65).astype(np.uint16)
    tokens_of(211, 999)[0].astype(np.uint16).tofile("train.bin")
    tokens.tofile("val.bin")
    config = Config(
        data=DataConfig(dir="."),
        model=dataclasses.replace(TINY, seq_len=64, gelu=gelu),
        train=TrainConfig(steps=1, batch_tokens=64, micro_batch_size=1, init_from=str(hf_dir), dtype="float32"),
        optim=OptimConfig(lr=0.0),
        eval=EvalConfig(tokens=0),
        mesh=MeshConfig(data=1),
    )
    (tmp_path / "config.py").write_text(to_source(config))
    assert train.main(["--config=config.py"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "trained with" in line]
    assert notes == ([NOTE.format("erf", hf_dir)] if gelu == "erf" else [])
    found = json.loads((tmp_path / "runs/config/metrics.jsonl").read_text().splitlines()[-1])["val_loss"]
    flat = tokens.astype(np.int64).ravel()
    rows = np.stack([flat[:65], flat[64:129]])

    def loss(name):
        logits = torch.from_numpy(hf_logits(hf_model(name), rows[:, :-1]))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(rows[:, 1:]).flatten()).item()

    other = "gelu" if activation == "gelu_new" else "gelu_new"
    assert abs(found - loss(activation)) < 2e-6 < 1e-5 < abs(found - loss(other))  # 5.6 nats; measured 0 and 1.4e-5


def test_gelu_note_for_nanogpt_weights():
    erf = dataclasses.replace(TINY, gelu="erf")
    assert gelu_note("ckpt.pt", erf, erf) == ""
    assert gelu_note("ckpt.pt", erf, TINY) == (
        "model.gelu=tanh, but ckpt.pt was trained with erf; set --model.gelu=erf for the GELU of its training"
    )


def test_the_fine_tuning_config_has_nanogpts_gelu_and_the_evaluation_openais():
    models = [load(CONFIGS / f"{name}.py").model for name in ("finetune_shakespeare", "eval_gpt2")]
    assert [getattr(model, "gelu", None) for model in models] == ["erf", "tanh"]


def test_added_ids_leave_the_others_alone_and_are_unlikely():
    """Logits far below 0, as GPT-2's are: rows of zeros would take all the probability."""
    params = random_params(TINY)
    params |= {"wte.weight": params["wte.weight"] + 0.5, "ln_f.bias": params["ln_f.bias"] - 1}
    wanted = dataclasses.replace(TINY, seq_len=128, dropout=0.1, vocab_size=256)
    adapted = adapt(TINY, params, wanted)
    assert {p: v.shape for p, v in adapted.items()} == {p: s.shape for p, s in param_shapes(wanted).items()}
    assert params["wte.weight"].shape == (211, 64)
    tokens = tokens_of(211, 128)
    before = logits_of(TINY, params, tokens)
    after = logits_of(wanted, adapted, tokens)
    assert before.max() < -20
    np.testing.assert_allclose(after[..., :211], before, rtol=tolerances.FP32_OP)
    mass = np.asarray(jax.nn.softmax(after))[..., 211:].sum(-1)
    assert mass.max() < 45 / 256
    unchanged = adapt(TINY, params, TINY)
    assert all(unchanged[path] is params[path] or path == "wpe.weight" for path in params)


@pytest.mark.parametrize(
    ("shape", "n_params"),
    [((12, 12, 768), 124_439_808), ((24, 16, 1024), 354_823_168), ((36, 20, 1280), 774_030_080),
     ((48, 25, 1600), 1_557_611_200)],
)  # fmt: skip
def test_published_sizes(shape, n_params):
    n_layer, n_head, n_embd = shape
    config = GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd, bias=True, vocab_size=50257)
    assert sum(math.prod(leaf.shape) for leaf in param_shapes(config).values()) == n_params


def test_every_hub_model_is_pinned():
    for revision, sha256 in hugging_face.PRETRAINED.values():
        assert len(bytes.fromhex(revision)) == 20 and len(bytes.fromhex(sha256)) == 32
