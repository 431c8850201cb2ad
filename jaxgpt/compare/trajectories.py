"""What a run of one framework leaves behind, and the runs themselves: the same weights, the same batches.

`run_jax` and `run_torch` take the training steps of a config on one machine, from given weights, and give the numbers
that `jaxgpt.compare` judges. With is_traced they also walk the model layer by layer, forward and backward.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.compare.walks import Arrays, in_order, walk
from jaxgpt.config import Config, HostsConfig, MeshConfig, schedule
from jaxgpt.config.derive import derive
from jaxgpt.config.steps import Plan
from jaxgpt.data.batch import Batch
from jaxgpt.errors import InputError
from jaxgpt.extras import pip_install
from jaxgpt.formats.initial import initial_params
from jaxgpt.models.loss import cross_entropy as jax_cross_entropy
from jaxgpt.parallel.mesh import make_mesh as make_jax_mesh
from jaxgpt.run.opening import open_run
from jaxgpt.run.progress import Show
from jaxgpt.training import step as jax_step


@dataclass(frozen=True)
class Trajectory:
    """One framework's numbers. Arrays are by path, in jaxgpt's layout ([in, out]).

    Attributes:
      logits: of the first microbatch, before the first step.
      grads: of the mean loss of the first batch, before clipping.
      losses, grad_norms: of every step.
      first, last: parameters after the first and after the last step.
      opt_state: leaves of the optimizer's state after the last step.
      places: with is_traced, forward and backward pass of the first microbatch, in the order in which they are made.
    """

    name: str
    logits: np.ndarray
    grads: Arrays
    losses: list[float]
    grad_norms: list[float]
    first: Arrays
    last: Arrays
    opt_state: Arrays
    places: Arrays = field(default_factory=dict)


def settle(config: Config, n_steps: int, dtype: Any, n_ids: int = 0) -> Config:
    """The config as both frameworks run it to be compared: complete, one device, attention spelled out, no dropout.

    Muon's iteration is in float64 where everything else is; the config's dtype for it stays otherwise.
    """
    config = dataclasses.replace(
        config,
        model=config.model.without_dropout(),
        train=dataclasses.replace(config.train, dtype=dtype, attention="xla"),
        mesh=MeshConfig(data=1, platform=choose_platform(config.mesh.platform)),
        hosts=HostsConfig(),
    )
    config = derive(config, n_ids).config
    muon = dataclasses.replace(config.optim.muon, **({"ns_dtype": dtype} if dtype == "float64" else {}))
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, muon=muon),
        train=dataclasses.replace(config.train, steps=max(config.train.steps, n_steps)),
    )


def choose_platform(wanted: str) -> Literal["cpu", "gpu"]:
    """gpu where both frameworks see one, else cpu. Raises InputError where the requested one is not available."""
    torch = import_torch()
    seen = {"jax": jax.default_backend() == "gpu", "torch": torch.cuda.is_available()}
    if wanted not in ("", "cpu") and not (wanted == "gpu" and all(seen.values())):
        blind = ", ".join(name for name, is_there in seen.items() if not is_there) or "torch"
        raise InputError(f"mesh.platform={wanted} is not available for {blind}; drop it to compare on the CPU")
    return "gpu" if all(seen.values()) and wanted != "cpu" else "cpu"


def import_torch() -> Any:
    """The module torch. Raises InputError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"this needs PyTorch; {pip_install('torch')}") from error
    return torch


def refuse_tf32(config: Config) -> None:
    """Raises InputError where a product of float32 may be less than float32 on either side."""
    torch = import_torch()
    precision = config.train.matmul_precision
    if precision != "highest":
        raise InputError(
            f"train.matmul_precision={precision} allows TF32, whose errors hide bugs; "
            "compare with --train.matmul_precision=highest"
        )
    if os.environ.get("NVIDIA_TF32_OVERRIDE", "") == "1":
        raise InputError("NVIDIA_TF32_OVERRIDE=1 turns float32 products into TF32 on both sides; unset it to compare")
    if torch.backends.cuda.matmul.allow_tf32:
        raise InputError("torch.backends.cuda.matmul.allow_tf32=True allows TF32; set it to False to compare")


def read_batches(config: Config, n_steps: int, dtype: str) -> tuple[Config, list[Batch]]:
    """The settled config, and the batches of its first steps."""
    run = open_run(config)
    config = settle(run.config, n_steps, dtype)
    plan, reader = Plan(config, 1), run.source.reader(config)
    try:
        return config, [reader.read(plan.at(step), 0, plan.at(step).n_rows) for step in range(n_steps)]
    finally:
        reader.close()


NEARLY_ZERO = {
    "nanochat": r"(lm_head|smear_gate|h\.\d+\.(attn|mlp)\.c_proj|h\.\d+\.attn\.ve_gate)\.weight|smear_lambda",
    "modded": "nothing",
}
"""Family with weights that start at zero -> those that start near it."""


def draw_params(config: Config) -> Arrays:
    """The weights that jaxgpt starts this run with.

    Where a family starts at or near zero there is noise instead: with an output that is zero, most gradients of the
    first step are too, and would agree whatever the code does.
    """
    mesh = make_jax_mesh(config.mesh)
    with jax.enable_x64(config.train.dtype == "float64"), jax.set_mesh(mesh):
        step = jax_step.make_step(config, mesh)
        fresh = initial_params(config, step.state_shapes.params, step.init_params)
        params = {path: np.asarray(leaf) for path, leaf in fresh.items()}
    pattern = NEARLY_ZERO.get(config.model.family)
    if not pattern or config.train.init_from:
        return params
    rng, std = np.random.default_rng(config.run.seed), 0.5 * config.model.n_embd**-0.5
    return {
        path: leaf
        if leaf.any() and not re.fullmatch(pattern, path)
        else (std * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
        for path, leaf in params.items()
    }


def _stages(config: Config, make: Callable[[Config], Any]) -> list[Any]:
    """A framework's step of each stage; those of one model share theirs, which compiles once."""
    configs = [config.at_stage(i) for i in range(1 + len(config.train.stages))]
    models = [stage.model for stage in configs]
    made = {model: make(configs[models.index(model)]) for model in dict.fromkeys(models)}
    return [made[model] for model in models]


# The two sides


def _be_silent(done: float, total: float | None, amount: str) -> None:
    pass


def run_jax(
    config: Config,
    params: Arrays,
    batches: Sequence[Batch],
    *,
    is_traced: bool = False,
    known: Trajectory | None = None,
    show: Show = _be_silent,
) -> Trajectory:
    """jaxgpt's training steps on these batches, on the devices of config.mesh.

    Args:
      known: a run whose logits and first gradients are this one's too, which saves compiling them.
      show: told after each step.
    """
    with enter_jax(config, params) as (step, placed):
        logits, grads = (known.logits, known.grads) if known else _jax_first_batch(config, step, placed, batches[0])
        places = _jax_places(config, step, placed, batches[0].tokens[0]) if is_traced else {}
        state, losses, norms, first = step.init_state(placed), [], [], {}
        steps = _stages(config, functools.partial(jax_step.make_stage, step))
        for i, batch in enumerate(batches):
            hyper = step.hyper(schedule.hyper_at(config, i))
            state, metrics = steps[schedule.stage_index(config, i)].train(state, batch, hyper)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
            show(i + 1, len(batches), f"{i + 1} of {len(batches)} steps")
            if i == 0:
                first = to_arrays(state.params)
        opt_state = to_arrays(state.opt_state)
        return Trajectory("jaxgpt", logits, grads, losses, norms, first, to_arrays(state.params), opt_state, places)


def first_batch(config: Config, params: Arrays, batch: Batch) -> tuple[np.ndarray, Arrays]:
    """What `run_jax` says of logits and gradients, without the training.

    In float64 operation by operation, which takes a third of the time of compiling them all as one program.
    """
    is_eager = config.train.dtype == "float64"  # in bfloat16 a program rounds less often than its operations
    with enter_jax(config, params) as (step, placed), jax.disable_jit(is_eager):
        return _jax_first_batch(config, step, placed, batch)


@contextlib.contextmanager
def enter_jax(config: Config, params: Arrays) -> Iterator[tuple[jax_step.Step, Any]]:
    """jaxgpt's step, and the parameters on its devices, in the surroundings that both need."""
    mesh = make_jax_mesh(config.mesh)
    with (
        jax.enable_x64(config.train.dtype == "float64"),
        jax.default_matmul_precision("highest"),
        jax.set_mesh(mesh),
    ):
        step = jax_step.make_step(config, mesh)
        shapes = step.state_shapes.params
        yield step, {path: jax.device_put(params[path], shape.sharding) for path, shape in shapes.items()}


def to_arrays(tree: Any) -> Arrays:
    """A jaxgpt tree as path -> numpy, by the names that its checkpoints use."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.array(leaf) for path, leaf in leaves}


def _jax_first_batch(config: Config, step: jax_step.Step, params, batch: Batch) -> tuple[np.ndarray, Arrays]:
    """Logits of the first microbatch, and gradients of the mean loss over all."""
    run = jax.jit(lambda params, rows: _jax_first_pass(config, step, params, rows))
    passes = [run(params, jax.tree.map(lambda a, m=m: a[m], batch)) for m in range(len(batch.tokens))]
    grads = {path: np.sum([np.asarray(grads[path]) for _, grads in passes], axis=0) for path in params}
    return np.asarray(passes[0][0]), {path: grad / count_targets(batch) for path, grad in grads.items()}


def count_targets(batch: Batch) -> int:
    """Targets that count; 1 where a batch of RL has weights that are divided already."""
    if batch.mask is not None and np.asarray(batch.mask).dtype.kind == "f":
        return 1
    return int(batch.tokens[..., 1:].size if batch.mask is None else np.sum(batch.mask))


def _jax_first_pass(config: Config, step: jax_step.Step, params, rows: Batch):
    """Logits, and gradients of the summed loss."""
    module = step.model.bind(params)
    logits_BTV = module.logits(module(rows.tokens[:, :-1]))
    weights_K = step.hyper(schedule.hyper_at(config, 0)).get("target_weights")
    loss = lambda params: jax_step.loss_sum(config, step.model, params, *rows, weights_K=weights_K)[0]  # noqa: E731
    return logits_BTV, jax.grad(loss)(params)


def _jax_places(config: Config, step: jax_step.Step, params, batch_BT) -> Arrays:
    """Zeros are added at each place, so that the gradient with respect to them is that place's."""
    order: list[str] = []

    def forward(params, zeros):
        values = {}
        order.clear()

        def tap(name, x):
            order.append(name)
            values[name] = x if zeros is None else x + zeros[name]
            return values[name]

        module = step.model.bind(params)
        x_BTD = walk(module, batch_BT[:, :-1], tap)
        values["logits"] = module.logits(x_BTD)
        softcap = config.model.logit_cap
        nats, n_tokens = jax_cross_entropy(x_BTD, module.head_weight(), batch_BT[:, 1:], softcap=softcap)
        return nats / n_tokens, values

    def both(params, zeros):
        grads, values = jax.grad(lambda *args: forward(*args), argnums=(0, 1), has_aux=True)(params, zeros)
        return values, *grads

    shapes = jax.eval_shape(lambda params: forward(params, None)[1], params)
    zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items() if name != "logits"}
    values, param_grads, place_grads = jax.jit(both)(params, zeros)
    return in_order(order, *(to_arrays(tree) for tree in (values, param_grads, place_grads)))


def run_torch(
    config: Config,
    params: Arrays,
    batches: Sequence[Batch],
    *,
    is_traced: bool = False,
    show: Show = _be_silent,
) -> Trajectory:
    """torch_ref's, from the same weights.

    Raises:
      InputError: torch is not installed or allows TF32, or the weights are another model's.
    """
    torch = import_torch()
    from torch_ref.models import weights
    from torch_ref.parallel.mesh import make_mesh
    from torch_ref.parallel.sharding import put_rows
    from torch_ref.training import step as torch_step

    mesh = make_mesh(config.mesh)
    step = torch_step.make_step(config, mesh)
    refuse_tf32(config)
    state = step.init_state(weights.to_torch(params))
    batch = put_rows(batches[0], mesh)
    with torch.no_grad():
        module = step.model.bind(state.params)
        logits_BTV = module.logits(module(batch.tokens[0, :, :-1]))
    masks = [None] * len(batch.tokens) if batch.mask is None else batch.mask
    weights_K = step.hyper(schedule.hyper_at(config, 0)).get("target_weights")
    for rows in zip(batch.tokens, masks, strict=True):
        torch_step.loss_sum(config, step.model, state.params, *rows, weights_K=weights_K)[0].backward()
    n_tokens = count_targets(batches[0])
    grads = {path: torch_step.take_grad(param) / n_tokens for path, param in state.params.items()}
    places = _torch_places(config, step, state.params, batch.tokens[0]) if is_traced else {}
    losses, norms, first = [], [], {}
    steps = _stages(config, functools.partial(torch_step.make_stage, step))
    for i, batch in enumerate(batches):
        hyper = step.hyper(schedule.hyper_at(config, i))
        state, metrics = steps[schedule.stage_index(config, i)].train(state, put_rows(batch, mesh), hyper)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
        show(i + 1, len(batches), f"{i + 1} of {len(batches)} steps")
        if i == 0:
            first = weights.to_numpy(state.params)
    opt_state = weights.to_numpy(weights.by_path(state.opt_state, "opt_state"))
    opt_state = {path.removeprefix("opt_state."): leaf for path, leaf in opt_state.items()}
    return Trajectory(
        "torch_ref", _numpy(logits_BTV), weights.to_numpy(grads), losses, norms, first,
        weights.to_numpy(state.params), opt_state, places,
    )  # fmt: skip


def _torch_places(config: Config, step: Any, params, batch_BT) -> Arrays:
    from torch_ref.models.loss import cross_entropy
    from torch_ref.models.weights import to_numpy
    from torch_ref.training.step import take_grad

    values = {}

    def tap(name, x):
        x.retain_grad()
        values[name] = x
        return x

    module = step.model.bind(params)
    x_BTD = walk(module, batch_BT[:, :-1], tap)
    softcap = config.model.logit_cap
    nats, n_tokens = cross_entropy(x_BTD, module.head_weight(), batch_BT[:, 1:], softcap=softcap)
    (nats / n_tokens).backward()
    place_grads = {name: _numpy(x.grad) for name, x in values.items()}
    values["logits"] = module.logits(x_BTD)
    param_grads = to_numpy({path: take_grad(param) for path, param in params.items()})
    return in_order(list(place_grads), {name: _numpy(x) for name, x in values.items()}, param_grads, place_grads)


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
