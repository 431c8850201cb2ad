"""The norm of all gradients together, and clipping by torch's formula.

`optax.clip_by_global_norm` divides by the norm alone; torch.nn.utils.clip_grad_norm_ by the norm + 1e-6.
"""

import jax
import jax.numpy as jnp

CLIP_EPS = 1e-6
"""torch.nn.utils.clip_grad_norm_ adds this to the norm; optax does not."""


def global_norm(grads: dict[str, jax.Array]) -> jax.Array:
    """Euclidean norm over all gradients together."""
    return jnp.sqrt(sum((g * g).sum() for g in grads.values()))


def clip_by_global_norm(grads: dict[str, jax.Array], norm: jax.Array, max_norm: float) -> dict[str, jax.Array]:
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), torch's formula; max_norm 0 leaves them."""
    if not max_norm:
        return grads
    scale = jnp.minimum(1.0, max_norm / (norm + CLIP_EPS))
    return {path: g * scale for path, g in grads.items()}
