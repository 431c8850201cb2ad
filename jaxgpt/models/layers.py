"""Linear, norms, Embedding, rotary positions, GELU, dropout: Flax NNX modules around functions of plain arrays.

NNX defines parameters and their names, nothing more. Weights are stored [in, out] and initialised here;
they keep their storage dtype (float32) and are cast to that of the activations where they are used.
`layer_norm` and `gelu` spell out torch's defaults (epsilon 1e-5, two-pass variance, erf), which are not Flax's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.models.int8 import Int8Weight, int8_product
from jaxgpt.parallel.lookup import take_rows

LAYER_NORM_EPS = 1e-5
"""torch.nn.LayerNorm's default, which GPT-2 and nanoGPT use."""
LARGEST_EXPONENT = 64.0
"""Sums of exp of numbers up to this are finite in float32 for any vocabulary below 5e10."""


def linear(x, weight_IO, bias_O=None):
    """x @ weight + bias over the last axis, in x's dtype.

    Leading axes are flattened first: a batched product makes XLA on CPU transpose copies for the weight gradient.
    """
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight_IO, Int8Weight):
        y = int8_product(rows, weight_IO).astype(x.dtype)
    else:
        y = _product(rows, weight_IO.astype(x.dtype))
    if bias_O is not None:
        y = y + bias_O.astype(x.dtype)
    return y.reshape(*x.shape[:-1], y.shape[-1])


@jax.custom_vjp
def _product(x_PI, weight_IO):
    """x @ weight, whose backward pass is the usual one; on a CPU with a transposed copy of x.

    XLA's fast product on CPU takes no transposed left side (docs/log.md has the figures).
    """
    return x_PI @ weight_IO


def _product_forward(x_PI, weight_IO):
    return x_PI @ weight_IO, (x_PI, weight_IO)


def _product_backward(inputs, d_y_PO):
    x_PI, weight_IO = inputs
    x_IP = jax.lax.platform_dependent(
        x_PI, cpu=lambda x_PI: jax.lax.optimization_barrier(x_PI.T), default=lambda x_PI: x_PI.T
    )
    return d_y_PO @ weight_IO.T, x_IP @ d_y_PO


_product.defvjp(_product_forward, _product_backward)


def split(x, n_parts) -> list[Any]:
    """Equal parts along the last axis, whose gradients a GPU joins once.

    XLA for GPUs would join them anew for each product that reads the joined gradient: for the weights and for x.
    """
    return _split(x, n_parts)  # pyright: ignore[reportReturnType] - custom_vjp types its result as an object


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _split(x, n_parts):
    return jnp.split(x, n_parts, axis=-1)


def _split_forward(x, n_parts):
    return jnp.split(x, n_parts, axis=-1), None


def _split_backward(n_parts, _, d_parts):
    d_x = jnp.concatenate(d_parts, axis=-1)
    return (jax.lax.platform_dependent(d_x, cuda=jax.lax.optimization_barrier, default=lambda d_x: d_x),)


_split.defvjp(_split_forward, _split_backward)


def layer_norm(x, weight, bias=None, eps=LAYER_NORM_EPS):
    """Layer normalisation over the last axis (arXiv:1607.06450), statistics in float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    h = x.astype(wide)
    h = h - h.mean(axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt((h * h).mean(axis=-1, keepdims=True) + eps)
    h = h * weight.astype(wide)
    if bias is not None:
        h = h + bias.astype(wide)
    return h.astype(x.dtype)


def rms_norm(x, scale: Any = 1.0, eps=None):
    """x over its root mean square along the last axis (arXiv:1910.07467), times a number or a vector.

    In float32 or wider, the factor too: a 1.2 that JAX rounds to bfloat16 is 1.203. Without an epsilon it is that
    type's machine epsilon, as in torch's rms_norm.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    h = x.astype(wide)
    eps = jnp.finfo(wide).eps if eps is None else eps
    return (h * jax.lax.rsqrt((h * h).mean(axis=-1, keepdims=True) + eps) * scale).astype(x.dtype)


def rotary(x_BTNH, positions_BT, base):
    """Rotary positions (arXiv:2104.09864): channel i of the first half turns with i of the second, by minus the angle.

    Args:
      x_BTNH: queries or keys.
      positions_BT: of the queries or keys, integers; [1, T] where all rows have the same.
      base: channel pair i turns by position / base^(2 i / H).
    """
    half = x_BTNH.shape[-1] // 2
    wide = jnp.promote_types(x_BTNH.dtype, jnp.float32)
    frequencies_R = base ** (-jnp.arange(half, dtype=wide) / half)
    angles_BTR = positions_BT[..., None].astype(wide) * frequencies_R
    cos_BT1R, sin_BT1R = (f(angles_BTR)[:, :, None].astype(x_BTNH.dtype) for f in (jnp.cos, jnp.sin))
    a_BTNR, b_BTNR = x_BTNH[..., :half], x_BTNH[..., half:]
    return jnp.concatenate([a_BTNR * cos_BT1R + b_BTNR * sin_BT1R, b_BTNR * cos_BT1R - a_BTNR * sin_BT1R], axis=-1)


def add_scaled(*terms):
    """The sum of (number, array) pairs, in the arrays' dtype; computed in float32 or wider.

    The numbers may be parameters. A bfloat16 number would multiply every element with the same error of up to 2^-9, and
    its gradient, a sum over all elements that nearly cancels, would be a tenth wrong.
    """
    dtype = terms[0][1].dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    first, *rest = (scale * x.astype(wide) for scale, x in terms)
    return sum(rest, first).astype(dtype)


def softcap(logits, cap):
    """Logits within the bounds of a `Softcap`; without one (None, 0) they are returned as they are."""
    if not cap:
        return logits
    if cap.kind == "tanh":
        return cap.scale * jnp.tanh(logits / cap.scale)
    if cap.kind == "rsqrt":
        return cap.scale * logits * jax.lax.rsqrt(logits * logits + cap.scale**2)
    assert cap.kind == "sigmoid", cap
    return cap.scale * jax.nn.sigmoid((logits + cap.shift) / cap.width)


def head_logits(x_BTD, weight_VD, cap):
    """Scores over the vocabulary, [B, T, V], float32 or wider; capped where `cap` is a `Softcap`."""
    wide = jnp.promote_types(x_BTD.dtype, jnp.float32)
    if isinstance(weight_VD, Int8Weight):
        return softcap(int8_product(x_BTD.reshape(-1, x_BTD.shape[-1]), weight_VD).reshape(*x_BTD.shape[:2], -1), cap)
    weight_VD = weight_VD.astype(x_BTD.dtype)
    return softcap(jnp.einsum("BTD,VD->BTV", x_BTD, weight_VD, preferred_element_type=wide), cap)


def softcap_slope(capped, cap):
    """The derivative of `softcap`, from what it returned."""
    part = capped / cap.scale
    if cap.kind == "tanh":
        return 1 - jnp.square(part)
    if cap.kind == "rsqrt":
        return jnp.maximum(1 - jnp.square(part), 0) ** 1.5  # rounding may pass the bound
    return capped * (1 - part) / cap.width


def log_sum_exp(capped, cap):
    """log of the sum of exp over the last axis, of what `softcap` returned.

    No exp of a bounded logit overflows, so the pass over all of them that looks for the largest is saved. (With it, XLA
    for GPUs would also write the capped logits out in float32.)
    """
    if not cap or cap.scale > LARGEST_EXPONENT:
        return jax.nn.logsumexp(capped, axis=-1)
    return jnp.log(jnp.exp(capped).sum(axis=-1))


def gelu(x, kind="erf"):
    """Gaussian error linear unit (arXiv:1606.08415): exact by erf, or OpenAI's tanh approximation.

    Written with lax.erf: jax.nn.gelu(approximate=False) expands erfc, which costs 4 % of a CPU step.
    """
    if kind == "tanh":
        return jax.nn.gelu(x, approximate=True)
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


def dropout(x, rate, key):
    """Zeroes each element with probability `rate` and scales the rest up; the identity when key is None."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def rematerialise(function, policy):
    """Wraps a block so that its backward pass recomputes what `policy` does not keep.

    Args:
      policy: none keeps everything, dots the outputs of matmuls, block only the block's inputs.
    """
    if policy == "none":
        return function
    keep = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "block": None}[policy]
    return jax.checkpoint(function, policy=keep)


@functools.cache
def normal(std):
    """An initialiser (key, shape, dtype) -> array drawn from N(0, std)."""
    return lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype)


@functools.cache
def uniform(low, high):
    """An initialiser: uniform in [low, high)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, low, high)


@functools.cache
def scaled(scale, init):
    """An initialiser: a number times what another one draws."""
    return lambda key, shape, dtype: scale * init(key, shape, dtype)


def zeros(key, shape, dtype):
    """An initialiser: zeros."""
    return jnp.zeros(shape, dtype)


class Linear(nnx.Module):
    """Weight [in, out] as `init` draws it, bias 0."""

    def __init__(self, n_in, n_out, *, bias, init, param_dtype, rngs):
        self.weight = nnx.Param(rngs.draw(init, (n_in, n_out), param_dtype))
        self.bias = nnx.Param(jnp.zeros((n_out,), param_dtype)) if bias else None

    def __call__(self, x):
        return linear(x, self.weight[...], None if self.bias is None else self.bias[...])


class LayerNorm(nnx.Module):
    """Weight 1, bias 0 or none."""

    def __init__(self, n_embd, *, bias, param_dtype):
        self.weight = nnx.Param(jnp.ones((n_embd,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((n_embd,), param_dtype)) if bias else None

    def __call__(self, x):
        return layer_norm(x, self.weight[...], None if self.bias is None else self.bias[...])


class Embedding(nnx.Module):
    """Table [rows, n_embd] as `init` draws it."""

    def __init__(self, n_rows, n_embd, *, init, param_dtype, rngs):
        self.weight = nnx.Param(rngs.draw(init, (n_rows, n_embd), param_dtype))

    def __call__(self, ids, dtype=None):
        """Rows by id, in the table's dtype or in `dtype`. Ids were checked on the host: JAX would clamp a bad one."""
        return take_rows(self.weight[...], ids, dtype)
