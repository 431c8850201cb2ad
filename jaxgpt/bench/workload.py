"""What a benchmark repeats: the real training step of a config, or one part of it at the config's shapes.

The training step is that of `jaxgpt.train`: the same compiled function, batches read and put on the device ahead in a
thread, schedules made by the host, metrics read one step late.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.bench.profile import find_costliest, record
from jaxgpt.config import Config, schedule
from jaxgpt.config.param_groups import param_groups
from jaxgpt.config.steps import Plan
from jaxgpt.data.prefetch import prefetch
from jaxgpt.data.sources import Source
from jaxgpt.errors import InputError
from jaxgpt.inference.engine import Engine
from jaxgpt.models.attention import attention
from jaxgpt.models.loss import cross_entropy
from jaxgpt.optim.clip import clip_by_global_norm, global_norm
from jaxgpt.optim.optimizer import optimizer
from jaxgpt.parallel.devices import open_devices
from jaxgpt.parallel.mesh import count_batch_devices
from jaxgpt.run.opening import open_run
from jaxgpt.training.feed import make_feed
from jaxgpt.training.programs import lower_stage
from jaxgpt.training.step import Step, make_step

PARTS = ("attention", "loss", "optimizer", "decode")
WARM_UP_STEPS = 3


class Repeated:
    """A compiled function, repeated. An `interleave.Workload`.

    Attributes:
      about: see `describe`.
    """

    def __init__(self, dispatch: Callable[[], Any], about: dict[str, Any], compiled: Any = None):
        """Warms up: what is timed later is compiled, and its memory is allocated."""
        self._dispatch, self._compiled = dispatch, compiled
        for _ in range(WARM_UP_STEPS):
            self.settle(self.dispatch())
        self.about = about

    def dispatch(self) -> Any:
        return self._dispatch()

    def settle(self, pending: Any) -> None:
        jax.block_until_ready(pending)

    def peak_bytes(self) -> int:
        stats = jax.devices()[0].memory_stats() or {}
        rss_unit = 1 if sys.platform == "darwin" else 1024
        return stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * rss_unit

    def trace(self, directory: str, n_steps: int) -> list[dict[str, Any]]:
        with record(directory):
            for _ in range(n_steps):
                self.settle(self.dispatch())
        return find_costliest(directory, self._compiled.as_text(), n_steps)


def prepare(config: Config, part: str = "step") -> Repeated:
    """The workload of a config, compiled and warm; `part` is step or one of `PARTS`.

    Raises:
      InputError: the data, the mesh or the model of the config is not possible here.
    """
    run = open_run(config)
    config = run.config.without_stages()
    mesh = open_devices(config)
    if jax.process_count() > 1:
        raise InputError(f"bench times one process; hosts.count={jax.process_count()}: leave hosts.* out")
    jax.set_mesh(mesh)
    step = make_step(config, mesh)
    if part == "step":
        return _training_step(config, step, run.source)
    make = {"attention": _attention, "loss": _loss, "optimizer": _optimizer, "decode": _decode}[part]
    return make(config, step)


def describe(config: Config, step: Step, compile_s: float, compiled: Any = None, **more: Any) -> dict[str, Any]:
    """What the benchmark needs to know about a workload: the device, the versions, sizes as compiled."""
    about = {
        "device": step.mesh.devices.flat[0].device_kind,
        "n_devices": step.mesh.size,
        "versions": {"jax": jax.__version__},
        "attention": ", ".join(step.attention),
        "compile_s": compile_s,
        "vocab_size": config.model.vocab_size,
        **more,
    }
    if compiled is not None:
        memory = compiled.memory_analysis()
        about["state_bytes"], about["temporary_bytes"] = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return about


def _training_step(config: Config, step: Step, source: Source) -> Repeated:
    plan = Plan(config, count_batch_devices(step.mesh))
    reader = source.reader(config)
    begin = time.perf_counter()
    compiled = lower_stage(step, plan, 0)[1].compile()
    compile_s = time.perf_counter() - begin
    state = step.init_state(step.init_params(config.run.seed))
    feed = prefetch(make_feed(plan, reader, step.mesh, is_endless=True))

    def dispatch():
        nonlocal state
        planned, batch, _ = next(feed)
        state, metrics = compiled(state, batch, step.hyper(planned.hyper))
        return metrics

    return Repeated(dispatch, describe(config, step, compile_s, compiled), compiled)


def _repeat(config: Config, step: Step, function: Callable, *args: Any, **more: Any) -> Repeated:
    """A function of arrays, compiled, over and over on the same ones."""
    precision = jax.default_matmul_precision(config.train.matmul_precision)
    begin = time.perf_counter()
    compiled = jax.jit(precision(function)).lower(*args).compile()
    compile_s = time.perf_counter() - begin
    about = describe(config, step, compile_s, compiled, **more)
    return Repeated(lambda: compiled(*args), about, compiled)


def _normal(index: int, shape: tuple[int, ...], dtype) -> jax.Array:
    return jax.random.normal(jax.random.key(index), shape).astype(dtype)


def _attention(config: Config, step: Step) -> Repeated:
    """Forward and backward pass of one layer's attention, over one microbatch."""
    model, dtype = config.model, jnp.dtype(config.train.dtype)
    shape = (config.train.micro_batch_size, model.seq_len)
    q_BTNH, d_y_BTNH = (_normal(i, (*shape, model.n_head, model.head_dim), dtype) for i in (0, 1))
    k_BTKH, v_BTKH = (_normal(i, (*shape, model.n_kv_head, model.head_dim), dtype) for i in (2, 3))

    def forward_and_backward(q_BTNH, k_BTKH, v_BTKH, d_y_BTNH):
        y_BTNH, pull = jax.vjp(
            lambda q, k, v: attention(q, k, v, implementation=step.attention[0]), q_BTNH, k_BTKH, v_BTKH
        )
        return y_BTNH, pull(d_y_BTNH)

    return _repeat(config, step, forward_and_backward, q_BTNH, k_BTKH, v_BTKH, d_y_BTNH)


def _loss(config: Config, step: Step) -> Repeated:
    """The head and the cross-entropy of one microbatch with their gradients."""
    model, dtype = config.model, jnp.dtype(config.train.dtype)
    n_rows, vocab_size = config.train.micro_batch_size, config.model.vocab_size
    x_BTD = _normal(0, (n_rows, model.seq_len, model.n_embd), dtype)
    weight_VD = 0.02 * _normal(1, (vocab_size, model.n_embd), next(iter(step.state_shapes.params.values())).dtype)
    targets_BT = jax.random.randint(jax.random.key(2), (n_rows, model.seq_len), 0, vocab_size)
    chunk_len = config.train.loss_chunk_len(model.seq_len)
    logits_dtype = x_BTD.dtype if config.train.logits_dtype == "compute" else None

    def forward_and_backward(x_BTD, weight_VD, targets_BT):
        def loss(x_BTD, weight_VD):
            return cross_entropy(
                x_BTD, weight_VD, targets_BT, chunk_len=chunk_len, softcap=model.logit_cap, logits_dtype=logits_dtype
            )[0]

        return jax.value_and_grad(loss, argnums=(0, 1))(x_BTD, weight_VD)

    return _repeat(config, step, forward_and_backward, x_BTD, weight_VD, targets_BT)


def _optimizer(config: Config, step: Step) -> Repeated:
    """Clipping and the update of all parameters, from given gradients."""
    state = step.init_state(step.init_params(config.run.seed))
    grads = {path: _normal(i, leaf.shape, leaf.dtype) for i, (path, leaf) in enumerate(state.params.items())}
    groups = param_groups(config.optim, {path: leaf.shape for path, leaf in state.params.items()})
    transform = optimizer(config.optim, groups)

    def update(params, opt_state, grads, hyper):
        norm = global_norm(grads)
        grads = clip_by_global_norm(grads, norm, config.optim.grad_clip)
        updates, opt_state = transform.update(grads, opt_state, params, hyper=hyper)
        return (jax.tree.map(jnp.add, params, updates), opt_state), norm

    carried, hyper = (state.params, state.opt_state), step.hyper(schedule.hyper_at(config, 0))
    begin = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*carried, grads, hyper).compile()
    about = describe(config, step, time.perf_counter() - begin, compiled)

    def dispatch():
        nonlocal carried
        carried, norm = compiled(*carried, grads, hyper)
        return norm

    return Repeated(dispatch, about, compiled)


def _decode(config: Config, step: Step) -> Repeated:
    """One more token of one sample, sampled, with a cache of seq_len positions."""
    engine = Engine(config.model, step.init_params(config.run.seed), dtype=config.train.dtype)
    tokens = _sample_for_ever(engine)
    begin = time.perf_counter()
    next(tokens)
    return Repeated(lambda: next(tokens), describe(config, step, time.perf_counter() - begin))


def _sample_for_ever(engine: Engine) -> Iterator[list[int | None]]:
    """Samples of half a context each, so that the cache is never filled anew while one is timed."""
    while True:
        yield from engine.generate([0], max_tokens=max(engine.n_positions // 2, 1), temperature=0.8)
