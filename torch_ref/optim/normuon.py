"""jaxgpt/optim/normuon.py in PyTorch."""

import torch

NORMUON_EPS = 1e-10


def mean_square(direction_OI):
    n_out, n_in = direction_OI.shape
    return (direction_OI * direction_OI).mean(dim=1 if n_out >= n_in else 0, keepdim=True)


def normuon(direction_OI, square, beta2):
    now = mean_square(direction_OI)
    square = square + (1 - beta2) * (now - square)
    n_averaged = direction_OI.numel() // now.numel()
    step = torch.rsqrt(torch.clamp(square, min=NORMUON_EPS))
    norm, new_norm = (torch.sqrt(n_averaged * s.sum()) for s in (now, now * step * step))
    return direction_OI * (step * (norm / torch.clamp(new_norm, min=NORMUON_EPS))), square
