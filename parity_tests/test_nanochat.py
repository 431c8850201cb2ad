"""nanochat's model and optimizer against second ones, written out in numpy as the papers and the project say them."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.compare import tolerances
from jaxgpt.config import NANOCHAT_2025, NANOCHAT_2026, Config, MeshConfig, NanochatConfig, TrainConfig
from jaxgpt.config.derive import derive
from jaxgpt.config.flops import flops_per_token
from jaxgpt.config.schedule import hyper_at
from jaxgpt.data.batch import Batch
from jaxgpt.errors import InputError
from jaxgpt.models import Model, init_params, nanochat, param_shapes
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.sharding import put_rows
from jaxgpt.training.step import loss_sum, make_step

VOCAB = 40
ERAS = ("2025", "2026")


def small(era, **changes):
    """Four layers of two kinds of window, two heads."""
    settings: dict[str, Any] = {
        "depth": 4, "head_dim": 16, "n_embd": 32, "seq_len": 24, "short_window": 5, "window_pattern": "SSL",
        "vocab_size": VOCAB,
    }  # fmt: skip
    return NanochatConfig(era=era, **(settings | changes)).complete(0)


def noisy_params(config, seed=0) -> dict[str, Any]:
    """float64, with noise on everything: nanochat starts half of its weights at zero, where no mistake shows."""
    rng = np.random.default_rng(seed)
    params = init_params(config, param_dtype=jnp.float64)
    return {path: np.asarray(leaf) + 0.2 * rng.standard_normal(leaf.shape) for path, leaf in params.items()}


def make_tokens(n_rows=2, seq_len=24, seed=1):
    return np.random.default_rng(seed).integers(0, VOCAB, (n_rows, seq_len)).astype(np.int32)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# The model


def rms(x):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.finfo(np.float64).eps)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def turn(x_TH, base):
    """Rotary positions by complex numbers: each pair of channels is one, turned by minus the angle."""
    half = x_TH.shape[1] // 2
    angle = np.arange(len(x_TH))[:, None] / base ** (2 * np.arange(half) / (2 * half))
    z = (x_TH[:, :half] + 1j * x_TH[:, half:]) * np.exp(-1j * angle)
    return np.concatenate([z.real, z.imag], axis=1)


def literal_attention(q_TH, k_TH, v_TH, n_seen):
    """Query by query."""
    rows = []
    for t, q in enumerate(q_TH):
        first = max(0, t - n_seen + 1)
        weights = np.exp(k_TH[first : t + 1] @ q / math.sqrt(len(q)))
        rows.append(weights / weights.sum() @ v_TH[first : t + 1])
    return np.stack(rows)


def literal_logits(params, tokens_T, config):
    """One row, era by era, layer by layer."""
    is_2026, depth, size = config.era == "2026", config.depth, config.head_dim
    n_heads = config.n_embd // size
    base, scale = (100_000, 1.2) if is_2026 else (10_000, 1.0)
    x = rms(params["wte.weight"][tokens_T])
    if is_2026:
        gate = sigmoid(x[:, :24] @ params["smear_gate.weight"])
        smeared = x.copy()
        for t in range(1, len(x)):
            smeared[t] += params["smear_lambda"][0] * gate[t] * x[t - 1]
        x = smeared
    x0, middle = x, None
    for i in range(depth):
        if is_2026:
            x = params["resid_lambdas"][i] * x + params["x0_lambdas"][i] * x0
        here = {path.removeprefix(f"h.{i}."): leaf for path, leaf in params.items() if path.startswith(f"h.{i}.")}
        h = rms(x)
        q, k, v = (h @ here[f"attn.{name}.weight"] for name in ("c_q", "c_k", "c_v"))
        if is_2026 and (depth - 1 - i) % 2 == 0:
            gate = 3 * sigmoid(h[:, :12] @ here["attn.ve_gate.weight"])
            v = v + np.repeat(gate, size, axis=1) * params[f"value_embeds.{i}.weight"][tokens_T]
        is_short = "SSL"[i % 3] == "S" and i < depth - 1
        heads = []
        for n in range(n_heads):
            mine, shared = (slice(j * size, (j + 1) * size) for j in (n, n * config.n_kv_head // n_heads))
            heads.append(
                literal_attention(
                    scale * rms(turn(q[:, mine], base)), scale * rms(turn(k[:, shared], base)), v[:, shared],
                    5 if is_short else len(x),
                )
            )  # fmt: skip
        x = x + np.concatenate(heads, axis=1) @ here["attn.c_proj.weight"]
        x = x + np.maximum(rms(x) @ here["mlp.c_fc.weight"], 0) ** 2 @ here["mlp.c_proj.weight"]
        if i == depth // 2:
            middle = x
    if is_2026:
        x = x - params["backout_lambda"][0] * middle
    return 15 * np.tanh(rms(x) @ params["lm_head.weight"].T / 15)


@functools.partial(jax.jit, static_argnums=0)
def run_model(model, params, tokens_BT):
    module = model.bind(params)
    return module.logits(module(tokens_BT))


@functools.partial(jax.jit, static_argnums=0)
def run_decode(model, params, tokens_BT, cache, offset_B):
    module = model.bind(params)
    x_BTD, cache = module.decode(tokens_BT, cache, offset_B)
    return module.logits(x_BTD), cache


def logits_of(config, params, tokens_BT):
    return np.asarray(run_model(Model(config, dtype=jnp.float64), params, tokens_BT))


@pytest.mark.parametrize("n_kv_head", [2, 1])
@pytest.mark.parametrize("era", ERAS)
def test_forward_pass_is_the_literal_one(era, n_kv_head):
    config = small(era, n_kv_head=n_kv_head)
    params, tokens = noisy_params(config), make_tokens()
    expected = np.stack([literal_logits(params, row, config) for row in tokens])
    assert np.abs(logits_of(config, params, tokens) - expected).max() < tolerances.FP64
    assert np.abs(expected).max() > 2, "the cap has no part in it"


@pytest.mark.parametrize("remat", ["dots", pytest.param("block", marks=pytest.mark.slow)])
@pytest.mark.parametrize("era", ERAS)
def test_rematerialisation_changes_no_gradient(era, remat):
    config = Config(
        model=small(era),
        train=TrainConfig(steps=1, batch_tokens=48, micro_batch_size=2, dtype="float64"),
        optim=NANOCHAT_2025,
    )
    batch = np.concatenate([make_tokens(), make_tokens(seed=2)[:, :1]], axis=1)

    def grads(remat):
        model = Model(config.model, dtype=jnp.float64, remat=remat)
        loss = lambda params: loss_sum(config, model, params, batch)[0]  # noqa: E731
        return jax.jit(jax.grad(loss))(noisy_params(config.model))

    ours, theirs = grads(remat), grads("none")
    assert all(np.allclose(ours[path], theirs[path], rtol=1e-12, atol=1e-12) for path in theirs)


LAMBDAS = ("resid_lambdas", "x0_lambdas", "backout_lambda", "smear_lambda")


def lambda_errors():
    """Errors of gradients in bfloat16 against float64, relative, over four draws of weights and tokens together."""
    model = small("2026")
    train = TrainConfig(steps=1, batch_tokens=16 * 24, micro_batch_size=16)
    config = Config(model=model, train=train, optim=NANOCHAT_2026)

    @functools.partial(jax.jit, static_argnames="dtype")
    def grads(params, batch, dtype):
        bound = Model(model, dtype=dtype)
        loss = lambda part: loss_sum(config, bound, params | part, batch)[0]  # noqa: E731
        return jax.grad(loss)({path: params[path] for path in LAMBDAS})

    errors, sizes = [], []
    for seed in range(4):
        masters = {path: np.float32(leaf) for path, leaf in noisy_params(model, seed).items()}
        batch = make_tokens(16, 25, seed)
        exact = grads({path: np.float64(leaf) for path, leaf in masters.items()}, batch, "float64")
        rounded = grads(masters, batch, "bfloat16")
        errors.append({path: np.linalg.norm(np.float64(rounded[path]) - exact[path]) for path in LAMBDAS})
        sizes.append({path: np.linalg.norm(exact[path]) for path in LAMBDAS})
    return {
        path: math.hypot(*(error[path] for error in errors)) / math.hypot(*(size[path] for size in sizes))
        for path in LAMBDAS
    }


@pytest.mark.slow
def test_lambdas_gradients_in_bfloat16(monkeypatch):
    """And a bfloat16 number in place of the float32 one is outside."""
    errors = lambda_errors()
    assert max(errors[path] for path in LAMBDAS[:3]) < tolerances.BF16_LAMBDA_ERROR, errors
    assert errors["smear_lambda"] < tolerances.BF16_SMEAR_ERROR, errors

    def add_rounded(*terms):
        first, *rest = (jnp.asarray(scale).astype(x.dtype) * x for scale, x in terms)
        return sum(rest, first)

    monkeypatch.setattr(nanochat, "add_scaled", add_rounded)
    errors = lambda_errors()
    assert min(errors[path] for path in LAMBDAS[:3]) > tolerances.BF16_LAMBDA_ERROR, errors


@pytest.mark.parametrize("pieces", [(24,), (1,) * 24, (7, 1, 1, 9, 6)], ids=["at once", "one by one", "mixed"])
@pytest.mark.parametrize("era", ERAS)
def test_decoding_with_a_cache_is_the_forward_pass(era, pieces):
    config = small(era)
    params, tokens = noisy_params(config), make_tokens()
    model, offset, found = Model(config, dtype=jnp.float64), 0, []
    cache = model.bind(params).init_cache(2, 32)
    for n in pieces:
        logits, cache = run_decode(model, params, tokens[:, offset : offset + n], cache, jnp.full(2, offset))
        found.append(np.asarray(logits))
        offset += n
    assert np.abs(np.concatenate(found, axis=1) - logits_of(config, params, tokens)).max() < tolerances.FP64


@pytest.mark.parametrize("era", ERAS)
def test_rows_of_different_lengths_decode_as_each_alone(era):
    """Prompts of 1, 9 and 4 tokens, padded at their ends; then pieces of 3, 1, 1, ... at each row's own position."""
    config = small(era)
    params, tokens = noisy_params(config), make_tokens(3)
    expected, model = logits_of(config, params, tokens), Model(config, dtype=jnp.float64)
    offsets = np.array([1, 9, 4])
    padded = np.where(np.arange(9) < offsets[:, None], tokens[:, :9], 7)
    logits, cache = run_decode(model, params, padded, model.bind(params).init_cache(3, 32), jnp.zeros(3, int))
    for row, n in enumerate(offsets):
        assert np.abs(logits[row, :n] - expected[row, :n]).max() < tolerances.FP64
    for n in (3, *[1] * 12):
        at = offsets[:, None] + np.arange(n)
        piece = np.take_along_axis(tokens, at, axis=1)
        logits, cache = run_decode(model, params, piece, cache, jnp.asarray(offsets))
        assert np.abs(logits - expected[np.arange(3)[:, None], at]).max() < tolerances.FP64
        offsets = offsets + n


@pytest.mark.parametrize("era", ERAS)
def test_a_layer_sees_its_window_and_no_more(era):
    """Which inputs of a block have a part in output 15: by the gradient."""
    config = small(era)
    module = Model(config, dtype=jnp.float64).bind(noisy_params(config))
    x = jnp.asarray(np.random.default_rng(3).standard_normal((1, 24, 32)))
    for layer, n_seen in enumerate((5, 5, 24, 24)):  # SSL, and the last sees all
        block: Any = module.h[layer].attn
        gradient = jax.jit(jax.grad(lambda x, block=block: (block(x)[0][0, 15] ** 2).sum()))(x)[0]
        seen = np.flatnonzero(np.abs(gradient).max(axis=1))
        assert seen.tolist() == list(range(max(0, 15 - n_seen + 1), 16)), layer


@pytest.mark.parametrize("era", ERAS)
def test_nothing_is_seen_before_its_time(era):
    config = small(era)
    params, tokens = noisy_params(config), make_tokens()
    changed = tokens.copy()
    changed[:, 10] = (changed[:, 10] + 1) % VOCAB
    difference = np.abs(logits_of(config, params, changed) - logits_of(config, params, tokens)).max(axis=(0, 2))
    assert (difference[:10] == 0).all() and (difference[10:] > 0).all()


def test_shared_heads_are_repeated_ones():
    """One head of keys and values = two alike."""
    shared, own = small("2025", n_kv_head=1), small("2025")
    params, tokens = noisy_params(shared), make_tokens()
    repeated = {
        path: np.tile(leaf, 2) if path.endswith(("c_k.weight", "c_v.weight")) else leaf for path, leaf in params.items()
    }
    assert np.abs(logits_of(shared, params, tokens) - logits_of(own, repeated, tokens)).max() < tolerances.FP64


def test_start_values():
    config = small("2026", n_embd=128, head_dim=64, depth=6, vocab_size=500)
    params = {path: np.asarray(leaf) for path, leaf in init_params(config, param_dtype=jnp.float64).items()}
    bound = math.sqrt(3 / 128)
    for path, high in {"h.1.attn.c_q": bound, "h.1.mlp.c_fc": 0.4 * bound, "value_embeds.5": bound}.items():
        leaf = params[f"{path}.weight"]
        assert 0.97 * high < leaf.max() <= high and -high <= leaf.min() < -0.97 * high, path
    assert not params["h.3.attn.c_proj.weight"].any() and not params["h.3.mlp.c_proj.weight"].any()
    assert not params["smear_lambda"].any() and params["backout_lambda"].tolist() == [0.2]
    assert np.allclose(params["resid_lambdas"], [1.15, 1.13, 1.11, 1.09, 1.07, 1.05])
    assert np.allclose(params["x0_lambdas"], [0.20, 0.17, 0.14, 0.11, 0.08, 0.05])
    assert params["wte.weight"].std() == pytest.approx(0.8, rel=0.02)
    assert params["lm_head.weight"].std() == pytest.approx(0.001, rel=0.02)
    gate = params["h.1.attn.ve_gate.weight"]
    assert gate.min() >= 0 and 0.01 < gate.max() < 0.02
    assert sorted(path for path in params if "value_embeds" in path) == [f"value_embeds.{i}.weight" for i in (1, 3, 5)]
    old = {path: np.asarray(leaf) for path, leaf in init_params(small("2025", n_embd=128, vocab_size=500)).items()}
    assert old["wte.weight"].std() == pytest.approx(1, rel=0.02) and not old["lm_head.weight"].any()
    assert old["h.0.attn.c_q.weight"].std() == pytest.approx(128**-0.5, rel=0.03)
    assert old["h.0.mlp.c_fc.weight"].std() == pytest.approx(128**-0.5, rel=0.03)


# Sizes and what follows from the depth


@pytest.mark.parametrize(
    ("era", "depth", "total"),
    [
        ("2025", 12, 185_597_952), ("2025", 14, 252_313_600), ("2025", 16, 335_544_320), ("2025", 18, 437_649_408),
        ("2025", 20, 560_988_160), ("2025", 32, 1_879_048_192),
        ("2026", 4, 36_700_242), ("2026", 12, 286_261_730), ("2026", 20, 896_533_746), ("2026", 24, 1_384_122_122),
    ],
)  # fmt: skip
def test_sizes_are_upstreams(era, depth, total):
    config = NanochatConfig(era=era, depth=depth).complete(65_536 if era == "2025" else 32_768)
    shapes = param_shapes(config)
    assert sum(math.prod(leaf.shape) for leaf in shapes.values()) == total
    assert config.count_params().total == total


@pytest.mark.parametrize(
    ("depth", "n_embd", "log2_batch", "n_steps", "factor", "decay", "flops", "total_flops"),
    [
        (8, 512, 18, 1920, 0.7071, 0.52, 3.0e8, 1.5e17), (10, 640, 19, 1605, 1.0, 0.44, 5.0e8, 4.2e17),
        (12, 768, 19, 2520, 1.0, 0.28, 7.6e8, 1.0e18), (16, 1024, 19, 5376, 1.0, 0.131, 1.6e9, 4.5e18),
        (20, 1280, 20, 4980, 1.4142, 0.100, 2.9e9, 1.5e19), (24, 1536, 20, 8352, 1.4142, 0.060, 4.8e9, 4.2e19),
        (26, 1664, 20, 10510, 1.4142, 0.048, 6.0e9, 6.6e19), (32, 2048, 21, 9600, 2.0, 0.037, 1.1e10, 2.2e20),
    ],
)  # fmt: skip
def test_what_follows_from_the_depth_is_upstreams(
    depth, n_embd, log2_batch, n_steps, factor, decay, flops, total_flops
):
    config = Config(
        model=NanochatConfig(era="2026", depth=depth),
        train=TrainConfig(steps=0, batch_tokens=0, micro_batch_size=1),
        optim=NANOCHAT_2026,
    )
    found = derive(config, 32_768)
    train, muon, model = found.config.train, found.config.optim.muon, found.config.model
    assert (model.n_embd, model.head_dim, train.batch_tokens, train.steps) == (n_embd, 128, 2**log2_batch, n_steps)
    assert muon.lr == pytest.approx(0.02 * factor, rel=1e-4)
    assert muon.weight_decay == pytest.approx(decay, rel=0.02) and not found.warnings
    per_token = flops_per_token(model)
    assert per_token == pytest.approx(flops, rel=0.05)
    assert per_token * train.steps * train.batch_tokens == pytest.approx(total_flops, rel=0.05)
    rates = {group.name: group.lr for group in found.config.optim.groups}
    width = (n_embd / 768) ** -0.5
    assert rates == pytest.approx(
        {"lm_head": 0.008 * width * factor, "wte": 0.3 * width * factor, "value_embeds": 0.15 * width * factor,
         "resid_lambdas": 0.005 * factor, "x0_lambdas": 0.5 * factor, "smear": 0.2}, rel=1e-4,
    )  # fmt: skip


def plan_of_depth_12(n_ids, **train):
    config = Config(
        model=NanochatConfig(era="2026", depth=12),
        train=TrainConfig(steps=0, batch_tokens=0, micro_batch_size=1, **train),
        optim=NANOCHAT_2026,
    )
    return derive(config, n_ids).config


def test_a_horizon_in_flops_counts_keys_as_upstream():
    """A query's own key does not count: 9 layers of 512 keys, 3 of 2,048. With it there would be 2,510 steps."""
    blocks = 12 * 12 * 768**2 + 6 * 12 * 6  # matrices, and the gates of 6 value embeddings
    per_token = 6 * (blocks + 32_768 * 768 + 24) + 12 * 768 * (9 * 512 + 3 * 2048)
    found = plan_of_depth_12(32_768, target_flops=1e18)
    assert flops_per_token(found.model) == per_token
    assert found.train.steps == round(1e18 / (per_token * 2**19)) == 2511


def test_tables_of_2026_have_a_multiple_of_64_rows():
    """Counted for the horizon, too: GPT-2's 50,257 ids are 50,304 rows."""
    found = plan_of_depth_12(50_257)
    scaling = 12 * 12 * 768**2 + 6 * 12 * 6 + 50_304 * 768
    assert found.model.vocab_size == 50_304 and found.train.batch_tokens == 2**19
    assert found.train.steps == 12 * scaling // 2**19 == 2828
    assert NanochatConfig(era="2025").complete(50_257).vocab_size == 50_257
    assert NanochatConfig(era="2026", vocab_size=50_257).complete(50_257).vocab_size == 50_257, "as it is set"


@pytest.mark.parametrize(("depth", "n_head", "head_dim"), [(3, 2, 96), (15, 8, 120), (4, 2, 128), (12, 6, 128)])
def test_odd_depths_of_2025_narrow_their_heads(depth, n_head, head_dim):
    model = NanochatConfig(era="2025", depth=depth).complete(100)
    assert (model.n_embd, model.n_head, model.head_dim) == (64 * depth, n_head, head_dim)
    assert model.complete(100) == model


def test_mechanisms_are_fields():
    """An era is a preset: each mechanism can be switched by itself, and the count follows the shapes."""
    for name in ("value_embeds", "layer_lambdas", "smear", "backout"):
        for era, value in (("2025", True), ("2026", False)):
            config = small(era, **{name: value})
            shapes = param_shapes(config)
            assert getattr(config, name) is value
            assert sum(math.prod(leaf.shape) for leaf in shapes.values()) == config.count_params().total
            assert shapes.keys() != param_shapes(small(era)).keys()


@pytest.mark.parametrize(("depth", "n_steps", "by_rule"), [(4, 528, "1.89"), (6, 1062, "0.94")])
def test_weight_decay_of_shallow_models_is_held(depth, n_steps, by_rule):
    config = Config(
        model=NanochatConfig(era="2026", depth=depth),
        train=TrainConfig(steps=0, batch_tokens=0, micro_batch_size=1),
        optim=NANOCHAT_2026,
    )
    found = derive(config, 32_768)
    assert (found.config.train.batch_tokens, found.config.train.steps) == (2**18, n_steps)
    assert found.config.optim.muon.weight_decay == 0.6
    assert len(found.warnings) == 1
    assert f"weight decay {by_rule} by nanochat's rule is capped at 0.6" in found.warnings[0]


def test_every_derived_value_can_be_given():
    model = NanochatConfig(
        era="2026", depth=4, n_embd=384, n_kv_head=1, window_pattern="sl", short_window=7, rope_base=5e3, qk_scale=1.5,
        vocab_size=100, value_embeds=False, layer_lambdas=False, smear=True, backout=False, init="normal",
    )  # fmt: skip
    muon = dataclasses.replace(
        NANOCHAT_2026.muon, lr=0.5, lr_follows_batch=False, weight_decay=0.7, decay_follows_horizon=False
    )
    optim = dataclasses.replace(NANOCHAT_2026, muon=muon, groups=())
    train = TrainConfig(steps=7, batch_tokens=2**12, micro_batch_size=1)
    found = derive(Config(model=model, train=train, optim=optim), 100).config
    assert dataclasses.replace(found.model, window_pattern="sl") == model
    assert (found.train.steps, found.train.batch_tokens) == (7, 2**12)
    assert (found.optim.muon.lr, found.optim.muon.weight_decay) == (0.5, 0.7)


def test_short_windows_are_a_quarter_in_steps_of_128():
    for seq_len, keys in ((2048, 513), (1024, 257), (600, 257), (512, 129), (100, 100)):
        config = NanochatConfig(era="2026", depth=8, seq_len=seq_len).complete(64)
        assert [config.window(i) for i in range(8)] == [keys, keys, keys, seq_len] * 2


def test_a_width_that_heads_do_not_divide():
    with pytest.raises(InputError, match=r"model\.depth=13 x model\.aspect_ratio=64 = 832 does not split into 7 heads"):
        NanochatConfig(era="2025", depth=13).complete(64)
    assert NanochatConfig(era="2026", depth=13).complete(64).n_embd == 896


# The schedules of 2026


def test_schedules_of_2026():
    """warm-up 40, flat, 65 % down to 0.05; momentum 0.85 to 0.97 over 400, down to 0.90 with it; cosine decay."""
    n = 2520
    config = Config(
        model=NanochatConfig(era="2026", depth=12),
        train=TrainConfig(steps=n, batch_tokens=2**19, micro_batch_size=1),
        optim=NANOCHAT_2026,
    )
    begin = n - round(0.65 * n)
    for it in range(0, n, 7):
        down = max(0.0, (it - begin) / (n - begin))
        momentum = 0.85 + min(it / 400, 1) * 0.12 if it < begin else 0.97 - down * 0.07
        expected = {
            "lr_scale": (it + 1) / 40 if it < 40 else 1 - 0.95 * down,
            "momentum": momentum,
            "decay_scale": 0.5 * (1 + math.cos(math.pi * it / n)),
        }
        assert hyper_at(config, it) == pytest.approx(expected, rel=1e-12), it


# Devices


def train_three_steps(era, mesh_config, n_devices):
    """Losses and gradient norms, and the parameters at the end.

    Of three layers: of two, the middle is the last, and what backout takes off is the norm's to put back.
    """
    model = small(era, depth=3)
    config = Config(
        model=model,
        train=TrainConfig(steps=3, batch_tokens=16 * 24, micro_batch_size=16 // n_devices, dtype="float64"),
        optim={"2025": NANOCHAT_2025, "2026": NANOCHAT_2026}[era],
        mesh=mesh_config,
    )
    config = derive(config, VOCAB).config
    params = noisy_params(model)
    mesh, figures = make_mesh(config.mesh), []
    with jax.set_mesh(mesh):
        step = make_step(config, mesh)
        placed = {path: jax.device_put(params[path], leaf.sharding) for path, leaf in step.state_shapes.params.items()}
        state = step.init_state(placed)
        for batch in np.random.default_rng(4).integers(0, VOCAB, (3, 1, 16, 25)).astype(np.int32):
            batch = put_rows(Batch(batch), 16, mesh, axis=1)
            state, metrics = step.train(state, batch, step.hyper(hyper_at(config, len(figures))))
            figures.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        return figures, {path: np.asarray(leaf) for path, leaf in state.params.items()}


@pytest.fixture(scope="module", params=ERAS)
def on_one_device(request):
    with jax.enable_x64(True):
        return request.param, *train_three_steps(request.param, MeshConfig(data=1), 1)


@pytest.mark.parametrize("axes", [(2, 2, 2), pytest.param((1, 8, 1), marks=pytest.mark.slow)], ids=str)
def test_eight_devices_equal_one(on_one_device, axes):
    era, theirs, expected = on_one_device
    data, fsdp, tensor = axes
    ours, mine = train_three_steps(era, MeshConfig(data=data, fsdp=fsdp, tensor=tensor), data * fsdp)
    assert np.allclose(ours, theirs, rtol=1e-10, atol=0)
    assert all(np.abs(mine[path] - expected[path]).max() < 1e-9 for path in expected)
