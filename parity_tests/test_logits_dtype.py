"""train.logits_dtype: what the training loss writes is rounded once, to bfloat16; softmax and sums are float32."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from jaxgpt.compare import tolerances
from jaxgpt.config import Config, GPT2Config, TrainConfig
from jaxgpt.config.softcap import Softcap
from jaxgpt.models import Model, param_shapes
from jaxgpt.models.fp8_head import Fp8Head
from jaxgpt.models.loss import cross_entropy
from jaxgpt.training.step import loss_sum
from torch_ref.models.fp8_head import Fp8Head as TorchFp8Head
from torch_ref.models.loss import cross_entropy as torch_cross_entropy

N_TOKENS, N_EMBD, VOCAB = 12, 16, 40
CAPS = {"none": None, "tanh": Softcap("tanh", 15.0), "sigmoid": Softcap("sigmoid", 23.0, 5.0, 7.5)}
SCALES = (0.02, 0.02, 0.002)


def rounded(array) -> np.ndarray:
    return np.asarray(array).astype(ml_dtypes.bfloat16).astype(np.float64)


def draw():
    rng = np.random.default_rng(4)
    x, weight = rounded(rng.standard_normal((1, N_TOKENS, N_EMBD))), rounded(rng.standard_normal((VOCAB, N_EMBD)))
    return x, weight, rng.integers(0, VOCAB, (1, N_TOKENS))


def capped(z, cap):
    if not cap:
        return z
    return 15 * np.tanh(z / 15) if cap.kind == "tanh" else 23 / (1 + np.exp(-(z + 5) / 7.5))


def by_hand(logits_PV, targets_P, cap) -> float:
    """The summed loss of logits, in float64."""
    z = capped(logits_PV, cap)
    return float((np.log(np.exp(z).sum(-1)) - z[np.arange(N_TOKENS), targets_P]).sum())


@pytest.mark.parametrize("name", CAPS)
def test_logits_are_rounded_once_before_the_softcap(name):
    """In both frameworks, against float64 on rounded logits; unrounded ones are ten times the gate away."""
    cap, (x, weight, targets) = CAPS[name], draw()
    exact = by_hand(x[0] @ weight.T, targets[0], cap)
    expected = by_hand(rounded(x[0] @ weight.T), targets[0], cap)
    settings = {"chunk_len": 4, "softcap": cap}

    def ours(x, weight, logits_dtype=jnp.bfloat16):
        return cross_entropy(x, weight, jnp.asarray(targets), logits_dtype=logits_dtype, **settings)[0]

    arrays = jnp.asarray(x, jnp.bfloat16), jnp.asarray(weight, jnp.float32)
    value, grads = jax.value_and_grad(ours, (0, 1))(*arrays)
    tensors = (
        torch.tensor(x, dtype=torch.bfloat16, requires_grad=True),
        torch.tensor(weight, dtype=torch.float32, requires_grad=True),
    )
    wanted = torch.from_numpy(targets)
    theirs, _ = torch_cross_entropy(tensors[0], tensors[1], wanted, logits_dtype=torch.bfloat16, **settings)
    theirs.backward()
    for found in (float(value), float(ours(*arrays)), theirs.item()):
        assert abs(found / expected - 1) < tolerances.FP32_OP < abs(exact / expected - 1) / 10
    assert abs(float(ours(*arrays, None)) / exact - 1) < tolerances.FP32_OP
    for tensor, grad in zip(tensors, grads, strict=True):
        assert tensor.grad is not None and str(tensor.grad.dtype).endswith(str(grad.dtype))
        theirs, grad = tensor.grad.double().numpy(), np.asarray(grad, np.float64)
        assert np.abs(theirs - grad).max() < tolerances.BF16_OP * np.abs(grad).max()


def test_a_float8_head_rounds_what_it_has_scaled():
    """As a kernel does that scales its sums before it writes them; rounding first would change a third of them."""
    x, weight, targets = draw()
    heads = Fp8Head(*SCALES, is_emulated=True), TorchFp8Head(*SCALES, is_emulated=True)
    arrays = jnp.asarray(x, jnp.bfloat16), jnp.asarray(weight, jnp.float32)
    wide = heads[0].logits(arrays[0][0], heads[0].round_weight(arrays[1]), jnp.float32)
    expected = by_hand(rounded(wide), targets[0], None)
    ours, _ = cross_entropy(*arrays, jnp.asarray(targets), head=heads[0], logits_dtype=jnp.bfloat16)
    tensors = torch.tensor(x, dtype=torch.bfloat16), torch.tensor(weight, dtype=torch.float32)
    theirs, _ = torch_cross_entropy(*tensors, torch.from_numpy(targets), head=heads[1], logits_dtype=torch.bfloat16)
    first = by_hand(rounded(np.asarray(wide) / SCALES[0] / SCALES[1]) * SCALES[0] * SCALES[1], targets[0], None)
    assert abs(first / expected - 1) > 1e-4
    for found in (float(ours), theirs.item()):
        assert abs(found / expected - 1) < tolerances.FP32_OP


@pytest.mark.parametrize(
    ("dtype", "logits_dtype", "written"),
    [("bfloat16", "compute", "bf16"), ("bfloat16", "float32", "f32"), ("float32", "compute", "f32")],
)
def test_what_a_run_writes(dtype, logits_dtype, written):
    """Read off the traced loss: the dtype of the product that gives a chunk's logits."""
    model = GPT2Config(vocab_size=72, seq_len=32, n_layer=1, n_head=1, n_embd=8)
    train = TrainConfig(
        dtype=dtype, logits_dtype=logits_dtype, micro_batch_size=2, batch_tokens=64, loss_chunk_tokens=8
    )
    config = dataclasses.replace(Config(), model=model, train=train)
    params = param_shapes(model, jnp.float32)
    rows = jax.ShapeDtypeStruct((2, 33), np.int32)
    traced = jax.make_jaxpr(lambda params, rows: loss_sum(config, Model(model, dtype=dtype), params, rows)[0])(
        params, rows
    )
    assert re.findall(r"(\w+)\[8,72\] = dot_general", str(traced)) == [written]


def test_the_head_is_cast_once_for_all_chunks():
    """Read off the traced gradients: the loop over chunks holds no cast of the head to bfloat16."""
    x, weight, targets = draw()
    arrays = jnp.asarray(x, jnp.bfloat16), jnp.asarray(weight, jnp.float32)

    def loss(x, weight):
        return cross_entropy(x, weight, jnp.asarray(targets), chunk_len=4)[0]

    traced = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*arrays).jaxpr
    (loop,) = (one for one in traced.eqns if one.primitive.name == "scan")
    cast = f"bf16[{weight.shape[0]},{weight.shape[1]}] = convert_element_type"
    assert cast in str(traced) and cast not in str(loop)
