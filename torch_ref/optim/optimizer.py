"""jaxgpt/optim.py in PyTorch, without torch.optim: the state is jaxgpt's, so a run can change framework.

`update` writes parameters and state in place, and only where the step is finite: `torch.where` instead of a branch,
for which the host would have to wait. In float32 the AdamW of a group is torch's fused kernel, which is the same
formula and takes a tenth of the time; in float64, which is for comparing, it is `adamw` as written here.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.optim.adamw import adamw as torch_adamw

from jaxgpt.config.optimizer import MuonConfig, OptimConfig
from jaxgpt.config.param_groups import ParamSettings

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_EPS = 1e-7
POLAR_EXPRESS = (
    (8.1566, -22.4833, 15.8788),
    (4.0429, -2.8089, 0.5000),
    (3.8917, -2.7725, 0.5061),
    (3.2858, -2.3681, 0.4645),
    (2.3465, -1.7098, 0.4232),
)
POLAR_MARGIN, POLAR_EPS = 1.01, 1e-6
ROW_EPS = 1e-7
NORMUON_EPS = 1e-10
CLIP_EPS = 1e-6


class OptimState(NamedTuple):
    count: torch.Tensor
    mu: dict[str, torch.Tensor]
    nu: dict[str, torch.Tensor]
    momentum: dict[str, torch.Tensor]
    square: dict[str, torch.Tensor]


class Transformation(NamedTuple):
    """What optax.GradientTransformation is in jaxgpt, but `update` works in place."""

    init: Callable[[dict[str, torch.Tensor]], OptimState]
    update: Callable[..., None]


def optimizer(config: OptimConfig, groups: dict[str, ParamSettings]) -> Transformation:
    by_algorithm = defaultdict(list)
    for path, setting in groups.items():
        by_algorithm[setting.algorithm].append(path)

    def init(params):
        def zeros(algorithm):
            return {path: torch.zeros_like(params[path]) for path in by_algorithm[algorithm]}

        count = torch.zeros((), dtype=torch.int32, device=next(iter(params.values())).device)
        momentum = zeros("muon")
        square = (
            {path: torch.zeros_like(mean_square(m)) for path, m in momentum.items()} if config.muon.norm_beta2 else {}
        )
        return OptimState(count, mu=zeros("adamw"), nu=zeros("adamw"), momentum=momentum, square=square)

    def update(grads, state, params, *, hyper, is_finite):
        def write(old, new):
            old.copy_(torch.where(is_finite, new, old))

        count = state.count + 1
        if hyper["lr_scale"].dtype == torch.float32:
            adamw_fused(params, grads, state, groups, by_algorithm["adamw"], hyper["lr_scale"], is_finite)
        else:
            for path in by_algorithm["adamw"]:
                setting = groups[path]
                step, mu, nu = adamw(
                    params[path], grads[path], state.mu[path], state.nu[path], count,
                    lr=setting.lr * hyper["lr_scale"], beta1=setting.beta1, beta2=setting.beta2,
                    eps=setting.eps, weight_decay=setting.weight_decay,
                )  # fmt: skip
                write(params[path], params[path] + step)
                write(state.mu[path], mu)
                write(state.nu[path], nu)
        directions = {}
        for path in by_algorithm["muon"]:
            directions[path], momentum = muon_momentum(
                grads[path], state.momentum[path], hyper["momentum"], nesterov=config.muon.nesterov
            )
            write(state.momentum[path], momentum)
        directions = orthogonalize(directions, config.muon)
        for path, direction in directions.items():
            setting = groups[path]
            if config.muon.norm_beta2:
                direction, square = normuon(direction, state.square[path], config.muon.norm_beta2)
                write(state.square[path], square)
            step = muon(
                params[path], direction, lr=setting.lr * hyper["lr_scale"],
                weight_decay=setting.weight_decay * hyper["decay_scale"], cautious=config.muon.cautious,
            )  # fmt: skip
            write(params[path], params[path] + step)
        write(state.count, count)

    return Transformation(init, update)


def global_norm(grads: dict[str, torch.Tensor]) -> torch.Tensor:
    """On a CPU by rows: there torch adds up the squares of a tensor one by one, and the norm of a large one is low."""
    tensors = list(grads.values())
    if tensors[0].device.type == "cpu":
        tensors = [torch.linalg.vector_norm(tensor, dim=-1) for tensor in tensors]
    return torch.nn.utils.get_total_norm(tensors)


def clip_by_global_norm(grads: dict[str, torch.Tensor], norm: torch.Tensor, max_norm: float) -> dict[str, torch.Tensor]:
    """In place."""
    if not max_norm:
        return grads
    scale = torch.clamp(max_norm / (norm + CLIP_EPS), max=1.0)
    torch._foreach_mul_(list(grads.values()), scale)
    return grads


def adamw(param, grad, mu, nu, count, *, lr, beta1, beta2, eps, weight_decay):
    count = count.to(param.dtype)
    mu = beta1 * mu + (1 - beta1) * grad
    nu = beta2 * nu + (1 - beta2) * grad * grad
    mu_hat = mu / (1 - beta1**count)
    nu_hat = nu / (1 - beta2**count)
    return -lr * (mu_hat / (torch.sqrt(nu_hat) + eps) + weight_decay * param), mu, nu


def adamw_fused(params, grads, state, groups, paths, lr_scale, is_finite):
    """`adamw` for all these paths, one kernel per group; the kernel itself leaves out a step that is not finite."""
    by_setting = defaultdict(list)
    for path in paths:
        by_setting[groups[path]].append(path)
    found_inf = (~is_finite).to(torch.float32)
    for setting, members in by_setting.items():
        counts = state.count.to(torch.float32).repeat(len(members))  # one for each parameter: the kernel counts up
        p, g, m, n = ([tree[path] for path in members] for tree in (params, grads, state.mu, state.nu))
        torch_adamw(
            p, g, m, n, [], list(counts.unbind()), fused=True, found_inf=found_inf, amsgrad=False, maximize=False,
            lr=float(setting.lr * lr_scale), beta1=setting.beta1, beta2=setting.beta2,
            eps=setting.eps, weight_decay=setting.weight_decay,
        )  # fmt: skip


def muon_momentum(grad, momentum, beta, *, nesterov):
    momentum = momentum + (1 - beta) * (grad - momentum)
    return (grad + beta * (momentum - grad) if nesterov else momentum), momentum


def muon(param_OI, direction_OI, *, lr, weight_decay, cautious):
    n_out, n_in = param_OI.shape
    scale = max(1.0, n_out / n_in) ** 0.5
    if cautious:
        is_shrinking_OI = (direction_OI * param_OI >= 0).to(param_OI.dtype)
        return -lr * scale * (direction_OI + weight_decay * param_OI * is_shrinking_OI)
    return -lr * (scale * direction_OI + weight_decay * param_OI)


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


def orthogonalize(directions: dict[str, torch.Tensor], config: MuonConfig) -> dict[str, torch.Tensor]:
    iterate = {"newton_schulz": newton_schulz, "polar_express": polar_express}[config.orthogonalizer]
    by_shape = defaultdict(list)
    for path, direction in directions.items():
        by_shape[direction.shape].append(path)
    result = {}
    for paths in by_shape.values():
        stack_LOI = torch.stack([directions[path] for path in paths])
        if config.equilibrate_rows:
            stack_LOI = equilibrate_rows(stack_LOI)
        stack_LOI = iterate(stack_LOI, steps=config.ns_steps, dtype=getattr(torch, config.ns_dtype))
        stack_LOI = stack_LOI.to(directions[paths[0]].dtype)
        if config.renormalize:
            stack_LOI = renormalize(stack_LOI)
        result |= {path: stack_LOI[i] for i, path in enumerate(paths)}
    return result


def frobenius_norm(x_LOI):
    return torch.sqrt((x_LOI * x_LOI).sum(dim=(1, 2), keepdim=True))


def equilibrate_rows(x_LOI):
    norm_L11 = frobenius_norm(x_LOI)
    row_norm_LO1 = torch.sqrt((x_LOI * x_LOI).sum(dim=2, keepdim=True))
    smallest_L11 = torch.clamp(ROW_EPS * norm_L11, min=torch.finfo(x_LOI.dtype).tiny)
    return x_LOI * (norm_L11 * x_LOI.shape[1] ** -0.5 / torch.maximum(row_norm_LO1, smallest_L11))


def renormalize(x_LOI):
    target = min(x_LOI.shape[1:]) ** 0.5
    return x_LOI * (target / torch.clamp(frobenius_norm(x_LOI), min=NS_EPS))


def newton_schulz(x_LOI, *, steps, dtype):
    # Square ones are turned too, here and below, so that the iteration sees jaxgpt's [in, out].
    is_tall = x_LOI.shape[1] >= x_LOI.shape[2]
    x = x_LOI.mT if is_tall else x_LOI
    x = x.to(dtype)
    x = x / torch.clamp(frobenius_norm(x), min=NS_EPS)
    for _ in range(steps):
        x = quintic(x, NS_COEFFICIENTS)
    return x.mT if is_tall else x


def polar_express(x_LOI, *, steps, dtype):
    is_tall = x_LOI.shape[1] >= x_LOI.shape[2]
    x = x_LOI.mT if is_tall else x_LOI
    x = x.to(dtype)
    x = x / (POLAR_MARGIN * frobenius_norm(x) + POLAR_EPS)
    for coefficients in POLAR_EXPRESS[:steps]:
        x = quintic(x, coefficients)
    return x.mT if is_tall else x


def quintic(x_LOI, coefficients):
    # In half precision torch computes an elementwise operation in float32 with numbers unrounded, as jaxgpt spells out.
    a, b, c = coefficients
    gram = x_LOI @ x_LOI.mT
    return a * x_LOI + (b * gram + c * (gram @ gram)) @ x_LOI
