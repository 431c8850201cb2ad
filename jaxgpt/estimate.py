"""A footprint from first principles, for where no compiler is installed.

State is exact: the shapes of the parameters, the optimizer's groups, and the sharding rules. Temporaries are counted
from what the backward pass needs of the forward, plus the loss chunk, plus gradients; XLA fuses, reuses and pads, so
this part is a guess that docs/memory.md holds against the compiler's figure for each shipped config.
"""

import math

from jax.sharding import AbstractMesh, AxisType

from jaxgpt.attention import choose_attention
from jaxgpt.config import Config
from jaxgpt.footprint import Footprint
from jaxgpt.models import param_shapes
from jaxgpt.param_groups import param_groups
from jaxgpt.roofline import COMPUTE_BYTES
from jaxgpt.sharding import shard_params


def estimate_run(config: Config, vocab_size: int, platform: str) -> Footprint:
    """What a compiler would say of the stage with the largest batch, roughly.

    Args:
      config: derived, with its mesh's axes filled in.
      platform: gpu or tpu; chooses the attention.

    Raises:
      InputError: a parameter cannot be split as the mesh wants, or the attention asked for cannot run.
    """
    model, train, mesh = config.model, config.train, config.mesh
    attention = choose_attention(config, platform)
    wide = 8 if train.dtype == "float64" else 4
    shapes = {path: leaf.shape for path, leaf in param_shapes(model, vocab_size).items()}
    abstract = AbstractMesh((mesh.data, mesh.fsdp, mesh.tensor), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    shardings = shard_params(shapes, model.family, abstract)  # pyright: ignore[reportArgumentType]
    sizes = {path: math.prod(shardings[path].shard_shape(shape)) for path, shape in shapes.items()}
    groups = param_groups(config.optim, shapes)
    n_slots = {path: 2 if group.algorithm == "adamw" else 1 for path, group in groups.items()}
    params_bytes = wide * sum(sizes.values())
    opt_state_bytes = wide * sum(n_slots[path] * size for path, size in sizes.items())
    n_micro = max(config.stage_batch_tokens()) // (train.micro_batch_size * mesh.data * mesh.fsdp * model.seq_len)
    return Footprint(
        n_micro=n_micro,
        attention=attention,
        params_bytes=params_bytes,
        opt_state_bytes=opt_state_bytes,
        inputs_bytes=4 * n_micro * train.micro_batch_size * (model.seq_len + 1),
        gradients_bytes=params_bytes,
        activations_bytes=int(activations_bytes(config, vocab_size, attention[0], params_bytes)),
        code_bytes=0,
        collectives=(),
        gathered_whole={},
        compile_s=0.0,
    )


def known_gap(config: Config, platform: str) -> str:
    """Where docs/memory.md shows this estimate to miss the compiler's figure by more than 15 %, in words; or empty."""
    if platform == "tpu":
        return "on TPUs it was up to a quarter too low"
    if config.mesh.data > 1 and config.mesh.fsdp > 1:
        return "with mesh.data and mesh.fsdp both above 1 it was a quarter too low"
    return ""


def kept_bytes(config: Config, attention: str) -> float:
    """Activations that one microbatch keeps for its backward pass, on one device.

    In numbers per token and layer: with remat=none what the sublayers' gradients need (both norms' inputs and outputs,
    q, k and v, the attention's output, the MLP's hidden layer before and after its activation), with dots the outputs
    of the matmuls, with block its input. Attention by xla keeps the scores too.
    """
    model, train = config.model, config.train
    n_bytes = COMPUTE_BYTES[train.dtype]
    width = model.n_embd / config.mesh.tensor
    kv = model.n_kv_head / model.n_head
    turned = 1.5 * (model.family == "nanochat")  # queries and keys once more, before rotation and norm
    numbers = {"none": KEPT_WIDTHS + turned + 2 * kv, "dots": 8 + 2 * kv, "block": 1.0}[train.remat]
    n_rows, seq_len = train.micro_batch_size, model.seq_len
    kept = n_rows * seq_len * model.n_layer * width * numbers * n_bytes
    if train.remat == "none":
        if attention == "xla":
            kept += model.n_layer * _scores_bytes(config)
        if model.dropout:
            kept += n_rows * seq_len * model.n_layer * 2 * width
    return kept


def _scores_bytes(config: Config) -> float:
    """What one layer's attention writes out without a flash kernel: scores in float32, probabilities, what drops."""
    model, train = config.model, config.train
    n_scores = train.micro_batch_size * model.n_head / config.mesh.tensor * model.seq_len**2
    n_bytes = COMPUTE_BYTES[train.dtype]
    return n_scores * (4 + n_bytes + (1 + n_bytes if model.dropout else 0))


KEPT_WIDTHS = 14.4
"""Numbers per token and layer, in widths of the residual stream, beside keys and values, that XLA keeps."""


def activations_bytes(config: Config, vocab_size: int, attention: str, params_bytes: int) -> float:
    """Temporaries beside the gradient sums: kept activations, one block's recomputation, the loss chunk, weights.

    The loss holds logits and their exponentials for one chunk, and the head's gradient; the weights stand once more in
    the dtype of the computation, as does a part of the gradients of the microbatch at hand. Under fsdp the gathered
    weights stay from the forward to the backward pass, or for all microbatches.
    """
    model, train = config.model, config.train
    n_bytes = COMPUTE_BYTES[train.dtype]
    n_tokens = train.micro_batch_size * model.seq_len
    chunk_tokens = (
        min(max(train.loss_chunk_tokens // train.micro_batch_size, 1), model.seq_len) * train.micro_batch_size
    )
    vocab = vocab_size / config.mesh.tensor
    loss = chunk_tokens * vocab * (4 + n_bytes) + 4 * vocab * model.n_embd
    block = 0.0
    if train.remat != "none":
        block = n_tokens * KEPT_WIDTHS * model.n_embd / config.mesh.tensor * n_bytes
        block += _scores_bytes(config) if attention == "xla" else 0.0
    whole = params_bytes * config.mesh.fsdp * n_bytes / 4 if config.mesh.fsdp > 1 else 0.0
    return kept_bytes(config, attention) + block + loss + whole + WEIGHTS_SHARE * params_bytes


WEIGHTS_SHARE = 0.3
"""Of the parameters' bytes: copies in the dtype of the computation, and gradients not yet added."""
