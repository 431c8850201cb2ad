"""A model's forward pass layer by layer, either framework's: how a trace finds the first place where two differ."""

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
"""Path -> array."""


def walk(module: Any, tokens_BT, tap: Callable[[str, Any], Any]):
    """A model's forward pass, either framework's, layer by layer: tap(name, value) -> value sees each output."""
    family = {"gpt2": _walk_gpt2, "nanochat": _walk_nanochat, "modded": _walk_modded}[module.config.family]
    return family(module, tokens_BT, tap)


def _walk_gpt2(module: Any, tokens_BT, tap: Callable[[str, Any], Any]):
    x_BTD = tap("embedding", module.embed(tokens_BT))
    for i, block in enumerate(module.h):
        y_BTD = tap(f"h.{i}.ln_1", block.ln_1(x_BTD))
        x_BTD = x_BTD + tap(f"h.{i}.attn", block.attn(y_BTD)[0])
        y_BTD = tap(f"h.{i}.ln_2", block.ln_2(x_BTD))
        x_BTD = tap(f"h.{i}", x_BTD + tap(f"h.{i}.mlp", block.mlp(y_BTD)))
    return tap("ln_f", module.ln_f(x_BTD))


def _walk_nanochat(module: Any, tokens_BT, tap: Callable[[str, Any], Any]):
    rms_norm = sys.modules[type(module).__module__].rms_norm  # of the framework that the module belongs to
    x0_BTD = x_BTD = tap("embedding", module.embed(tokens_BT))
    middle_BTD = None
    for i, block in enumerate(module.h):
        if module.config.layer_lambdas:
            x_BTD = tap(f"h.{i}.mix", module.mix(i, x_BTD, x0_BTD))
        value_embed_BTD = module.value_embed(i, tokens_BT)
        if value_embed_BTD is not None:
            value_embed_BTD = tap(f"h.{i}.value_embed", value_embed_BTD)
        y_BTD = block.attn(rms_norm(x_BTD), value_embed_BTD)[0]
        x_BTD = x_BTD + tap(f"h.{i}.attn", y_BTD)
        x_BTD = tap(f"h.{i}", x_BTD + tap(f"h.{i}.mlp", block.mlp(rms_norm(x_BTD))))
        middle_BTD = x_BTD if i == module.config.n_layer // 2 else middle_BTD
    return tap("last norm", module.finish(x_BTD, middle_BTD))


def _walk_modded(module: Any, tokens_BT, tap: Callable[[str, Any], Any]):
    config, math = module.config, sys.modules[type(module).__module__]  # of the framework that the module belongs to
    n_tokens = tokens_BT.shape[1]
    positions_BT, begin_BT = math.query_positions(tokens_BT, None), module.begins(tokens_BT)
    before_BT = tokens_BT[:, np.maximum(np.arange(n_tokens) - 1, 0)]  # its first is not read
    x0_BTD = x_BTD = tap("embedding", module.embed(tokens_BT, 0 * tokens_BT[:, :1] - 1))
    bigram_BTD = module.embed_bigrams(tokens_BT, before_BT, positions_BT)
    if bigram_BTD is not None:
        bigram_BTD = tap("bigrams", bigram_BTD)
    tables, kept = module.rotary_tables(positions_BT), {}
    for i, block in enumerate(module.h):
        if i == config.skip_to:
            x_BTD = tap(f"h.{i}.skip", module.skip(x_BTD, x0_BTD, kept[config.skip_from]))
        x_BTD = tap(f"h.{i}.mix", module.mix(i, x_BTD, x0_BTD, bigram_BTD))
        value_embed_BTD = module.value_embed(i, tokens_BT)
        if value_embed_BTD is not None:
            value_embed_BTD = tap(f"h.{i}.value_embed", value_embed_BTD)
        if block.has_attention:
            lambdas = None if config.attn_lambdas == "none" else module.attn_lambdas[...][i]
            inputs = (value_embed_BTD, lambdas, tables[config.is_paired(i)], begin_BT)
            x_BTD = x_BTD + tap(f"h.{i}.attn", block.attn(block.norm1(x_BTD), *inputs)[0])
        x_BTD = tap(f"h.{i}", x_BTD + tap(f"h.{i}.mlp", block.mlp(block.norm2(x_BTD))))
        if i in (config.skip_from, config.backout_from):
            kept[i] = x_BTD
    return tap("last norm", module.finish(x_BTD, kept.get(config.backout_from)))


def in_order(order: list[str], values: Arrays, param_grads: Arrays, place_grads: Arrays) -> Arrays:
    """Forward from the embedding to the logits, backward from the last layer to the first.

    Behind the gradient of a layer's output come those of its own parameters, last ones first; at the end, those that
    belong to several layers.
    """
    places = {f"forward: {name}": values[name] for name in [*order, "logits"]}
    for name in reversed(order):
        places[f"backward: output of {name}"] = place_grads[name]
        own = [path for path in param_grads if re.fullmatch(_parameters_of(name), path)]
        places |= {f"backward: {path}": param_grads[path] for path in sorted(own, reverse=True)}
    return places | {f"backward: {path}": grad for path, grad in param_grads.items()}


def _parameters_of(place: str) -> str:
    """Regular expression of the parameters whose gradients are complete behind this place of the backward pass."""
    ends = {
        "embedding": r"(wte|wpe|smear_gate)\.weight|smear_lambda|(resid|x0)_lambdas",
        "ln_f": r"ln_f\..*",
        "last norm": r"lm_head\.weight|backout_lambda",
    }
    layer, _, part = place.removeprefix("h.").partition(".")
    return ends.get(place) or (rf"value_embeds\.{layer}\..*" if part == "value_embed" else rf"h\.{layer}\.{part}\..+")
