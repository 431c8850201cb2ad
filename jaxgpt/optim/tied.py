"""Embedding and head tied for the first steps of a run, then trained apart (modded-nanogpt, record 62).

Both tensors are there all along, of one shape and with one state each, so a checkpoint has the same form before and
after. While they are tied, the head is updated by the gradients of both, and the embedding copies the head's update
and the head's state. So at the split there is nothing to do: the embedding goes on with the head's moments and count
of updates, which is what the original copies into it then. Both must start from the same numbers.
"""

import jax.numpy as jnp
import optax

from jaxgpt.config.param_groups import TIED


def tied(transform: optax.GradientTransformationExtraArgs, until: int) -> optax.GradientTransformationExtraArgs:
    """The same optimizer of a flat dict, with `TIED` tied in steps 0 .. until - 1, by the count in its state.

    Args:
      transform: its state is by name (`state_names`). Both parameters must have the same settings in it, and
        step until - 1 must be one in which it updates them.
    """
    copy, head = TIED

    def update(updates, state, params=None, **extra):
        is_tied = state["count"] < until
        both = jnp.where(is_tied, updates[head] + updates[copy], updates[head])
        updates, state = transform.update({**updates, head: both}, state, params, **extra)
        state = {
            name: tie(leaf, is_tied) if isinstance(leaf, dict) and copy in leaf else leaf
            for name, leaf in state.items()
        }
        return tie(updates, is_tied), state

    def tie(leaves, is_tied):
        return {**leaves, copy: jnp.where(is_tied, leaves[head], leaves[copy])}

    return optax.GradientTransformationExtraArgs(transform.init, update)  # pyright: ignore[reportArgumentType]
