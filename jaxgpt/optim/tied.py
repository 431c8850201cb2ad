"""Embedding and head tied for the first steps of a run, then trained apart (modded-nanogpt, record 62).

Both tensors are there all along, of one shape and with one state each, so a checkpoint has the same form before and
after. While they are tied, the head is updated by the gradients of both, and the embedding copies the head's update
and the head's state. So at the split there is nothing to do: the embedding continues with the head's moments and count
of updates, which is what the original copies into it then. Both must start from the same numbers.
"""

from typing import Any

import jax
import optax

from jaxgpt.config.param_groups import TIED


def tied(transform: optax.GradientTransformationExtraArgs, until: int) -> optax.GradientTransformationExtraArgs:
    """The same optimizer of the two parameters `TIED`, tied in steps 0 .. until - 1, by the count in its state.

    Args:
      transform: its state is a NamedTuple with a `count`; step until - 1 must be one in which it updates.
    """
    copy, head = TIED

    def update(updates, state, params=None, **extra):
        def as_one(updates, state):
            both = {**updates, head: updates[head] + updates[copy]}
            found: Any = transform.update(both, state, params, **extra)
            updates, state = found
            fields = {name: tie(leaves) for name, leaves in state._asdict().items() if isinstance(leaves, dict)}
            return tie(updates), state._replace(**fields)

        def apart(updates, state):
            return transform.update(updates, state, params, **extra)

        # Not jnp.where: XLA would compute the head's numbers once more for the copy, and round them otherwise.
        return jax.lax.cond(state.count < until, as_one, apart, updates, state)

    def tie(leaves):
        return {**leaves, copy: leaves[head]}

    return optax.GradientTransformationExtraArgs(transform.init, update)  # pyright: ignore[reportArgumentType]
