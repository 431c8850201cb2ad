"""Model families, and the step from an NNX module to what the rest computes with: path -> array.

NNX defines modules and names. Everything after `init_params` sees a flat dict such as
{"h.0.attn.c_attn.weight": array}, which sharding, optimizers, checkpoints and weight files are keyed by.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.config.families import ModelConfig
from jaxgpt.models.draws import Draws
from jaxgpt.models.gpt2 import GPT2
from jaxgpt.models.modded import Modded
from jaxgpt.models.nanochat import Nanochat

FAMILIES: dict[str, Any] = {"gpt2": GPT2, "nanochat": Nanochat, "modded": Modded}


def build(
    config: ModelConfig, *, dtype=jnp.float32, param_dtype=jnp.float32, implementation="xla", remat="none", draws: Draws
) -> nnx.Module:
    """A model with fresh weights."""
    return FAMILIES[config.family](
        config, dtype=dtype, param_dtype=param_dtype, implementation=implementation, remat=remat, rngs=draws
    )


def init_params(config: ModelConfig, *, param_dtype=jnp.float32, seed=0) -> dict[str, jax.Array]:
    """Fresh weights by path. Each is the same on any number of devices.

    Args:
      seed: an integer, traced or not.
    """
    draws = Draws(seed)
    jax.eval_shape(lambda: read_params(build(config, param_dtype=param_dtype, draws=draws)))
    return read_params(build(config, param_dtype=param_dtype, draws=draws.in_loops()))


def read_params(module: nnx.Module) -> dict[str, jax.Array]:
    """The weights that a module holds now, by path; no copies."""
    return {
        ".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }


def param_shapes(config: ModelConfig, param_dtype=jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """What `init_params` would return, without computing anything."""
    return jax.eval_shape(lambda: read_params(build(config, param_dtype=param_dtype, draws=Draws(0))))


class Model:
    """A family's module as pure functions of a flat parameter dict. Models that are built alike are equal.

    Args:
      dtype: of the computation, whatever the parameters are stored in.
      implementation: of attention; a model that decodes takes xla.
      remat: none, dots or block; what the backward pass finds instead of recomputing.
    """

    def __init__(self, config: ModelConfig, dtype=jnp.float32, implementation="xla", remat="none"):
        self.config, self.dtype, self.implementation, self.remat = config, jnp.dtype(dtype), implementation, remat
        self._module = nnx.eval_shape(
            lambda: build(config, dtype=self.dtype, implementation=implementation, remat=remat, draws=Draws(0))
        )
        self._value = (config, self.dtype, implementation, remat)
        self._hash = hash(self._value)  # once: jax.jit asks for it at every call
        self._graphdef, state = nnx.split(self._module, nnx.Param)
        self._flat = nnx.to_flat_state(state)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Model) and self._value == other._value)

    def __hash__(self) -> int:
        return self._hash

    def bind(self, params: dict[str, jax.Array]) -> GPT2 | Nanochat | Modded:
        """The module with these parameters in it: call it, or its `decode`, `logits` and `head_weight`."""
        leaves = [(path, leaf.replace(params[".".join(map(str, path))])) for path, leaf in self._flat]
        return cast(GPT2 | Nanochat | Modded, nnx.merge(self._graphdef, nnx.from_flat_state(leaves)))
