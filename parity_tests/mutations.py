"""Bugs planted in jaxgpt, one at a time, and which gate sees each: what the gates are worth.

    python -m parity_tests.compare --report docs/parity.md

trains each mutant for a few steps against the unmutated torch_ref, judges it by the gates of every dtype, and writes
that table and the floors. A mutation is `(plan) -> plan`, with patches of jaxgpt entered on `plan.stack`.
"""

import dataclasses
import datetime
import functools
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import attention, layers, loss, optim, schedule, step
from jaxgpt.config import (
    Config,
    GPT2Config,
    MeshConfig,
    MuonConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from jaxgpt.errors import InputError
from jaxgpt.log import console
from jaxgpt.models import gpt2
from parity_tests.compare import (
    DTYPES,
    Arrays,
    Row,
    Trajectory,
    compare,
    describe_machine,
    draw_params,
    import_torch,
    run_jax,
    run_torch,
    settle,
)
from parity_tests.tolerances import PARITY

VOCAB = 64
N_FLOOR_STEPS = 200
N_MUTANT_STEPS = 24
MASKED_ID = 7
"""Where a comparison masks tokens, these targets are not counted: another number in each microbatch."""


MUON_LR = 5e-3
"""Of make_config. At 0.02 Newton-Schulz, which lifts small singular values a hundredfold, lifts float32's rounding
to 6e-5 in 200 steps, and bfloat16's out of its gates."""


def make_config(algorithm: Any, n_steps: int, dtype: str, *, n_layer: int = 2) -> Config:
    """A GPT-2 small enough for seconds with every part of the recipe at work.

    Biases, clipping, decay, warm-up of learning rate and momentum, two microbatches, two chunks of the loss.
    """
    config = Config(
        model=GPT2Config(seq_len=32, n_layer=n_layer, n_head=2, n_embd=32, bias=True),
        train=TrainConfig(steps=n_steps, batch_tokens=8 * 32, micro_batch_size=4, loss_chunk_tokens=64),
        optim=OptimConfig(
            algorithm=algorithm, lr=1e-3, grad_clip=0.5, schedule=ScheduleConfig(warmup_steps=min(20, n_steps // 4)),
            muon=MuonConfig(lr=MUON_LR, momentum_warmup_steps=10, weight_decay=0.1),
        ),
        mesh=MeshConfig(data=1, platform="cpu"),
    )  # fmt: skip
    return settle(config, n_steps, dtype)


def make_batches(n_steps: int) -> list[np.ndarray]:
    """[M, B, T + 1] per step: a Markov chain with four likely successors per token, so that there is much to learn."""
    n_micro, n_rows, seq_len = 2, 4, 32
    rng = np.random.default_rng(0)
    successors = rng.integers(0, VOCAB, (VOCAB, 4))
    n = n_steps * n_micro * n_rows
    columns = [rng.integers(0, VOCAB, n)]
    for _ in range(seq_len):
        likely = successors[columns[-1], rng.integers(0, 4, n)]
        columns.append(np.where(rng.random(n) < 0.1, rng.integers(0, VOCAB, n), likely))
    rows = np.stack(columns, axis=1).astype(np.int32)
    return list(rows.reshape(n_steps, n_micro, n_rows, seq_len + 1))


@dataclass(frozen=True)
class Plan:
    """What jaxgpt's side of a comparison is about to run; patches live as long as `stack`."""

    stack: ExitStack
    config: Config
    params: Arrays

    def patch(self, module: Any, name: str, value: Any) -> "Plan":
        self.stack.enter_context(mock.patch.object(module, name, value))
        return self

    def set_optim(self, **values) -> "Plan":
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, optim=dataclasses.replace(self.config.optim, **values))
        )

    def set_muon(self, **values) -> "Plan":
        return self.set_optim(muon=dataclasses.replace(self.config.optim.muon, **values))


@dataclass(frozen=True)
class Mutation:
    """A bug.

    Attributes:
      algorithm: the optimizer under which it can show.
      is_masked: some targets are masked, on both sides.
      is_update: it touches neither logits nor gradients.
    """

    plant: Callable[[Plan], Plan]
    algorithm: str = "adamw"
    is_masked: bool = False
    is_update: bool = False


# The model


def _gelu(plan):
    return plan.patch(gpt2, "gelu", lambda x, kind: layers.gelu(x, "tanh"))


def _layer_norm_eps(plan):
    return plan.patch(layers, "layer_norm", functools.partial(layers.layer_norm, eps=1e-6))


def _layer_norm_bias(plan):
    original = layers.layer_norm
    return plan.patch(layers, "layer_norm", lambda x, weight, bias=None: original(x, weight))


def _layer_norm_variance(plan):
    def layer_norm(x, weight, bias):
        n = x.shape[-1]
        h = x - x.mean(axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt((h * h).sum(axis=-1, keepdims=True) / (n - 1) + layers.LAYER_NORM_EPS)
        return (h * weight + bias).astype(x.dtype)

    return plan.patch(layers, "layer_norm", layer_norm)


def _patch_attention(plan, change):
    """change(q, keyword arguments) -> q."""
    original = attention.attention

    def mutant(q, k, v, **settings):
        return original(change(q, settings), k, v, **settings)

    return plan.patch(gpt2, "attention", mutant)


def _attention_scale(plan):
    return _patch_attention(plan, lambda q, settings: q * q.shape[-1] ** 0.5)


def _window(by, plan):
    def change(q, settings):
        settings["offset"] += by
        return q

    return _patch_attention(plan, change)


def _softmax_bf16(plan):
    original = jax.nn.softmax
    return plan.patch(jax.nn, "softmax", lambda x, axis: original(x.astype(jnp.bfloat16), axis=axis).astype(x.dtype))


def _positions(plan):
    original = gpt2.GPT2.embed
    return plan.patch(
        gpt2.GPT2, "embed", lambda self, tokens, offset, dtype, key=None: original(self, tokens, offset + 1, dtype, key)
    )


def _tied_head(plan):
    original = gpt2.GPT2.head_weight
    return plan.patch(gpt2.GPT2, "head_weight", lambda self: jax.lax.stop_gradient(original(self)))


def _residual(plan):
    def call(self, x, cache=None, offset=0, *, implementation="xla", dropout_key=None):
        y, cache = self.attn(self.ln_1(x), cache, offset, implementation=implementation)
        return x + y + self.mlp(self.ln_2(x)), cache

    return plan.patch(gpt2.Block, "__call__", call)


def _one_weight(plan):
    weight = plan.params["h.0.mlp.c_fc.weight"].copy()
    weight[0, 0] += 1e-7
    return dataclasses.replace(plan, params=plan.params | {"h.0.mlp.c_fc.weight": weight})


# The loss


def _loss_bf16(plan):
    def chunk_loss(x, weight, targets, mask):
        logits = (x @ weight.astype(x.dtype).T).astype(jnp.bfloat16).astype(mask.dtype)
        lse = jax.nn.logsumexp(logits, axis=-1)
        target_logits = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return ((lse - target_logits) * mask).sum(), logits, lse

    return plan.patch(loss, "_chunk_loss", chunk_loss)


def _patch_loss(plan, change):
    """change(targets, mask, loss, count) -> what cross_entropy returns, around the original."""
    original = step.cross_entropy

    def mutant(x, weight, targets, mask=None, *, chunk_len=None):
        return change(functools.partial(original, x, weight, chunk_len=chunk_len), targets, mask)

    return plan.patch(step, "cross_entropy", mutant)


def _labels(plan):
    return _patch_loss(plan, lambda measure, targets, mask: measure(jnp.roll(targets, -1, axis=1), mask))


def _mean_of_means(plan):
    def change(measure, targets, mask):
        total, count = measure(targets, mask)
        return total / count * targets.size, jnp.full_like(count, targets.size)

    return _patch_loss(plan, change)


def _micro_sum(plan):
    """Divided by one microbatch's count, not by all of them."""

    def change(measure, targets, mask):
        total, count = measure(targets, mask)
        return total, count / 2

    return _patch_loss(plan, change)


# Clipping, schedule, AdamW


def _clip_per_tensor(plan):
    def clip(grads, norm, max_norm):
        return {p: g * jnp.minimum(1, max_norm / (jnp.sqrt((g * g).sum()) + optim.CLIP_EPS)) for p, g in grads.items()}

    return plan.patch(step, "clip_by_global_norm", clip)


def _schedule(by, plan):
    original = schedule.hyper_at
    return plan.patch(schedule, "hyper_at", lambda config, at: original(config, max(at + by, 0)))


def _patch_adamw(plan, change):
    """change(original, param, grad, mu, nu, count, settings) -> update, mu, nu."""
    return plan.patch(optim, "adamw", lambda *args, original=optim.adamw, **settings: change(original, *args, settings))


def _eps_inside(eps, plan):
    def adamw(original, param, grad, mu, nu, count, settings):
        _, mu, nu = original(param, grad, mu, nu, count, **settings)
        beta1, beta2, lr = settings["beta1"], settings["beta2"], settings["lr"]
        count = count.astype(param.dtype)
        root = jnp.sqrt(nu / (1 - beta2**count) + eps)
        return -lr * (mu / (1 - beta1**count) / root + settings["weight_decay"] * param), mu, nu

    return _patch_adamw(plan, adamw)


def _coupled_decay(plan):
    def adamw(original, param, grad, mu, nu, count, settings):
        decay = settings.pop("weight_decay")
        return original(param, grad + decay * param, mu, nu, count, weight_decay=0.0, **settings)

    return _patch_adamw(plan, adamw)


def _no_bias_correction(plan):
    return _patch_adamw(
        plan, lambda original, param, grad, mu, nu, count, settings:
        original(param, grad, mu, nu, jnp.full_like(count, 10**6), **settings)
    )  # fmt: skip


def _mu_bf16(plan):
    def adamw(original, param, grad, mu, nu, count, settings):
        update, mu, nu = original(param, grad, mu, nu, count, **settings)
        return update, mu.astype(jnp.bfloat16).astype(mu.dtype), nu

    return _patch_adamw(plan, adamw)


def _decay_mask(plan):
    original = optim.param_groups

    def param_groups(config, shapes):
        groups = original(config, shapes)
        decayed = {path: config.weight_decay for path, g in groups.items() if g.algorithm == "adamw"}
        return groups | {p: dataclasses.replace(groups[p], weight_decay=decay) for p, decay in decayed.items()}

    return plan.patch(step, "param_groups", param_groups)


# Muon


def _nesterov_optax(plan):
    """optax corrects momentum and gradient by (1 - b^(t+1)) and (1 - b^t): another mix of the two at early steps."""
    original = schedule.hyper_at

    def hyper_at(config, at):
        hyper = original(config, at)
        beta, t = hyper["momentum"], at + 1
        a, b = beta / (1 - beta ** (t + 1)), (1 - beta) / (1 - beta**t)
        return hyper | {"momentum": [beta, a / (a + b)]}

    def momentum(grad, old, betas, *, nesterov):
        new = old + (1 - betas[0]) * (grad - old)
        return grad + betas[1] * (new - grad), new

    return plan.patch(schedule, "hyper_at", hyper_at).patch(optim, "muon_momentum", momentum)


def _patch_muon_scale(plan, scale):
    """scale(n_in, n_out) instead of sqrt(max(1, n_out / n_in))."""

    def muon(param, direction, *, lr, weight_decay):
        return -lr * (scale(*param.shape) * direction + weight_decay * param)

    return plan.patch(optim, "muon", muon)


MUTATIONS: dict[str, Mutation] = {
    "GELU by tanh instead of erf": Mutation(_gelu),
    "layer-norm epsilon 1e-6 instead of 1e-5": Mutation(_layer_norm_eps),
    "layer-norm bias ignored": Mutation(_layer_norm_bias),
    "layer-norm variance over n - 1": Mutation(_layer_norm_variance),
    "attention scale missing": Mutation(_attention_scale),
    "softmax in bfloat16": Mutation(_softmax_bf16),
    "window one key too wide": Mutation(functools.partial(_window, 1)),
    "window one key too narrow": Mutation(functools.partial(_window, -1)),
    "positions start at 1": Mutation(_positions),
    "MLP reads the block's input": Mutation(_residual),
    "one weight changed by 1e-7": Mutation(_one_weight),
    "tied head's gradient dropped": Mutation(_tied_head),
    "logits of the loss in bfloat16": Mutation(_loss_bf16),
    "labels shifted by one": Mutation(_labels),
    "mean of the microbatches' means": Mutation(_mean_of_means, is_masked=True),
    "divided by one microbatch's count": Mutation(_micro_sum),
    "clipping left out": Mutation(lambda plan: plan.set_optim(grad_clip=0.0), is_update=True),
    "clipping without its epsilon": Mutation(lambda plan: plan.patch(optim, "CLIP_EPS", 0.0), is_update=True),
    "clipping tensor by tensor": Mutation(_clip_per_tensor, is_update=True),
    "schedule one step ahead": Mutation(functools.partial(_schedule, 1), is_update=True),
    "schedule one step behind": Mutation(functools.partial(_schedule, -1), is_update=True),
    "Adam epsilon 1e-6 instead of 1e-8": Mutation(lambda plan: plan.set_optim(eps=1e-6), is_update=True),
    "Adam epsilon inside the root, squared": Mutation(functools.partial(_eps_inside, 1e-16), is_update=True),
    "Adam epsilon inside the root": Mutation(functools.partial(_eps_inside, 1e-8), is_update=True),
    "Adam without bias correction": Mutation(_no_bias_correction, is_update=True),
    "Adam's first moment kept in bfloat16": Mutation(_mu_bf16, is_update=True),
    "beta1 0.95 instead of 0.9": Mutation(lambda plan: plan.set_optim(beta1=0.95), is_update=True),
    "beta2 0.99 instead of 0.95": Mutation(lambda plan: plan.set_optim(beta2=0.99), is_update=True),
    "biases and norms decayed": Mutation(_decay_mask, is_update=True),
    "decay coupled (L2)": Mutation(_coupled_decay, is_update=True),
    "Muon: optax's Nesterov": Mutation(_nesterov_optax, "muon", is_update=True),
    "Muon: no Nesterov": Mutation(lambda plan: plan.set_muon(nesterov=False), "muon", is_update=True),
    "Muon: aspect factor turned over": Mutation(
        lambda plan: _patch_muon_scale(plan, lambda n_in, n_out: max(1.0, n_in / n_out) ** 0.5), "muon", is_update=True
    ),
    "Muon: factor 0.2 sqrt(max)": Mutation(
        lambda plan: _patch_muon_scale(plan, lambda n_in, n_out: 0.2 * max(n_in, n_out) ** 0.5), "muon", is_update=True
    ),
    "Muon: coefficients 3, -3.2, 1.2": Mutation(
        lambda plan: plan.patch(optim, "NS_COEFFICIENTS", (3.0, -3.2, 1.2)), "muon", is_update=True
    ),
    "Muon: four iterations instead of five": Mutation(lambda plan: plan.set_muon(ns_steps=4), "muon", is_update=True),
    "Muon: Newton-Schulz in bfloat16": Mutation(
        lambda plan: plan.set_muon(ns_dtype="bfloat16"), "muon", is_update=True
    ),
    "Muon: momentum not warmed up": Mutation(
        lambda plan: plan.set_muon(momentum_warmup_steps=0), "muon", is_update=True
    ),
}


# Judging them


def run_reference(
    algorithm: str, n_steps: int, dtype: str, *, n_layer: int = 2, is_masked: bool = False
) -> tuple[Arrays, Trajectory]:
    """The weights that all start from, and torch_ref's run."""
    config = make_config(algorithm, n_steps, dtype, n_layer=n_layer)
    params = draw_params(config, VOCAB)
    with ExitStack() as stack:
        if is_masked:
            from torch_ref import step as torch_step

            stack.enter_context(mock.patch.object(torch_step, "cross_entropy", _masking(torch_step.cross_entropy)))
        return params, run_torch(config, VOCAB, params, make_batches(n_steps))


def _masking(cross_entropy):
    """Either framework's loss without the targets MASKED_ID."""

    def masked(x, weight, targets, mask=None, *, chunk_len=None):
        return cross_entropy(x, weight, targets, targets != MASKED_ID, chunk_len=chunk_len)

    return masked


def run_unmutated(
    algorithm: str, params: Arrays, n_steps: int, dtype: str, *, n_layer: int = 2, is_masked: bool = False
) -> Trajectory:
    """jaxgpt's run as it is."""
    with ExitStack() as stack:
        if is_masked:
            stack.enter_context(mock.patch.object(step, "cross_entropy", _masking(step.cross_entropy)))
        config = make_config(algorithm, n_steps, dtype, n_layer=n_layer)
        return run_jax(config, VOCAB, params, make_batches(n_steps))


@dataclass(frozen=True)
class Bench:
    """What mutants of one kind are judged against: their weights, torch_ref's run, and jaxgpt's without a bug."""

    dtype: str
    n_steps: int
    params: Arrays
    reference: Trajectory
    unmutated: Trajectory

    def judge(self, mutation: Mutation) -> list[Row]:
        """Plants the bug, trains, compares. One layer: each mutant is compiled anew."""
        with ExitStack() as stack:
            plan = Plan(stack, make_config(mutation.algorithm, self.n_steps, self.dtype, n_layer=1), self.params)
            if mutation.is_masked:
                plan.patch(step, "cross_entropy", _masking(step.cross_entropy))
            plan = mutation.plant(plan)
            known = self.unmutated if mutation.is_update else None
            ours = run_jax(plan.config, VOCAB, plan.params, make_batches(self.n_steps), known=known)
        return compare(ours, self.reference, PARITY[self.dtype])


@functools.cache
def set_up_bench(algorithm: str, is_masked: bool, dtype: str, n_steps: int = N_MUTANT_STEPS) -> Bench:
    params, reference = run_reference(algorithm, n_steps, dtype, n_layer=1, is_masked=is_masked)
    unmutated = run_unmutated(algorithm, params, n_steps, dtype, n_layer=1, is_masked=is_masked)
    return Bench(dtype, n_steps, params, reference, unmutated)


def find_loudest(rows: Iterable[Row]) -> Row | None:
    """The judged quantity that is outside of its gate by the largest factor; None where all are inside."""
    outside = [row for row in rows if not row.is_inside]
    return max(outside, key=lambda row: np.nan_to_num(row.margin, nan=np.inf), default=None)


# The report


def write_report(path: Path) -> int:
    """Measures everything anew and writes it as Markdown."""
    import_torch().set_num_threads(1)  # models this small lose by more
    floors = {}
    for dtype in DTYPES:
        for algorithm in ("adamw", "muon"):
            console.print(f"floors: {dtype}, {algorithm}")
            params, reference = run_reference(algorithm, N_FLOOR_STEPS, dtype)
            ours = run_unmutated(algorithm, params, N_FLOOR_STEPS, dtype)
            floors[dtype, algorithm] = compare(ours, reference, PARITY[dtype])
    seen: dict[str, dict[str, tuple[Row | None, float]]] = {name: {} for name in MUTATIONS}
    for dtype in DTYPES:
        for name, mutation in MUTATIONS.items():
            console.print(f"mutations: {dtype}, {name}")
            bench = set_up_bench(mutation.algorithm, mutation.is_masked, dtype)
            row = find_loudest(bench.judge(mutation))
            without = {r.quantity: r.figure for r in compare(bench.unmutated, bench.reference, PARITY[dtype])}
            floor = max(without[row.quantity], float(np.finfo(np.float64).eps)) if row else 1.0
            seen[name][dtype] = (row, row.figure / floor if row else 0.0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(format_report(floors, seen), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--report={path} cannot be written: {error}") from error
    console.print(f"wrote {path}")
    unseen = [name for name, by_dtype in seen.items() if not any(row for row, _ in by_dtype.values())]
    outside = [row.quantity for rows in floors.values() for row in rows if not row.is_inside]
    if unseen or outside:
        console.print(f"[red]unseen: {unseen}; outside without a mutation: {outside}")
    return 1 if unseen or outside else 0


def format_report(
    floors: dict[tuple[str, str], list[Row]], seen: dict[str, dict[str, tuple[Row | None, float]]]
) -> str:
    machine = describe_machine()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        "# Parity of jaxgpt and torch_ref, measured",
        "",
        "Written by a command; run it again instead of editing:",
        "`python -m parity_tests.compare --report docs/parity.md`.",
        f"{today}; {machine['device']}; jax {machine['jax']}, torch {machine['torch']}, Python {machine['python']}"
        + (f", XLA_FLAGS={os.environ['XLA_FLAGS']}." if os.environ.get("XLA_FLAGS") else "."),
        "",
        "GPT-2 with 2 layers (mutants: 1), width 32, context 32, biases, 64 ids of a Markov chain; 8 rows in 2",
        "microbatches, clipping at work, warm-up and cosine. Both frameworks start from one set of weights and read",
        "the same batches. Gates, with their reasons, stand in `parity_tests/tolerances.py`. A config of one's own:",
        "`python -m parity_tests.compare --config configs/x.py --steps 200 --dtype float32`.",
        "",
        f"## Floors: {N_FLOOR_STEPS} steps without a bug",
        "",
        "Tensors are compared by the L2 norm of the difference, relative; logits and losses absolutely. The key",
        "biases, the middle third of `c_attn.bias`, stand apart: softmax does not see them, so their true gradient is",
        "0, and AdamW blows its rounding up to whole steps.",
        "",
    ]
    columns = list(floors)
    gates = [f"{dtype} gate" for dtype in DTYPES]
    heads = ["quantity", *(f"{dtype}, {algorithm}" for dtype, algorithm in columns), *gates]
    table = []
    for i, row in enumerate(next(iter(floors.values()))):
        limits = [floors[dtype, "adamw"][i].limit for dtype in DTYPES]
        figures = [f"{floors[column][i].figure:.1e}" for column in columns]
        table.append([row.quantity, *figures, *("-" if limit is None else f"{limit:.0e}" for limit in limits)])
    lines += [*_format_table(heads, table), ""]
    counts = {dtype: sum(by_dtype[dtype][0] is not None for by_dtype in seen.values()) for dtype in DTYPES}
    lines += [
        f"## Mutations: {N_MUTANT_STEPS} steps with one bug in jaxgpt",
        "",
        "For each dtype the quantity that is furthest outside of its gate: figure (times the gate's limit; times the",
        "same quantity without the bug, at least 2e-16). "
        + ", ".join(f"{dtype} sees {n} of {len(seen)}" for dtype, n in counts.items())
        + ".",
        "",
    ]
    table = []
    for name, by_dtype in seen.items():
        cells = []
        for row, over_floor in by_dtype.values():
            cells.append(f"{row.quantity}: {row.figure:.1e} ({row.margin:.0e}; {over_floor:.0e})" if row else "no")
        table.append([name, *cells])
    return "\n".join([*lines, *_format_table(["mutation", *DTYPES], table)]) + "\n"


def _format_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
