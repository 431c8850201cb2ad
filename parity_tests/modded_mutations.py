"""Bugs planted in jaxgpt's modded family, one at a time: in its model, by record, and in the loss of several targets.

As in mutations.py, which has GPT-2's; modded_update_mutations.py has those of the optimizers.
"""

from typing import Any
from unittest import mock

import jax.numpy as jnp

from jaxgpt.config.families import modded as family
from jaxgpt.models import bigram, loss, modded
from parity_tests.mutations import Mutation, Plan
from parity_tests.small_runs import BOS

PAIRED_ROWS = 2
"""Rows a token in the attention of paired heads."""

# Attention


def _window(plan: Plan, change: Any) -> Plan:
    """change(window, whether heads are paired) -> window."""

    def attention(original, q, k, v, begin, *, window, **settings):
        is_paired = q.shape[2] < plan.config.model.n_embd // plan.config.model.head_dim
        return original(q, k, v, begin, window=change(window, is_paired), **settings)

    return plan.wrap(modded, "packed_attention", attention)


def _borders(plan: Plan, change: Any) -> Plan:
    """change(first position of each token's document, positions) -> another one."""

    def begins(original, tokens_BT, bos_id):
        return change(original(tokens_BT, bos_id), jnp.arange(tokens_BT.shape[1], dtype=jnp.int32))

    return plan.wrap(modded, "document_begins", begins)


def _neighbours_paired(plan: Plan) -> Plan:
    """Heads 2 j and 2 j + 1 share a sequence, instead of j and j + N / 2."""

    def attention(original, q, k, v, begin, **settings):
        n_head = plan.config.model.n_embd // plan.config.model.head_dim
        if q.shape[2] == n_head:
            return original(q, k, v, begin, **settings)
        shape = q.shape
        whole = (shape[0], shape[1] // PAIRED_ROWS, PAIRED_ROWS, n_head // 2, shape[3])
        apart = (shape[0], shape[1] // PAIRED_ROWS, n_head // 2, PAIRED_ROWS, shape[3])
        q, k, v = (x.reshape(apart).swapaxes(2, 3).reshape(shape) for x in (q, k, v))
        y = original(q, k, v, begin, **settings)
        return y.reshape(whole).swapaxes(2, 3).reshape(shape)

    return plan.wrap(modded, "packed_attention", attention)


def _phase_by_row(plan: Plan) -> Plan:
    def tables(original, positions, *args):
        n_head = positions.shape[-1]
        if n_head > 1:  # paired
            positions = positions[..., jnp.repeat(jnp.arange(PAIRED_ROWS), n_head // PAIRED_ROWS)]
        return original(positions, *args)

    return plan.wrap(modded, "rotary_tables", tables)


def _rotated_keys_offset(original, k_BSNH):
    return jnp.roll(original(jnp.roll(k_BSNH, k_BSNH.shape[-1] // 2, axis=-1)), k_BSNH.shape[-1] // 2, axis=-1)


def _other_sign(original, *args):
    cos, sin = original(*args)
    return cos, -sin


def _causal(plan: Plan) -> Plan:
    """A query sees the key after its own: all keys come a token earlier."""

    def attention(original, q, k, v, begin, **settings):
        k, v = (jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1) for x in (k, v))
        return original(q, k, v, begin, **settings)

    return plan.wrap(modded, "packed_attention", attention)


# Embeddings, gates and the residual stream


def _bigrams(plan: Plan, change: Any) -> Plan:
    return plan.wrap(modded, "bigram_ids", change)


def _first_token_known(original, tokens, before, positions, n_rows):
    return original(tokens, before, positions + (positions > 0), n_rows)


def _modulus_of_all_rows(original, tokens, before, positions, n_rows):
    last = n_rows - 1
    ids = original(tokens, before, positions, n_rows + 1)
    return jnp.minimum(jnp.where(positions == 0, last, ids), last)


def _smear_stopped(plan: Plan) -> Plan:
    """A document's first token gets nothing of the token before it."""

    def embed(original, model, tokens_BT, before_B1):
        keep_BT1 = (tokens_BT != BOS)[..., None]
        gate = modded.gate

        with mock.patch.object(modded, "gate", lambda module, x_BTD: gate(module, x_BTD) * keep_BT1):
            return original(model, tokens_BT, before_B1)

    return plan.wrap(modded.Modded, "embed", embed)


def _skip_gate_of_stream(original, model, x_BTD, x0_BTD, kept_BTD):
    return original(model, x_BTD, x_BTD, kept_BTD)


def _gates_of_stream(plan: Plan) -> Plan:
    """Attention's and value embeddings' gates read the stream before its norm."""
    streams = []

    def block(original, module, x_BTD, *args):
        streams.append(x_BTD)
        return original(module, x_BTD, *args)

    def gate(original, module, x_BTD):
        return original(module, streams[-1] if module.weight.shape[-1] > 1 else x_BTD)

    return plan.wrap(modded.Block, "__call__", block).wrap(modded, "gate", gate)


def _mix(plan: Plan, change: Any) -> Plan:
    """change(x, x0, bigrams) -> what is mixed instead of these."""

    def mix(original, model, layer, x_BTD, x0_BTD, bigram_BTD):
        return original(model, layer, *change(x_BTD, x0_BTD, bigram_BTD))

    return plan.wrap(modded.Modded, "mix", mix)


# The loss


def _targets(plan: Plan, change: Any) -> Plan:
    """change(original, targets, mask, weights) -> ids and weights of each target."""
    return plan.wrap(loss, "_targets_ahead", change)


def _one_further(original, targets_BT, mask_BT, weights_K):
    parts = original(targets_BT, mask_BT, weights_K)
    ids, weights = ((first, *(jnp.pad(a[:, 1:], ((0, 0), (0, 1))) for a in rest)) for first, *rest in parts)
    return ids, weights


def _targets_stopped(original, targets_BT, mask_BT, weights_K):
    """Where a document begins between a position and its target, the target does not count."""
    ids, weights = original(targets_BT, mask_BT, weights_K)
    is_inside, kept = jnp.ones_like(mask_BT), []
    for ids_BT, weights_BT in zip(ids, weights, strict=True):
        is_inside = is_inside * (ids_BT != BOS)
        kept.append(weights_BT * is_inside)
    return ids, tuple(kept)


def _softcap_slope(plan: Plan) -> Plan:
    return plan.patch(loss, "softcap_slope", lambda logits, cap: jnp.ones_like(logits))


def _of_model(plant: Any, recipe: str = "modded62") -> Mutation:
    return Mutation(plant, recipe, is_early=True)


MODDED_MUTATIONS: dict[str, Mutation] = {
    "62: key offset left out": _of_model(lambda plan: plan.set_model(key_offset=False)),
    "62: key offset of the rotated channels": _of_model(
        lambda plan: plan.wrap(modded, "offset_keys", _rotated_keys_offset)
    ),
    "62: window of paired heads in tokens, not rows": _of_model(
        lambda plan: _window(plan, lambda window, is_paired: 2 * window - 1 if is_paired else window)
    ),
    "62: neighbouring heads paired": _of_model(_neighbours_paired),
    "62: rotation by the row of a pair": _of_model(_phase_by_row),
    "62: windows one key too wide": _of_model(lambda plan: _window(plan, lambda window, _: window + 1)),
    "62: windows one key too narrow": _of_model(lambda plan: _window(plan, lambda window, _: window - 1)),
    "62: a document sees the last token before it": _of_model(
        lambda plan: _borders(plan, lambda begin, t: jnp.maximum(begin - 1, 0))
    ),
    "62: a document does not see its first token": _of_model(
        lambda plan: _borders(plan, lambda begin, t: jnp.minimum(begin + 1, t))
    ),
    "62: documents are not told apart": _of_model(lambda plan: plan.set_model(is_packed=False)),
    "62: YaRN leaves the attention's scale": _of_model(
        lambda plan: plan.patch(family, "attention_scale", lambda scale, changes: scale)
    ),
    "62: YaRN leaves the frequencies": _of_model(
        lambda plan: plan.wrap(modded, "rotary_frequencies", lambda original, n, _, *more: original(n, (), *more))
    ),
    "62: rotation of the other sign": _of_model(lambda plan: plan.wrap(modded, "rotary_tables", _other_sign)),
    "62: RMS-norm epsilon 1e-6": _of_model(lambda plan: plan.patch(modded, "RMS_EPS", 1e-6)),
    "62: smear stops at documents": _of_model(_smear_stopped),
    "62: second bigram knows the first token": _of_model(lambda plan: _bigrams(plan, _first_token_known)),
    "62: bigrams modulo all rows": _of_model(lambda plan: _bigrams(plan, _modulus_of_all_rows)),
    "62: factors of the bigram hash swapped": _of_model(
        lambda plan: plan.patch(bigram, "FACTOR", 27191).patch(bigram, "FACTOR_BEFORE", 36313)
    ),
    "62: skip gate without its factor 2": _of_model(lambda plan: plan.patch(modded, "SKIP_GATE_SCALE", 1.0)),
    "62: skip gate reads the stream": _of_model(
        lambda plan: plan.wrap(modded.Modded, "skip", _skip_gate_of_stream)
    ),
    "62: value gate without its factor 2": _of_model(lambda plan: plan.patch(modded, "VALUE_GATE_SCALE", 1.0)),
    "62: gates read the stream before its norm": _of_model(_gates_of_stream),
    "62: value tables of layers 0, 1, 3 are 0, 1, 2": _of_model(lambda plan: plan.set_model(value_embeds="01-2")),
    "62: x0 lambda dropped": _of_model(lambda plan: _mix(plan, lambda x, x0, b: (x, 0 * x0, b))),
    "62: bigrams dropped": _of_model(lambda plan: _mix(plan, lambda x, x0, b: (x, x0, 0 * b))),
    "62: lambdas of weights multiply values": _of_model(lambda plan: plan.set_model(attn_lambdas="values")),
    "62: backout of the layer before": _of_model(lambda plan: plan.set_model(backout_from=1)),
    "62: later targets one token further": _of_model(lambda plan: _targets(plan, _one_further)),
    "62: targets weighted in the other order": _of_model(
        lambda plan: _targets(plan, lambda original, ids, mask, weights: original(ids, mask, weights[::-1]))
    ),
    "62: targets stop at documents": _of_model(lambda plan: _targets(plan, _targets_stopped)),
    "62: softcap scale 30": _of_model(lambda plan: plan.set_model(softcap_scale=30.0)),
    "62: softcap shift 0": _of_model(lambda plan: plan.set_model(softcap_shift=0.0)),
    "62: softcap width 7": _of_model(lambda plan: plan.set_model(softcap_width=7.0)),
    "62: softcap left out of the gradient": _of_model(_softcap_slope),
    "46: windows one key too wide": _of_model(
        lambda plan: _window(plan, lambda window, _: window + 1), "modded46"
    ),
    "46: a document sees the last token before it": _of_model(
        lambda plan: _borders(plan, lambda begin, t: jnp.maximum(begin - 1, 0)), "modded46"
    ),
    "46: neighbouring channels rotate together": _of_model(lambda plan: plan.set_model(rotary="pairs"), "modded46"),
    "46: lambdas of values multiply weights": _of_model(
        lambda plan: plan.set_model(attn_lambdas="weights"), "modded46"
    ),
    "46: value tables of layers 0, 1, 3 are 0, 1, 2": _of_model(
        lambda plan: plan.set_model(value_embeds="01-2"), "modded46"
    ),
    "46: softcap of record 62": _of_model(
        lambda plan: plan.set_model(softcap_scale=23.0, softcap_shift=5.0), "modded46"
    ),
    "track 3: attention scale 0.1": _of_model(lambda plan: plan.set_model(attn_scale=0.1), "track3"),
    "track 3: query sees the next token": _of_model(_causal, "track3"),
    "track 3: softcap by tanh": _of_model(lambda plan: plan.set_model(softcap="tanh"), "track3"),
    "track 3: softcap 30": _of_model(lambda plan: plan.set_model(softcap_scale=30.0), "track3"),
    "track 3: softcap left out of the gradient": _of_model(_softcap_slope, "track3"),
}  # fmt: skip
