"""The PyTorch side of `jaxgpt bench --vs torch`, which starts this and asks it by `jaxgpt.bench.interleave`.

    python -m jaxgpt.bench.torch_workload PART eager|compiled --config FILE [--section.field=value ...]

PART is step, attention, loss or optimizer: the same work as in jaxgpt/bench/workload.py, on the same batches.
"""

import functools
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from jaxgpt.bench.interleave import serve
from jaxgpt.config import Config, schedule
from jaxgpt.config.command_line import parse_args
from jaxgpt.config.param_groups import param_groups
from jaxgpt.config.steps import Plan
from jaxgpt.data.prefetch import prefetch
from jaxgpt.errors import InputError, run_verb
from jaxgpt.run.opening import open_run
from torch_ref.models.attention import attention
from torch_ref.models.loss import cross_entropy
from torch_ref.optim.clip import clip_by_global_norm, global_norm
from torch_ref.optim.optimizer import optimizer
from torch_ref.parallel.devices import open_devices
from torch_ref.parallel.mesh import Mesh, count_batch_devices
from torch_ref.training.feed import make_feed
from torch_ref.training.step import Step, make_step

WARM_UP_STEPS = 3
MODES = ("eager", "compiled")


def main(args: list[str]) -> int:
    if len(args) < 2 or args[0] not in PARTS or args[1] not in MODES:
        raise InputError(f"start this by jaxgpt bench --vs torch; parts: {', '.join(PARTS)}")
    part, mode, *rest = args
    config = parse_args(rest)
    return serve(lambda: begin(config, part, is_compiled=mode == "compiled"))


class Timed:
    """A function, repeated. An `interleave.Workload`."""

    def __init__(self, mesh: Mesh, function: Callable[[], Any], about: dict[str, Any]):
        self._mesh, self._function = mesh, function
        begin = time.perf_counter()
        for _ in range(WARM_UP_STEPS):
            self.settle(self.dispatch())
        self.about = {
            "device": mesh.device_kind,
            "n_devices": mesh.size,
            "versions": {"torch": str(torch.__version__)},
            "compile_s": time.perf_counter() - begin,
            **about,
        }

    def dispatch(self) -> Any:
        return self._function()

    def settle(self, pending: Any) -> None:
        if isinstance(pending, dict):
            float(pending["loss"])
        elif self._mesh.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_bytes(self) -> int:
        if self._mesh.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._mesh.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def trace(self, directory: str, n_steps: int) -> list[dict[str, Any]]:
        is_cuda = self._mesh.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as recorded:
            for _ in range(n_steps):
                self.settle(self.dispatch())
        Path(directory).mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(Path(directory, "trace.json")))
        own_us = {
            event.key: (event.self_device_time_total if is_cuda else event.self_cpu_time_total, event.count)
            for event in recorded.key_averages()
        }
        total_us = sum(us for us, _ in own_us.values())
        return [
            {"name": name, "self_s": us / n_steps / 1e6, "share": us / total_us, "count": count / n_steps}
            for name, (us, count) in sorted(own_us.items(), key=lambda item: -item[1][0])
        ]


def begin(config: Config, part: str, *, is_compiled: bool) -> Timed:
    """The workload, warm.

    Raises:
      InputError: the data, the mesh or the model of the config is not possible here.
    """
    run = open_run(config)
    config = run.config.without_stages()
    mesh = open_devices(config)
    step = make_step(config, mesh, is_compiled=is_compiled)
    return PARTS[part](config, step, run.source, is_compiled)


def training_step(config: Config, step: Step, source, is_compiled: bool) -> Timed:
    """The step as `torch_ref.train` runs it."""
    plan = Plan(config, count_batch_devices(step.mesh))
    state = step.init_state(step.init_params(config.run.seed))
    feed = prefetch(make_feed(plan, source.reader(config), step.mesh, is_endless=True))

    def take_step():
        nonlocal state
        planned, batch, _ = next(feed)
        state, metrics = step.train(state, batch, step.hyper(planned.hyper))
        return metrics

    return Timed(step.mesh, take_step, {"attention": ", ".join(step.attention)})


def attention_part(config: Config, step: Step, source, is_compiled: bool) -> Timed:
    """Forward and backward pass of one layer's attention, over one microbatch."""
    model, device = config.model, step.mesh.device
    dtype, shape = getattr(torch, config.train.dtype), (config.train.micro_batch_size, model.seq_len)
    heads = (model.n_head, model.n_kv_head, model.n_kv_head, model.n_head)
    q_BTNH, k_BTKH, v_BTKH, d_y_BTNH = (
        torch.randn((*shape, n, model.head_dim), device=device).to(dtype) for n in heads
    )  # fmt: skip
    inputs = [x.requires_grad_() for x in (q_BTNH, k_BTKH, v_BTKH)]
    run = functools.partial(attention, implementation=step.attention[0])
    run = torch.compile(run, dynamic=False) if is_compiled else run

    def forward_and_backward():
        y_BTNH = run(*inputs)
        return y_BTNH, torch.autograd.grad(y_BTNH, inputs, d_y_BTNH)

    return Timed(step.mesh, forward_and_backward, {"attention": ", ".join(step.attention)})


def loss_part(config: Config, step: Step, source, is_compiled: bool) -> Timed:
    """The head and the cross-entropy of one microbatch with their gradients."""
    model, device, n_rows = config.model, step.mesh.device, config.train.micro_batch_size
    vocab_size = config.model.vocab_size
    x_BTD = torch.randn((n_rows, model.seq_len, model.n_embd), device=device).to(getattr(torch, config.train.dtype))
    dtype = next(iter(step.state_shapes.params.values())).dtype
    weight_VD = 0.02 * torch.randn((vocab_size, model.n_embd), device=device, dtype=dtype)
    targets_BT = torch.randint(0, vocab_size, (n_rows, model.seq_len), device=device)
    inputs = [x.requires_grad_() for x in (x_BTD, weight_VD)]
    chunk_len = config.train.loss_chunk_len(model.seq_len)
    logits_dtype = dtype if config.train.logits_dtype == "compute" else None
    run = functools.partial(cross_entropy, chunk_len=chunk_len, softcap=model.logit_cap, logits_dtype=logits_dtype)
    run = torch.compile(run, dynamic=False) if is_compiled else run

    def forward_and_backward():
        loss, _ = run(x_BTD, weight_VD, targets_BT)
        return loss, torch.autograd.grad(loss, inputs)

    return Timed(step.mesh, forward_and_backward, {})


def optimizer_part(config: Config, step: Step, source, is_compiled: bool) -> Timed:
    """Clipping and the update of all parameters, from given gradients. Never compiled, as in the step."""
    state = step.init_state(step.init_params(config.run.seed))
    grads = {path: torch.randn_like(param) for path, param in state.params.items()}
    groups = param_groups(config.optim, {path: tuple(param.shape) for path, param in state.params.items()})
    transform, hyper = optimizer(config.optim, groups), step.hyper(schedule.hyper_at(config, 0))
    is_finite = torch.ones((), dtype=torch.bool, device=step.mesh.device)

    @torch.no_grad()
    def update():
        clipped = clip_by_global_norm(grads, global_norm(grads), config.optim.grad_clip)
        transform.update(clipped, state.opt_state, state.params, hyper=hyper, is_finite=is_finite)

    return Timed(step.mesh, update, {})


PARTS = {
    "step": training_step,
    "attention": attention_part,
    "loss": loss_part,
    "optimizer": optimizer_part,
}

if __name__ == "__main__":
    run_verb(main)
