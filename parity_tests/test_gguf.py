"""A GGUF file, read back: every weight, every setting, every token and merge; and what cannot be written is refused."""

import dataclasses

import numpy as np
import pytest

from jaxgpt.config import GPT2Config
from jaxgpt.data.tokenizer import ByteTokenizer, GPT2Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.formats.gguf_file import save_gguf
from jaxgpt.models import param_shapes

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, seq_len=16, vocab_size=50304, bias=False, gelu="tanh")
OF_LLAMA = {
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
"""llama.cpp's names, written out here as they stand in its source (LLM_ARCH_GPT2)."""


def make_params(config):
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape.shape).astype(np.float32) for path, shape in param_shapes(config).items()}


def name_in_llama(path):
    *stem, suffix = path.split(".")
    block = [f"blk.{stem[1]}"] if stem[0] == "h" else []
    return ".".join([*block, OF_LLAMA[".".join(stem[2:] if block else stem)], suffix])


@pytest.mark.parametrize("bias", [False, True])
def test_read_back(gpt2_vocabulary, tmp_path, bias):
    gguf = pytest.importorskip("gguf")
    config = dataclasses.replace(CONFIG, bias=bias)
    params = make_params(config)
    save_gguf(tmp_path / "m.gguf", config, params, GPT2Tokenizer(), "small")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    for path, weight in params.items():
        is_linear = ".c_" in path and weight.ndim == 2
        np.testing.assert_array_equal(tensors.pop(name_in_llama(path)), weight.T if is_linear else weight)
    assert all(name.endswith(".bias") and not values.any() for name, values in tensors.items())
    assert len(tensors) == (0 if bias else 2 * 6 + 1)

    def value(key):
        return reader.fields[key].contents()

    settings = {"block_count": 2, "context_length": 16, "embedding_length": 8, "feed_forward_length": 32}
    assert {name: value(f"gpt2.{name}") for name in settings} == settings
    assert value("gpt2.attention.head_count") == 2
    assert value("gpt2.attention.layer_norm_epsilon") == pytest.approx(1e-5)
    assert value("general.architecture") == value("tokenizer.ggml.model") == "gpt2"
    assert value("tokenizer.ggml.pre") == "gpt-2"
    assert value("tokenizer.ggml.eos_token_id") == 50256
    tokens, kinds, merges = (value(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges"))
    assert len(tokens) == len(kinds) == 50304 and tokens[262] == "Ġthe" and tokens[50256] == "<|endoftext|>"
    assert (kinds[262], kinds[50256], kinds[50257]) == (1, 3, 5)  # normal, control, unused
    assert merges[0] == "Ġ t"


@pytest.mark.parametrize(
    ("settings", "tokenizer", "message"),
    [
        ({"gelu": "erf"}, GPT2Tokenizer(), "model.gelu=erf cannot be written as GGUF"),
        ({}, ByteTokenizer(), "the byte tokenizer cannot be written as GGUF"),
        ({}, None, "this model has no tokenizer"),
    ],
)
def test_what_llama_would_compute_otherwise_is_refused(tmp_path, settings, tokenizer, message):
    with pytest.raises(InputError, match=message):
        save_gguf(tmp_path / "m.gguf", dataclasses.replace(CONFIG, **settings), {}, tokenizer, "small")
    assert not list(tmp_path.iterdir())
