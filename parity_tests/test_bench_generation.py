"""`bench decode --batch`: every way to generate writes the same tokens, and the figures are what they say."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

from jaxgpt.bench import __main__ as bench
from jaxgpt.bench.generation import Ours, costs_of, figures, make_prompts
from jaxgpt.bench.torch_generation import make_writers
from jaxgpt.bench.writers import STORED, Turn
from jaxgpt.config import GPT2Config, MeshConfig, NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.trained import Trained
from jaxgpt.inference.weights import with_weights
from jaxgpt.models import param_shapes
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.sharding import replicated
from parity_tests.helpers.modded_cases import record
from parity_tests.helpers.tiers import one_in
from parity_tests.helpers.train_runs import TEXT, write_text

CONFIGS = {
    "gpt2": GPT2Config(seq_len=32, n_layer=2, n_head=2, n_embd=32, vocab_size=48, bias=True),
    "nanochat": NanochatConfig(
        era="2025", depth=2, head_dim=16, n_embd=32, n_kv_head=1, seq_len=32, vocab_size=48
    ).complete(0),
}  # fmt: skip
N_TOKENS = 16


def random_params(config):
    """Positions count for much, so that the likeliest tokens differ from place to place."""
    rng = np.random.default_rng(3)
    return {
        path: ((2 if path.startswith("wpe") else 0.3) * rng.standard_normal(leaf.shape)).astype(np.float32)
        for path, leaf in sorted(param_shapes(config).items())
    }  # fmt: skip


@functools.cache
def written(family):
    """Prompts of two rows, and how the engine continues them to the end of the context."""
    config = CONFIGS[family]
    prompts = make_prompts(1, 2, config.seq_len - N_TOKENS, config.vocab_size)
    engine = Engine(config, jax.tree.map(jnp.asarray, random_params(config)), dtype="float32")
    return prompts, Ours(engine, STORED, 2).write(prompts, N_TOKENS)


@pytest.mark.parametrize("family", one_in(2, CONFIGS))
@pytest.mark.parametrize("name", ["torch", "nanogpt", "hf"])
def test_every_way_writes_the_same_tokens(family, name):
    """Two rows that differ, past the first token and up to the end of the context."""
    if name == "hf":
        pytest.importorskip("transformers")
    prompts, ours = written(family)
    (other,), versions = make_writers([name], CONFIGS[family], random_params(CONFIGS[family]), "float32")
    theirs = other.write(prompts, N_TOKENS)
    assert len(set(ours.ids[0])) > 5 and ours.ids[0] != ours.ids[1]
    assert theirs.ids == ours.ids
    for turn in (ours, theirs):
        assert turn.first_s > 0 and len(turn.step_s) == N_TOKENS - 1 and min(turn.step_s) > 0
    assert versions["torch"]


def test_hugging_face_has_no_modded_model():
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"--vs=hf has no models of model\.family=modded; leave it out"):
        make_writers(["hf"], record("62"), {}, "float32")


def test_a_step_reads_its_weights_and_its_keys():
    """By hand: matrices of one layer 12 D^2, biases 9 D, norms 4 D; wpe is only looked up in."""
    config = CONFIGS["gpt2"]
    params = jax.tree.map(jnp.asarray, random_params(config))
    n_embd, n_context, n_rows = config.n_embd, 20, 3
    read = 2 * (12 * n_embd**2 + 9 * n_embd + 4 * n_embd) + 2 * n_embd + 48 * n_embd
    costs = costs_of(Engine(config, params, dtype="float32"), n_rows, n_context)
    assert costs.weight_bytes == 4 * (read + 32 * n_embd)
    assert costs.cache_bytes == 2 * 2 * 32 * n_embd * 4
    assert costs.step_bytes == 4 * read + n_rows * 2 * 2 * n_context * n_embd * 4
    assert costs.step_flops == n_rows * (2 * read + 2 * 4 * n_embd * n_context)


def test_a_head_of_its_own_is_read_and_the_table_of_inputs_is_not():
    config = CONFIGS["nanochat"]
    params = jax.tree.map(jnp.asarray, random_params(config))
    costs = costs_of(Engine(config, params, dtype="float32"), 1, 1)
    linear = config.count_params().linear
    assert 0 <= costs.step_bytes - 4 * linear - 2 * 2 * 16 * 4 < 4 * 64, "but for a few scalars"
    light = Trained(None, config, params, None, "float32", make_mesh(MeshConfig(data=1)), "fresh")
    engine = with_weights(light, "bfloat16").engine()
    assert costs_of(engine, 1, 1).step_bytes < 0.7 * costs.step_bytes


def test_figures_of_turns(monkeypatch):
    """Speed against ours turn by turn, tokens place by place. JAX hands out a mesh's own set of devices: it stays."""
    config, mesh = CONFIGS["gpt2"], make_mesh(MeshConfig(data=1))
    params = jax.device_put(random_params(config), replicated(mesh))
    engine = Engine(config, params, dtype="float32")

    class Other:
        name, weights = "other", STORED

    ours = [Turn([[1, 2, 3, 4]], 1.0, [1.0, 1.0, 1.0]), Turn([[1, 2, 3, 4]], 1.0, [2.0, 3.0, 4.0])]
    theirs = [Turn([[1, 2, 3, 5]], 4.0, [2.0, 2.0, 2.0]), Turn([[1, 2, 3, 4]], 6.0, [12.0, 13.0, 11.0])]
    found = figures(Other(), {STORED: engine}, 1, 20, theirs, ours, 100.0)  # type: ignore[arg-type]
    assert (found["ttft_s"], found["tpot_s"], found["tokens_per_s"]) == (5.0, 6.5, 1 / 6.5)
    assert found["of_ours"] == pytest.approx((1 / 2 + 3 / 12) / 2) and found["same_tokens"] == 7 / 8
    assert found["mbu"] == pytest.approx(found["step_bytes"] / 6.5 / 100) and found["mfu"] is None
    assert params["wte.weight"].devices() == {mesh.devices.item()}


@pytest.mark.slow
def test_decoding_from_the_command_line(tmp_path, capsys):
    data = write_text(tmp_path, TEXT)
    config, path = tmp_path / "tiny.py", tmp_path / "g.json"
    model = dataclasses.replace(CONFIGS["gpt2"], vocab_size=0, n_layer=1)
    config.write_text(
        "from jaxgpt.config import *\n"
        f"config = Config(data=DataConfig(dir={str(data)!r}), model={model!r}, mesh=MeshConfig(data=1),\n"
        "    train=TrainConfig(batch_tokens=64, micro_batch_size=2, dtype='float32'))\n"
    )
    command = ["decode", "--batch=2", "--weights=int8", "--vs=torch", "--rounds=1", "--tokens=4", "--prompt-tokens=5"]
    assert bench.main([*command, f"--config={config}", f"--json={path}"]) == 0
    found = json.loads(path.read_text())
    timed = found["batches"]
    assert [(one["program"], one["weights"], one["rows"]) for one in timed] == [
        ("jaxgpt", "as stored", 2), ("jaxgpt", "int8", 2), ("torch", "as stored", 2)
    ]  # fmt: skip
    for one in timed:
        assert one["ttft_s"] > 0 and one["tokens_per_s"] == pytest.approx(2 / one["tpot_s"])
        assert one["cache_bytes"] == timed[0]["cache_bytes"] and one["mbu"] > 0
    assert timed[0]["of_ours"] == timed[0]["same_tokens"] == timed[2]["same_tokens"] == 1
    assert timed[0]["weight_bytes"] > timed[1]["weight_bytes"] and found["bandwidth"]["bytes_s"] > 1e8
    assert set(found["versions"]) == {"jax", "torch"} and (found["prompt_tokens"], found["tokens"]) == (5, 4)
    shown = capsys.readouterr().out
    assert "2 rows, 4 tokens after 5" in shown and "MFU" not in shown
