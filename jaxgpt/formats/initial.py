"""The weights that a run starts from."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxgpt.config import Config
from jaxgpt.formats.weights import adapt, load_pretrained


def initial_params(
    config: Config, shapes: Mapping[str, Any], draw: Callable[[int], dict[str, jax.Array]]
) -> dict[str, jax.Array]:
    """Fresh weights, or those of `train.init_from`, on the mesh.

    Args:
      shapes: the parameters with their shardings.
      draw: seed -> fresh parameters.
    """
    if not config.train.init_from:
        return draw(config.run.seed)
    params = adapt(*load_pretrained(config.train.init_from), config.model)
    return {path: jax.device_put(params[path].astype(leaf.dtype), leaf.sharding) for path, leaf in shapes.items()}
