"""Roughly the nearest orthogonal matrices, by Newton-Schulz or Polar Express, for all matrices of one shape at once.

Newton-Schulz is Keller Jordan's (https://kellerjordan.github.io/posts/muon). nanochat of 2026 uses Polar Express
(arXiv:2505.16932), gives the rows one norm before it (MuonEq) and the matrix one norm after it (Muon+). Matrices are
[in, out], so a row of the originals, which belongs to one output, is a column here.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxgpt.parallel.sharding import gather_stack, shard_stack

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic iteration whose slope at zero is as steep as it can be; it ends in a band around 1, not at 1."""
NS_EXACT = (2.0, -1.5, 0.5)
"""The quintic with a fixed point at 1, which is why it needs more steps: modded-nanogpt's track 3 takes 12."""
NS_EPS = 1e-7
"""Newton-Schulz divides by norm + 1e-7."""
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Five quintics, each optimal for the band that the one before it leaves. nanochat's, with all their digits."""
POLAR_EPS = 1e-6
"""Polar Express divides by margin x norm + 1e-6: the largest singular value stays below 1 through rounding."""
SCALE_EPS = 1e-6
"""Smallest norm of a row, and of a matrix, that is divided by."""


def orthogonalize(
    directions: Sequence[jax.Array], *, orthogonalizer: str, ns_steps: int, ns_dtype: str, ns_margin: float,
    equilibrate_rows: bool, renormalize: bool,
) -> list[jax.Array]:  # fmt: skip
    """Orthogonalizes each matrix; those of one shape and dtype in one stack.

    On several devices the stack is split by matrices. Over fsdp that costs three all-to-alls, instead of the two
    all-reduces per iteration that split matrices would; over data a gather, instead of the same work on each device.
    """
    iterate = {
        "newton_schulz": functools.partial(newton_schulz, coefficients=NS_COEFFICIENTS),
        "newton_schulz_exact": functools.partial(newton_schulz, coefficients=NS_EXACT),
        "polar_express": functools.partial(polar_express, margin=ns_margin),
    }[orthogonalizer]
    members = defaultdict(list)
    for i, direction in enumerate(directions):
        members[direction.shape, direction.dtype].append(i)
    result = list(directions)
    for (_, dtype), indices in members.items():
        stack_LIO = shard_stack(jnp.stack([directions[i] for i in indices]))
        if equilibrate_rows:
            stack_LIO = scale_rows(stack_LIO)
        stack_LIO = gather_stack(iterate(stack_LIO, steps=ns_steps, dtype=jnp.dtype(ns_dtype))).astype(dtype)
        if renormalize:
            stack_LIO = scale_matrices(stack_LIO)
        for place, i in enumerate(indices):
            result[i] = stack_LIO[place]
    return result


def frobenius_norm(x_LIO):
    """The norm of each matrix, [L, 1, 1]."""
    return jnp.sqrt((x_LIO * x_LIO).sum(axis=(1, 2), keepdims=True))


def scale_rows(x_LIO):
    """Rescales the weights of all outputs to one norm, and keeps the norm of the matrix (MuonEq)."""
    norm_L11 = frobenius_norm(x_LIO)
    row_norm_L1O = jnp.sqrt((x_LIO * x_LIO).sum(axis=1, keepdims=True))
    return x_LIO * (norm_L11 * x_LIO.shape[2] ** -0.5 / jnp.maximum(row_norm_L1O, SCALE_EPS))


def scale_matrices(x_LIO):
    """Rescales each matrix to the Frobenius norm of an orthogonal one of its shape (Muon+)."""
    target = min(x_LIO.shape[1:]) ** 0.5
    return x_LIO * (target / jnp.maximum(frobenius_norm(x_LIO), SCALE_EPS))


def newton_schulz(x_LIO, *, steps, dtype, coefficients=NS_COEFFICIENTS):
    """Pulls the singular values of each matrix towards 1 by `steps` of a quintic iteration.

    Each is first divided by its Frobenius norm, and turned so that the small side is multiplied out.
    """
    is_tall = x_LIO.shape[1] > x_LIO.shape[2]
    x = x_LIO.swapaxes(1, 2) if is_tall else x_LIO
    x = x.astype(dtype)
    x = x / (frobenius_norm(x) + NS_EPS)
    for _ in range(steps):
        x = quintic(x, coefficients)
    return x.swapaxes(1, 2) if is_tall else x


def polar_express(x_LIO, *, steps, dtype, margin=1.01):
    """As `newton_schulz`, but each of up to five iterations has its own coefficients (arXiv:2505.16932)."""
    is_tall = x_LIO.shape[1] > x_LIO.shape[2]
    x = x_LIO.swapaxes(1, 2) if is_tall else x_LIO
    x = x.astype(dtype)
    x = x / (margin * frobenius_norm(x) + POLAR_EPS)
    for coefficients in POLAR_EXPRESS[:steps]:
        x = quintic(x, coefficients)
    return x.swapaxes(1, 2) if is_tall else x


def quintic(x_LIO, coefficients):
    """a x + b x^3 + c x^5 on the singular values of wide matrices.

    Products in x's dtype, sums in float32 or wider: JAX rounds a Python number to the dtype that it meets, and
    coefficients of bfloat16 would leave the result up to 3 % too short.
    """
    wide = jnp.promote_types(x_LIO.dtype, jnp.float32)
    a, b, c = (jnp.asarray(coefficient, wide) for coefficient in coefficients)
    gram = x_LIO @ x_LIO.swapaxes(1, 2)
    polynomial = b * gram + c * (gram @ gram)
    return (a * x_LIO + polynomial.astype(x_LIO.dtype) @ x_LIO).astype(x_LIO.dtype)
