"""AdamW as torch.optim.AdamW has it: decoupled decay (arXiv:1711.05101), epsilon outside the root.

optax's scale_by_adam and add_decayed_weights are the same formula and as fast, but round the square of the gradient
elsewhere: a run that was started with this one would not continue bit for bit (docs/log.md has the figures).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgpt.optim.hyper import Hyper, rate_at
from jaxgpt.optim.trees import unflatten_like


class AdamWState(NamedTuple):
    """Steps taken; running means of the gradient and of its square."""

    count: jax.Array
    mu: Any
    nu: Any


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """AdamW for any pytree, whose dtypes state and updates keep.

    Args:
      learning_rate: a number, or an optax schedule of the steps taken so far.
      weight_decay: decoupled, times the learning rate. If it is not 0, `update` needs the parameters.
    """

    def init(params):
        return AdamWState(
            jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)
        )

    def update(updates, state, params=None, *, hyper: Hyper | None = None, **_):
        if params is None and weight_decay:
            raise ValueError(f"adamw: weight_decay={weight_decay} needs the parameters; pass them to update")
        grads = jax.tree.leaves(updates)
        weights = grads if params is None else jax.tree.leaves(params)  # without decay not read
        lr = rate_at(learning_rate, state.count, hyper, jnp.result_type(jnp.float32, *grads))
        count = state.count + 1
        found = [
            adamw_step(p, g, m, n, count, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
            for p, g, m, n in zip(weights, grads, jax.tree.leaves(state.mu), jax.tree.leaves(state.nu), strict=True)
        ]
        steps, mu, nu = zip(*found, strict=True)
        return unflatten_like(updates, steps), AdamWState(
            count, unflatten_like(state.mu, mu), unflatten_like(state.nu, nu)
        )

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def adamw_step(param, grad, mu, nu, count, *, lr, beta1, beta2, eps, weight_decay):
    """One AdamW step for one parameter; `count` is 1 at the first. Returns update, mu, nu."""
    count = count.astype(lr.dtype)
    mu = beta1 * mu + (1 - beta1) * grad
    nu = beta2 * nu + (1 - beta2) * grad * grad
    mu_hat = mu / (1 - beta1**count)
    nu_hat = nu / (1 - beta2**count)
    return -lr * (mu_hat / (jnp.sqrt(nu_hat) + eps) + weight_decay * param), mu, nu
