"""AdamW and Muon as one optax transformation over a flat dict of parameters, with settings by path.

`jaxgpt.config.param_groups` decides on the host, once, what happens to each parameter; `optimizer` is the arithmetic.
Schedules come in as an extra argument, `hyper = {"lr_scale", "momentum", "decay_scale"}`, so they never recompile.

AdamW is torch.optim.AdamW (decoupled decay, arXiv:1711.05101; epsilon outside the root). Muon is Keller Jordan's
(https://kellerjordan.github.io/posts/muon, arXiv:2502.16982): momentum as a running mean, Nesterov by a second lerp,
Newton-Schulz, step times sqrt(max(1, out / in)). optax.contrib.muon corrects a bias inside Nesterov, which the
originals do not, and differs by 15 % at step 2. `optim.muon` switches on what nanochat of 2026 adds: Polar Express
(arXiv:2505.16932), rows of one norm before it, one Frobenius norm after it, NorMuon (arXiv:2510.05491), cautious decay
(arXiv:2510.12402).
"""

from collections import defaultdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgpt.config.optimizer import MuonConfig, OptimConfig
from jaxgpt.config.param_groups import ParamSettings
from jaxgpt.parallel.sharding import shard_stack

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic iteration whose slope at zero is as steep as it can be; it ends in a band around 1, not at 1."""
NS_EPS = 1e-7
"""Smallest norm that Newton-Schulz divides by."""
POLAR_EXPRESS = (
    (8.1566, -22.4833, 15.8788),
    (4.0429, -2.8089, 0.5000),
    (3.8917, -2.7725, 0.5061),
    (3.2858, -2.3681, 0.4645),
    (2.3465, -1.7098, 0.4232),
)
"""Five quintics, each the best for the band that the one before it leaves."""
POLAR_MARGIN, POLAR_EPS = 1.01, 1e-6
"""Polar Express divides by 1.01 x norm + 1e-6: the largest singular value stays below 1 through rounding."""
ROW_EPS = 1e-7
"""Rows whose norm is below this part of the matrix's are noise, and are not brought up to the others."""
NORMUON_EPS = 1e-10
"""Smallest mean square, and smallest norm, that NorMuon divides by."""
CLIP_EPS = 1e-6
"""torch.nn.utils.clip_grad_norm_ adds this to the norm; optax does not."""


class OptimState(NamedTuple):
    """Steps taken; moments of AdamW's parameters; momentum of Muon's, and NorMuon's mean squares. Each by path."""

    count: jax.Array
    mu: dict[str, jax.Array]
    nu: dict[str, jax.Array]
    momentum: dict[str, jax.Array]
    square: dict[str, jax.Array]


def optimizer(config: OptimConfig, groups: dict[str, ParamSettings]) -> optax.GradientTransformationExtraArgs:
    """The update of all parameters. Clipping comes before it: see `clip_by_global_norm`."""
    by_algorithm = defaultdict(list)
    for path, setting in groups.items():
        by_algorithm[setting.algorithm].append(path)

    def init(params):
        zeros = {name: {p: jnp.zeros_like(params[p]) for p in paths} for name, paths in by_algorithm.items()}
        adamw, momentum = zeros.get("adamw", {}), zeros.get("muon", {})
        square = (
            {path: jnp.zeros_like(mean_square(m)) for path, m in momentum.items()} if config.muon.norm_beta2 else {}
        )
        return OptimState(
            jnp.zeros((), jnp.int32), mu=adamw, nu=jax.tree.map(jnp.copy, adamw), momentum=momentum, square=square
        )

    def update(grads, state, params=None, *, hyper, **_):
        assert params is not None, "decoupled weight decay needs the parameters"
        count = state.count + 1
        updates, mu, nu, momentum, square = {}, {}, {}, {}, {}
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
        directions = orthogonalize(directions, config.muon)
        for path, direction in directions.items():
            setting = groups[path]
            if config.muon.norm_beta2:
                direction, square[path] = normuon(direction, state.square[path], config.muon.norm_beta2)
            updates[path] = muon(
                params[path], direction, lr=setting.lr * hyper["lr_scale"],
                weight_decay=setting.weight_decay * hyper["decay_scale"], cautious=config.muon.cautious,
            )  # fmt: skip
        return updates, OptimState(count, mu, nu, momentum, square)

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


def muon(param_IO, direction_IO, *, lr, weight_decay, cautious):
    """The update from an orthogonalised direction; a linear weight here is [in, out].

    Args:
      cautious: decay only what the direction shrinks too, by the scaled learning rate (nanochat 2026).
    """
    n_in, n_out = param_IO.shape
    scale = max(1.0, n_out / n_in) ** 0.5
    if cautious:
        is_shrinking_IO = (direction_IO * param_IO >= 0).astype(param_IO.dtype)
        return -lr * scale * (direction_IO + weight_decay * param_IO * is_shrinking_IO)
    return -lr * (scale * direction_IO + weight_decay * param_IO)


def mean_square(direction_IO):
    """Of a matrix along its shorter side, keeping the axis; of a square one along the inputs."""
    n_in, n_out = direction_IO.shape
    return (direction_IO * direction_IO).mean(axis=0 if n_out >= n_in else 1, keepdims=True)


def normuon(direction_IO, square, beta2):
    """Divides each output (or input, of wide matrices) by its running root mean square; the matrix keeps its norm.

    Args:
      square: running mean of `mean_square`, not corrected for its start at zero.

    Returns:
      direction, square.
    """
    now = mean_square(direction_IO)
    square = square + (1 - beta2) * (now - square)
    n_averaged = direction_IO.size // now.size
    step = jax.lax.rsqrt(jnp.maximum(square, NORMUON_EPS))
    norm, new_norm = (jnp.sqrt(n_averaged * s.sum()) for s in (now, now * step * step))
    return direction_IO * (step * (norm / jnp.maximum(new_norm, NORMUON_EPS))), square


def orthogonalize(directions: dict[str, jax.Array], config: MuonConfig) -> dict[str, jax.Array]:
    """The nearest orthogonal matrices, roughly: those of one shape in one stack, each matrix whole.

    Under fsdp the stack is split by matrices, which costs three all-to-alls, instead of the two all-reduces per
    iteration that split matrices would.
    """
    iterate = {"newton_schulz": newton_schulz, "polar_express": polar_express}[config.orthogonalizer]
    by_shape = defaultdict(list)
    for path, direction in directions.items():
        by_shape[direction.shape].append(path)
    result = {}
    for paths in by_shape.values():
        stack_LIO = shard_stack(pad_stack(jnp.stack([directions[path] for path in paths])))
        if config.equilibrate_rows:
            stack_LIO = equilibrate_rows(stack_LIO)
        stack_LIO = iterate(stack_LIO, steps=config.ns_steps, dtype=jnp.dtype(config.ns_dtype))
        stack_LIO = stack_LIO.astype(directions[paths[0]].dtype)
        if config.renormalize:
            stack_LIO = renormalize(stack_LIO)
        result |= {path: stack_LIO[i] for i, path in enumerate(paths)}
    return result


def frobenius_norm(x_LIO):
    """Of each matrix, [L, 1, 1]."""
    return jnp.sqrt((x_LIO * x_LIO).sum(axis=(1, 2), keepdims=True))


def equilibrate_rows(x_LIO):
    """Gives the weights of each output one norm, and the matrix the norm that it had (MuonEq)."""
    norm_L11 = frobenius_norm(x_LIO)
    row_norm_L1O = jnp.sqrt((x_LIO * x_LIO).sum(axis=1, keepdims=True))
    smallest_L11 = jnp.maximum(ROW_EPS * norm_L11, jnp.finfo(x_LIO.dtype).tiny)
    return x_LIO * (norm_L11 * x_LIO.shape[2] ** -0.5 / jnp.maximum(row_norm_L1O, smallest_L11))


def renormalize(x_LIO):
    """Gives each matrix the Frobenius norm of an orthogonal one of its shape (Muon+)."""
    target = min(x_LIO.shape[1:]) ** 0.5
    return x_LIO * (target / jnp.maximum(frobenius_norm(x_LIO), NS_EPS))


def pad_stack(stack_LIO):
    """Zero matrices up to a multiple of the fsdp axis, so that it divides."""
    mesh = jax.sharding.get_abstract_mesh()
    n_padding = 0 if mesh.empty else -stack_LIO.shape[0] % mesh.shape["fsdp"]
    return jnp.pad(stack_LIO, ((0, n_padding), (0, 0), (0, 0))) if n_padding else stack_LIO


def newton_schulz(x_LIO, *, steps, dtype):
    """Pulls the singular values of each matrix towards 1 by `steps` of a quintic iteration.

    Each is first divided by its Frobenius norm, and turned so that the small side is multiplied out.
    """
    is_tall = x_LIO.shape[1] > x_LIO.shape[2]
    x = x_LIO.swapaxes(1, 2) if is_tall else x_LIO
    x = x.astype(dtype)
    x = x / jnp.maximum(frobenius_norm(x), NS_EPS)
    for _ in range(steps):
        x = quintic(x, NS_COEFFICIENTS)
    return x.swapaxes(1, 2) if is_tall else x


def polar_express(x_LIO, *, steps, dtype):
    """As `newton_schulz`, but each of up to five iterations has its own coefficients (arXiv:2505.16932)."""
    is_tall = x_LIO.shape[1] > x_LIO.shape[2]
    x = x_LIO.swapaxes(1, 2) if is_tall else x_LIO
    x = x.astype(dtype)
    x = x / (POLAR_MARGIN * frobenius_norm(x) + POLAR_EPS)
    for coefficients in POLAR_EXPRESS[:steps]:
        x = quintic(x, coefficients)
    return x.swapaxes(1, 2) if is_tall else x


def quintic(x_LIO, coefficients):
    """a x + b x^3 + c x^5 on the singular values of wide matrices.

    Products in x's dtype, sums in float32 or wider: JAX rounds a Python number to the dtype that it meets, and
    coefficients of bfloat16 would leave the result up to 3 % too short.
    """
    wide = jnp.promote_types(x_LIO.dtype, jnp.float32)
    a, b, c = (jnp.asarray(coefficient, wide) for coefficient in coefficients)
    gram = x_LIO @ x_LIO.swapaxes(1, 2)
    polynomial = b * gram + c * (gram @ gram)
    return (a * x_LIO + polynomial.astype(x_LIO.dtype) @ x_LIO).astype(x_LIO.dtype)
