"""AdamW, Muon and clipping against torch, and groups against nanoGPT's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.compare import tolerances
from jaxgpt.config import GPT2Config, GroupConfig, MuonConfig, OptimConfig
from jaxgpt.config.param_groups import param_groups
from jaxgpt.errors import InputError
from jaxgpt.models import param_shapes
from jaxgpt.optim.clip import clip_by_global_norm, global_norm
from jaxgpt.optim.optimizer import optimizer
from jaxgpt.optim.orthogonalize import newton_schulz

torch = pytest.importorskip("torch")

SHAPES = {"wte.weight": (20, 8), "h.0.mlp.c_fc.weight": (8, 32), "h.0.mlp.c_proj.weight": (32, 8), "ln_f.weight": (8,)}
N_STEPS = 20


def run(config, lr_scale=1.0, momentum=0.95):
    """Parameters and gradients of 20 steps on fixed random gradients."""
    rng = np.random.default_rng(0)
    params = {p: jnp.asarray(rng.normal(size=s), jnp.float32) for p, s in SHAPES.items()}
    grads = [{p: jnp.asarray(rng.normal(size=s), jnp.float32) for p, s in SHAPES.items()} for _ in range(N_STEPS)]
    start = params
    transform = optimizer(config, param_groups(config, SHAPES))
    state = transform.init(params)
    hyper = {"lr_scale": jnp.float32(lr_scale), "momentum": jnp.float32(momentum), "decay_scale": jnp.float32(1)}
    for grad in grads:
        updates, state = transform.update(grad, state, params, hyper=hyper)
        params: Any = optax.apply_updates(params, updates)
    return start, grads, params


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b))


def test_adamw_is_torchs():
    config = OptimConfig(lr=1e-2, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)
    start, grads, params = run(config)
    theirs = {p: torch.nn.Parameter(torch.tensor(np.asarray(v))) for p, v in start.items()}
    optim = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.values() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in theirs.values() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=1e-2, betas=(0.8, 0.95), eps=1e-6,
    )  # fmt: skip
    for grad in grads:
        for path, p in theirs.items():
            p.grad = torch.tensor(np.asarray(grad[path]))
        optim.step()
    for path in SHAPES:
        assert relative(params[path], theirs[path].detach()) < tolerances.FP32_PARAMS, path


def torch_newton_schulz(g, steps=5):
    """Keller Jordan's formula in float32, for one [out, in] matrix."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_keller_jordans(nesterov):
    config = OptimConfig(algorithm="muon", muon=MuonConfig(lr=0.02, weight_decay=0.1, nesterov=nesterov))
    start, grads, params = run(config, lr_scale=0.5, momentum=0.9)
    for path in ("h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"):
        weight = torch.tensor(np.asarray(start[path])).T.contiguous()
        momentum = torch.zeros_like(weight)
        for grad in grads:
            g = torch.tensor(np.asarray(grad[path])).T
            momentum.lerp_(g, 0.1)
            update = torch_newton_schulz(g.lerp(momentum, 0.9) if nesterov else momentum)
            weight = weight * (1 - 0.01 * 0.1)
            weight = weight - 0.01 * max(1, weight.shape[0] / weight.shape[1]) ** 0.5 * update
        assert relative(params[path].T, weight) < tolerances.MUON_FP32, path


def test_muon_direction_is_torch_optim_muons():
    """The first step of torch.optim.Muon, which runs Newton-Schulz in bfloat16: equal to its rounding."""
    rng = np.random.default_rng(1)
    grad = rng.normal(size=(64, 32)).astype(np.float32)
    weight = torch.nn.Parameter(torch.zeros(32, 64))
    weight.grad = torch.tensor(grad.T.copy())
    torch.optim.Muon([weight], lr=1.0, weight_decay=0.0).step()
    ours = newton_schulz(jnp.asarray(grad)[None], steps=5, dtype=jnp.float32)[0]
    assert relative(-ours.T, weight.detach()) < 5e-2


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (4, 32, 32)])
def test_newton_schulz_brings_singular_values_into_their_band(shape):
    u, _, vt = jnp.linalg.svd(jax.random.normal(jax.random.key(0), shape), full_matrices=False)
    x = (u * jnp.linspace(0.2, 1, min(shape[1:]))) @ vt
    values = jnp.linalg.svd(newton_schulz(x, steps=5, dtype=jnp.float32), compute_uv=False)
    assert float(values.min()) > 0.5 and float(values.max()) < 1.3
    assert not np.asarray(newton_schulz(jnp.zeros(shape), steps=5, dtype=jnp.float32)).any()


@pytest.mark.parametrize("max_norm", [0.1, 1e6, 0])
def test_clip_is_torchs(max_norm):
    grads = {p: jax.random.normal(jax.random.key(i), s) for i, (p, s) in enumerate(SHAPES.items())}
    ours = clip_by_global_norm(grads, global_norm(grads), max_norm)
    theirs = {p: torch.nn.Parameter(torch.zeros(s)) for p, s in SHAPES.items()}
    for path, p in theirs.items():
        p.grad = torch.tensor(np.asarray(grads[path]))
    norm = torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm or float("inf"))
    assert float(norm) == pytest.approx(float(global_norm(grads)), rel=1e-6)
    for path in SHAPES:
        assert relative(ours[path], theirs[path].grad) < tolerances.FP32_OP


def sizes(model, vocab_size):
    return {path: leaf.shape for path, leaf in param_shapes(model.complete(vocab_size)).items()}


@pytest.mark.parametrize(
    ("model", "vocab_size", "decayed", "other"),
    [
        (GPT2Config(), 50304, (50, 124_354_560), (25, 19_200)),
        (GPT2Config(seq_len=256, n_layer=6, n_head=6, n_embd=384), 65, (26, 10_740_096), (13, 4_992)),
    ],
)
def test_decay_groups_are_nanogpts(model, vocab_size, decayed, other):
    shapes = sizes(model, vocab_size)
    groups = param_groups(OptimConfig(weight_decay=0.1), shapes)
    for weight_decay, expected in ((0.1, decayed), (0.0, other)):
        paths = [path for path, group in groups.items() if group.weight_decay == weight_decay]
        assert (len(paths), sum(int(np.prod(shapes[p])) for p in paths)) == expected


def test_muon_takes_the_matrices_of_the_blocks():
    groups = param_groups(OptimConfig(algorithm="muon"), sizes(GPT2Config(n_layer=2), 50304))
    muon = {path for path, group in groups.items() if group.algorithm == "muon"}
    assert muon == {
        f"h.{i}.{name}.weight" for i in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_groups_override_by_path():
    exceptions = (GroupConfig(match=r"wte", lr=0.3, beta2=0.5), GroupConfig(match=r"ln_", weight_decay=0.2))
    groups = param_groups(OptimConfig(groups=exceptions), SHAPES)
    assert (groups["wte.weight"].lr, groups["wte.weight"].beta2) == (0.3, 0.5)
    assert groups["ln_f.weight"].weight_decay == 0.2
    assert groups["h.0.mlp.c_fc.weight"].lr == OptimConfig().lr


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (GroupConfig(match="nothing"), "optim.groups: match='nothing' matches no parameter"),
        (GroupConfig(match="ln_f", algorithm="muon"), r"ln_f.weight of shape \(8,\) to muon; it updates matrices"),
    ],
)
def test_bad_groups(group, message):
    with pytest.raises(InputError, match=message):
        param_groups(OptimConfig(groups=(group,)), SHAPES)


def test_group_must_be_a_regular_expression():
    with pytest.raises(InputError, match=r"optim.groups: match='\(' is not a regular expression"):
        GroupConfig(match="(")
