"""Attention, layers and loss against spelled-out references, torch and properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.compare import tolerances
from jaxgpt.config import Config, GPT2Config, TrainConfig
from jaxgpt.config.flops import flops_per_token
from jaxgpt.config.softcap import Softcap
from jaxgpt.errors import InputError
from jaxgpt.models import Model, init_params, layers, param_shapes
from jaxgpt.models.attention import _xla, attention, choose_attention
from jaxgpt.models.layers import dropout, gelu, layer_norm, linear
from jaxgpt.models.loss import cross_entropy
from jaxgpt.models.splash import splash
from jaxgpt.optim.orthogonalize import POLAR_EXPRESS, quintic

torch = pytest.importorskip("torch")
torch_loss = pytest.importorskip("torch_ref.models.loss")


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / np.abs(b).max()


def random(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def heads(T=64, seed=0, dtype=jnp.float32):
    return [random(2, T, 3, 16, seed=seed + i, dtype=dtype) for i in range(3)]


def test_attention_is_torchs():
    q, k, v = heads()
    ours = attention(q, k, v)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(np.asarray(x)).transpose(1, 2) for x in (q, k, v)), is_causal=True
    ).transpose(1, 2)
    assert relative(ours, theirs) < tolerances.FP32_OP


def test_attention_sees_no_future():
    """Property: the gradient of output t with respect to keys and values after t is exactly zero."""
    q, k, v = heads(T=16)
    for t in (0, 7, 15):
        grads = jax.grad(lambda k, v, t=t: attention(q, k, v)[:, t].sum(), argnums=(0, 1))(k, v)
        for grad in grads:
            assert not np.asarray(grad)[:, t + 1 :].any()
        assert np.asarray(grads[1])[:, : t + 1].any(axis=(0, 2, 3)).all()


def test_attention_with_offset_is_the_tail_of_the_whole():
    q, k, v = heads(T=32)
    whole = attention(q, k, v)
    tail = attention(q[:, 20:], k, v, offset_B=jnp.full(1, 20))
    assert relative(tail, whole[:, 20:]) < tolerances.FP32_OP


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("T", [64, 200])
def test_blocks_of_queries_equal_attention_at_once(T, window):
    """Values and gradients in float64, and no scores of all queries and keys where there are several blocks."""
    with jax.enable_x64(True):
        inputs = [*heads(T, dtype=jnp.float64), random(2, T, 3, 16, seed=3, dtype=jnp.float64)]

        def run(attend, q, k, v, d_y):
            y, pull_back = jax.vjp(attend, q, k, v)
            return y, *pull_back(d_y)

        at_once = run(lambda q, k, v: _xla(q, k, v, None, window, 0.0, None), *inputs)
        program = jax.jit(functools.partial(run, functools.partial(attention, window=window))).lower(*inputs).compile()
        for ours, theirs in zip(program(*inputs), at_once, strict=True):
            assert relative(ours, theirs) < 1e-13
    assert (f"{T},{T}]" in str(program.as_text())) == (T == 64)


def test_splash_interpreted_equals_xla():
    q, k, v = (random(1, 256, 2, 64, seed=i) for i in range(3))
    assert relative(splash(q, k, v, interpret=True), attention(q, k, v)) < tolerances.FP32_OP * 4


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU here")
def test_cudnn_equals_xla():
    q, k, v = (random(2, 256, 3, 64, seed=i, dtype=jnp.bfloat16) for i in range(3))
    assert relative(attention(q, k, v, implementation="cudnn"), attention(q, k, v)) < tolerances.BF16_OP


@pytest.mark.parametrize(
    ("platform", "train", "model", "expected"),
    [
        ("cpu", {}, {}, "xla"),
        ("gpu", {}, {}, "cudnn"),
        ("cuda", {}, {}, "cudnn"),
        ("tpu", {}, {}, "splash"),
        ("gpu", {"dtype": "float32"}, {}, "xla"),
        ("gpu", {}, {"dropout": 0.1}, "xla"),
        ("gpu", {}, {"n_embd": 12 * 136}, "xla"),
        ("tpu", {}, {"seq_len": 1000}, "xla"),
        ("gpu", {"attention": "xla"}, {}, "xla"),
    ],
)
def test_attention_is_chosen_by_target(platform, train, model, expected):
    model = {"seq_len": 1024, **model}
    tokens = model["seq_len"] * 12
    config = Config(model=GPT2Config(**model), train=TrainConfig(batch_tokens=tokens, **train))
    assert choose_attention(config, platform)[0] == expected


@pytest.mark.parametrize(("platform", "wanted"), [("cpu", "cudnn"), ("gpu", "splash")])
def test_attention_that_cannot_run_is_refused(platform, wanted):
    with pytest.raises(InputError, match=f"train.attention={wanted} cannot run: the platform is {platform}"):
        choose_attention(Config(train=TrainConfig(attention=wanted)), platform)


def test_layer_norm_is_torchs():
    x, weight, bias = random(4, 32) * 3 + 1, random(32, seed=1), random(32, seed=2)
    theirs = torch.nn.functional.layer_norm(*(torch.tensor(np.asarray(a)) for a in (x,)), (32,),
        torch.tensor(np.asarray(weight)), torch.tensor(np.asarray(bias)))  # fmt: skip
    assert relative(layer_norm(x, weight, bias), theirs) < tolerances.FP32_OP


@pytest.mark.parametrize(("kind", "name"), [("erf", "none"), ("tanh", "tanh")])
def test_gelu_is_torchs(kind, name):
    x = jnp.linspace(-6, 6, 1001)
    theirs = torch.nn.functional.gelu(torch.tensor(np.asarray(x)), approximate=name)
    assert relative(gelu(x, kind), theirs) < tolerances.FP32_OP


def test_linear_is_a_product():
    x, weight, bias = random(2, 5, 8), random(8, 3, seed=1), random(3, seed=2)
    assert relative(linear(x, weight, bias), jnp.einsum("bti,io->bto", x, weight) + bias) < tolerances.FP32_OP


def test_dropout_keeps_the_mean_and_can_be_off():
    x = jnp.ones((1000, 100))
    dropped = dropout(x, 0.2, jax.random.key(0))
    assert abs(float((dropped == 0).mean()) - 0.2) < 0.01
    assert abs(float(dropped.mean()) - 1) < 0.01
    assert dropout(x, 0.2, None) is x


def reference_loss(x, weight, targets, mask):
    logp = jax.nn.log_softmax(x @ weight.T)
    return -(jnp.take_along_axis(logp, targets[..., None], -1)[..., 0] * mask).sum()


@pytest.mark.parametrize("chunk_len", [None, 1, 5, 12, 100])
def test_chunked_loss_and_gradients_equal_the_plain_ones(chunk_len):
    x, weight = random(3, 12, 8), random(17, 8, seed=1)
    targets = jax.random.randint(jax.random.key(2), (3, 12), 0, 17)
    mask = (jax.random.uniform(jax.random.key(3), (3, 12)) > 0.3).astype(jnp.float32)

    def chunked(x, weight):
        return 0.5 * cross_entropy(x, weight, targets, mask, chunk_len=chunk_len)[0]

    def plain(x, weight):
        return 0.5 * reference_loss(x, weight, targets, mask)

    loss, grads = jax.value_and_grad(chunked, argnums=(0, 1))(x, weight)
    expected, expected_grads = jax.value_and_grad(plain, argnums=(0, 1))(x, weight)
    assert relative(loss, expected) < tolerances.FP32_OP
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert relative(ours, theirs) < tolerances.FP32_OP * 4
    assert relative(chunked(x, weight), expected) < tolerances.FP32_OP
    assert cross_entropy(x, weight, targets, mask, chunk_len=chunk_len)[1] == mask.sum()


def test_masked_targets_are_not_read_and_nothing_counts_as_zero():
    x, weight = random(1, 4, 8), random(17, 8, seed=1)
    targets, mask = jnp.array([[3, -100, 5, 99]]), jnp.array([[1, 0, 1, 0]])
    loss, n_tokens = cross_entropy(x, weight, targets, mask, chunk_len=2)
    expected = reference_loss(x, weight, jnp.where(mask, targets, 0), mask)
    assert relative(loss, expected) < tolerances.FP32_OP and n_tokens == 2
    value, grads = jax.value_and_grad(lambda x: cross_entropy(x, weight, targets, mask * 0, chunk_len=2)[0])(x)
    assert float(value) == 0.0 and not np.asarray(grads).any()


@pytest.mark.parametrize("chunk_len", [None, 3])
@pytest.mark.parametrize("softcap", [None, Softcap("tanh", 15.0)], ids=["none", "tanh"])
def test_several_targets_ahead_are_the_sum_over_shifted_rows(chunk_len, softcap):
    """Against a loop over positions and targets, in float64; chunks that cut between a position and its targets."""
    rng = np.random.default_rng(5)
    n_rows, seq_len, vocab, weights = 2, 10, 7, (1.0, 0.5, 0.25)
    with jax.enable_x64(True):
        x, head = (jnp.asarray(rng.standard_normal(shape)) for shape in ((n_rows, seq_len, 5), (vocab, 5)))
        targets = rng.integers(0, vocab, (n_rows, seq_len))
        mask = (rng.random((n_rows, seq_len)) > 0.2).astype(float)

        def plain(x, head):
            logits = x @ head.T
            logits = 15 * jnp.tanh(logits / 15) if softcap else logits
            log_probs, total = jax.nn.log_softmax(logits), 0.0
            for row in range(n_rows):
                for t in range(seq_len):
                    for k, weight in enumerate(weights):
                        if t + k < seq_len and mask[row, t] and mask[row, t + k]:
                            total -= weight * log_probs[row, t, targets[row, t + k]]
            return total

        def ours(x, head):
            return cross_entropy(
                x, head, jnp.asarray(targets), jnp.asarray(mask), jnp.asarray(weights), chunk_len=chunk_len,
                softcap=softcap,
            )[0]  # fmt: skip

        expected, found = (jax.value_and_grad(f, argnums=(0, 1))(x, head) for f in (plain, ours))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), found, expected)

        theirs = [torch.tensor(np.array(a), requires_grad=True) for a in (x, head)]
        loss, n_tokens = torch_loss.cross_entropy(
            *theirs, torch.from_numpy(targets), torch.from_numpy(mask), torch.tensor(weights, dtype=torch.float64),
            chunk_len=chunk_len, softcap=softcap,
        )  # fmt: skip
        loss.backward()
        assert loss.item() == pytest.approx(float(expected[0]), rel=1e-12) and n_tokens == mask.sum()
        for tensor, grad in zip(theirs, expected[1], strict=True):
            np.testing.assert_allclose(tensor.grad, grad, rtol=1e-12, atol=1e-13)


def test_no_array_of_all_logits_is_ever_made():
    """Read off the compiled program: tokens x vocabulary appears nowhere."""
    B, T, D, V = 4, 64, 16, 5003
    targets = jnp.zeros((B, T), jnp.int32)
    step = jax.jit(jax.value_and_grad(lambda x, w: cross_entropy(x, w, targets, chunk_len=8)[0], argnums=(0, 1)))
    program = step.lower(random(B, T, D), random(V, D)).compile().as_text() or ""
    assert f"[{B * 8},{V}]" in program
    assert f"[{B * T},{V}]" not in program and f"[{B},{T},{V}]" not in program


TINY = GPT2Config(seq_len=32, n_layer=2, n_head=2, n_embd=32, vocab_size=65)


@pytest.mark.parametrize("remat", ["dots", "block"])
def test_rematerialisation_changes_nothing(remat):
    params = init_params(TINY, seed=1)
    tokens = jax.random.randint(jax.random.key(0), (2, 32), 0, 65)

    def loss(params, remat):
        hidden = Model(TINY, remat=remat).bind(params)(tokens)
        return (hidden**2 * jnp.arange(32)).sum()

    ours = jax.grad(loss)(params, remat)
    for path, expected in jax.grad(loss)(params, "none").items():
        assert relative(ours[path], expected) < tolerances.FP32_GRAD, path


def test_init_is_nanogpts():
    params = init_params(GPT2Config(seq_len=256, n_layer=8, n_embd=192, n_head=4, vocab_size=512), seed=3)
    assert abs(float(params["wte.weight"].std()) / 0.02 - 1) < 0.02
    assert abs(float(params["h.3.attn.c_attn.weight"].std()) / 0.02 - 1) < 0.02
    assert abs(float(params["h.3.mlp.c_proj.weight"].std()) / (0.02 / 4) - 1) < 0.02
    assert (params["ln_f.weight"] == 1).all()


@pytest.mark.parametrize(
    ("model", "vocab_size", "total"),
    [
        (GPT2Config(), 50304, 124_373_760),
        (GPT2Config(), 50257, 124_337_664),
        (GPT2Config(bias=True), 50257, 124_439_808),
        (GPT2Config(seq_len=256, n_layer=6, n_head=6, n_embd=384), 65, 10_745_088),
        (TINY, 65, None),
    ],
)
def test_param_counts_equal_the_shapes(model, vocab_size, total):
    model = model.complete(vocab_size)
    built = sum(np.prod(leaf.shape) for leaf in param_shapes(model).values())
    assert built == model.count_params().total == (total or built)


def test_flops_are_nanogpts():
    """transformer_sizing.ipynb: 875,062,886,400 FLOPs per 1024 tokens by the PaLM formula, vocabulary 50257."""
    model = GPT2Config(vocab_size=50257)
    assert flops_per_token(model) * 1024 == 875_062_886_400
    assert flops_per_token(model, causal=True) < flops_per_token(model)


def test_the_factor_of_a_norm_is_not_rounded_to_bfloat16():
    """1.2 would become 1.203."""
    x = random(4, 8, 64).astype(jnp.bfloat16)
    expected = (1.2 * layers.rms_norm(x.astype(jnp.float32))).astype(jnp.bfloat16)
    assert (layers.rms_norm(x, 1.2) == expected).all()


def test_the_coefficients_of_newton_schulz_are_not_rounded_to_bfloat16():
    """Sums of Polar Express's first quintic cancel: its rounded coefficients leave every entry some per cent short."""
    x = (random(1, 16, 32) / 40).astype(jnp.bfloat16)
    exact = quintic(x.astype(jnp.float32), POLAR_EXPRESS[0])
    ours = quintic(x, POLAR_EXPRESS[0]).astype(jnp.float32)
    assert abs(float((ours * exact).sum() / (exact * exact).sum()) - 1) < 1e-3
