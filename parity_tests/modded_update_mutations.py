"""Bugs planted in the optimizers of modded-nanogpt's records, one at a time: NorMuon, Adam, and the split.

As in mutations.py, which has GPT-2's. What cannot show is not here: whether a weight or a step of exactly 0 decays.
"""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgpt.config.param_groups import TIED
from jaxgpt.optim import tied as tying
from parity_tests.mutations import MUON, Mutation, Plan

ADAM, OPTIMIZER = (importlib.import_module(f"jaxgpt.optim.{name}") for name in ("adam", "optimizer"))


def _adam(plan: Plan, change: Any) -> Plan:
    """change(original, param, grad, mu, nu, count, **settings) -> update, mu, nu."""
    return plan.wrap(ADAM, "adam_step", change)


def _decay_by_lr(original, *args, lr, weight_decay, **settings):
    return original(*args, lr=lr, weight_decay=weight_decay / lr, **settings)


def _adam_decays(plan: Plan, mask: Any) -> Plan:
    """mask(step, param) -> where the weight decays."""

    def adam_step(original, param, *args, lr, weight_decay, **settings):
        update, mu, nu = original(param, *args, lr=lr, weight_decay=0.0, **settings)
        return update - param * mask(-update, param) * lr * lr * weight_decay, mu, nu

    return _adam(plan, adam_step)


def _adam_after_root(original, param, grad, mu, nu, count, *, eps, **settings):
    """Epsilon next to the corrected root, as in AdamW."""
    correction = jnp.sqrt(1 - settings["beta2"] ** count.astype(param.dtype))
    return original(param, grad, mu, nu, count, eps=eps * correction, **settings)


def _adam_every_step(plan: Plan) -> Plan:
    """An update in each step; the state keeps its form."""

    def adam(original, rate, *, every, **settings):
        whole, each = original(rate, every=every, **settings), original(rate, every=1, **settings)

        def update(updates, state, params=None, **extra):
            found, new = each.update(updates, state._replace(grad_sum=None), params, **extra)
            return found, new._replace(grad_sum=state.grad_sum)

        return optax.GradientTransformationExtraArgs(whole.init, update)

    return plan.wrap(OPTIMIZER, "adam", adam)


def _adam_forgets(plan: Plan) -> Plan:
    """The gradients of steps without an update are lost."""

    def adam(original, *args, **settings):
        whole = original(*args, **settings)

        def update(updates, state, params=None, **extra):
            zeros = jax.tree.map(jnp.zeros_like, state.grad_sum)
            return whole.update(updates, state._replace(grad_sum=zeros), params, **extra)

        return optax.GradientTransformationExtraArgs(whole.init, update)

    return plan.wrap(OPTIMIZER, "adam", adam)


def _tied(plan: Plan, change: Any) -> Plan:
    """change(gradients, state, until) -> gradients and state that the tied optimizer gets instead."""

    def tied(_, transform, until):
        whole: Any = tying.tied(transform, until)

        def update(updates, state, params=None, **extra):
            return whole.update(*change(updates, state, until), params, **extra)

        return optax.GradientTransformationExtraArgs(whole.init, update)

    return plan.wrap(OPTIMIZER, "tied", tied)


COPY, HEAD = TIED


def _head_gets_both(grads, state, until):
    both = grads[HEAD] + jnp.where(state.count < until, 0, grads[COPY])
    return {**grads, HEAD: both}, state


def _head_gets_its_own(grads, state, until):
    return {**grads, COPY: jnp.where(state.count < until, 0, grads[COPY])}, state


def _moments_lost(grads, state, until):
    """The embedding begins with no moments after the split."""
    mu = {**state.mu, COPY: jnp.where(state.count == until, 0, state.mu[COPY])}
    return grads, state._replace(mu=mu)


def _muon_decays(plan: Plan, mask: Any) -> Plan:
    def muon_step(original, param, direction, *, lr, weight_decay, cautious):
        update = original(param, direction, lr=lr, weight_decay=0.0, cautious=cautious)
        n_in, n_out = param.shape
        scale = max(1.0, n_out / n_in) ** 0.5
        return update - lr * scale * weight_decay * param * mask(direction, param)

    return plan.wrap(MUON, "muon_step", muon_step)


def _other_axis(plan: Plan) -> Plan:
    """The state keeps its form."""

    def normuon(original, direction, square, *args):
        if direction.shape[0] != direction.shape[1]:
            return original(direction, square, *args)
        turned, square = original(direction.T, square, *args)
        return turned.T, square

    return plan.wrap(MUON, "normuon", normuon)


def _is_growing(step, param):
    return (step * param < 0).astype(param.dtype)


def _groups(plan: Plan, name: str, **values: Any) -> Plan:
    return plan.set_optim(
        groups=tuple(
            dataclasses.replace(group, **values) if group.name == name else group for group in plan.config.optim.groups
        )
    )


def _of_update(plant: Any, recipe: str = "modded62") -> Mutation:
    return Mutation(plant, recipe, is_update=True)


MODDED_UPDATE_MUTATIONS: dict[str, Mutation] = {
    "62: Adam decays by the rate, not its square": _of_update(lambda plan: _adam(plan, _decay_by_lr)),
    "62: Adam's cautious mask left out": _of_update(lambda plan: _adam_decays(plan, lambda step, param: 1)),
    "62: Adam's cautious mask turned over": _of_update(lambda plan: _adam_decays(plan, _is_growing)),
    "62: Adam in every step": _of_update(_adam_every_step),
    "62: Adam forgets the gradients of even steps": _of_update(_adam_forgets),
    "62: Adam's bias corrected by steps, not updates": _of_update(
        lambda plan: _adam(
            plan, lambda original, p, g, mu, nu, count, **more: original(p, g, mu, nu, 2 * count, **more)
        )
    ),
    "62: head gets both gradients after the split": _of_update(lambda plan: _tied(plan, _head_gets_both)),
    "62: tied head gets its own gradient alone": _of_update(lambda plan: _tied(plan, _head_gets_its_own)),
    "62: embedding loses its moments at the split": _of_update(lambda plan: _tied(plan, _moments_lost)),
    "62: split an update late": _of_update(
        lambda plan: plan.set_optim(tie_until=plan.config.optim.tie_until + plan.config.optim.adam.every)
    ),
    "62: NorMuon's cautious mask left out": _of_update(lambda plan: _muon_decays(plan, lambda step, param: 1)),
    "62: NorMuon's cautious mask turned over": _of_update(lambda plan: _muon_decays(plan, _is_growing)),
    "62: NorMuon decays by the rate, not its square": _of_update(lambda plan: plan.set_muon(decay_follows_lr=False)),
    "62: Polar Express: margin 1.01": _of_update(lambda plan: plan.set_muon(ns_margin=1.01)),
    "62: MLP's output at the rate of the rest": _of_update(
        lambda plan: _groups(plan, "mlp_proj", lr=plan.config.optim.muon.lr)
    ),
    "62: momentum does not descend": _of_update(
        lambda plan: plan.set_muon(momentum_end=plan.config.optim.muon.momentum)
    ),
    "62: embeddings decay as the head": _of_update(lambda plan: _groups(plan, "embeds", weight_decay=0.75)),
    "46: NorMuon's mean over the other axis of square matrices": _of_update(_other_axis, "modded46"),
    "46: Adam in every step": _of_update(_adam_every_step, "modded46"),
    "46: Adam epsilon next to the corrected root": _of_update(
        lambda plan: _adam(plan, _adam_after_root), "modded46"
    ),
    "track 3: Newton-Schulz with Muon's coefficients": _of_update(
        lambda plan: plan.set_muon(orthogonalizer="newton_schulz"), "track3"
    ),
    "track 3: six iterations": _of_update(lambda plan: plan.set_muon(ns_steps=6), "track3"),
    "track 3: biases and gains not decayed": _of_update(
        lambda plan: _groups(plan, "vectors", weight_decay=0.0), "track3"
    ),
    "track 3: learning rate ends at a tenth": _of_update(lambda plan: plan.set_schedule(min_lr_frac=0.1), "track3"),
}  # fmt: skip
