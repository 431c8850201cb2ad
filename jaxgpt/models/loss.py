"""Cross-entropy of a model's last hidden states, without ever holding all logits.

The one idea: the loss is a scalar, so its gradients with respect to the hidden states and the head can be made
in the forward pass, chunk by chunk, and only scaled in the backward pass. At no time do more than
`B x chunk_len x V` logits exist, and each is computed once. Chunks run along time, so that the rows of a batch
stay on the devices that own them.

References: chunked and fused cross-entropy as in Wijmans et al., arXiv:2411.09009; Hsu et al., arXiv:2410.10989.
"""

import functools

import jax
import jax.numpy as jnp

from jaxgpt.models.int8 import Int8Weight, int8_product
from jaxgpt.models.layers import log_sum_exp, softcap_slope
from jaxgpt.models.layers import softcap as cap


def cross_entropy(
    x_BTD, weight_VD, targets_BT, mask_BT=None, weights_K=None,
    *, chunk_len=None, softcap=None, head=None, logits_dtype=None,
):  # fmt: skip
    """Summed loss of the next token, or of the next few, and how many positions were summed.

    A sum, not a mean, so that microbatches and devices add exactly and the caller divides once.

    Args:
      x_BTD: hidden states after the last norm; products run in this dtype, the log-sum-exp in float32 or wider.
      weight_VD: the head, one row per token id; cast to x's dtype.
      targets_BT: ids in [0, V). Where the mask is 0 they are not read.
      mask_BT: 1 counts a position, 0 skips it; None counts all. Or what the loss of each weighs, of any sign.
      weights_K: of the targets 1, 2, ... K tokens ahead, which share a position's logits and log-sum-exp; None: the
        next token alone. A position whose target is masked or lies behind the row's end has the others: nothing is
        rescaled.
      chunk_len: positions of each row whose logits exist at one time; None takes all.
      softcap: the `Softcap` of the logits; None leaves them.
      head: the three products on rounded operands, as `fp8_head.Fp8Head`; None multiplies in x's dtype.
      logits_dtype: what logits are rounded to when they are written, before the softcap; None: float32 or wider. In
        bfloat16 the passes over them move half the bytes.

    Returns:
      loss_nats: scalar, float32 or wider, summed over counted positions.
      n_tokens: scalar of the same dtype, the count (the sum of weights). Zero gives (0, 0), never NaN.
    """
    wide = jnp.promote_types(x_BTD.dtype, jnp.float32)
    if mask_BT is None:
        mask_BT = jnp.ones(targets_BT.shape, wide)
    assert mask_BT.shape == targets_BT.shape, f"mask {mask_BT.shape} of targets {targets_BT.shape}"
    mask_BT = mask_BT.astype(wide)
    n_tokens = mask_BT.sum()
    targets, weights = _targets_ahead(targets_BT, mask_BT, weights_K)
    x_BTD, targets, weights, chunk_len = _pad_to_chunks(x_BTD, targets, weights, chunk_len)
    dtype = logits_dtype or wide
    loss = _summed_loss(x_BTD, weight_VD, targets, weights, chunk_len, softcap, head, dtype)
    return jnp.asarray(loss), n_tokens


def token_losses(x_BTD, weight_VD, targets_BT, *, chunk_len=None, softcap=None):
    """The loss of each position in nats, [B, T]: for evaluation, where a loss is counted in more than one way.

    Arguments as in `cross_entropy`.
    """
    n_rows, seq_len = targets_BT.shape
    wide = jnp.promote_types(x_BTD.dtype, jnp.float32)
    ones_BT = jnp.ones(targets_BT.shape, wide)
    x_BTD, targets, weights, chunk_len = _pad_to_chunks(x_BTD, (targets_BT,), (ones_BT,), chunk_len)

    def losses(x_PD, targets, weights):
        _, _, capped_PV, lse_P = _chunk_loss(x_PD, weight_VD, targets, weights, softcap, None, wide)
        return lse_P - jnp.take_along_axis(capped_PV, targets[0][:, None], axis=-1)[:, 0]

    losses_JP = _map_chunks(losses, (x_BTD, targets, weights), chunk_len)
    return losses_JP.reshape(-1, n_rows, chunk_len).swapaxes(0, 1).reshape(n_rows, -1)[:, :seq_len]


def _targets_ahead(targets_BT, mask_BT, weights_K):
    """For each target of a position, the next one first: the ids and what they weigh, [B, T]."""
    if weights_K is None:
        return (targets_BT,), (mask_BT,)
    targets, weights = [targets_BT], [mask_BT * weights_K[0].astype(mask_BT.dtype)]
    for k in range(1, min(len(weights_K), targets_BT.shape[1])):
        ahead_BT, is_there_BT = (jnp.pad(a[:, k:], ((0, 0), (0, k))) for a in (targets_BT, mask_BT))
        targets.append(ahead_BT)
        weights.append(mask_BT * is_there_BT * weights_K[k].astype(mask_BT.dtype))
    return tuple(targets), tuple(weights)


def _pad_to_chunks(x_BTD, targets, weights, chunk_len):
    """Arrays whose time axis the chunk length divides, with a weight of 0 on what is added; and that length."""
    seq_len = x_BTD.shape[1]
    chunk_len = min(chunk_len or seq_len, seq_len)
    n_padding = -seq_len % chunk_len
    if n_padding:
        x_BTD = jnp.pad(x_BTD, ((0, 0), (0, n_padding), (0, 0)))
        targets, weights = (tuple(jnp.pad(a, ((0, 0), (0, n_padding))) for a in part) for part in (targets, weights))
    return x_BTD, targets, weights, chunk_len


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _summed_loss(x_BTD, weight_VD, targets, weights, chunk_len, softcap, head, dtype):
    weight_VD = head.round_weight(weight_VD) if head else weight_VD.astype(x_BTD.dtype)
    losses = _map_chunks(
        lambda x_PD, targets, weights: _chunk_loss(x_PD, weight_VD, targets, weights, softcap, head, dtype)[0],
        (x_BTD, targets, weights),
        chunk_len,
    )
    return losses.sum()


def _chunk_loss(x_PD, weight_VD, targets, weights, softcap, head, dtype):
    """Summed loss of some positions, and what the gradient needs: logits as written and capped, log-sum-exp.

    Args:
      targets, weights: [P] for each target of a position.
    """
    wide = weights[0].dtype
    if head:
        logits_PV = head.logits(x_PD, weight_VD, dtype)
    elif isinstance(weight_VD, Int8Weight):  # only in evaluations
        logits_PV = int8_product(x_PD, weight_VD).astype(dtype)
    else:
        logits_PV = jax.lax.dot_general(
            x_PD, weight_VD.astype(x_PD.dtype), (((1,), (1,)), ((), ())), preferred_element_type=dtype
        )
    if logits_PV.dtype != wide:
        logits_PV = jax.lax.optimization_barrier(logits_PV)  # or XLA for CPUs keeps the bits that rounding drops
    capped_PV = cap(logits_PV.astype(wide), softcap)
    lse_P = log_sum_exp(capped_PV, softcap)
    losses = []
    for targets_P, weights_P in zip(targets, weights, strict=True):
        target_logits_P = jnp.take_along_axis(capped_PV, targets_P[:, None], axis=-1)[:, 0]
        losses.append(jnp.where(weights_P != 0, (lse_P - target_logits_P) * weights_P, 0))
    return sum(losses[1:], losses[0]).sum(), logits_PV, capped_PV, lse_P


def _chunk_loss_and_grads(x_PD, weight_VD, targets, weights, softcap, head, dtype):
    loss, logits_PV, capped_PV, lse_P = _chunk_loss(x_PD, weight_VD, targets, weights, softcap, head, dtype)
    if logits_PV.dtype != capped_PV.dtype:
        # XLA would write the wide logits once for both passes; so the second pass widens and caps the narrow ones.
        capped_PV = cap(jax.lax.optimization_barrier(logits_PV).astype(capped_PV.dtype), softcap)
    probs_PV = jnp.exp(capped_PV - lse_P[:, None])
    parts = []
    for targets_P, weights_P in zip(targets, weights, strict=True):
        is_target_PV = targets_P[:, None] == jnp.arange(capped_PV.shape[-1])[None, :]
        parts.append((probs_PV - is_target_PV) * weights_P[:, None])
    d_logits_PV = sum(parts[1:], parts[0])
    if softcap:
        d_logits_PV = d_logits_PV * softcap_slope(capped_PV, softcap)
    d_logits_PV = d_logits_PV.astype(x_PD.dtype)
    if head:
        return loss, *head.gradients(d_logits_PV, x_PD, weight_VD, loss.dtype)
    d_x_PD = d_logits_PV @ weight_VD.astype(x_PD.dtype)
    d_weight_VD = jax.lax.dot_general(d_logits_PV, x_PD, (((0,), (0,)), ((), ())), preferred_element_type=loss.dtype)
    return loss, d_x_PD, d_weight_VD


def _summed_loss_forward(x_BTD, weight_VD, targets, weights, chunk_len, softcap, head, dtype):
    n_rows, seq_len, n_embd = x_BTD.shape
    zeros_VD = jnp.zeros(weight_VD.shape, weights[0].dtype)
    head_VD = head.round_weight(weight_VD) if head else weight_VD.astype(x_BTD.dtype)  # once, not for each chunk

    def add_chunk(d_weight_VD, chunk):
        x_PD, targets, weights = chunk
        loss, d_x_PD, d_chunk_VD = _chunk_loss_and_grads(x_PD, head_VD, targets, weights, softcap, head, dtype)
        return d_weight_VD + d_chunk_VD, (loss, d_x_PD)

    d_weight_VD, (losses, d_x_JPD) = _scan_chunks(add_chunk, zeros_VD, (x_BTD, targets, weights), chunk_len)
    d_x_BTD = d_x_JPD.reshape(-1, n_rows, chunk_len, n_embd).swapaxes(0, 1).reshape(n_rows, seq_len, n_embd)
    return losses.sum(), (d_x_BTD, d_weight_VD.astype(weight_VD.dtype))


def _summed_loss_backward(chunk_len, softcap, head, dtype, gradients, d_loss):
    d_x_BTD, d_weight_VD = gradients
    d_x_BTD = (d_x_BTD.astype(d_loss.dtype) * d_loss).astype(d_x_BTD.dtype)
    return d_x_BTD, d_weight_VD * d_loss.astype(d_weight_VD.dtype), None, None


_summed_loss.defvjp(_summed_loss_forward, _summed_loss_backward)


def _scan_chunks(body, carry, arrays, chunk_len):
    """`lax.scan` over pieces of the time axis, tokens flattened; a single piece is called directly.

    Args:
      arrays: the first is an array, the others may be tuples of arrays.
    """
    n_chunks = arrays[0].shape[1] // chunk_len

    def cut(array, start):
        piece = jax.lax.dynamic_slice_in_dim(array, start, chunk_len, axis=1)
        return piece.reshape(-1, *array.shape[2:])

    def step(carry, i):
        return body(carry, jax.tree.map(lambda array: cut(array, i * chunk_len), arrays))

    if n_chunks == 1:
        carry, out = step(carry, 0)
        return carry, jax.tree.map(lambda leaf: leaf[None], out)
    return jax.lax.scan(step, carry, jnp.arange(n_chunks))


def _map_chunks(function, arrays, chunk_len):
    return _scan_chunks(lambda _, chunk: (None, function(*chunk)), None, arrays, chunk_len)[1]
