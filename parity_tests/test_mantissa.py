"""Where record 62 rounds and jaxgpt does not, or otherwise: weights in two halves, bfloat16 and 16 bits of mantissa,
beside float32 ones; Polar Express in bfloat16.

The references are numpy ones of the original's updates, held to figures of its own code.
"""

import importlib
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.optim import orthogonalize
from jaxgpt.optim.muon import muon_step

torch_muon = pytest.importorskip("torch_ref.optim.muon", reason="needs PyTorch")
torch_orthogonalize = importlib.import_module("torch_ref.optim.orthogonalize")

RATE = 0.023 * 1.52
FIGURES = [
    (2110513, 2355083, 0x3A0571BC, 0xBB8708E1),
    (2110890, 2150297, 0x3B01922C, 0xBA977A2C),
    (2144095, 2074400, 0xBB2AA046, 0xBC06B8E1),
]
"""After each of three updates: sums of the halves as integers, and the words of the first and the last weight."""


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper 16 bits of float32 numbers, rounded to the nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widen(upper: np.ndarray, lower: np.ndarray | int = 0) -> np.ndarray:
    """The float32 numbers of which these are the two halves."""
    return ((upper.astype(np.uint32) << 16) | np.asarray(lower, np.uint32)).view(np.float32)


def update_halves(upper, lower, direction, decay, rate):
    """The original's step: float32 arithmetic on both halves together, which are then taken apart, not rounded."""
    weight = widen(upper, lower)
    is_shrinking = (direction * weight >= 0).astype(np.float32)
    bits = (weight - ((weight * is_shrinking) * decay) * rate - direction * rate).view(np.uint32)
    return (bits >> 16).astype(np.uint16), (bits & 0xFFFF).astype(np.uint16)


def steps():
    """(weights before, direction, halves after) of three updates of 64 weights."""
    rng = np.random.default_rng(11)
    upper, lower = round_to_bfloat16(0.05 * rng.standard_normal(64)), np.zeros(64, np.uint16)
    for _ in FIGURES:
        direction = widen(round_to_bfloat16(0.05 * rng.standard_normal(64)))
        before = widen(upper, lower)
        upper, lower = update_halves(upper, lower, direction, np.float32(1.2 * RATE), np.float32(2 * RATE))
        yield before, direction, upper, lower


def test_the_reference_is_the_original():
    for (_, _, upper, lower), figures in zip(steps(), FIGURES, strict=True):
        words = widen(upper, lower).view(np.uint32)
        assert (upper.sum(), lower.sum(), words[0], words[63]) == figures


@pytest.mark.parametrize("framework", ["jaxgpt", "torch_ref"])
def test_float32_weights_are_the_two_halves_together(framework):
    """To rounding; a matrix four times as wide as high has the rate doubled."""
    for before, direction, upper, lower in steps():
        settings = {"lr": np.float32(RATE), "weight_decay": np.float32(1.2 * RATE), "cautious": True}
        if framework == "jaxgpt":
            found = np.asarray(muon_step(*(jnp.asarray(x.reshape(4, 16)) for x in (before, direction)), **settings))
        else:
            torch = importlib.import_module("torch")
            tensors = (torch.tensor(x.reshape(16, 4)) for x in (before, direction))
            settings = {name: float(value) if name != "cautious" else value for name, value in settings.items()}
            found = torch_muon.muon_step(*tensors, **settings).numpy()
        expected = widen(upper, lower)
        ulp = np.spacing(np.maximum(np.abs(before), np.abs(expected)))
        assert (np.abs(before + found.ravel() - expected) <= 2 * ulp).all()


def test_the_original_computes_with_truncated_weights_and_jaxgpt_with_rounded_ones():
    """Half of the weights differ in the last bit of bfloat16, never by more."""
    for _, _, upper, lower in steps():
        weight = widen(upper, lower)
        assert (np.abs(widen(upper)) <= np.abs(weight)).all()
        ours = np.asarray(jnp.asarray(weight).astype(jnp.bfloat16)).view(np.uint16).astype(np.int64)
        assert (ours == round_to_bfloat16(weight)).all()
        assert set(ours - upper) == {0, 1} and 16 < (ours - upper).sum() < 48
        assert math.isclose((ours != upper).mean(), (lower > 0x8000).mean())


def express(matrix: np.ndarray, *, is_large: bool) -> np.ndarray:
    """The original's Polar Express: operands in bfloat16, sums in float32, each rounded once.

    Args:
      is_large: as for stacks of more than 1024 rows, whose last product is rounded before the sum.
    """

    def cast(x):
        return widen(round_to_bfloat16(x))

    x = cast(matrix)
    x = cast(x / (cast(cast(np.atleast_1d(np.linalg.norm(x))) * np.float32(1.02)) + np.float32(1e-6)))
    for a, b, c in np.array(orthogonalize.POLAR_EXPRESS, np.float32):
        gram = cast(x @ x.T)
        product = cast(c * (gram @ gram) + b * gram) @ x
        x = cast((cast(product) if is_large else product) + a * x)
    return x.astype(np.float64)


def test_polar_express_in_bfloat16():
    """The figures are met by one and by two roundings at the end of each iteration. jaxgpt, and its mirror, have both
    and one more, of the square of the gram matrix: a difference of the size of that between the original's two."""
    matrix = np.random.default_rng(5).standard_normal((96, 96))
    small, large = (express(matrix, is_large=is_large) for is_large in (False, True))
    for found, total, norm, smallest in ((small, 20.775, 9.94102, 0.677), (large, 20.425, 9.93111, 0.681)):
        values = np.linalg.svd(found, compute_uv=False)
        figures = [found.sum(), np.linalg.norm(found), values[-1], values[0]]
        np.testing.assert_allclose(figures, [total, norm, smallest, 1.142], rtol=1e-3)
    torch = importlib.import_module("torch")
    theirs = torch_orthogonalize.polar_express(torch.tensor(matrix[None]), steps=5, dtype=torch.bfloat16, margin=1.02)
    ours = orthogonalize.polar_express(jnp.asarray(matrix[None]), steps=5, dtype=jnp.bfloat16, margin=1.02)
    between = np.linalg.norm(large - small)
    for found in (np.asarray(ours[0], np.float64), theirs[0].double().numpy()):
        assert np.linalg.norm(found - large) < 2 * between < 0.04 * np.linalg.norm(large)
        assert abs(np.linalg.norm(found) / np.linalg.norm(large) - 1) < 1e-3
