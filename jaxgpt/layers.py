"""Linear, LayerNorm, Embedding, GELU, dropout: Flax NNX modules around functions of plain arrays.

NNX defines parameters and their names, nothing more. Weights are stored [in, out] and initialised here;
they keep their storage dtype (float32) and are cast to that of the activations where they are used.
`layer_norm` and `gelu` spell out torch's defaults (epsilon 1e-5, two-pass variance, erf), which are not Flax's.
"""

import jax
import jax.numpy as jnp
from flax import nnx

LAYER_NORM_EPS = 1e-5
"""torch.nn.LayerNorm's default, which GPT-2 and nanoGPT use."""


def linear(x, weight_IO, bias_O=None):
    """x @ weight + bias over the last axis, in x's dtype.

    Leading axes are flattened first: a batched product makes XLA on CPU transpose copies for the weight gradient.
    """
    y = x.reshape(-1, x.shape[-1]) @ weight_IO.astype(x.dtype)
    if bias_O is not None:
        y = y + bias_O.astype(x.dtype)
    return y.reshape(*x.shape[:-1], weight_IO.shape[-1])


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


class Linear(nnx.Module):
    """Weight [in, out] drawn from N(0, std), bias 0."""

    def __init__(self, n_in, n_out, *, bias, std, dtype, rngs):
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (n_in, n_out), dtype))
        self.bias = nnx.Param(jnp.zeros((n_out,), dtype)) if bias else None

    def __call__(self, x):
        return linear(x, self.weight[...], None if self.bias is None else self.bias[...])


class LayerNorm(nnx.Module):
    """Weight 1, bias 0 or none."""

    def __init__(self, n_embd, *, bias, dtype):
        self.weight = nnx.Param(jnp.ones((n_embd,), dtype))
        self.bias = nnx.Param(jnp.zeros((n_embd,), dtype)) if bias else None

    def __call__(self, x):
        return layer_norm(x, self.weight[...], None if self.bias is None else self.bias[...])


class Embedding(nnx.Module):
    """Table [rows, n_embd] drawn from N(0, std)."""

    def __init__(self, n_rows, n_embd, *, std, dtype, rngs):
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (n_rows, n_embd), dtype))

    def __call__(self, ids):
        """Rows by id. Ids were range-checked on the host: JAX would clamp a bad one without a word."""
        return self.weight[...][ids]
