"""Bugs planted in jaxgpt's nanochat, one at a time: its model in both eras, and the optimizer of July 2026.

As in mutations.py, which has GPT-2's; mutation_trials.py tries both. What cannot show is not here: the norm of queries
and keys before instead of after their rotation, which keeps lengths; positions that start at 1, for rotations are
relative; NorMuon's mean square corrected for its start at zero, since the matrix gets its norm back.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.config import schedule
from jaxgpt.config.families import NanochatConfig
from jaxgpt.config.families.nanochat import GATE_CHANNELS
from jaxgpt.models import attention, layers, loss, nanochat
from jaxgpt.optim import normuon as norm_muon
from jaxgpt.optim import orthogonalize
from parity_tests.mutations import MUON, Mutation, Plan

# Attention


def _causal(plan: Plan) -> Plan:
    def shifted(q, k, v, *, window, **settings):
        return attention._xla(q, k, v, jnp.ones(1, int), window, 0.0, None)

    return plan.patch(nanochat, "attention", shifted)


def _last_window(plan: Plan) -> Plan:
    def window(self, layer):
        return self.seq_len if self.window_pattern[layer % len(self.window_pattern)] == "L" else self.short_window

    return plan.patch(NanochatConfig, "window", window)


def _patch_rotary(plan: Plan, rotary: Any) -> Plan:
    """rotary(original, x, positions, base) -> x turned."""
    return plan.patch(nanochat, "rotary", functools.partial(rotary, layers.rotary))


def _turned_back(original, x, positions, base):
    return original(x, -positions, base)


def _pairs_interleaved(original, x, positions, base):
    half = x.shape[-1] // 2
    apart = jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
    turned = original(apart, positions, base)
    return jnp.stack([turned[..., :half], turned[..., half:]], axis=-1).reshape(x.shape)


def _keys_not_turned(plan: Plan) -> Plan:
    """Queries are turned first, then keys."""
    calls = iter(range(10**6))
    return _patch_rotary(plan, lambda original, x, *args: x if next(calls) % 2 else original(x, *args))


def _patch_rms_norm(plan: Plan, rms_norm: Any) -> Plan:
    """rms_norm(original, x, scale) -> x normed."""
    original = layers.rms_norm
    return plan.patch(nanochat, "rms_norm", lambda x, scale=1.0: rms_norm(original, x, scale))


def _no_qk_norm(original, x, scale):
    return scale * x if x.ndim == 4 else original(x, scale)


def _keys_not_scaled(plan: Plan) -> Plan:
    calls = iter(range(10**6))

    def rms_norm(original, x, scale):
        return original(x, scale) if x.ndim == 3 or next(calls) % 2 == 0 else original(x)

    return _patch_rms_norm(plan, rms_norm)


def _rms_norm_eps(original, x, scale):
    return x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6).astype(x.dtype) * scale


# Value embeddings


def _patch_gate(plan: Plan, kind: str, change: Any) -> Plan:
    """change(what a gate reads, what the linear layer called before it read) -> what it reads."""
    original, before = layers.Linear.__call__, []

    def call(self, x):
        if x.shape[-1] == GATE_CHANNELS[kind]:
            return original(self, change(x, before[-1] if before else None))
        before.append(x)
        return original(self, x)

    return plan.patch(layers.Linear, "__call__", call)


def _patch_value_embed(plan: Plan, change: Any) -> Plan:
    """change(original, model, layer, tokens) -> the layer's embedding of the tokens, or None."""
    original = nanochat.Nanochat.value_embed
    return plan.patch(nanochat.Nanochat, "value_embed", lambda self, *args: change(original, self, *args))


def _other_table(original, model, layer, tokens):
    return original(model, model.config.n_layer - 1 - layer, tokens)


def _first_left_out(original, model, layer, tokens):
    return None if layer == 0 else original(model, layer, tokens)


# Embedding, residual stream, head


def _shift(x_BTD, by: int):
    """Each token's place gets what stands `by` before it, or 0."""
    n = x_BTD.shape[1]
    padding = ((0, 0), (max(by, 0), max(-by, 0)), (0, 0))
    return jnp.pad(x_BTD, padding)[:, max(-by, 0) : max(-by, 0) + n]


def _before(x_BTD):
    return _shift(x_BTD, 1)


def _smear(plan: Plan, look_back: Any = _before, look_at: Any = lambda x: x) -> Plan:
    """look_back(x) -> what a place takes some of; look_at(x) -> what its gate reads."""

    def embed(self, tokens_BT, before_B1=None):
        x_BTD = layers.rms_norm(self.wte(tokens_BT).astype(self.dtype))
        gate_BT1 = jax.nn.sigmoid(self.smear_gate(look_at(x_BTD)[..., : GATE_CHANNELS["smear"]]))
        return x_BTD + self.smear_lambda[...].astype(self.dtype) * gate_BT1 * look_back(x_BTD)

    return plan.patch(nanochat.Nanochat, "embed", embed)


def _no_embedding_norm(plan: Plan) -> Plan:
    """Of three in `embed`, `Block` and `finish`, the first."""
    original = nanochat.Nanochat.embed

    def embed(self, *args):
        norm, nanochat.rms_norm = nanochat.rms_norm, lambda x: x
        try:
            return original(self, *args)
        finally:
            nanochat.rms_norm = norm

    return plan.patch(nanochat.Nanochat, "embed", embed)


def _forward(plan: Plan, *, middle: int = 1, is_input: bool = False, is_raw_start: bool = False) -> Plan:
    """The whole forward pass.

    Args:
      middle: the layer that backout takes off.
      is_input: what goes into that layer, not what comes out.
      is_raw_start: x0 is the embedding before smear.
    """

    def call(self, tokens_BT, *, dropout_key=None):
        x0_BTD = x_BTD = self.embed(tokens_BT)
        if is_raw_start:
            x0_BTD = layers.rms_norm(self.wte(tokens_BT).astype(self.dtype))
        ends, starts = [], []
        for i, block in enumerate(self.h):
            starts.append(x_BTD)
            value_embed_BTD = self.value_embed(i, tokens_BT)
            x_BTD, _ = block(self.mix(i, x_BTD, x0_BTD), value_embed_BTD)
            ends.append(x_BTD)
        return self.finish(x_BTD, (starts if is_input else ends)[middle])

    return plan.patch(nanochat.Nanochat, "__call__", call)


def _mix(plan: Plan, mix: Any) -> Plan:
    """mix(resid_lambdas, x0_lambdas, layer, x, x0) -> what the layer starts from."""
    return plan.patch(
        nanochat.Nanochat, "mix", lambda self, *args: mix(self.resid_lambdas[...], self.x0_lambdas[...], *args)
    )


def _finish(plan: Plan, finish: Any) -> Plan:
    """finish(backout_lambda, x, middle) -> last hidden states."""
    return plan.patch(nanochat.Nanochat, "finish", lambda self, *args: finish(self.backout_lambda[...], *args))


def _mlp(plan: Plan, activation: Any) -> Plan:
    return plan.patch(nanochat.MLP, "__call__", lambda self, x: self.c_proj(activation(self.c_fc(x))))


def _softcap_slope(plan: Plan) -> Plan:
    """The tanh is left out of the gradient."""

    def chunk_loss_and_grads(x_PD, weight_VD, targets, weights, softcap, head, dtype):
        total, _, logits_PV, lse_P = loss._chunk_loss(x_PD, weight_VD, targets, weights, softcap, head, dtype)
        d_logits_PV = jnp.exp(logits_PV - lse_P[:, None]) - jax.nn.one_hot(targets[0], logits_PV.shape[-1])
        return total, d_logits_PV @ weight_VD, d_logits_PV.T @ x_PD

    return plan.patch(loss, "_chunk_loss_and_grads", chunk_loss_and_grads)


# Muon of 2026


def _polar(plan: Plan, change: Any) -> Plan:
    """change(list of coefficients) -> list."""
    return plan.patch(orthogonalize, "POLAR_EXPRESS", tuple(change(list(orthogonalize.POLAR_EXPRESS))))


def _square_axis(plan: Plan) -> Plan:
    """Of square matrices, the other one; their state has the same numbers in it."""
    original = MUON.normuon

    def normuon(direction, square, beta2, axis_if_square):
        if direction.shape[0] != direction.shape[1]:
            return original(direction, square, beta2, axis_if_square)
        turned, square = original(direction.T, square, beta2, axis_if_square)
        return turned.T, square

    return plan.patch(MUON, "normuon", normuon)


def _norm_not_restored(plan: Plan) -> Plan:
    def normuon(direction, square, beta2, axis_if_square):
        square = square + (1 - beta2) * (norm_muon.mean_square(direction, axis_if_square) - square)
        return direction * jax.lax.rsqrt(jnp.maximum(square, norm_muon.NORMUON_EPS)), square

    return plan.patch(MUON, "normuon", normuon)


def _columns_equilibrated(plan: Plan) -> Plan:
    original = orthogonalize.scale_rows
    return plan.patch(orthogonalize, "scale_rows", lambda x: original(x.swapaxes(1, 2)).swapaxes(1, 2))


def _norm_of_longer_side(plan: Plan) -> Plan:
    original = orthogonalize.scale_matrices

    def scale_matrices(x):
        return original(x) * (max(x.shape[1:]) / min(x.shape[1:])) ** 0.5

    return plan.patch(orthogonalize, "scale_matrices", scale_matrices)


def _decay(plan: Plan, decay: Any) -> Plan:
    """decay(param, direction, lr, scale) -> what is taken off besides lr x scale x direction, per weight decay."""

    def muon_step(param, direction, *, lr, weight_decay, cautious):
        n_in, n_out = param.shape
        scale = max(1.0, n_out / n_in) ** 0.5
        return -lr * scale * direction - weight_decay * decay(param, direction, lr, scale)

    return plan.patch(MUON, "muon_step", muon_step)


def _is_shrinking(param, direction):
    return (direction * param >= 0).astype(param.dtype)


# Schedules and groups


def _warmdown(by: int, plan: Plan) -> Plan:
    original = schedule.warmdown_at
    return plan.patch(schedule, "warmdown_at", lambda config, step: original(config, max(step + by, 0)))


def _warmup_of_cosine(plan: Plan) -> Plan:
    """(n + 1) / (warmup_steps + 1)."""
    original, warmup = schedule.lr_scale_at, plan.config.optim.schedule.warmup_steps

    def lr_scale_at(config, step):
        return original(config, step) * (warmup / (warmup + 1) if step < warmup else 1)

    return plan.patch(schedule, "lr_scale_at", lr_scale_at)


def _groups(plan: Plan, **changes: Any) -> Plan:
    """Per group a function from it to the fields that are replaced."""
    return plan.set_optim(
        groups=tuple(
            dataclasses.replace(group, **changes[group.name](group)) if group.name in changes else group
            for group in plan.config.optim.groups
        )
    )


def _swap_lr(a: str, b: str, plan: Plan) -> Plan:
    lr = {group.name: group.lr for group in plan.config.optim.groups}
    return _groups(plan, **{a: lambda _: {"lr": lr[b]}, b: lambda _: {"lr": lr[a]}})


def _lr_without_width(plan: Plan) -> Plan:
    factor = (768 / plan.config.model.n_embd) ** 0.5
    names = [group.name for group in plan.config.optim.groups if group.name in ("wte", "lm_head", "value_embeds")]
    return _groups(plan, **dict.fromkeys(names, lambda group: {"lr": group.lr / factor}))


def _matrix_lr_without_batch(plan: Plan) -> Plan:
    return plan.set_muon(lr=plan.config.optim.muon.lr * (2**19 / plan.config.train.batch_tokens) ** 0.5)


def _of_model(plant: Any, recipe: str = "nanochat2026") -> Mutation:
    return Mutation(plant, recipe, is_early=True)


def _of_update(plant: Any, recipe: str = "nanochat2026") -> Mutation:
    return Mutation(plant, recipe, is_update=True)


NANOCHAT_MUTATIONS: dict[str, Mutation] = {
    "2025: query sees the next token": _of_model(_causal, "nanochat2025"),
    "2025: rotary base 100,000 instead of 10,000": _of_model(
        lambda plan: plan.set_model(rope_base=1e5), "nanochat2025"
    ),
    "2025: rotary turned the other way": _of_model(lambda plan: _patch_rotary(plan, _turned_back), "nanochat2025"),
    "2025: queries and keys times 1.2": _of_model(lambda plan: plan.set_model(qk_scale=1.2), "nanochat2025"),
    "2025: softcap left out": _of_model(lambda plan: plan.set_model(softcap=1e6), "nanochat2025"),
    "2025: embedding not normed": _of_model(_no_embedding_norm, "nanochat2025"),
    "2025: relu not squared": _of_model(lambda plan: _mlp(plan, jax.nn.relu), "nanochat2025"),
    "2025: learning rate ends at a tenth": _of_update(lambda plan: plan.set_schedule(min_lr_frac=0.1), "nanochat2025"),
    "2025: warm-down one step early": _of_update(functools.partial(_warmdown, 1), "nanochat2025"),
    "2025: rates of embedding and head swapped": _of_update(
        functools.partial(_swap_lr, "wte", "lm_head"), "nanochat2025"
    ),
    "2025: rates without the width's factor": _of_update(_lr_without_width, "nanochat2025"),
    "2025: Polar Express instead of Newton-Schulz": _of_update(
        lambda plan: plan.set_muon(orthogonalizer="polar_express"), "nanochat2025"
    ),
    "short window one key too wide": _of_model(lambda plan: plan.set_model(short_window=10)),
    "short window one key too narrow": _of_model(lambda plan: plan.set_model(short_window=8)),
    "short and long windows swapped": _of_model(lambda plan: plan.set_model(window_pattern="LS")),
    "last layer's window short": _of_model(_last_window),
    "query sees the next token": _of_model(_causal),
    "rotary turned the other way": _of_model(lambda plan: _patch_rotary(plan, _turned_back)),
    "rotary base 10,000 instead of 100,000": _of_model(lambda plan: plan.set_model(rope_base=1e4)),
    "rotary of neighbours instead of halves": _of_model(lambda plan: _patch_rotary(plan, _pairs_interleaved)),
    "keys not turned": _of_model(_keys_not_turned),
    "QK scale 1.2 left out": _of_model(lambda plan: plan.set_model(qk_scale=1.0)),
    "QK scale rounded to bfloat16": _of_model(lambda plan: plan.set_model(qk_scale=1.203125)),
    "QK scale left out of keys": _of_model(_keys_not_scaled),
    "QK norm left out": _of_model(lambda plan: _patch_rms_norm(plan, _no_qk_norm)),
    "RMS-norm epsilon 1e-6": _of_model(lambda plan: _patch_rms_norm(plan, _rms_norm_eps)),
    "softcap left out": _of_model(lambda plan: plan.set_model(softcap=1e6)),
    "softcap 20 instead of 15": _of_model(lambda plan: plan.set_model(softcap=20.0)),
    "softcap left out of the gradient": _of_model(_softcap_slope),
    "relu not squared": _of_model(lambda plan: _mlp(plan, jax.nn.relu)),
    "GELU instead of relu squared": _of_model(lambda plan: _mlp(plan, layers.gelu)),
    "value gate 2 x sigmoid instead of 3 x": _of_model(lambda plan: plan.patch(nanochat, "VALUE_GATE_SCALE", 2.0)),
    "value gate reads the next channels": _of_model(
        lambda plan: _patch_gate(plan, "value_embed", lambda x, full: full[..., x.shape[-1] : 2 * x.shape[-1]])
    ),
    "value embeddings of first and last layer swapped": _of_model(lambda plan: _patch_value_embed(plan, _other_table)),
    "value embedding of the first layer left out": _of_model(lambda plan: _patch_value_embed(plan, _first_left_out)),
    "smear of the next token": _of_model(lambda plan: _smear(plan, functools.partial(_shift, by=-1))),
    "smear of two tokens before": _of_model(lambda plan: _smear(plan, functools.partial(_shift, by=2))),
    "smear of the last token into the first": _of_model(lambda plan: _smear(plan, lambda x: jnp.roll(x, 1, axis=1))),
    "smear gate reads the token before": _of_model(lambda plan: _smear(plan, look_at=_before)),
    "embedding not normed": _of_model(_no_embedding_norm),
    "backout of the first layer": _of_model(lambda plan: _forward(plan, middle=0)),
    "backout of the middle layer's input": _of_model(lambda plan: _forward(plan, is_input=True)),
    "backout added": _of_model(lambda plan: _finish(plan, lambda scale, x, m: layers.rms_norm(x + scale * m))),
    "backout after the last norm": _of_model(
        lambda plan: _finish(plan, lambda scale, x, m: layers.rms_norm(x) - scale * m)
    ),
    "last norm left out": _of_model(lambda plan: _finish(plan, lambda scale, x, m: x - scale * m)),
    "x0 lambda dropped": _of_model(lambda plan: _mix(plan, lambda resid, x0, i, x, start: resid[i] * x)),
    "residual and x0 lambdas swapped": _of_model(
        lambda plan: _mix(plan, lambda resid, x0, i, x, start: x0[i] * x + resid[i] * start)
    ),
    "residual lambda on both": _of_model(
        lambda plan: _mix(plan, lambda resid, x0, i, x, start: resid[i] * (x + x0[i] * start))
    ),
    "lambdas of the next layer": _of_model(
        lambda plan: _mix(plan, lambda resid, x0, i, x, start: jnp.roll(resid, -1)[i] * x + x0[i] * start)
    ),
    "x0 before smear": _of_model(lambda plan: _forward(plan, is_raw_start=True)),
    "Polar Express: 0.4654 instead of 0.4645": _of_update(
        lambda plan: _polar(plan, lambda c: [*c[:3], (3.2858, -2.3681, 0.4654), c[4]])
    ),
    "Polar Express: second and third swapped": _of_update(
        lambda plan: _polar(plan, lambda c: [c[0], c[2], c[1], *c[3:]])
    ),
    "Polar Express: four iterations": _of_update(lambda plan: plan.set_muon(ns_steps=4)),
    "Polar Express: margin 1.01 left out": _of_update(lambda plan: plan.set_muon(ns_margin=1.0)),
    "Polar Express: in bfloat16": _of_update(lambda plan: plan.set_muon(ns_dtype="bfloat16")),
    "Newton-Schulz instead of Polar Express": _of_update(lambda plan: plan.set_muon(orthogonalizer="newton_schulz")),
    "NorMuon: other axis of square matrices": _of_update(_square_axis),
    "NorMuon: beta2 0.95 instead of 0.9": _of_update(lambda plan: plan.set_muon(norm_beta2=0.95)),
    "NorMuon: norm not restored": _of_update(_norm_not_restored),
    "MuonEq: columns instead of rows": _of_update(_columns_equilibrated),
    "MuonEq: left out": _of_update(lambda plan: plan.set_muon(equilibrate_rows=False)),
    "Muon+: left out": _of_update(lambda plan: plan.set_muon(renormalize=False)),
    "Muon+: norm of the longer side": _of_update(_norm_of_longer_side),
    "cautious decay: mask turned over": _of_update(
        lambda plan: _decay(plan, lambda p, d, lr, scale: lr * scale * p * (1 - _is_shrinking(p, d)))
    ),
    "cautious decay: mask left out": _of_update(lambda plan: _decay(plan, lambda p, d, lr, scale: lr * scale * p)),
    "cautious decay: without the factor of tall matrices": _of_update(
        lambda plan: _decay(plan, lambda p, d, lr, scale: lr * p * _is_shrinking(p, d))
    ),
    "cautious decay: learning rate squared": _of_update(
        lambda plan: _decay(plan, lambda p, d, lr, scale: lr * lr * scale * p * _is_shrinking(p, d))
    ),
    "decay schedule constant": _of_update(lambda plan: plan.set_muon(decay_schedule="constant")),
    "momentum does not descend": _of_update(lambda plan: plan.set_muon(momentum_end=-1.0)),
    "momentum warmed up to 0.95": _of_update(lambda plan: plan.set_muon(momentum=0.95)),
    "warm-up of the cosine schedule": _of_update(_warmup_of_cosine),
    "warm-down one step early": _of_update(functools.partial(_warmdown, 1)),
    "warm-down one step late": _of_update(functools.partial(_warmdown, -1)),
    "rates of embedding and head swapped": _of_update(functools.partial(_swap_lr, "wte", "lm_head")),
    "rates of residual and x0 lambdas swapped": _of_update(functools.partial(_swap_lr, "resid_lambdas", "x0_lambdas")),
    "rates without the width's factor": _of_update(_lr_without_width),
    "Muon's rate without the batch's factor": _of_update(_matrix_lr_without_batch),
    "decay of the embedding left out": _of_update(lambda plan: _groups(plan, wte=lambda _: {"weight_decay": 0.0})),
    "decay of residual lambdas left out": _of_update(
        lambda plan: _groups(plan, resid_lambdas=lambda _: {"weight_decay": 0.0})
    ),
    "beta1 of x0 lambdas 0.8 instead of 0.96": _of_update(
        lambda plan: _groups(plan, x0_lambdas=lambda _: {"beta1": 0.8})
    ),
    "beta2 of the embedding 0.95 instead of 0.995": _of_update(
        lambda plan: _groups(plan, wte=lambda _: {"beta2": 0.95})
    ),
    "Adam epsilon 1e-8 instead of 1e-10": _of_update(lambda plan: plan.set_optim(eps=1e-8)),
    "gradients clipped": _of_update(lambda plan: plan.set_optim(grad_clip=0.3)),
}
