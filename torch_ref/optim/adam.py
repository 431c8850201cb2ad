"""jaxgpt/optim/adam.py in PyTorch."""

import math

import torch

from torch_ref.optim.transformation import Transformation, write


def adam(
    learning_rate: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    every: int = 1,
) -> Transformation:
    settings = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}

    def init(params):
        names = ("mu", "nu", "grad_sum") if every > 1 else ("mu", "nu")
        return {name: {path: torch.zeros_like(p) for path, p in params.items()} for name in names}

    def update(grads, state, params, *, hyper, is_finite):
        lr = learning_rate * hyper["lr_scale"]
        count = state["count"] + 1
        is_due = count % every == 0
        for path, param in params.items():
            grad, mu, nu = grads[path], state["mu"][path], state["nu"][path]
            if every > 1:
                grad = state["grad_sum"][path] + grad
                write(state["grad_sum"][path], torch.where(is_due, 0, grad), is_finite)
            step, new_mu, new_nu = adam_step(param, grad, mu, nu, torch.clamp(count // every, min=1), lr=lr, **settings)
            write(param, param + step, is_finite & is_due)
            write(mu, new_mu, is_finite & is_due)
            write(nu, new_nu, is_finite & is_due)

    return Transformation(init, update)


def adam_step(param, grad, mu, nu, count, *, lr, beta1, beta2, eps, weight_decay):
    count = count.to(param.dtype)
    mu = beta1 * mu + (1 - beta1) * grad
    nu = beta2 * nu + (1 - beta2) * grad * grad
    step = mu / (torch.sqrt(nu) + eps) * (lr * torch.sqrt(weight_of(beta2, count)) / weight_of(beta1, count))
    is_shrinking = (step * param > 0).to(step.dtype)
    return -(step + param * is_shrinking * (lr * lr * weight_decay)), mu, nu


def weight_of(beta, count):
    return -torch.expm1(count * math.log(beta)) if beta else torch.ones_like(count)
