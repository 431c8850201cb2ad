"""The random weights of a model.

Each weight has a key of its own, by its number in the order of construction. Those that are drawn alike are drawn in a
loop, because XLA compiles each draw anew.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.models.layers import zeros

Init = Callable[[Any, tuple[int, ...], Any], jax.Array]
"""(key, shape, dtype) -> array. Weights with the same one are drawn alike."""


class Draws:
    """Where modules take their weights from while they are constructed.

    Args:
      seed: an integer, traced or not.
      made: weights by number that need not be drawn.
    """

    def __init__(self, seed, made: dict[int, jax.Array] | None = None):
        self._seed, self._made = seed, made or {}
        self._asked: list[tuple[Init, tuple[int, ...], Any]] = []

    def draw(self, init: Init, shape: tuple[int, ...], dtype) -> jax.Array:
        """The next weight."""
        number = len(self._asked)
        self._asked.append((init, shape, dtype))
        if number in self._made:
            return self._made[number]
        return init(jax.random.fold_in(jax.random.key(self._seed), number), shape, dtype)

    def in_loops(self) -> "Draws":
        """The same weights, for a second construction of the module that was constructed with these."""
        alike = defaultdict(list)
        for number, (init, *form) in enumerate(self._asked):
            if init is not zeros:
                alike[init, *form].append(number)
        made = {}
        for (init, shape, dtype), numbers in alike.items():
            if len(numbers) > 1:
                keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self._seed), jnp.array(numbers))
                stack = jax.lax.map(lambda key, init=init, form=(shape, dtype): init(key, *form), keys)
                made |= {number: stack[i] for i, number in enumerate(numbers)}
        return Draws(self._seed, made)
