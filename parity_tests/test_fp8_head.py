"""The head on 8-bit floats: the originals' figures, the same operands everywhere, and which cards may multiply them."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.compare import tolerances
from jaxgpt.config import Config, GPT2Config, MeshConfig, TrainConfig, to_dict
from jaxgpt.config.softcap import Softcap
from jaxgpt.errors import InputError
from jaxgpt.models.fp8_head import E4M3, E5M2, Fp8Head, make_fp8_head, require_float8, require_head, round_to
from jaxgpt.models.loss import cross_entropy
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.plan.topology import missing_plugin
from jaxgpt.training.step import loss_sum, make_step

torch = pytest.importorskip("torch")

from torch_ref.models import fp8_head as mirror  # noqa: E402
from torch_ref.models.loss import cross_entropy as torch_cross_entropy  # noqa: E402

REPO = Path(__file__).parents[1]
SCALES = {"r62": (100 / 448, 1.6 / 448, 0.75 / 448), "r46": (768**0.5 / 448, 2.0**-9, 1 / 448)}
FIELDS = ("head_x_scale", "head_weight_scale", "head_gradient_scale")
FIGURES = {
    "r62": {"xq": -228.05078125, "wq": -2209.984375, "gq": -932.1875, "y_sum": 54.751948704843,
            "y_norm": 38.2457151209921, "dx_norm": 1.18799566708298, "dw_norm": 17.2409390894367},
    "r46": {"xq": -813.375, "wq": -4002.12109375, "gq": -760.71875, "y_sum": 55.1050269478938,
            "y_norm": 38.0268102625505, "dx_norm": 1.18582200151001, "dw_norm": 17.490646412094},
}  # fmt: skip
"""Measured on the original's formulas with torch's casts, products in float64, nothing rounded after them."""


def draw():
    """x [8, 16], head [32, 16], gradient of the logits [8, 32], float32."""
    r = np.random.default_rng(10)
    x, w, g = 3 * r.standard_normal((8, 16)), 0.2 * r.standard_normal((16, 32)), 0.1 * r.standard_normal((8, 32))
    return [np.ascontiguousarray(a.astype(np.float32)) for a in (x, w.T, g)]


def close(found, expected, tolerance=1e-6):
    np.testing.assert_allclose(float(found), expected, rtol=tolerance)


@pytest.mark.parametrize("name", SCALES)
def test_figures_of_the_originals(name):
    x, w, g = map(jnp.asarray, draw())
    x_scale, weight_scale, gradient_scale = SCALES[name]
    expected = FIGURES[name]
    for key, array, scale, dtype in (
        ("xq", x, x_scale, E4M3),
        ("wq", w, weight_scale, E4M3),
        ("gq", g, gradient_scale, E5M2),
    ):
        assert float(round_to(array, scale, dtype).astype(jnp.float32).sum()) == expected[key]
    head = Fp8Head(*SCALES[name], is_emulated=True)
    y = head.logits(x, head.round_weight(w), jnp.float32)
    dx, dw = head.gradients(g, x, head.round_weight(w), jnp.float32)
    assert y.dtype == dx.dtype == dw.dtype == jnp.float32 and dw.shape == w.shape
    for found, key in (
        (y.sum(), "y_sum"),
        *((jnp.linalg.norm(a), f"{k}_norm") for k, a in (("y", y), ("dx", dx), ("dw", dw))),
    ):
        close(found, expected[key])
    close(np.linalg.norm(np.asarray(x, np.float64) @ np.asarray(w, np.float64).T), 38.2755995938909)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_mirror_rounds_alike(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        x, w, g = draw()
        wide = "float64" if dtype == "float64" else "float32"
        ours, theirs = (kind(*SCALES[name], is_emulated=True) for kind in (Fp8Head, mirror.Fp8Head))
        a = [jnp.asarray(value).astype(dtype) for value in (x, w, g)]
        b = [torch.tensor(np.asarray(value, np.float32)).to(getattr(torch, dtype)) for value in a]
        wq, their_wq = ours.round_weight(a[1]), theirs.round_weight(b[1])
        pairs = [(ours.logits(a[0], wq, wide), theirs.logits(b[0], their_wq, getattr(torch, wide)))]
        pairs += zip(
            ours.gradients(a[2], a[0], wq, wide),
            theirs.gradients(b[2], b[0], their_wq, getattr(torch, wide)),
            strict=True,
        )
        tolerance = {"float64": 1e-13, "float32": 1e-6, "bfloat16": 2**-8}[dtype]
        for one, other in pairs:
            assert str(one.dtype) == str(other.dtype).removeprefix("torch.")
            np.testing.assert_allclose(
                np.asarray(one, np.float64),
                np.asarray(torch.as_tensor(other).double()),
                rtol=tolerance,
                atol=1e-6 * tolerance,
            )


@pytest.mark.parametrize(("ours", "theirs"), [(E4M3, mirror.E4M3), (E5M2, mirror.E5M2)], ids=["e4m3", "e5m2"])
def test_every_value_rounds_alike_and_none_becomes_nan(ours, theirs):
    """Ten times beyond either range, subnormals and ties among them; what exceeds the range is its end."""
    limit = float(jnp.finfo(ours).max)
    r = np.random.default_rng(0)
    values = np.concatenate([
        r.standard_normal(20_000) * limit, 10.0 ** r.uniform(-9, 6, 20_000), np.arange(4096) / 1024,
        [10 * limit, -1e30, 0.0],
    ]).astype(np.float32)  # fmt: skip
    a = np.asarray(round_to(jnp.asarray(values), 1.0, ours).astype(jnp.float32))
    b = mirror.round_to(torch.tensor(values), 1.0, theirs).float().numpy()
    np.testing.assert_array_equal(a, b)
    assert np.isfinite(a).all() and a.max() == limit and a.min() == -limit
    np.testing.assert_array_equal(np.asarray(jnp.asarray(a).astype(jnp.bfloat16).astype(jnp.float32)), a)


def test_emulated_operands_are_those_of_float8():
    """One multiplies float8 arrays, the other bfloat16 copies: sums of the same products."""
    x, w, g = (jnp.asarray(a).astype(jnp.bfloat16) for a in draw())
    one, other = (Fp8Head(*SCALES["r62"], is_emulated=is_emulated) for is_emulated in (False, True))
    wq = one.round_weight(w)
    np.testing.assert_allclose(one.logits(x, wq, jnp.float32), other.logits(x, wq, jnp.float32), rtol=1e-5, atol=1e-6)
    for a, b in zip(one.gradients(g, x, wq, jnp.float32), other.gradients(g, x, wq, jnp.float32), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, Softcap("tanh", 15.0)], ids=["none", "tanh"])
def test_the_loss_with_such_a_head_is_the_mirrors(softcap):
    """Value and both gradients, in chunks; and different from the loss of a whole head."""
    r = np.random.default_rng(1)
    x, w = (
        (2 * r.standard_normal((2, 24, 16))).astype(np.float32),
        (0.1 * r.standard_normal((40, 16))).astype(np.float32),
    )
    targets = r.integers(0, 40, (2, 24))
    settings = {"chunk_len": 8, "softcap": softcap}
    head = Fp8Head(*SCALES["r62"], is_emulated=True)

    def loss(x, w, head):
        return cross_entropy(x, w, jnp.asarray(targets), head=head, **settings)[0]

    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(w), head)
    a, b = (torch.tensor(array, requires_grad=True) for array in (x, w))
    theirs = torch_cross_entropy(
        a, b, torch.tensor(targets), head=mirror.Fp8Head(*SCALES["r62"], is_emulated=True), **settings
    )[0]
    theirs.backward()
    close(value, theirs.item(), tolerances.FP32_OP)
    plain, plain_grads = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(w), None)
    assert 1e-6 < abs(value / plain - 1) < 1e-2
    for ours, their, whole in zip(grads, (a.grad, b.grad), plain_grads, strict=True):
        assert their is not None
        scale = np.abs(whole).max()
        # a difference of one rounding in the softmax may round a gradient to the next e5m2 number
        differing = np.abs(np.asarray(ours) - their.numpy()) / scale
        assert np.mean(differing > 1e-5) < 0.02 and differing.max() < 0.05
        assert 1e-3 < np.abs(ours - whole).max() / scale < 0.2


def make_config(**train) -> Config:
    model = GPT2Config(n_layer=1, n_head=1, n_embd=128, seq_len=128, vocab_size=1024)
    settings = {"steps": 1, "batch_tokens": 512, "micro_batch_size": 4, "dtype": "bfloat16", "loss_chunk_tokens": 256}
    return Config(model=model, train=TrainConfig(**(settings | train)), mesh=MeshConfig(data=1))


def test_a_run_chooses_its_head():
    assert make_fp8_head(make_config().train) is None
    assert make_fp8_head(make_config(head_dtype="float8").train) == Fp8Head(*SCALES["r62"], is_emulated=False)
    config = make_config(head_dtype="float8_emulated", **dict(zip(FIELDS, SCALES["r46"], strict=True)))
    assert make_fp8_head(config.train) == Fp8Head(*SCALES["r46"], is_emulated=True)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        losses = []
        tokens = jnp.asarray(np.random.default_rng(0).integers(0, 1024, (4, 129)), jnp.int32)
        for changed in (
            config,
            dataclasses.replace(config, train=dataclasses.replace(config.train, head_dtype="compute")),
        ):
            step = make_step(changed, mesh)
            loss = jax.jit(functools.partial(loss_sum, changed, step.model))
            losses.append(float(loss(step.init_params(0), tokens)[0]))
    assert 1e-7 < abs(losses[0] / losses[1] - 1) < 1e-3
    with pytest.raises(InputError, match=r"train.head_weight_scale=0.0 is not above 0"):
        make_config(head_weight_scale=0.0)


@pytest.mark.parametrize(
    ("kind", "capability", "is_good"),
    [("H100", "9.0", True), ("RTX 4090", "8.9", True), ("B200", "10.0", True), ("A100", "8.0", False),
     ("RTX 3090", "8.6", False), ("MI300", "gfx942", False), ("TPU v6 lite", "", False)],
)  # fmt: skip
def test_which_devices_multiply_float8(kind, capability, is_good):
    for require in (require_float8, mirror.require_float8):
        if is_good:
            require(kind, capability)
            continue
        with pytest.raises(InputError) as caught:
            require(kind, capability)
        assert str(caught.value).startswith(
            "train.head_dtype=float8 needs an NVIDIA card of compute capability 8.9 or more, "
            f"{kind} has {capability or 'none'}; set --train.head_dtype=float8_emulated"
        )


def test_a_cpu_is_refused_before_anything_is_made():
    config = make_config(head_dtype="float8")
    with pytest.raises(InputError, match=r"train.head_dtype=float8 needs .* cpu has none"):
        make_step(config, make_mesh(config.mesh))
    with pytest.raises(InputError, match=r"train.head_dtype=float8 needs .* cpu has none"):
        mirror.require_head(config.train, torch.device("cpu"))
    require_head(make_config(head_dtype="float8_emulated").train, jax.devices()[0])


COMPILE = """
import json, sys
import jax
from jaxgpt import config as config_lib
from jaxgpt.errors import InputError
from jaxgpt.training.programs import lower_train
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.training.step import make_step
from jaxgpt.plan.topology import open_devices, parse_topology
config = config_lib.from_dict(json.load(sys.stdin))
mesh = make_mesh(config.mesh, open_devices(parse_topology(sys.argv[1])))
with jax.set_mesh(mesh):
    try:
        print(lower_train(make_step(config, mesh), 1, 4).compile().as_text())
    except InputError as error:
        print("refused:", error)
"""


def compile_for(device, **train) -> str:
    from jaxgpt.plan.topology import ENVIRONMENT

    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | ENVIRONMENT
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, device], input=json.dumps(to_dict(make_config(**train))),
        capture_output=True, text=True, cwd=REPO, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def float8_products(program: str) -> list[str]:
    """The products of a compiled program whose operands are float8 as they are multiplied: their parameters' dtypes."""
    found = []
    for body in re.split(r"\n\s*\n", program):
        dtypes = re.findall(r"parameter[\w.]*: (f8e\w+)\[", body.splitlines()[0] if body else "")
        if len(dtypes) == 2 and " dot(" in body and " convert(%parameter" not in body:
            found.append(" x ".join(dtypes))
    return sorted(found)


@pytest.mark.skipif(bool(missing_plugin("gpu")), reason=f"compiling for a GPU takes: {missing_plugin('gpu')}")
@pytest.mark.slow
def test_the_h100_multiplies_float8_and_the_a100_is_refused():
    program = compile_for("h100", head_dtype="float8")
    assert float8_products(program) == ["f8e4m3fn x f8e4m3fn", "f8e5m2 x f8e4m3fn"]
    assert compile_for("a100-40gb", head_dtype="float8").startswith(
        "refused: train.head_dtype=float8 needs an NVIDIA card"
    )
