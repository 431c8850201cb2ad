"""A nanochat model of 2025 in transformers: equal logits, equal greedy text; mechanisms of 2026 are refused."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxgpt.config import NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.formats.hf_nanochat import save_nanochat
from jaxgpt.inference.engine import Engine
from jaxgpt.models import Model, param_shapes

CONFIG = NanochatConfig(era="2025", depth=3, n_embd=32, head_dim=16, n_kv_head=1, seq_len=48, vocab_size=70).complete(
    70
)


def make_params(config):
    """Nothing zero, and large enough for the softcap and the attention to matter."""
    rng = np.random.default_rng(0)
    return {p: rng.normal(size=s.shape).astype(np.float32) * 0.3 for p, s in param_shapes(config).items()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    params, directory = make_params(CONFIG), tmp_path_factory.mktemp("hf")
    save_nanochat(directory, CONFIG, params, {"bos_token_id": 60, "eos_token_id": None})
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    assert isinstance(model, transformers.NanoChatForCausalLM)
    return params, model


def test_logits(exported):
    params, theirs = exported
    ids = np.random.default_rng(1).integers(0, 70, (2, 48))
    model = Model(CONFIG, dtype="float32").bind({path: jax.numpy.asarray(weight) for path, weight in params.items()})
    ours = model.logits(model(jax.numpy.asarray(ids)))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(expected).max() > 3  # where the cap bends
    np.testing.assert_allclose(np.asarray(ours), expected, atol=2e-4)


def test_greedy_text(exported):
    params, theirs = exported
    prompt = [5, 9, 2, 40]
    engine = Engine(CONFIG, params, dtype="float32")
    ours = [token for (token,) in engine.generate(prompt, max_tokens=40, temperature=0.0)]
    with torch.no_grad():
        text = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert text[0, len(prompt) :].tolist() == ours
    assert len(set(ours)) > 5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"value_embeds": True}, "model.value_embeds=true"),
        ({"smear": True, "backout": True}, "model.smear=true, model.backout=true"),
        ({"window_pattern": "SL", "short_window": 9}, "model.window_pattern=SL"),
        ({"qk_scale": 1.2}, "model.qk_scale=1.2"),
    ],
)
def test_mechanisms_of_2026_are_refused(tmp_path, settings, named):
    with pytest.raises(InputError, match=f"it has no {named}; "):
        save_nanochat(tmp_path / "out", dataclasses.replace(CONFIG, **settings), {}, {})
    assert not list(tmp_path.iterdir())
