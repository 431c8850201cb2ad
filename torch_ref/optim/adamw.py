"""jaxgpt/optim/adamw.py in PyTorch.

In float32 the parameters of a transformation go through torch's fused kernel, which is the same formula and takes a
tenth of the time; in float64, which is for comparing, through `adamw_step` as written here.
"""

import torch
from torch.optim.adamw import adamw as torch_adamw

from torch_ref.optim.transformation import Transformation, write


def adamw(
    learning_rate: float, *, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.0
) -> Transformation:
    settings = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}

    def init(params):
        return {name: {path: torch.zeros_like(p) for path, p in params.items()} for name in ("mu", "nu")}

    def update(grads, state, params, *, hyper, is_finite):
        lr = learning_rate * hyper["lr_scale"]
        if lr.dtype == torch.float32:
            adamw_fused(params, grads, state, is_finite, lr=lr, **settings)
            return
        for path, param in params.items():
            mu, nu = state["mu"][path], state["nu"][path]
            step, new_mu, new_nu = adamw_step(param, grads[path], mu, nu, state["count"] + 1, lr=lr, **settings)
            write(param, param + step, is_finite)
            write(mu, new_mu, is_finite)
            write(nu, new_nu, is_finite)

    return Transformation(init, update)


def adamw_step(param, grad, mu, nu, count, *, lr, beta1, beta2, eps, weight_decay):
    count = count.to(param.dtype)
    mu = beta1 * mu + (1 - beta1) * grad
    nu = beta2 * nu + (1 - beta2) * grad * grad
    mu_hat = mu / (1 - beta1**count)
    nu_hat = nu / (1 - beta2**count)
    return -lr * (mu_hat / (torch.sqrt(nu_hat) + eps) + weight_decay * param), mu, nu


def adamw_fused(params, grads, state, is_finite, *, lr, beta1, beta2, eps, weight_decay):
    """`adamw_step` for all parameters, in one kernel, which itself leaves out a step that is not finite."""
    p, g, m, n = ([tree[path] for path in params] for tree in (params, grads, state["mu"], state["nu"]))
    counts = state["count"].to(torch.float32).repeat(len(p))  # one for each parameter: the kernel counts up
    torch_adamw(
        p, g, m, n, [], list(counts.unbind()), fused=True, found_inf=(~is_finite).to(torch.float32), amsgrad=False,
        maximize=False, lr=float(lr), beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
    )  # fmt: skip
