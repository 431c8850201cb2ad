"""Memory that a training step needs besides its state, counted from the config.

Temporaries are what the backward pass needs of the forward, plus the loss chunk. XLA fuses, reuses and pads, so this is
an estimate; docs/memory.md compares it with the compiler's figure for each shipped config.
"""

from jaxgpt.config.families import ModelConfig
from jaxgpt.config.settings import Config

COMPUTE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


def kept_bytes(config: Config, attention: str) -> float:
    """Activations that one microbatch keeps for its backward pass, on one device.

    In numbers per token and layer: with remat=none what the sublayers' gradients need (both norms' inputs and outputs,
    q, k and v, the attention's output, the MLP's hidden layer before and after its activation), with dots the outputs
    of the matmuls, with block its input. Attention by xla keeps the scores too, where it does not go by blocks.
    """
    model, train = config.model, config.train
    n_bytes = COMPUTE_BYTES[train.dtype]
    width = model.n_embd / config.mesh.tensor
    kv = model.n_kv_head / model.n_head
    numbers = {"none": block_widths(model), "dots": 8 + 2 * kv, "block": 1.0}[train.remat]
    n_rows, seq_len = train.micro_batch_size, model.seq_len
    kept = n_rows * seq_len * model.n_layer * width * numbers * n_bytes
    if train.remat == "none":
        if attention == "xla":
            kept += sum(keeps_scores(model, layer) for layer in range(model.n_layer)) * _scores_bytes(config)
        if model.dropout:
            kept += n_rows * seq_len * model.n_layer * 2 * width
    return kept


def block_widths(model: ModelConfig) -> float:
    """Numbers per token that one block's gradients need, in widths of the residual stream."""
    return KEPT_WIDTHS + model.more_kept_widths + 2 * model.n_kv_head / model.n_head


SCAN_FROM = 512
"""Tokens of a row from which xla computes a layer with a window in blocks of queries. On a CPU, blocks are slower below
and faster from here on."""


def keeps_scores(model: ModelConfig, layer: int) -> bool:
    """Whether attention by xla writes out a layer's scores of all queries and keys."""
    has_blocks = model.HAS_PACKED_ATTENTION or model.window(layer) < model.seq_len >= SCAN_FROM
    return not has_blocks


def _scores_bytes(config: Config) -> float:
    """What one layer's attention writes out without a flash kernel: scores in float32, probabilities, what drops."""
    model, train = config.model, config.train
    n_scores = train.micro_batch_size * model.n_head / config.mesh.tensor * model.seq_len**2
    n_bytes = COMPUTE_BYTES[train.dtype]
    return n_scores * (4 + n_bytes + (1 + n_bytes if model.dropout else 0))


KEPT_WIDTHS = 14.4
"""Numbers that XLA keeps per token and layer besides keys and values, in widths of the residual stream."""


def activations_bytes(config: Config, attention: str, params_bytes: int) -> float:
    """Temporaries beside the gradient sums: kept activations, one block's recomputation, the loss chunk, weights.

    The loss holds logits and their exponentials for one chunk, and the head's gradient; the weights are held again
    in the compute dtype, as are some gradients of the current microbatch. Under fsdp the gathered weights stay from
    the forward to the backward pass, or for all microbatches.
    """
    model, train = config.model, config.train
    n_bytes = COMPUTE_BYTES[train.dtype]
    n_tokens = train.micro_batch_size * model.seq_len
    chunk_tokens = train.loss_chunk_len(model.seq_len) * train.micro_batch_size
    vocab = config.model.vocab_size / config.mesh.tensor
    logits_bytes = n_bytes if train.logits_dtype == "compute" else max(n_bytes, 4)
    loss = chunk_tokens * vocab * (logits_bytes + n_bytes) + 4 * vocab * model.n_embd
    block = 0.0
    if train.remat != "none":
        block = n_tokens * block_widths(model) * model.n_embd / config.mesh.tensor * n_bytes
        if attention == "xla" and any(keeps_scores(model, layer) for layer in range(model.n_layer)):
            block += _scores_bytes(config)
    whole = params_bytes * config.mesh.fsdp * n_bytes / 4 if config.mesh.fsdp > 1 else 0.0
    return kept_bytes(config, attention) + block + loss + whole + WEIGHTS_SHARE * params_bytes


WEIGHTS_SHARE = 0.3
"""Fraction of the parameters' bytes: copies in the compute dtype, and gradients not yet added."""
