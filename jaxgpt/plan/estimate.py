"""A footprint from first principles, for where no compiler is installed.

State is exact: it is that of the training step, traced. Temporaries are counted
from what the backward pass needs of the forward, plus the loss chunk, plus gradients; XLA fuses, reuses and pads, so
this part is an estimate; docs/memory.md compares it with the compiler's figure for each shipped config.
"""

import dataclasses
import functools

import jax
from jax.sharding import AbstractMesh, AxisType

from jaxgpt.config import Config, ModdedConfig
from jaxgpt.config.activations import activations_bytes
from jaxgpt.models import param_shapes
from jaxgpt.models.attention import choose_attention
from jaxgpt.plan.footprint import Footprint
from jaxgpt.training.step import device_bytes, init_state, make_optimizer, param_dtype, place_state

ESTIMATE_SHARE = {"cpu": 0.85, "gpu": 0.85, "tpu": 0.75}
"""Part of a device's memory that an estimate may fill: nearly all miss by less than 15 %, on TPUs by a quarter."""


def estimate_run(config: Config, platform: str, device_kind: str = "") -> Footprint:
    """What a compiler would say of the stage with the largest batch, roughly.

    Args:
      config: derived, with its mesh's axes filled in.
      platform, device_kind: as `choose_attention` wants them.

    Raises:
      InputError: a parameter cannot be split as the mesh wants, or the attention asked for cannot run.
    """
    config = config.largest_stage()
    model, train, mesh = config.model, config.train, config.mesh
    attention = choose_attention(config, platform, device_kind)
    params_bytes, opt_state_bytes = _state_bytes(
        dataclasses.replace(config, train=dataclasses.replace(train, micro_batch_size=1, remat="none"))
    )
    n_micro = train.batch_tokens // (train.micro_batch_size * mesh.data * mesh.fsdp * model.seq_len)
    return Footprint(
        n_micro=n_micro,
        seq_len=model.seq_len,
        attention=attention,
        params_bytes=params_bytes,
        opt_state_bytes=opt_state_bytes,
        inputs_bytes=4 * n_micro * train.micro_batch_size * (model.seq_len + 1),
        gradients_bytes=params_bytes,
        activations_bytes=int(activations_bytes(config, attention[0], params_bytes)),
        code_bytes=0,
        collectives=(),
        gathered_whole={},
        compile_s=0.0,
    )


@functools.lru_cache(maxsize=64)
def _state_bytes(config: Config) -> tuple[int, int]:
    """Parameters and optimizer state of one device, in bytes. Rows and remat do not change them."""
    mesh = config.mesh
    abstract = AbstractMesh((mesh.data, mesh.fsdp, mesh.tensor), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    with jax.enable_x64(config.train.dtype == "float64"):
        shapes = param_shapes(config.model, param_dtype(config))
        init = functools.partial(init_state, config, make_optimizer(config, shapes))
        state = place_state(config, init, shapes, abstract)  # pyright: ignore[reportArgumentType]
    params_bytes, opt_state_bytes = (
        sum(map(device_bytes, jax.tree.leaves(tree))) for tree in (state.params, state.opt_state)
    )
    return params_bytes, opt_state_bytes


def known_gap(config: Config, platform: str) -> str:
    """Where docs/memory.md shows this estimate to miss the compiler's figure by more than 15 %, in words; or empty."""
    if config.mesh.fsdp > 1:
        return "with mesh.fsdp above 1 it was up to three quarters too high"
    if platform == "tpu":
        return "on TPUs it was up to a quarter too low"
    if isinstance(config.model, ModdedConfig) and config.model.is_packed and config.train.micro_batch_size > 1:
        return "with several rows of packed documents at a time it was a quarter too high"
    return ""
