"""The weights that a run starts from."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxgpt.config import Config
from jaxgpt.formats.pretrained import adapt, gelu_note, load_pretrained
from jaxgpt.run.console import console


def initial_params(
    config: Config, shapes: Mapping[str, Any], draw: Callable[[int], dict[str, jax.Array]]
) -> dict[str, jax.Array]:
    """Fresh weights, or those of `train.init_from`, on the mesh. Prints a line if those were trained with another GELU.

    Args:
      shapes: the parameters with their shardings.
      draw: seed -> fresh parameters.
    """
    if not config.train.init_from:
        return draw(config.run.seed)
    loaded, weights = load_pretrained(config.train.init_from)
    params = adapt(loaded, weights, config.model)
    if note := gelu_note(config.train.init_from, loaded, config.model):
        console.say(note)
    return {path: jax.device_put(params[path].astype(leaf.dtype), leaf.sharding) for path, leaf in shapes.items()}
