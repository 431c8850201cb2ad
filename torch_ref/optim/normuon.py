"""jaxgpt/optim/normuon.py in PyTorch."""

import torch

NORMUON_EPS = 1e-10


def mean_square(direction_OI, axis_if_square="inputs"):
    n_out, n_in = direction_OI.shape
    is_over_inputs = n_out > n_in or (n_out == n_in and axis_if_square == "inputs")
    return (direction_OI * direction_OI).mean(dim=1 if is_over_inputs else 0, keepdim=True)


def normuon(direction_OI, square, beta2, axis_if_square="inputs"):
    now = mean_square(direction_OI, axis_if_square)
    square = square + (1 - beta2) * (now - square)
    n_averaged = direction_OI.numel() // now.numel()
    step = torch.rsqrt(torch.clamp(square, min=NORMUON_EPS))
    norm, new_norm = (torch.sqrt(n_averaged * s.sum()) for s in (now, now * step * step))
    return direction_OI * (step * (norm / torch.clamp(new_norm, min=NORMUON_EPS))), square
