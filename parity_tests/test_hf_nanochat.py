"""A nanochat model of 2025 in transformers: equal logits, equal greedy text; mechanisms of 2026 are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxgpt.config import NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.formats.hf_nanochat import load_hf_nanochat, save_nanochat
from jaxgpt.formats.pretrained import load_pretrained
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


def test_it_is_read_back(exported, tmp_path):
    """What transformers has read and saved again, too."""
    params, theirs = exported
    save_nanochat(tmp_path / "ours", CONFIG, params, {"bos_token_id": 60, "eos_token_id": None})
    theirs.save_pretrained(tmp_path / "theirs")
    for name in ("ours", "theirs"):
        config, loaded = load_pretrained(str(tmp_path / name))
        assert config == CONFIG and loaded.keys() == params.keys()
        for path, weight in params.items():
            np.testing.assert_array_equal(loaded[path], weight, err_msg=path)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"hidden_size": "wide"}, "hidden_size='wide' is not a positive int"),
        ({"hidden_act": "silu"}, "hidden_act='silu', but this NanoChat has 'relu2'"),
        ({"intermediate_size": 64}, "intermediate_size=64, but this NanoChat has 128"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type='yarn' is not default"),
        ({"rope_parameters": None}, "rope_theta=None is not a positive number"),
        ({"final_logit_softcapping": 0}, "final_logit_softcapping=0 is not a positive number"),
        ({"num_attention_heads": 64}, "head_dim"),
        ({"num_hidden_layers": 1 << 30}, "it holds 3; fetch both from one model"),
        ({"vocab_size": 71}, "its config says (71, 32)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_one_line(exported, tmp_path, change, wanted):
    save_nanochat(tmp_path, CONFIG, exported[0], {"bos_token_id": 60, "eos_token_id": None})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError) as caught:
        load_hf_nanochat(tmp_path)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
