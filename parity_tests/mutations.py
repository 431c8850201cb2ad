"""Bugs planted in jaxgpt, one at a time: what the gates are worth. mutation_trials.py tries them.

Here those of GPT-2, AdamW and Muon; nanochat_mutations.py has nanochat's. A mutation is `(plan) -> plan`, with patches
of jaxgpt entered on `plan.stack`.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from jaxgpt.compare.trajectories import Arrays
from jaxgpt.config import Config, schedule
from jaxgpt.models import attention, gpt2, layers, loss
from jaxgpt.optim import clip, orthogonalize
from jaxgpt.training import step

ADAMW, MUON = (importlib.import_module(f"jaxgpt.optim.{name}") for name in ("adamw", "muon"))
"""Modules: jaxgpt.optim.adamw and jaxgpt.optim.muon, as attributes, are the functions in them."""


@dataclass(frozen=True)
class Plan:
    """What jaxgpt's side of a comparison is about to run; patches live as long as `stack`."""

    stack: ExitStack
    config: Config
    params: Arrays

    def patch(self, module: Any, name: str, value: Any) -> "Plan":
        self.stack.enter_context(mock.patch.object(module, name, value))
        return self

    def wrap(self, module: Any, name: str, wrapper: Callable[..., Any]) -> "Plan":
        """wrapper(original, *arguments) instead of a function or a method."""
        original = getattr(module, name)
        return self.patch(module, name, lambda *args, **settings: wrapper(original, *args, **settings))

    def set_optim(self, **values) -> "Plan":
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, optim=dataclasses.replace(self.config.optim, **values))
        )

    def set_muon(self, **values) -> "Plan":
        return self.set_optim(muon=dataclasses.replace(self.config.optim.muon, **values))

    def set_model(self, **values) -> "Plan":
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, model=dataclasses.replace(self.config.model, **values))
        )

    def set_schedule(self, **values) -> "Plan":
        return self.set_optim(schedule=dataclasses.replace(self.config.optim.schedule, **values))


@dataclass(frozen=True)
class Mutation:
    """A bug.

    Attributes:
      recipe: the run in which it can show.
      is_masked: some targets are masked, on both sides.
      is_update: it touches neither logits nor gradients: a brief trial runs the optimizer alone.
      is_early: it shows in logits or gradients of the first batch: a brief trial leaves the training out.
    """

    plant: Callable[[Plan], Plan]
    recipe: str = "adamw"
    is_masked: bool = False
    is_update: bool = False
    is_early: bool = False


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
    def shifted(q, k, v, **settings):
        return attention._xla(q, k, v, jnp.full(1, by), None, 0.0, None)

    return plan.patch(gpt2, "attention", shifted)


def _softmax_bf16(plan):
    original = jax.nn.softmax
    return plan.patch(jax.nn, "softmax", lambda x, axis: original(x.astype(jnp.bfloat16), axis=axis).astype(x.dtype))


def _positions(plan):
    original = gpt2.GPT2.embed
    return plan.patch(
        gpt2.GPT2, "embed", lambda self, tokens, dropout_key: original(self, tokens, jnp.ones(1, int), dropout_key)
    )


def _tied_head(plan):
    original = gpt2.GPT2.head_weight
    return plan.patch(gpt2.GPT2, "head_weight", lambda self: jax.lax.stop_gradient(original(self)))


def _residual(plan):
    def call(self, x, cache=None, offset_B=None, *, dropout_key=None):
        y, cache = self.attn(self.ln_1(x), cache, offset_B)
        return x + y + self.mlp(self.ln_2(x)), cache

    return plan.patch(gpt2.Block, "__call__", call)


def _one_weight(plan):
    weight = plan.params["h.0.mlp.c_fc.weight"].copy()
    weight[0, 0] += 1e-7
    return dataclasses.replace(plan, params=plan.params | {"h.0.mlp.c_fc.weight": weight})


# The loss


def _loss_bf16(plan):
    def chunk_loss(x, weight, targets, weights, *_):
        (targets,), (mask,) = targets, weights
        logits = (x @ weight.astype(x.dtype).T).astype(jnp.bfloat16).astype(mask.dtype)
        lse = jax.nn.logsumexp(logits, axis=-1)
        target_logits = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return ((lse - target_logits) * mask).sum(), logits, logits, lse

    return plan.patch(loss, "_chunk_loss", chunk_loss)


def _patch_loss(plan, change):
    """change(targets, mask, loss, count) -> what cross_entropy returns, around the original."""
    original = step.cross_entropy

    def mutant(x, weight, targets, mask=None, **settings):
        return change(functools.partial(original, x, weight, **settings), targets, mask)

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
    def clip_each(grads, norm, max_norm):
        return {p: g * jnp.minimum(1, max_norm / (jnp.sqrt((g * g).sum()) + clip.CLIP_EPS)) for p, g in grads.items()}

    return plan.patch(step, "clip_by_global_norm", clip_each)


def _schedule(by, plan):
    original = schedule.hyper_at
    return plan.patch(schedule, "hyper_at", lambda config, at: original(config, max(at + by, 0)))


def _patch_adamw(plan, change):
    """change(original, param, grad, mu, nu, count, settings) -> update, mu, nu."""
    original = ADAMW.adamw_step
    return plan.patch(ADAMW, "adamw_step", lambda *args, **settings: change(original, *args, settings))


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
    original = step.param_groups

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

    return plan.patch(schedule, "hyper_at", hyper_at).patch(MUON, "muon_momentum", momentum)


def _patch_muon_scale(plan, scale):
    """scale(n_in, n_out) instead of sqrt(max(1, n_out / n_in))."""

    def muon_step(param, direction, *, lr, weight_decay, **_):
        return -lr * (scale(*param.shape) * direction + weight_decay * param)

    return plan.patch(MUON, "muon_step", muon_step)


MUTATIONS: dict[str, Mutation] = {
    "GELU by tanh instead of erf": Mutation(_gelu, is_early=True),
    "layer-norm epsilon 1e-6 instead of 1e-5": Mutation(_layer_norm_eps, is_early=True),
    "layer-norm bias ignored": Mutation(_layer_norm_bias, is_early=True),
    "layer-norm variance over n - 1": Mutation(_layer_norm_variance, is_early=True),
    "attention scale missing": Mutation(_attention_scale, is_early=True),
    "softmax in bfloat16": Mutation(_softmax_bf16, is_early=True),
    "window one key too wide": Mutation(functools.partial(_window, 1), is_early=True),
    "window one key too narrow": Mutation(functools.partial(_window, -1), is_early=True),
    "positions start at 1": Mutation(_positions, is_early=True),
    "MLP reads the block's input": Mutation(_residual, is_early=True),
    "one weight changed by 1e-7": Mutation(_one_weight, is_early=True),
    "tied head's gradient dropped": Mutation(_tied_head, is_early=True),
    "logits of the loss in bfloat16": Mutation(_loss_bf16, is_early=True),
    "labels shifted by one": Mutation(_labels, is_early=True),
    "mean of the microbatches' means": Mutation(_mean_of_means, is_masked=True, is_early=True),
    "divided by one microbatch's count": Mutation(_micro_sum),
    "clipping left out": Mutation(lambda plan: plan.set_optim(grad_clip=0.0), is_update=True),
    "clipping without its epsilon": Mutation(lambda plan: plan.patch(clip, "CLIP_EPS", 0.0), is_update=True),
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
        lambda plan: plan.patch(orthogonalize, "NS_COEFFICIENTS", (3.0, -3.2, 1.2)), "muon", is_update=True
    ),
    "Muon: four iterations instead of five": Mutation(lambda plan: plan.set_muon(ns_steps=4), "muon", is_update=True),
    "Muon: Newton-Schulz in bfloat16": Mutation(
        lambda plan: plan.set_muon(ns_dtype="bfloat16"), "muon", is_update=True
    ),
    "Muon: momentum not warmed up": Mutation(
        lambda plan: plan.set_muon(momentum_warmup_steps=0), "muon", is_update=True
    ),
}
