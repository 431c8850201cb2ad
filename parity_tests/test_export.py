"""An exported directory works whole: transformers' pipeline writes the greedy text that the engine here writes."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from jaxgpt.config import Config, GPT2Config, NanochatConfig, SampleConfig
from jaxgpt.data.tokenizer import BPETokenizer, CharTokenizer
from jaxgpt.errors import InputError
from jaxgpt.formats.export import export
from jaxgpt.inference.engine import Engine
from jaxgpt.models import param_shapes

CHARS = CharTokenizer("".join(sorted(set("The quick brown fox jumps over the lazy dog.\n"))))
BPE = BPETokenizer([*(bytes([byte]) for byte in range(256)), b"th", b"the", b" the", b"qu"])
GPT2 = GPT2Config(n_layer=2, n_head=2, n_embd=16, seq_len=64, vocab_size=64, bias=True, gelu="erf")
NANOCHAT = NanochatConfig(era="2025", depth=2, n_embd=32, head_dim=16, seq_len=64).complete(BPE.vocab_size)
MODELS = {
    "erf, padded vocabulary": (GPT2, CHARS),
    "tanh, no biases": (dataclasses.replace(GPT2, gelu="tanh", bias=False, vocab_size=CHARS.vocab_size), CHARS),
    "nanochat 2025": (NANOCHAT, BPE),
}


def make_params(config):
    """Random weights; positions count most, so that greedy text does not repeat one token."""
    rng = np.random.default_rng(0)
    scales = {"wpe.weight": 3.0}
    shapes = param_shapes(config).items()
    return {path: rng.normal(size=s.shape).astype(np.float32) * scales.get(path, 0.3) for path, s in shapes}


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_of_a_pipeline(name, tmp_path):
    model, tokenizer = MODELS[name]
    params = make_params(model)
    config = Config(model=model, sample=SampleConfig(temperature=0.7, top_k=20))
    export("hf", tmp_path / "out", config, params, tokenizer, {"step": "7"})
    prompt = "the quick "
    engine = Engine(model, params, dtype="float32", n_valid=tokenizer.vocab_size)
    ids = tokenizer.encode(prompt)
    ours = [i for (i,) in engine.generate(ids, max_tokens=40, temperature=0.0, stop_ids=tokenizer.stop_ids())]
    pipe = transformers.pipeline("text-generation", model=str(tmp_path / "out"), dtype=torch.float32, device="cpu")
    answer = pipe(prompt, max_new_tokens=40, do_sample=False, temperature=None, top_k=None, return_full_text=False)
    shown = [i for i in ours if i is not None and i not in tokenizer.specials.values()]  # a pipeline leaves them out
    assert len(set(shown)) > 3
    assert answer[0]["generated_text"] == tokenizer.decode(shown)
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (settings["temperature"], settings["top_k"]) == (0.7, 20)
    assert settings.get("suppress_tokens") == (list(range(CHARS.vocab_size, 64)) if "padded" in name else None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| parameters | {model.count_params().total:,} |" in card and "| step | 7 |" in card


def test_gguf_has_no_nanochat(tmp_path):
    with pytest.raises(InputError, match="--to=gguf writes GPT-2 models, this one is of nanochat"):
        export("gguf", tmp_path / "out", Config(model=NANOCHAT), {}, BPE, {})
