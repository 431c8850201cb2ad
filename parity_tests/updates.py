"""Optimizer steps alone, of either framework, on given gradients: what a bug in an update needs to show.

The pieces are those of the training step (clipping, schedule, groups, update), but no model runs and nothing is
compiled as a whole, which makes a second of what takes ten.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxgpt.compare.trajectories import Arrays, enter_jax, import_torch, to_arrays
from jaxgpt.config import Config, schedule
from jaxgpt.training import step as jax_step

Update = tuple[Arrays, Arrays, Arrays]
"""Parameters after the first step, after the last one, and the optimizer's state then."""


def draw_gradients(grads: Arrays, n_steps: int) -> list[Arrays]:
    """One set a step: these with noise of their own size, so that means over steps are not the gradients themselves."""
    rng = np.random.default_rng(0)
    sizes = {path: np.sqrt(np.mean(np.square(grad))) for path, grad in grads.items()}
    return [
        {path: (g + sizes[path] * rng.standard_normal(g.shape)).astype(g.dtype) for path, g in grads.items()}
        for _ in range(n_steps)
    ]


def update_jax(config: Config, params: Arrays, gradients: Sequence[Arrays]) -> Update:
    """jaxgpt's optimizer, on the device of config.mesh."""
    with enter_jax(config, params) as (step, placed):
        current: Any = placed
        shapes = {path: leaf.shape for path, leaf in current.items()}
        transform = jax_step.optimizer(config.optim, jax_step.param_groups(config.optim, shapes))
        state, first = transform.init(current), {}
        for i, arrays in enumerate(gradients):
            grads = {path: jnp.asarray(grad) for path, grad in arrays.items()}
            grads = jax_step.clip_by_global_norm(grads, jax_step.global_norm(grads), config.optim.grad_clip)
            hyper = step.hyper(schedule.hyper_at(config, i))
            updates, state = transform.update(grads, state, current, hyper=hyper)
            current = optax.apply_updates(current, updates)
            first = first or to_arrays(current)
        return first, to_arrays(current), to_arrays(state)


def update_torch(config: Config, params: Arrays, gradients: Sequence[Arrays]) -> Update:
    """torch_ref's."""
    torch = import_torch()
    from torch_ref.models import weights
    from torch_ref.parallel.mesh import make_mesh
    from torch_ref.training import step as torch_step

    step = torch_step.make_step(config, make_mesh(config.mesh))
    current = step.init_state(weights.to_torch(params)).params
    shapes = {path: tuple(leaf.shape) for path, leaf in current.items()}
    transform = torch_step.optimizer(config.optim, torch_step.param_groups(config.optim, shapes))
    state, first = transform.init(current), {}
    with torch.no_grad():
        for i, arrays in enumerate(gradients):
            grads = weights.to_torch(arrays)
            grads = torch_step.clip_by_global_norm(grads, torch_step.global_norm(grads), config.optim.grad_clip)
            hyper = step.hyper(schedule.hyper_at(config, i))
            transform.update(grads, state, current, hyper=hyper, is_finite=torch.tensor(True))
            first = first or weights.to_numpy(current)
    opt_state = weights.to_numpy(weights.by_path(state, "opt_state"))
    return (
        first, weights.to_numpy(current), {path.removeprefix("opt_state."): leaf for path, leaf in opt_state.items()}
    )  # fmt: skip
