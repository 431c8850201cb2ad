"""The functions that bound logits: values, slopes, log-sum-exp, and the hand-written gradient of the loss with each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgpt.config.softcap import Softcap
from jaxgpt.models import layers, loss
from torch_ref.models import layers as torch_layers
from torch_ref.models import loss as torch_loss

CAPS = {
    "tanh": Softcap("tanh", 15.0),
    "rsqrt": Softcap("rsqrt", 15.0),
    "sigmoid": Softcap("sigmoid", 23.0, 5.0, 7.5),
    "sigmoid, no shift": Softcap("sigmoid", 30.0, 0.0, 7.5),
}
BY_HAND = {
    "tanh": lambda z: 15 * np.tanh(z / 15),
    "rsqrt": lambda z: 15 * z / np.sqrt(z * z + 225),
    "sigmoid": lambda z: 23 / (1 + np.exp(-(z + 5) / 7.5)),
    "sigmoid, no shift": lambda z: 30 / (1 + np.exp(-z / 7.5)),
}
EACH_CAP = pytest.mark.parametrize("name", CAPS)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@EACH_CAP
def test_values_and_slopes(name):
    cap, z = CAPS[name], np.linspace(-60, 60, 241)
    capped = np.array(layers.softcap(jnp.asarray(z), cap))
    np.testing.assert_allclose(capped, BY_HAND[name](z), rtol=1e-13)
    np.testing.assert_allclose(torch_layers.softcap(torch.from_numpy(z), cap), capped, rtol=1e-13)
    slope = np.asarray(layers.softcap_slope(jnp.asarray(capped), cap))
    step = 1e-4
    differences = (BY_HAND[name](z + step) - BY_HAND[name](z - step)) / (2 * step)
    np.testing.assert_allclose(slope, differences, atol=1e-8)
    np.testing.assert_allclose(torch_layers.softcap_slope(torch.from_numpy(capped), cap), slope, rtol=1e-12)
    sums = [f.log_sum_exp(x, cap) for f, x in ((layers, jnp.asarray(capped)), (torch_layers, torch.tensor(capped)))]
    np.testing.assert_allclose(np.array(sums, float), np.log(np.exp(capped).sum()), rtol=1e-14)


@EACH_CAP
def test_slope_of_a_saturated_float32_is_finite(name):
    """In float32 a capped logit may pass its bound by rounding; the power of a negative number would be NaN."""
    cap = CAPS[name]
    beyond = np.nextafter(np.float32(cap.scale), np.float32(100))
    assert np.isfinite(layers.softcap_slope(jnp.asarray(beyond), cap))
    assert torch_layers.softcap_slope(torch.tensor(beyond), cap).isfinite()


@EACH_CAP
def test_gradient_of_the_loss(name):
    """Written by hand, in chunks, against the derivative of the plain formula; both frameworks."""
    cap, rng = CAPS[name], np.random.default_rng(0)
    x_BTD, weight_VD = 3 * rng.standard_normal((2, 6, 8)), 3 * rng.standard_normal((11, 8))
    targets_BT = rng.integers(0, 11, (2, 6)).astype(np.int32)

    def plain(x_BTD, weight_VD):
        log_probs_BTV = jax.nn.log_softmax(layers.softcap(x_BTD @ weight_VD.T, cap), axis=-1)
        return -jnp.take_along_axis(log_probs_BTV, targets_BT[..., None], axis=-1).sum()

    value, gradients = jax.value_and_grad(plain, (0, 1))(x_BTD, weight_VD)
    ours, our_gradients = jax.value_and_grad(
        lambda x, w: loss.cross_entropy(x, w, targets_BT, chunk_len=4, softcap=cap)[0], (0, 1)
    )(x_BTD, weight_VD)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x_BTD, weight_VD)]
    x, weight = tensors
    theirs, _ = torch_loss.cross_entropy(x, weight, torch.from_numpy(targets_BT), chunk_len=4, softcap=cap)
    theirs.backward()
    np.testing.assert_allclose([ours, theirs.item()], value, rtol=1e-13)
    for plain_gradient, our_gradient, tensor in zip(gradients, our_gradients, tensors, strict=True):
        np.testing.assert_allclose(our_gradient, plain_gradient, rtol=1e-10, atol=1e-12)
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), plain_gradient, rtol=1e-10, atol=1e-12)


def test_without_a_cap_logits_are_returned():
    z = np.arange(5.0)
    assert layers.softcap(z, None) is z and torch_layers.softcap(z, None) is z
    assert hash(dataclasses.replace(CAPS["tanh"])) == hash(CAPS["tanh"]), "part of what is compiled"
