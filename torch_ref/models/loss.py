"""jaxgpt/loss.py in PyTorch: a torch.autograd.Function for custom_vjp, a Python loop over chunks for lax.scan.

The last chunk may be shorter, so nothing is padded. Without gradients (`torch.no_grad`) none are made.
"""

import torch

from torch_ref.models.layers import softcap as cap


def cross_entropy(x_BTD, weight_VD, targets_BT, mask_BT=None, *, chunk_len=None, softcap=0.0):
    wide = torch.promote_types(x_BTD.dtype, torch.float32)
    if mask_BT is None:
        mask_BT = torch.ones(targets_BT.shape, dtype=wide, device=x_BTD.device)
    assert mask_BT.shape == targets_BT.shape, f"mask {mask_BT.shape} of targets {targets_BT.shape}"
    mask_BT = mask_BT.to(wide)
    seq_len = x_BTD.shape[1]
    chunk_len = min(chunk_len or seq_len, seq_len)
    n_tokens = mask_BT.sum()
    targets_BT = torch.where(mask_BT > 0, targets_BT, 0).long()  # gather would refuse what is not read
    if torch.is_grad_enabled():
        return _SummedLoss.apply(x_BTD, weight_VD, targets_BT, mask_BT, chunk_len, softcap), n_tokens
    return _summed_loss(x_BTD, weight_VD, targets_BT, mask_BT, chunk_len, softcap), n_tokens


def token_losses(x_BTD, weight_VD, targets_BT, *, chunk_len=None, softcap=0.0):
    n_rows, seq_len = targets_BT.shape
    pieces = []
    for x_ND, targets_N in _cut_chunks((x_BTD, targets_BT.long()), min(chunk_len or seq_len, seq_len)):
        ones_N = torch.ones(targets_N.shape, dtype=torch.promote_types(x_BTD.dtype, torch.float32), device=x_ND.device)
        _, logits_NV, lse_N = _chunk_loss(x_ND, weight_VD, targets_N, ones_N, softcap)
        pieces.append((lse_N - logits_NV.gather(-1, targets_N[:, None])[:, 0]).reshape(n_rows, -1))
    return torch.cat(pieces, dim=1)


def _summed_loss(x_BTD, weight_VD, targets_BT, mask_BT, chunk_len, softcap):
    chunks = _cut_chunks((x_BTD, targets_BT, mask_BT), chunk_len)
    losses = [_chunk_loss(x_ND, weight_VD, targets_N, mask_N, softcap)[0] for x_ND, targets_N, mask_N in chunks]
    return torch.stack(losses).sum()


def _chunk_loss(x_ND, weight_VD, targets_N, mask_N, softcap):
    wide = mask_N.dtype
    logits_NV = cap(_dot(x_ND, weight_VD.to(x_ND.dtype).mT, wide), softcap)
    lse_N = torch.logsumexp(logits_NV, dim=-1)
    target_logits_N = logits_NV.gather(-1, targets_N[:, None])[:, 0]
    return torch.where(mask_N > 0, (lse_N - target_logits_N) * mask_N, 0).sum(), logits_NV, lse_N


def _chunk_loss_and_grads(x_ND, weight_VD, targets_N, mask_N, softcap):
    loss, logits_NV, lse_N = _chunk_loss(x_ND, weight_VD, targets_N, mask_N, softcap)
    # In place, where XLA fuses: a chunk's logits are the largest array of a step.
    slope_NV = 1 - torch.square(logits_NV / softcap) if softcap else None
    d_logits_NV = logits_NV.sub_(lse_N[:, None]).exp_()
    d_logits_NV.scatter_add_(-1, targets_N[:, None], -torch.ones_like(lse_N)[:, None])
    d_logits_NV = d_logits_NV.mul_(mask_N[:, None])
    if slope_NV is not None:
        d_logits_NV = d_logits_NV.mul_(slope_NV)
    d_logits_NV = d_logits_NV.to(x_ND.dtype)
    d_x_ND = d_logits_NV @ weight_VD.to(x_ND.dtype)
    d_weight_VD = _dot(d_logits_NV.mT, x_ND, mask_N.dtype)
    return loss, d_x_ND, d_weight_VD


def _summed_loss_forward(x_BTD, weight_VD, targets_BT, mask_BT, chunk_len, softcap):
    n_rows, _, n_embd = x_BTD.shape
    d_weight_VD = torch.zeros(weight_VD.shape, dtype=mask_BT.dtype, device=weight_VD.device)
    losses, d_x_pieces = [], []
    for x_ND, targets_N, mask_N in _cut_chunks((x_BTD, targets_BT, mask_BT), chunk_len):
        loss, d_x_ND, d_chunk_VD = _chunk_loss_and_grads(x_ND, weight_VD, targets_N, mask_N, softcap)
        d_weight_VD += d_chunk_VD
        losses.append(loss)
        d_x_pieces.append(d_x_ND.reshape(n_rows, -1, n_embd))
    return torch.stack(losses).sum(), (torch.cat(d_x_pieces, dim=1), d_weight_VD.to(weight_VD.dtype))


def _summed_loss_backward(gradients, d_loss):
    d_x_BTD, d_weight_VD = gradients
    d_x_BTD = (d_x_BTD.to(d_loss.dtype) * d_loss).to(d_x_BTD.dtype)
    return d_x_BTD, d_weight_VD * d_loss.to(d_weight_VD.dtype), None, None, None, None


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BTD, weight_VD, targets_BT, mask_BT, chunk_len, softcap):
        loss, gradients = _summed_loss_forward(x_BTD, weight_VD, targets_BT, mask_BT, chunk_len, softcap)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx, d_loss):
        return _summed_loss_backward(ctx.saved_tensors, d_loss)


def _cut_chunks(arrays, chunk_len):
    """Pieces of the time axis, tokens flattened."""
    for start in range(0, arrays[0].shape[1], chunk_len):
        yield tuple(a[:, start : start + chunk_len].reshape(-1, *a.shape[2:]) for a in arrays)


def _dot(a, b, wide):
    """a @ b summed and returned in `wide`: lax.dot_general's preferred_element_type, which torch has on CUDA only."""
    if a.dtype == wide:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)
