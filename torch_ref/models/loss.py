"""jaxgpt/models/loss.py in PyTorch: a torch.autograd.Function for custom_vjp, a Python loop over chunks for lax.scan.

The last chunk may be shorter, so nothing is padded. Without gradients (`torch.no_grad`) none are made.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from torch_ref.models.layers import log_sum_exp, softcap_slope
from torch_ref.models.layers import softcap as cap


def cross_entropy(
    x_BTD, weight_VD, targets_BT, mask_BT=None, weights_K=None,
    *, chunk_len=None, softcap=None, head=None, logits_dtype=None,
):  # fmt: skip
    wide = torch.promote_types(x_BTD.dtype, torch.float32)
    if mask_BT is None:
        mask_BT = torch.ones(targets_BT.shape, dtype=wide, device=x_BTD.device)
    assert mask_BT.shape == targets_BT.shape, f"mask {mask_BT.shape} of targets {targets_BT.shape}"
    mask_BT = mask_BT.to(wide)
    seq_len = x_BTD.shape[1]
    chunk_len = min(chunk_len or seq_len, seq_len)
    n_tokens = mask_BT.sum()
    targets_BT = torch.where(mask_BT != 0, targets_BT, 0).long()  # gather would refuse what is not read
    targets, weights = _targets_ahead(targets_BT, mask_BT, weights_K)
    dtype = logits_dtype or wide
    run = _SummedLoss.apply if torch.is_grad_enabled() else _summed_loss
    return run(x_BTD, weight_VD, targets, weights, chunk_len, softcap, head, dtype), n_tokens


def token_losses(x_BTD, weight_VD, targets_BT, *, chunk_len=None, softcap=None):
    n_rows, seq_len = targets_BT.shape
    wide = torch.promote_types(x_BTD.dtype, torch.float32)
    pieces = []
    for x_PD, targets_P in _cut_chunks((x_BTD, targets_BT.long()), min(chunk_len or seq_len, seq_len)):
        ones_P = torch.ones(targets_P.shape, dtype=wide, device=x_PD.device)
        _, _, capped_PV, lse_P = _chunk_loss(x_PD, weight_VD, (targets_P,), (ones_P,), softcap, None, wide)
        pieces.append((lse_P - capped_PV.gather(-1, targets_P[:, None])[:, 0]).reshape(n_rows, -1))
    return torch.cat(pieces, dim=1)


def _targets_ahead(targets_BT, mask_BT, weights_K):
    if weights_K is None:
        return (targets_BT,), (mask_BT,)
    targets, weights = [targets_BT], [mask_BT * weights_K[0].to(mask_BT)]
    for k in range(1, min(len(weights_K), targets_BT.shape[1])):
        ahead_BT, is_there_BT = (F.pad(a[:, k:], (0, k)) for a in (targets_BT, mask_BT))
        targets.append(ahead_BT)
        weights.append(mask_BT * is_there_BT * weights_K[k].to(mask_BT))
    return tuple(targets), tuple(weights)


def _summed_loss(x_BTD, weight_VD, targets, weights, chunk_len, softcap, head, dtype):
    weight_VD = head.round_weight(weight_VD) if head else weight_VD.to(x_BTD.dtype)
    chunks = _cut_chunks((x_BTD, targets, weights), chunk_len)
    losses = [
        _chunk_loss(x_PD, weight_VD, targets, weights, softcap, head, dtype)[0] for x_PD, targets, weights in chunks
    ]
    return torch.stack(losses).sum()


def _chunk_loss(x_PD, weight_VD, targets, weights, softcap, head, dtype):
    wide = weights[0].dtype
    logits_PV = head.logits(x_PD, weight_VD, dtype) if head else _dot(x_PD, weight_VD.to(x_PD.dtype).mT, dtype)
    capped_PV = cap(logits_PV.to(wide), softcap)
    lse_P = log_sum_exp(capped_PV, softcap)
    losses = []
    for targets_P, weights_P in zip(targets, weights, strict=True):
        target_logits_P = capped_PV.gather(-1, targets_P[:, None])[:, 0]
        losses.append(torch.where(weights_P != 0, (lse_P - target_logits_P) * weights_P, 0))
    return torch.stack(losses).sum(), logits_PV, capped_PV, lse_P


def _chunk_loss_and_grads(x_PD, weight_VD, targets, weights, softcap, head, dtype):
    loss, _, capped_PV, lse_P = _chunk_loss(x_PD, weight_VD, targets, weights, softcap, head, dtype)
    # In place, where XLA fuses: a chunk's logits are the largest array of a step.
    slope_PV = softcap_slope(capped_PV, softcap) if softcap else None
    d_logits_PV = capped_PV.sub_(lse_P[:, None]).exp_().mul_(torch.stack(weights).sum(dim=0)[:, None])
    for targets_P, weights_P in zip(targets, weights, strict=True):
        d_logits_PV.scatter_add_(-1, targets_P[:, None], -weights_P[:, None])
    if slope_PV is not None:
        d_logits_PV = d_logits_PV.mul_(slope_PV)
    d_logits_PV = d_logits_PV.to(x_PD.dtype)
    if head:
        return loss, *head.gradients(d_logits_PV, x_PD, weight_VD, loss.dtype)
    d_x_PD = d_logits_PV @ weight_VD.to(x_PD.dtype)
    d_weight_VD = _dot(d_logits_PV.mT, x_PD, loss.dtype)
    return loss, d_x_PD, d_weight_VD


def _summed_loss_forward(x_BTD, weight_VD, targets, weights, chunk_len, softcap, head, dtype):
    n_rows, _, n_embd = x_BTD.shape
    d_weight_VD = torch.zeros(weight_VD.shape, dtype=weights[0].dtype, device=weight_VD.device)
    head_VD = head.round_weight(weight_VD) if head else weight_VD.to(x_BTD.dtype)
    losses, d_x_pieces = [], []
    for x_PD, chunk_targets, chunk_weights in _cut_chunks((x_BTD, targets, weights), chunk_len):
        loss, d_x_PD, d_chunk_VD = _chunk_loss_and_grads(
            x_PD, head_VD, chunk_targets, chunk_weights, softcap, head, dtype
        )
        d_weight_VD += d_chunk_VD
        losses.append(loss)
        d_x_pieces.append(d_x_PD.reshape(n_rows, -1, n_embd))
    return torch.stack(losses).sum(), (torch.cat(d_x_pieces, dim=1), d_weight_VD.to(weight_VD.dtype))


def _summed_loss_backward(gradients, d_loss):
    d_x_BTD, d_weight_VD = gradients
    d_x_BTD = (d_x_BTD.to(d_loss.dtype) * d_loss).to(d_x_BTD.dtype)
    return d_x_BTD, d_weight_VD * d_loss.to(d_weight_VD.dtype), None, None, None, None, None, None


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BTD, weight_VD, targets, weights, chunk_len, softcap, head, dtype):
        loss, gradients = _summed_loss_forward(x_BTD, weight_VD, targets, weights, chunk_len, softcap, head, dtype)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx, d_loss):
        return _summed_loss_backward(ctx.saved_tensors, d_loss)


def _cut_chunks(arrays, chunk_len) -> Iterator[Any]:
    """Pieces of the time axis, tokens flattened."""

    def cut(array, start):
        if isinstance(array, tuple):
            return tuple(cut(a, start) for a in array)
        return array[:, start : start + chunk_len].reshape(-1, *array.shape[2:])

    for start in range(0, arrays[0].shape[1], chunk_len):
        yield tuple(cut(array, start) for array in arrays)


def _dot(a, b, wide):
    """a @ b summed and returned in `wide`: lax.dot_general's preferred_element_type, which torch has on CUDA only."""
    if a.dtype == wide:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)
