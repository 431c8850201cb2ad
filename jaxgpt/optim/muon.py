"""Muon for any pytree of matrices: `jaxgpt.optim.muon(0.02)` in `optax.chain`, `optax.partition` or `nnx.Optimizer`.

Keller Jordan's (https://kellerjordan.github.io/posts/muon, arXiv:2502.16982): momentum as a running mean, Nesterov by a
second lerp, Newton-Schulz, step times sqrt(max(1, out / in)). optax.contrib.muon corrects a bias inside Nesterov, which
the originals do not, and differs by 15 % at step 2. What nanochat of 2026 adds is off unless asked for: Polar Express,
MuonEq, Muon+ (all in `orthogonalize`), NorMuon (`normuon`), cautious decay (arXiv:2510.12402).

Matrices are [in, out], as flax.nnx.Linear has them.

modded-nanogpt's NorMuon of record 62 is `orthogonalizer="polar_express", ns_margin=1.02, norm_beta2=0.95,
cautious=True, decay_lr=0.023`; record 46 has `norm_axis_if_square="outputs"` too. In values they are the same, in
rounding they are not. Record 62 keeps a matrix as bfloat16 beside 16 bits of mantissa. Together these are the bits of
one float32 number, on which the update works as it does here; but the forward pass reads the bfloat16 part, which is
that number truncated toward zero, where here a cast rounds it to the nearest. It also adds up gradients in bfloat16,
orthogonalizes in bfloat16, and rounds the factor of NorMuon to bfloat16; here the first and the last are float32 and
`ns_dtype` decides the second. Record 46 has no such mantissa: weights, momentum and squares are bfloat16, and what an
update changes by less than half a unit in the last place is lost.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgpt.optim.hyper import Hyper, rate_at
from jaxgpt.optim.normuon import mean_square, normuon
from jaxgpt.optim.orthogonalize import orthogonalize
from jaxgpt.optim.trees import refuse_all_but_matrices, unflatten_like


class MuonState(NamedTuple):
    """Steps taken; running mean of the gradients; running mean of squares, None without NorMuon."""

    count: jax.Array
    momentum: Any
    square: Any


def muon(
    learning_rate: optax.ScalarOrSchedule = 0.02,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    orthogonalizer: str = "newton_schulz",
    ns_steps: int = 5,
    ns_dtype: str = "float32",
    ns_margin: float = 1.01,
    equilibrate_rows: bool = False,
    renormalize: bool = False,
    norm_beta2: float = 0.0,
    norm_axis_if_square: str = "inputs",
    decay_lr: optax.ScalarOrSchedule | None = None,
    cautious: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Muon. The settings are those of `jaxgpt.config.MuonConfig`, which explains them.

    State and updates keep the dtypes of the parameters; sums are float32 or wider. Matrices of one shape are
    orthogonalized in one stack, which a mesh axis `fsdp` splits, or `data` where that is 1.

    Args:
      learning_rate: a number, or an optax schedule of the steps taken so far.
      weight_decay: decoupled, times the learning rate. If it is not 0, `update` needs the parameters.
      decay_lr: a second rate, which multiplies the decay besides; it follows hyper's lr_scale. None: 1, always.

    Raises:
      ValueError: from `init` and `update`: a leaf is not a matrix; names its path.
    """

    def init(params):
        refuse_all_but_matrices(params)
        return MuonState(
            jnp.zeros((), jnp.int32),
            momentum=jax.tree.map(jnp.zeros_like, params),
            square=jax.tree.map(lambda p: jnp.zeros_like(mean_square(p, norm_axis_if_square)), params)
            if norm_beta2
            else None,
        )

    def update(updates, state, params=None, *, hyper: Hyper | None = None, **_):
        if params is None and weight_decay:
            raise ValueError(f"muon: weight_decay={weight_decay} needs the parameters; pass them to update")
        refuse_all_but_matrices(updates)
        grads = jax.tree.leaves(updates)
        weights = grads if params is None else jax.tree.leaves(params)  # without decay only their shapes are read
        dtype = jnp.result_type(jnp.float32, *grads)
        given: Hyper = hyper or {"lr_scale": 1.0, "momentum": momentum, "decay_scale": 1.0}
        beta, decay_scale = (jnp.asarray(given[name], dtype) for name in ("momentum", "decay_scale"))
        lr = rate_at(learning_rate, state.count, given, dtype)
        decay = weight_decay * decay_scale
        if decay_lr is not None:
            decay = decay * rate_at(decay_lr, state.count, given, dtype)

        pairs = [
            muon_momentum(g, m, beta, nesterov=nesterov)
            for g, m in zip(grads, jax.tree.leaves(state.momentum), strict=True)
        ]
        directions = orthogonalize(
            [direction for direction, _ in pairs], orthogonalizer=orthogonalizer, ns_steps=ns_steps,
            ns_dtype=ns_dtype, ns_margin=ns_margin, equilibrate_rows=equilibrate_rows, renormalize=renormalize,
        )  # fmt: skip
        squares = jax.tree.leaves(state.square)
        if norm_beta2:
            normed = [normuon(d, s, norm_beta2, norm_axis_if_square) for d, s in zip(directions, squares, strict=True)]
            directions, squares = [d for d, _ in normed], [s for _, s in normed]
        steps = [
            muon_step(w, d, lr=lr, weight_decay=decay, cautious=cautious)
            for w, d in zip(weights, directions, strict=True)
        ]
        return unflatten_like(updates, steps), MuonState(
            state.count + 1,
            unflatten_like(state.momentum, [m for _, m in pairs]),
            unflatten_like(state.square, squares),
        )

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def muon_momentum(grad, momentum, beta, *, nesterov):
    """Running mean of the gradient, and the direction to orthogonalize. Returns direction, momentum."""
    momentum = momentum + (1 - beta) * (grad - momentum)
    return (grad + beta * (momentum - grad) if nesterov else momentum), momentum


def muon_step(param_IO, direction_IO, *, lr, weight_decay, cautious):
    """The update from an orthogonalized direction.

    Args:
      cautious: decay only what the direction shrinks too, by the scaled learning rate (nanochat 2026).
    """
    n_in, n_out = param_IO.shape
    scale = max(1.0, n_out / n_in) ** 0.5
    if cautious:
        is_shrinking_IO = (direction_IO * param_IO >= 0).astype(param_IO.dtype)
        return -lr * scale * (direction_IO + weight_decay * param_IO * is_shrinking_IO)
    return -lr * (scale * direction_IO + weight_decay * param_IO)
