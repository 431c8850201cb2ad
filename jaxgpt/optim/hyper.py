"""Schedules as an extra argument of `update`: arrays from the host, so that a new value compiles nothing."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax


class Hyper(TypedDict):
    """What jaxgpt.config.schedule gives for one step."""

    lr_scale: Any
    momentum: Any
    decay_scale: Any


def rate_at(learning_rate: optax.ScalarOrSchedule, count: jax.Array, hyper: Hyper | None, dtype: Any) -> jax.Array:
    """The learning rate of a step, a scalar.

    Args:
      learning_rate: a number, or an optax schedule of the steps taken so far.
      count: the steps taken so far.
      hyper: its lr_scale multiplies the rate; None leaves it.
    """
    rate = jnp.asarray(learning_rate(count) if callable(learning_rate) else learning_rate, dtype)
    return rate * jnp.asarray(hyper["lr_scale"], dtype) if hyper else rate
