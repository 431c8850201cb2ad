"""Adam as modded-nanogpt has it: cautious decay by the square of the learning rate, updates every few steps only.

    t <- t + 1; m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2
    u = lr sqrt(1 - b2^t) / (1 - b1^t) x m / (sqrt(v) + eps)
    p <- p - u - (lr^2 x weight_decay) p where u p > 0

Epsilon stands next to the root before its correction, unlike in `adamw`. A row of an embedding whose gradient is zero
still moves by its momentum; one that never had a gradient stays at exactly zero. Record 62 (commit 93f0e6b9) keeps
the embeddings in bfloat16 and rounds them after each update, so that small ones vanish; here they are float32.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgpt.optim.hyper import Hyper, rate_at
from jaxgpt.optim.trees import unflatten_like


class AdamState(NamedTuple):
    """Steps taken; running means of the gradient and of its square; gradients since the last update, None if in each.

    Only steps that update count in the correction of the means: count // every.
    """

    count: jax.Array
    mu: Any
    nu: Any
    grad_sum: Any


def adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """modded-nanogpt's Adam for any pytree, whose dtypes state and updates keep.

    Args:
      learning_rate: a number, or an optax schedule of the steps taken so far.
      weight_decay: times the square of the learning rate, only where the update shrinks the weight. If it is not 0,
        `update` needs the parameters.
      every: steps n - 1, 2n - 1, ... update, with the sum of the gradients since; the others give updates of -0.0,
        which leave every parameter as it is, bit for bit.
    """

    def init(params):
        def zeros():
            return jax.tree.map(jnp.zeros_like, params)

        return AdamState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros() if every > 1 else None)

    def update(updates, state, params=None, *, hyper: Hyper | None = None, **_):
        if params is None and weight_decay:
            raise ValueError(f"adam: weight_decay={weight_decay} needs the parameters; pass them to update")
        sums = updates if every == 1 else jax.tree.map(jnp.add, state.grad_sum, updates)
        grads, mus, nus = (jax.tree.leaves(tree) for tree in (sums, state.mu, state.nu))
        weights = grads if params is None else jax.tree.leaves(params)  # without decay not read
        lr = rate_at(learning_rate, state.count, hyper, jnp.result_type(jnp.float32, *grads))
        count = state.count + 1
        is_due = count % every == 0
        n_updates = jnp.maximum(count // every, 1)
        found = []
        for param, grad, mu, nu in zip(weights, grads, mus, nus, strict=True):
            new = adam_step(
                param, grad, mu, nu, n_updates, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay
            )
            found.append([jnp.where(is_due, a, b) for a, b in zip(new, (-0.0, mu, nu), strict=True)])
        steps, mus, nus = zip(*found, strict=True)
        kept = None if every == 1 else jax.tree.map(lambda total: jnp.where(is_due, 0, total), sums)
        return unflatten_like(updates, steps), AdamState(
            count, unflatten_like(state.mu, mus), unflatten_like(state.nu, nus), kept
        )

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def adam_step(param, grad, mu, nu, count, *, lr, beta1, beta2, eps, weight_decay):
    """One update of one parameter; `count` is 1 at the first. Returns update, mu, nu."""
    count = count.astype(lr.dtype)
    mu = beta1 * mu + (1 - beta1) * grad
    nu = beta2 * nu + (1 - beta2) * grad * grad
    step = mu / (jnp.sqrt(nu) + eps) * (lr * jnp.sqrt(weight_of(beta2, count)) / weight_of(beta1, count))
    is_shrinking = (step * param > 0).astype(step.dtype)
    return -(step + param * is_shrinking * (lr * lr * weight_decay)), mu, nu


def weight_of(beta, count):
    """1 - beta^count, the weight of all gradients together in a running mean; float32 keeps its digits this way."""
    return -jnp.expm1(count * math.log(beta)) if beta else jnp.ones_like(count)
