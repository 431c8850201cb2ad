"""The training step: scan over microbatches, divide once, clip, update; and the state it carries.

One compiled function per kind of batch, `(state, batch, hyper) -> (state, metrics)`, with the state donated. Losses
and gradients are sums over tokens until the one division by the count, so microbatches and devices add exactly.

A step whose loss or gradient is not finite changes nothing but its own counters: `jnp.where` on every leaf, for
0 x NaN is NaN. With float16 the loss is scaled up before the backward pass and the scale follows torch's
GradScaler (halve on overflow, double after 2000 good steps; arXiv:1710.03740).
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxgpt.config import Config
from jaxgpt.config.auto import refuse_open
from jaxgpt.config.param_groups import param_groups
from jaxgpt.data.batch import Batch
from jaxgpt.models import Model, init_params, param_shapes
from jaxgpt.models.attention import choose_attention
from jaxgpt.models.fp8_head import make_fp8_head, require_head
from jaxgpt.models.loss import cross_entropy, token_losses
from jaxgpt.optim.clip import clip_by_global_norm, global_norm
from jaxgpt.optim.optimizer import optimizer
from jaxgpt.parallel.compiler_options import compiler_options
from jaxgpt.parallel.sharding import batch_sharding, replicated, shard_params

LOSS_SCALE_INIT = 2.0**16
LOSS_SCALE_GROWTH_STEPS = 2000


class LossScale(NamedTuple):
    """float16's loss scale, and good steps since it last changed. 1 and unused for other dtypes."""

    scale: jax.Array
    n_good: jax.Array


class TrainState(NamedTuple):
    """Everything that a run resumes from. `step` counts batches consumed, skipped ones too."""

    step: jax.Array
    params: dict[str, jax.Array]
    opt_state: dict[str, Any]
    loss_scale: LossScale
    n_skipped: jax.Array
    n_skipped_in_row: jax.Array


@dataclass(frozen=True)
class Step:
    """The compiled functions of a run, and where their arguments live.

    Attributes:
      train: (state, batch of [M, B, T + 1], hyper) -> (state, metrics). Donates the state.
      evaluate: (params, batch_BT [B, T + 1] int32, masks_BTC [B, T, C]) -> losses_C, in nats, summed over each mask.
      init_params: (seed) -> fresh parameters.
      init_state: (params) -> state at step 0. Donates the parameters.
      state_shapes: the state as ShapeDtypeStructs with shardings: what a checkpoint restores into.
      attention: the implementation that runs, and why.
      n_rows: of a microbatch on each device.
    """

    train: Callable
    evaluate: Callable
    init_params: Callable
    init_state: Callable
    model: Model
    mesh: Mesh
    state_shapes: TrainState
    attention: tuple[str, str]
    n_rows: int

    def hyper(self, values: dict[str, Any]) -> dict[str, np.ndarray]:
        """Schedules as arrays of the parameters' dtype; Python floats would be traced as weak types."""
        dtype = next(iter(self.state_shapes.params.values())).dtype
        return {name: np.asarray(value, dtype) for name, value in values.items()}


@dataclass(frozen=True)
class Evaluator:
    """What an evaluation needs of a `Step`: no optimizer and no state."""

    evaluate: Callable
    mesh: Mesh


def param_dtype(config: Config):
    """float32 masters, or float64 when everything is."""
    return jnp.float64 if config.train.dtype == "float64" else jnp.float32


def make_step(config: Config, mesh: Mesh) -> Step:
    """Builds the step for a config on a mesh. Nothing is compiled or allocated yet.

    Raises:
      InputError: a parameter cannot be split as the mesh wants, a parameter group matches nothing, or the attention
        or the head's dtype asked for cannot run.
    """
    refuse_open(config, "this command")
    require_head(config.train, mesh.devices.flat[0])
    model, attention = make_model(config, mesh)
    dtype = param_dtype(config)
    shapes = param_shapes(config.model, dtype)
    transform = make_optimizer(config, shapes)

    init = functools.partial(init_state, config, transform)
    state_shapes = place_state(config, init, shapes, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state_shapes)
    param_shardings = shardings.params
    train = jit_train(config, model, transform, shardings, mesh)
    evaluate = jit_evaluate(config, model, param_shardings, mesh)
    fresh = jax.jit(lambda seed: init_params(config.model, param_dtype=dtype, seed=seed), out_shardings=param_shardings)
    begin = jax.jit(init, out_shardings=shardings, donate_argnums=0)
    rows = config.train.micro_batch_size
    return Step(train, evaluate, fresh, begin, model, mesh, state_shapes, attention, rows)


def make_stage(step: Step, config: Config) -> Step:
    """The step of a later stage of a run: the same state on the same mesh, another model of the same parameters.

    Args:
      step: of the run's config.
      config: `Config.at_stage` of it, or `Config.at_evaluation`.

    Raises:
      InputError: the attention asked for cannot run.
    """
    if config.model == step.model.config and config.train.micro_batch_size == step.n_rows:
        return step
    model, attention = make_model(config, step.mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, step.state_shapes)
    transform = make_optimizer(config, step.state_shapes.params)
    return replace(
        step,
        train=jit_train(config, model, transform, shardings, step.mesh),
        evaluate=jit_evaluate(config, model, shardings.params, step.mesh),
        model=model,
        attention=attention,
        n_rows=config.train.micro_batch_size,
    )


def make_evaluator(config: Config, mesh: Mesh) -> Evaluator:
    """The evaluation of a config's model alone, whose parameters each device holds whole, lighter ones too.

    Raises InputError as `make_step`, but for the splits of parameters and their groups.
    """
    return Evaluator(jit_evaluate(config, make_model(config, mesh)[0], replicated(mesh), mesh), mesh)


def make_model(config: Config, mesh: Mesh) -> tuple[Model, tuple[str, str]]:
    """The model as a run computes with it, and what `choose_attention` chose for it."""
    device = mesh.devices.flat[0]
    attention = choose_attention(config, device.platform, device.device_kind)
    model = Model(config.model, dtype=config.train.dtype, implementation=attention[0], remat=config.train.remat)
    return model, attention


def jit_train(config: Config, model: Model, transform, shardings: TrainState, mesh: Mesh) -> Callable:
    """`train_step`, to be compiled for a mesh."""
    scalars = replicated(mesh)
    precision = jax.default_matmul_precision(config.train.matmul_precision)
    return jax.jit(
        precision(functools.partial(train_step, config, model, transform)),
        in_shardings=(shardings, batch_sharding(mesh, 1), scalars),
        out_shardings=(shardings, scalars),
        donate_argnums=0,
        compiler_options=compiler_options(config.train, mesh),
    )


def jit_evaluate(config: Config, model: Model, param_shardings: Any, mesh: Mesh) -> Callable:
    """`eval_step`, to be compiled for a mesh; one sharding, or one for each parameter."""
    precision = jax.default_matmul_precision(config.train.matmul_precision)
    return jax.jit(
        precision(functools.partial(eval_step, config, model)),
        in_shardings=(param_shardings, batch_sharding(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(config.train, mesh),
    )


def make_optimizer(config: Config, shapes: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a config for parameters of these shapes."""
    return optimizer(config.optim, param_groups(config.optim, {path: leaf.shape for path, leaf in shapes.items()}))


def init_state(config: Config, transform, params) -> TrainState:
    """The state at step 0."""
    zero = jnp.zeros((), jnp.int32)
    dtype = next(iter(params.values())).dtype
    scale = LossScale(jnp.asarray(LOSS_SCALE_INIT if config.train.dtype == "float16" else 1.0, dtype), zero)
    return TrainState(zero, params, transform.init(params), scale, zero, zero)


def place_state(config: Config, init: Callable, shapes: dict[str, jax.ShapeDtypeStruct], mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs with shardings: parameters by the family's rules.

    A leaf of the optimizer's state whose name ends in a parameter's path is split like it if it has its shape, too;
    every other leaf is whole on each device.

    Args:
      init: (params) -> state; only traced.
      mesh: may be abstract, without real devices.
    """
    shardings = shard_params({path: leaf.shape for path, leaf in shapes.items()}, config.model, mesh)

    def place(keys, leaf):
        path = getattr(keys[-1], "key", "")
        is_alike = path in shapes and leaf.shape == shapes[path].shape
        sharding = shardings[path] if is_alike else replicated(mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map_with_path(place, jax.eval_shape(init, shapes))


def device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of the part of an array that one device holds."""
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def loss_sum(config: Config, model: Model, params, batch_BT, mask_BT=None, weights_K=None, dropout_key=None):
    """Summed loss and token count of rows of T + 1 tokens; position t predicts token t + 1, or t + 1 .. t + K."""
    x_BTD, weight_VD, settings = last_hidden(config, model.bind(params), batch_BT, dropout_key)
    settings["head"] = make_fp8_head(config.train)
    settings["logits_dtype"] = x_BTD.dtype if config.train.logits_dtype == "compute" else None
    return cross_entropy(x_BTD, weight_VD, batch_BT[:, 1:], mask_BT, weights_K=weights_K, **settings)


def last_hidden(config: Config, module: Any, batch_BT, dropout_key=None):
    """Hidden states of all but the last token, the head, and how the loss is to be computed from them."""
    x_BTD = module(batch_BT[:, :-1], dropout_key=dropout_key)
    chunk_len = config.train.loss_chunk_len(x_BTD.shape[1])
    return x_BTD, module.head_weight(), {"chunk_len": chunk_len, "softcap": config.model.logit_cap}


def train_step(config: Config, model: Model, transform, state: TrainState, batch: Batch, hyper):
    """One optimizer step; see the module's docstring. Metrics are float scalars, loss in nats per token.

    Args:
      hyper: what `schedule.hyper_at` gives; with target_weights the loss is that of several targets per token.

    In RL the mask's weights are divided already, and a gradient of zero changes nothing: where all answers to each
    question earn the same, old moments would still move the weights (as in nanochat, whose Adam takes such steps).
    """
    dtype = state.loss_scale.scale.dtype
    tokens_MBT = batch.tokens
    n_micro, n_rows, _ = tokens_MBT.shape
    expected_tokens = tokens_MBT.size - n_micro * n_rows
    scale = state.loss_scale.scale / expected_tokens if config.train.dtype == "float16" else jnp.ones((), dtype)
    base_key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)

    def scaled_loss(params, rows: Batch, dropout_key):
        loss_nats, n_tokens = loss_sum(
            config, model, params, *rows, weights_K=hyper.get("target_weights"), dropout_key=dropout_key
        )
        return loss_nats * scale, (loss_nats, n_tokens)

    def add_microbatch(sums, inputs):
        micro_step, rows = inputs
        dropout_key = jax.random.fold_in(base_key, micro_step) if config.model.dropout else None
        grads, (loss_nats, n_tokens) = jax.grad(scaled_loss, has_aux=True)(state.params, rows, dropout_key)
        return jax.tree.map(jnp.add, sums, (grads, loss_nats, n_tokens)), None

    zero = jnp.zeros((), dtype)
    sums = (jax.tree.map(jnp.zeros_like, state.params), zero, zero)
    sums, _ = jax.lax.scan(add_microbatch, sums, (jnp.arange(n_micro), batch))
    grads, loss_nats, n_tokens = sums
    count = jnp.ones_like(n_tokens) if config.is_rl else jnp.maximum(n_tokens, 1)
    loss = loss_nats / count
    divisor = scale * (config.optim.grad_divisor or count)
    grads = {path: g / divisor for path, g in grads.items()}
    norm = global_norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    is_applied = is_finite & (norm > 0) if config.is_rl else is_finite

    updates, opt_state = transform.update(
        clip_by_global_norm(grads, norm, config.optim.grad_clip), state.opt_state, state.params, hyper=hyper
    )
    params = {path: p + updates[path] for path, p in state.params.items()}
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_applied, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    is_fault = ~is_finite & (state.loss_scale.scale <= 1)
    state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        loss_scale=next_loss_scale(state.loss_scale, is_finite)
        if config.train.dtype == "float16"
        else state.loss_scale,
        n_skipped=state.n_skipped + ~is_finite,
        n_skipped_in_row=jnp.where(is_fault, state.n_skipped_in_row + 1, 0),
    )
    metrics = {
        "loss": loss,
        "grad_norm": norm,
        "n_skipped": state.n_skipped,
        "n_skipped_in_row": state.n_skipped_in_row,
    }
    return state, metrics


def next_loss_scale(current: LossScale, is_finite) -> LossScale:
    """Half after an overflow (not below 1), double after enough good steps in a row."""
    is_due = current.n_good + 1 >= LOSS_SCALE_GROWTH_STEPS
    grown = jnp.where(is_due, current.scale * 2, current.scale)
    scale = jnp.where(is_finite, grown, jnp.maximum(current.scale / 2, 1))
    n_good = jnp.where(is_finite & ~is_due, current.n_good + 1, 0)
    return LossScale(scale, n_good)


def row_losses(config: Config, model: Model, params, batch_BT):
    """The loss of each position of rows of T + 1 tokens, [B, T]."""
    x_BTD, weight_VD, settings = last_hidden(config, model.bind(params), batch_BT)
    return token_losses(x_BTD, weight_VD, batch_BT[:, 1:], **settings)


def eval_step(config: Config, model: Model, params, batch_BT, masks_BTC):
    """The loss of a batch without dropout, summed over each of C masks: where one is 0 a token does not count."""
    losses_BT = row_losses(config, model, params, batch_BT)
    assert masks_BTC.shape[:-1] == losses_BT.shape, f"masks {masks_BTC.shape} of losses {losses_BT.shape}"
    return jnp.where(masks_BTC > 0, losses_BT[..., None], 0).sum(axis=(0, 1))
