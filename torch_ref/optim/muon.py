"""jaxgpt/optim/muon.py in PyTorch."""

import torch

from torch_ref.optim.normuon import mean_square, normuon
from torch_ref.optim.orthogonalize import orthogonalize
from torch_ref.optim.transformation import Transformation, write


def muon(
    learning_rate: float = 0.02,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    orthogonalizer: str = "newton_schulz",
    ns_steps: int = 5,
    ns_dtype: str = "float32",
    ns_margin: float = 1.01,
    equilibrate_rows: bool = False,
    renormalize: bool = False,
    norm_beta2: float = 0.0,
    norm_axis_if_square: str = "inputs",
    decay_lr: float | None = None,
    cautious: bool = False,
) -> Transformation:
    """`momentum` is here for the mirror: hyper, which has each step's, is always given."""

    def init(params):
        state = {"momentum": {path: torch.zeros_like(p) for path, p in params.items()}}
        if norm_beta2:
            state["square"] = {
                path: torch.zeros_like(mean_square(p, norm_axis_if_square)) for path, p in params.items()
            }
        return state

    def update(grads, state, params, *, hyper, is_finite):
        decay = weight_decay * hyper["decay_scale"]
        if decay_lr is not None:
            decay = decay * decay_lr * hyper["lr_scale"]
        directions = []
        for path in params:
            direction, new = muon_momentum(grads[path], state["momentum"][path], hyper["momentum"], nesterov=nesterov)
            directions.append(direction)
            write(state["momentum"][path], new, is_finite)
        directions = orthogonalize(
            directions, orthogonalizer=orthogonalizer, ns_steps=ns_steps, ns_dtype=ns_dtype,
            ns_margin=ns_margin, equilibrate_rows=equilibrate_rows, renormalize=renormalize,
        )  # fmt: skip
        for (path, param), direction in zip(params.items(), directions, strict=True):
            if norm_beta2:
                direction, square = normuon(direction, state["square"][path], norm_beta2, norm_axis_if_square)
                write(state["square"][path], square, is_finite)
            lr = learning_rate * hyper["lr_scale"]
            step = muon_step(param, direction, lr=lr, weight_decay=decay, cautious=cautious)
            write(param, param + step, is_finite)

    return Transformation(init, update)


def muon_momentum(grad, momentum, beta, *, nesterov):
    momentum = momentum + (1 - beta) * (grad - momentum)
    return (grad + beta * (momentum - grad) if nesterov else momentum), momentum


def muon_step(param_OI, direction_OI, *, lr, weight_decay, cautious):
    n_out, n_in = param_OI.shape
    scale = max(1.0, n_out / n_in) ** 0.5
    if cautious:
        is_shrinking_OI = (direction_OI * param_OI >= 0).to(param_OI.dtype)
        return -lr * scale * (direction_OI + weight_decay * param_OI * is_shrinking_OI)
    return -lr * (scale * direction_OI + weight_decay * param_OI)
