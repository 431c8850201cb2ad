"""jaxgpt/optim.py in PyTorch, without torch.optim: the state is jaxgpt's, so a run can change framework.

`update` writes parameters and state in place, and only where the step is finite: `torch.where` instead of a branch,
for which the host would have to wait. In float32 the AdamW of a group is torch's fused kernel, which is the same
formula and takes a tenth of the time; in float64, which is for comparing, it is `adamw` as written here.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch.optim.adamw import adamw as torch_adamw

from jaxgpt.config import GroupConfig, OptimConfig
from jaxgpt.errors import InputError

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_EPS = 1e-7
CLIP_EPS = 1e-6


@dataclass(frozen=True)
class ParamSettings:
    algorithm: str
    lr: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float


def param_groups(config: OptimConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, ParamSettings]:
    settings, unused = {}, {group.match for group in config.groups}
    for path, shape in shapes.items():
        is_matrix = len(shape) >= 2
        group = next((g for g in config.groups if re.search(g.match, path)), GroupConfig(match=""))
        overrides = {k: v for k, v in asdict(group).items() if v is not None and k != "match"}
        unused.discard(group.match)
        use_muon = config.algorithm == "muon" and is_matrix and path.startswith("h.")
        algorithm = overrides.pop("algorithm", "muon" if use_muon else "adamw")
        if algorithm == "muon" and len(shape) != 2:
            raise InputError(
                f"optim.groups: match={group.match!r} sends {path} of shape {shape} to muon; it takes matrices"
            )
        base = config.muon if algorithm == "muon" else config
        settings[path] = ParamSettings(
            algorithm=algorithm,
            **{
                "lr": base.lr,
                "weight_decay": base.weight_decay if is_matrix else 0.0,
                "beta1": config.beta1,
                "beta2": config.beta2,
                "eps": config.eps,
                **overrides,
            },
        )
    if unused:
        raise InputError(
            f"optim.groups: match={sorted(unused)[0]!r} fits no parameter; --help and docs/ list their paths"
        )
    return settings


class OptimState(NamedTuple):
    count: torch.Tensor
    mu: dict[str, torch.Tensor]
    nu: dict[str, torch.Tensor]
    momentum: dict[str, torch.Tensor]


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
        return OptimState(count, mu=zeros("adamw"), nu=zeros("adamw"), momentum=zeros("muon"))

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
        directions = orthogonalize(directions, steps=config.muon.ns_steps, dtype=config.muon.ns_dtype)
        for path, direction in directions.items():
            setting = groups[path]
            step = muon(params[path], direction, lr=setting.lr * hyper["lr_scale"], weight_decay=setting.weight_decay)
            write(params[path], params[path] + step)
        write(state.count, count)

    return Transformation(init, update)


def global_norm(grads: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.get_total_norm(grads.values())


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


def muon(param_OI, direction_OI, *, lr, weight_decay):
    n_out, n_in = param_OI.shape
    return -lr * (max(1.0, n_out / n_in) ** 0.5 * direction_OI + weight_decay * param_OI)


def orthogonalize(directions: dict[str, torch.Tensor], *, steps: int, dtype: str) -> dict[str, torch.Tensor]:
    by_shape = defaultdict(list)
    for path, direction in directions.items():
        by_shape[direction.shape].append(path)
    result = {}
    for paths in by_shape.values():
        stack_LOI = torch.stack([directions[path] for path in paths])
        stack_LOI = newton_schulz(stack_LOI, steps=steps, dtype=getattr(torch, dtype))
        result |= {path: stack_LOI[i].to(directions[path].dtype) for i, path in enumerate(paths)}
    return result


def newton_schulz(x_LOI, *, steps, dtype):
    a, b, c = NS_COEFFICIENTS
    # Square ones are turned too, so that the iteration sees jaxgpt's [in, out].
    is_tall = x_LOI.shape[1] >= x_LOI.shape[2]
    x = x_LOI.mT if is_tall else x_LOI
    x = x.to(dtype)
    norm = torch.sqrt((x * x).sum(dim=(1, 2), keepdim=True))
    x = x / torch.clamp(norm, min=NS_EPS)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
