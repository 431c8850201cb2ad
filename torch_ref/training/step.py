"""jaxgpt/step.py in PyTorch: a Python loop of backward passes over microbatches, the rest on the device as there.

Nothing makes the host wait: a step that is not finite is left out by `torch.where`, and metrics are read when they
have arrived. Parameters stay float32 and are cast where they are used, so there is no autocast. float16's scale is
a part of the state and moves by GradScaler's rule; GradScaler itself reads overflows on the host.

Dropout's numbers come from torch's generator, seeded anew by (seed, step, process, micro step): resume is exact,
but another number of processes draws other ones, unlike in jaxgpt.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from jaxgpt.config import Config
from jaxgpt.config.auto import refuse_open
from jaxgpt.config.param_groups import param_groups
from jaxgpt.data.batch import Batch
from torch_ref.models import Model, init_params, param_shapes
from torch_ref.models.attention import choose_attention
from torch_ref.models.fp8_head import make_fp8_head, require_head
from torch_ref.models.loss import cross_entropy, token_losses
from torch_ref.models.weights import by_path, refuse_foreign, with_leaves
from torch_ref.optim.clip import clip_by_global_norm, global_norm
from torch_ref.optim.optimizer import optimizer
from torch_ref.parallel.hosts import process_count, process_index
from torch_ref.parallel.mesh import Mesh
from torch_ref.parallel.sharding import add_over_processes

LOSS_SCALE_INIT = 2.0**16
LOSS_SCALE_GROWTH_STEPS = 2000


class LossScale(NamedTuple):
    scale: torch.Tensor
    n_good: torch.Tensor


class TrainState(NamedTuple):
    """`step` is on the host, the rest on the device. The tensors of params and opt_state are written in place."""

    step: torch.Tensor
    params: dict[str, nn.Parameter]
    opt_state: dict[str, Any]
    loss_scale: LossScale
    n_skipped: torch.Tensor
    n_skipped_in_row: torch.Tensor


@dataclass(frozen=True)
class Step:
    """As in jaxgpt, with process-local batches.

    Attributes:
      train: (state, batch of [M, B, T + 1], hyper) -> (state, metrics). Donates the state. M and B are this
        process's, metrics are over all.
      evaluate: (params, batch_BT [B, T + 1] int32, masks_BTC [B, T, C]) -> losses_C, in nats, summed over each mask and
        this process's rows.
      init_params: (seed) -> fresh parameters, on the CPU.
      init_state: (params) -> state at step 0. Donates the parameters. Raises InputError where they are another model's.
      put_state: (state on any device, such as a checkpoint's) -> state to train from. Donates it.
      warm_up: (params, batch_BT, weights_K) compiles what train and evaluate call, and changes nothing.
      state_shapes: the state as tensors on the meta device.
      is_compiled: whether forward and backward pass go through torch.compile.
    """

    train: Callable
    evaluate: Callable
    init_params: Callable
    init_state: Callable
    put_state: Callable
    warm_up: Callable
    model: Model
    mesh: Mesh
    state_shapes: TrainState
    attention: tuple[str, str]
    n_rows: int
    is_compiled: bool

    def hyper(self, values: dict[str, Any]) -> dict[str, torch.Tensor]:
        """On the host: torch hands a CPU scalar to a kernel as an argument."""
        dtype = next(iter(self.state_shapes.params.values())).dtype
        return {name: torch.tensor(value, dtype=dtype) for name, value in values.items()}


def param_dtype(config: Config) -> torch.dtype:
    return torch.float64 if config.train.dtype == "float64" else torch.float32


def make_step(config: Config, mesh: Mesh, *, is_compiled: bool = False) -> Step:
    """As in jaxgpt. The matmul precision, which is the process's, is set here.

    Args:
      is_compiled: forward and backward pass go through torch.compile, at their first call.
    """
    refuse_open(config, "this command")
    require_head(config.train, mesh.device)
    set_precision(config)
    model, attention = make_model(config, mesh)
    dtype = param_dtype(config)
    shapes = param_shapes(config.model, dtype)
    sizes = {path: tuple(leaf.shape) for path, leaf in shapes.items()}
    transform = optimizer(config.optim, param_groups(config.optim, sizes))

    def init(params):
        def zero(device):
            return torch.zeros((), dtype=torch.int32, device=device)

        there = next(iter(params.values())).device
        start = LOSS_SCALE_INIT if config.train.dtype == "float16" else 1.0
        scale = LossScale(torch.tensor(start, dtype=dtype, device=there), zero(there))
        return TrainState(zero("cpu"), params, transform.init(params), scale, zero(there), zero(there))

    def own(params):
        refuse_foreign(params, shapes, "the parameters given")
        return {path: nn.Parameter(params[path].detach().to(mesh.device, dtype)) for path in shapes}

    def put_state(state):
        leaves, shapes = by_path(state), by_path(state_shapes)
        refuse_foreign(leaves, shapes, "the state given")
        assert all(leaf.dtype == shapes[path].dtype for path, leaf in leaves.items()), "another train.dtype's state"
        placed = {path: leaf.to("cpu" if path == "step" else mesh.device) for path, leaf in leaves.items()}
        state = with_leaves(state, placed)
        return state._replace(params=own(state.params))

    state_shapes = init(shapes)
    return Step(
        **make_functions(config, model, transform, is_compiled=is_compiled),
        init_params=lambda seed: init_params(config.model, param_dtype=dtype, seed=seed),
        init_state=lambda params: init(own(params)),
        put_state=put_state,
        model=model,
        mesh=mesh,
        state_shapes=state_shapes,
        attention=attention,
        n_rows=config.train.micro_batch_size,
        is_compiled=is_compiled,
    )


def make_stage(step: Step, config: Config) -> Step:
    if config.model == step.model.config and config.train.micro_batch_size == step.n_rows:
        return step
    model, attention = make_model(config, step.mesh)
    sizes = {path: tuple(leaf.shape) for path, leaf in step.state_shapes.params.items()}
    transform = optimizer(config.optim, param_groups(config.optim, sizes))
    functions = make_functions(config, model, transform, is_compiled=step.is_compiled)
    return replace(step, **functions, model=model, attention=attention, n_rows=config.train.micro_batch_size)


def make_model(config: Config, mesh: Mesh) -> tuple[Model, tuple[str, str]]:
    attention = choose_attention(config, mesh.device.type)
    dtype = getattr(torch, config.train.dtype)
    return Model(config.model, dtype=dtype, implementation=attention[0], remat=config.train.remat), attention


def make_functions(config: Config, model: Model, transform, *, is_compiled: bool) -> dict[str, Callable]:
    """Those of a `Step` that compute with the model, by name."""
    loss, losses = (torch.compile(f, dynamic=False) if is_compiled else f for f in (loss_sum, row_losses))
    return {
        "train": functools.partial(train_step, config, model, transform, loss_sum=loss),
        "evaluate": functools.partial(eval_step, config, model, row_losses=losses),
        "warm_up": functools.partial(warm_up, config, model, loss_sum=loss, row_losses=losses),
    }


def set_precision(config: Config) -> None:
    """float32 products in float32 unless the config permits TF32; 16-bit products always summed in float32.

    With train.deterministic PyTorch refuses operations that do not give the same bits each time; cuBLAS reads its part
    when it starts.
    """
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.set_float32_matmul_precision("highest" if config.train.matmul_precision == "highest" else "high")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def loss_sum(config: Config, model: Model, params, batch_BT, mask_BT=None, weights_K=None, dropout_key=None):
    x_BTD, weight_VD, settings = last_hidden(config, model.bind(params), batch_BT, dropout_key)
    settings["head"] = make_fp8_head(config.train)
    settings["logits_dtype"] = x_BTD.dtype if config.train.logits_dtype == "compute" else None
    return cross_entropy(x_BTD, weight_VD, batch_BT[:, 1:], mask_BT, weights_K=weights_K, **settings)


def last_hidden(config: Config, module: Any, batch_BT, dropout_key=None):
    x_BTD = module(batch_BT[:, :-1], dropout_key=dropout_key)
    chunk_len = config.train.loss_chunk_len(x_BTD.shape[1])
    return x_BTD, module.head_weight(), {"chunk_len": chunk_len, "softcap": config.model.logit_cap}


def train_step(
    config: Config, model: Model, transform, state: TrainState, batch: Batch, hyper,
    *, loss_sum=loss_sum,
):  # fmt: skip
    tokens_MBT = batch.tokens
    n_micro, n_rows, _ = tokens_MBT.shape
    expected_tokens = (tokens_MBT.numel() - n_micro * n_rows) * process_count()
    is_scaled = config.train.dtype == "float16"
    scale = state.loss_scale.scale / expected_tokens if is_scaled else torch.ones_like(state.loss_scale.scale)

    counted = torch.stack([torch.zeros_like(scale), torch.zeros_like(scale)])
    masks = batch.mask if batch.mask is not None else [None] * n_micro
    for micro_step, rows in enumerate(zip(tokens_MBT, masks, strict=True)):
        dropout_key = seed_dropout(config, int(state.step), micro_step) if config.model.dropout else None
        loss_nats, n_tokens = loss_sum(
            config, model, state.params, *rows, weights_K=hyper.get("target_weights"), dropout_key=dropout_key
        )
        (loss_nats * scale).backward()
        counted = counted + torch.stack([loss_nats.detach(), n_tokens])

    with torch.no_grad():
        grads = {path: take_grad(param) for path, param in state.params.items()}
        add_over_processes([*grads.values(), counted])
        loss_nats, n_tokens = counted
        count = torch.ones_like(n_tokens) if config.is_rl else torch.clamp(n_tokens, min=1)
        loss = loss_nats / count
        torch._foreach_div_(list(grads.values()), scale * (config.optim.grad_divisor or count))
        norm = global_norm(grads)
        is_finite = torch.isfinite(loss) & torch.isfinite(norm)
        is_applied = is_finite & (norm > 0) if config.is_rl else is_finite

        grads = clip_by_global_norm(grads, norm, config.optim.grad_clip)
        transform.update(grads, state.opt_state, state.params, hyper=hyper, is_finite=is_applied)
        is_fault = ~is_finite & (state.loss_scale.scale <= 1)
        state = state._replace(
            step=state.step + 1,
            loss_scale=next_loss_scale(state.loss_scale, is_finite) if is_scaled else state.loss_scale,
            n_skipped=state.n_skipped + ~is_finite,
            n_skipped_in_row=torch.where(is_fault, state.n_skipped_in_row + 1, 0),
        )
    metrics = {
        "loss": loss,
        "grad_norm": norm,
        "n_skipped": state.n_skipped,
        "n_skipped_in_row": state.n_skipped_in_row,
    }
    return state, send_to_host(metrics)


def seed_dropout(config: Config, step: int, micro_step: int) -> bool:
    """Seeds torch's generators, of all devices; the result stands for jaxgpt's key."""
    key = np.random.SeedSequence([config.run.seed, step, process_index(), micro_step])
    torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))
    return True


def take_grad(param: nn.Parameter) -> torch.Tensor:
    """The gradient that backward passes have summed up; the next sum starts at zero."""
    grad, param.grad = param.grad, None
    assert grad is not None
    return grad


def next_loss_scale(current: LossScale, is_finite) -> LossScale:
    is_due = current.n_good + 1 >= LOSS_SCALE_GROWTH_STEPS
    grown = torch.where(is_due, current.scale * 2, current.scale)
    scale = torch.where(is_finite, grown, torch.clamp(current.scale / 2, min=1))
    n_good = torch.where(is_finite & ~is_due, current.n_good + 1, 0)
    return LossScale(scale, n_good)


def row_losses(config: Config, model: Model, params, batch_BT):
    x_BTD, weight_VD, settings = last_hidden(config, model.bind(params), batch_BT)
    return token_losses(x_BTD, weight_VD, batch_BT[:, 1:], **settings)


@torch.no_grad()
def eval_step(
    config: Config, model: Model, params, batch_BT, masks_BTC, *, row_losses=row_losses
):  # fmt: skip
    losses_BT = row_losses(config, model, params, batch_BT)
    assert masks_BTC.shape[:-1] == losses_BT.shape, f"masks {masks_BTC.shape} of losses {losses_BT.shape}"
    return torch.where(masks_BTC > 0, losses_BT[..., None], 0).sum(dim=(0, 1))


def warm_up(
    config: Config, model: Model, params, batch_BT, weights_K=None, *, loss_sum=loss_sum, row_losses=row_losses
) -> None:
    dropout_key = True if config.model.dropout else None
    loss_nats, _ = loss_sum(config, model, params, batch_BT, weights_K=weights_K, dropout_key=dropout_key)
    loss_nats.backward()
    for param in params.values():
        take_grad(param)
    masks_BTC = torch.ones((*batch_BT[:, 1:].shape, 2), dtype=torch.bool, device=batch_BT.device)
    eval_step(config, model, params, batch_BT, masks_BTC, row_losses=row_losses)


class Arriving:
    """A scalar on its way from the device: `float()` waits for its own step, not for those dispatched since."""

    def __init__(self, host: torch.Tensor, event: Any):
        self._host, self._event = host, event

    def __float__(self) -> float:
        self._event.synchronize()
        return float(self._host)


def send_to_host(metrics: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Starts one copy of all metrics. `float()` of a CUDA tensor would wait for all that was dispatched after it."""
    if not metrics["loss"].is_cuda:
        return metrics
    values = torch.stack([value.to(torch.float64) for value in metrics.values()])
    host = torch.empty(len(values), dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return {name: Arriving(value, event) for name, value in zip(metrics, host.unbind(), strict=True)}
