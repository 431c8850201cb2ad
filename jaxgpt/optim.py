"""AdamW and Muon as one optax transformation over a flat dict of parameters, with settings by path.

`param_groups` decides on the host, once, what happens to each parameter; `optimizer` is the arithmetic.
Schedules come in as an extra argument, `hyper = {"lr_scale", "momentum"}`, so they never recompile.

AdamW is torch.optim.AdamW (decoupled decay, arXiv:1711.05101; epsilon outside the root). Muon is Keller Jordan's
(https://kellerjordan.github.io/posts/muon, arXiv:2502.16982): momentum as a running mean, Nesterov by a second lerp,
Newton-Schulz, step times sqrt(max(1, out / in)). optax.contrib.muon corrects a bias inside Nesterov, which the
originals do not, and differs by 15 % at step 2. Left out: the variants of nanochat 2026 and modded-nanogpt.
"""

import re
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgpt.config import GroupConfig, OptimConfig
from jaxgpt.errors import InputError
from jaxgpt.sharding import shard_stack

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic iteration whose slope at zero is as steep as it can be; it ends in a band around 1, not at 1."""
NS_EPS = 1e-7
"""Smallest norm that Newton-Schulz divides by."""
CLIP_EPS = 1e-6
"""torch.nn.utils.clip_grad_norm_ adds this to the norm; optax does not."""


@dataclass(frozen=True)
class ParamSettings:
    """What one parameter's update needs to know."""

    algorithm: str
    lr: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float


def param_groups(config: OptimConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, ParamSettings]:
    """Path -> settings.

    AdamW decays parameters of rank two and more (nanoGPT). With algorithm=muon, matrices inside the blocks
    (`h.`) go to Muon. Then the first of `optim.groups` that matches a path replaces what it names.

    Raises:
      InputError: a group matches no parameter, or sends one to Muon that is not a matrix.
    """
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
    """Steps taken; first and second moment of AdamW's parameters; momentum of Muon's. Each by path."""

    count: jax.Array
    mu: dict[str, jax.Array]
    nu: dict[str, jax.Array]
    momentum: dict[str, jax.Array]


def optimizer(config: OptimConfig, groups: dict[str, ParamSettings]) -> optax.GradientTransformationExtraArgs:
    """The update of all parameters. Clipping comes before it: see `clip_by_global_norm`."""
    by_algorithm = defaultdict(list)
    for path, setting in groups.items():
        by_algorithm[setting.algorithm].append(path)

    def init(params):
        zeros = {name: {p: jnp.zeros_like(params[p]) for p in paths} for name, paths in by_algorithm.items()}
        adamw = zeros.get("adamw", {})
        return OptimState(
            jnp.zeros((), jnp.int32), mu=adamw, nu=jax.tree.map(jnp.copy, adamw), momentum=zeros.get("muon", {})
        )

    def update(grads, state, params=None, *, hyper, **_):
        assert params is not None, "decoupled weight decay needs the parameters"
        count = state.count + 1
        updates, mu, nu, momentum = {}, {}, {}, {}
        for path in by_algorithm["adamw"]:
            setting = groups[path]
            updates[path], mu[path], nu[path] = adamw(
                params[path], grads[path], state.mu[path], state.nu[path], count,
                lr=setting.lr * hyper["lr_scale"], beta1=setting.beta1, beta2=setting.beta2,
                eps=setting.eps, weight_decay=setting.weight_decay,
            )  # fmt: skip
        directions = {}
        for path in by_algorithm["muon"]:
            directions[path], momentum[path] = muon_momentum(
                grads[path], state.momentum[path], hyper["momentum"], nesterov=config.muon.nesterov
            )
        directions = orthogonalize(directions, steps=config.muon.ns_steps, dtype=config.muon.ns_dtype)
        for path, direction in directions.items():
            setting = groups[path]
            updates[path] = muon(
                params[path], direction, lr=setting.lr * hyper["lr_scale"], weight_decay=setting.weight_decay
            )
        return updates, OptimState(count, mu, nu, momentum)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def global_norm(grads: dict[str, jax.Array]) -> jax.Array:
    """Euclidean norm over all gradients together."""
    return jnp.sqrt(sum((g * g).sum() for g in grads.values()))


def clip_by_global_norm(grads: dict[str, jax.Array], norm: jax.Array, max_norm: float) -> dict[str, jax.Array]:
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), torch's formula; max_norm 0 leaves them."""
    if not max_norm:
        return grads
    scale = jnp.minimum(1.0, max_norm / (norm + CLIP_EPS))
    return {path: g * scale for path, g in grads.items()}


def adamw(param, grad, mu, nu, count, *, lr, beta1, beta2, eps, weight_decay):
    """One AdamW step for one parameter; `count` is 1 at the first. Returns update, mu, nu."""
    count = count.astype(param.dtype)
    mu = beta1 * mu + (1 - beta1) * grad
    nu = beta2 * nu + (1 - beta2) * grad * grad
    mu_hat = mu / (1 - beta1**count)
    nu_hat = nu / (1 - beta2**count)
    return -lr * (mu_hat / (jnp.sqrt(nu_hat) + eps) + weight_decay * param), mu, nu


def muon_momentum(grad, momentum, beta, *, nesterov):
    """Running mean of the gradient, and the direction to orthogonalise. Returns direction, momentum."""
    momentum = momentum + (1 - beta) * (grad - momentum)
    return (grad + beta * (momentum - grad) if nesterov else momentum), momentum


def muon(param_IO, direction_IO, *, lr, weight_decay):
    """The update from an orthogonalised direction; a linear weight here is [in, out]."""
    n_in, n_out = param_IO.shape
    return -lr * (max(1.0, n_out / n_in) ** 0.5 * direction_IO + weight_decay * param_IO)


def orthogonalize(directions: dict[str, jax.Array], *, steps: int, dtype: str) -> dict[str, jax.Array]:
    """Newton-Schulz for many matrices: those of one shape in one stack, each matrix whole.

    Under fsdp the stack is split by matrices, which costs three all-to-alls, instead of the two all-reduces per
    iteration that split matrices would.
    """
    by_shape = defaultdict(list)
    for path, direction in directions.items():
        by_shape[direction.shape].append(path)
    result = {}
    for paths in by_shape.values():
        stack_LIO = shard_stack(pad_stack(jnp.stack([directions[path] for path in paths])))
        stack_LIO = newton_schulz(stack_LIO, steps=steps, dtype=jnp.dtype(dtype))
        result |= {path: stack_LIO[i].astype(directions[path].dtype) for i, path in enumerate(paths)}
    return result


def pad_stack(stack_LIO):
    """Zero matrices up to a multiple of the fsdp axis, so that it divides."""
    mesh = jax.sharding.get_abstract_mesh()
    n_padding = 0 if mesh.empty else -stack_LIO.shape[0] % mesh.shape["fsdp"]
    return jnp.pad(stack_LIO, ((0, n_padding), (0, 0), (0, 0))) if n_padding else stack_LIO


def newton_schulz(x_LIO, *, steps, dtype):
    """Pulls the singular values of each matrix towards 1 by `steps` of a quintic iteration.

    Each is first divided by its Frobenius norm, and turned so that the small side is multiplied out.
    """
    a, b, c = NS_COEFFICIENTS
    is_tall = x_LIO.shape[1] > x_LIO.shape[2]
    x = x_LIO.swapaxes(1, 2) if is_tall else x_LIO
    x = x.astype(dtype)
    norm = jnp.sqrt((x * x).sum(axis=(1, 2), keepdims=True))
    x = x / jnp.maximum(norm, NS_EPS)
    for _ in range(steps):
        gram = x @ x.swapaxes(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.swapaxes(1, 2) if is_tall else x
