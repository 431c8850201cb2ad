"""Parameters of a modded model in the layout of the original programs: banks, `scalars`, [out, in], their names.

Digests were measured on the originals, whose tensors are filled in the order of their names. `from_original` takes
such tensors apart; `to_original` puts gradients or parameters together again, with 0 where the original holds a number
that no layer reads (record 62's last MLP, record 46's scalars of empty blocks).
"""

import numpy as np

from jaxgpt.config.families import ModdedConfig

KINDS = ("c_q", "c_k", "c_v", "c_proj")


def original_shapes(config: ModdedConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the original's parameters."""
    d, v, h, n = config.n_embd, config.vocab_size, config.n_head, config.n_layer
    if config.record == "track3":
        shapes: dict[str, tuple[int, ...]] = {"embed.weight": (v, d), "proj.weight": (v, d), "proj.bias": (v,)}
        shapes |= {"norm1.gains": (d,), "norm2.gains": (d,)}
        for i in range(n):
            shapes |= {f"blocks.{i}.norm{k}.gains": (d,) for k in (1, 2)}
            sides = dict.fromkeys(("attn.q", "attn.k", "attn.v", "attn.proj"), (d, d))
            for name, shape in (sides | {"mlp.fc": (4 * d, d), "mlp.proj": (d, 4 * d)}).items():
                shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        return shapes
    tables = {"embed.weight": (v, d), "smear_gate.weight": (1, 12)}
    tables |= {f"value_embeds.{j}.weight": (v, d) for j in range(3)}
    if config.record == "62":
        return tables | {
            "attn_bank": (10, 4 * d, d), "mlp_bank": (12, 2, 4 * d, d), "scalars": (47,), "x0_lambdas": (11,),
            "bigram_embed.weight": (config.bigram_rows, d), "skip_gate.weight": (1, 12), "lm_head.weight": (d, v),
            "attn_gate_bank": (10, h, 12), "ve_gate_bank": (5, h, 12),
        }  # fmt: skip
    shapes = tables | {"lm_head.weight": (v, d), "scalars": (62,)}
    for layer in range(n):
        block = f"blocks.{layer + 1}"
        shapes |= {f"{block}.mlp.c_fc": (d, 4 * d), f"{block}.mlp.c_proj": (d, 4 * d)}
        if config.has_attention(layer):
            shapes |= {f"{block}.attn.qkvo_w": (d, 4 * d), f"{block}.attn.attn_gate.weight": (h, 12)}
    return shapes


def from_original(config: ModdedConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The originals' tensors as jaxgpt's parameters."""
    return {path: np.ascontiguousarray(part) for path, part in _views(config, tensors).items()}


def to_original(config: ModdedConfig, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """jaxgpt's parameters, or their gradients, as the originals' tensors."""
    tensors = {name: np.zeros(shape, params["wte.weight"].dtype) for name, shape in original_shapes(config).items()}
    for path, view in _views(config, tensors).items():
        view[...] = params[path]
    return tensors


def _views(config: ModdedConfig, t: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Path -> the part of a tensor that is this parameter, as a view into it."""
    views = {"wte.weight": t["embed.weight"]}
    if config.record == "track3":
        views |= {"lm_head.weight": t["proj.weight"], "lm_head.bias": t["proj.bias"]}
        views |= {f"norm{k}.gains": t[f"norm{k}.gains"] for k in (1, 2)}
        names = {"attn.c_q": "attn.q", "attn.c_k": "attn.k", "attn.c_v": "attn.v", "attn.c_proj": "attn.proj",
                 "mlp.c_fc": "mlp.fc", "mlp.c_proj": "mlp.proj"}  # fmt: skip
        for i in range(config.n_layer):
            views |= {f"h.{i}.norm{k}.gains": t[f"blocks.{i}.norm{k}.gains"] for k in (1, 2)}
            for name, original in names.items():
                views[f"h.{i}.{name}.weight"] = t[f"blocks.{i}.{original}.weight"].T
                views[f"h.{i}.{name}.bias"] = t[f"blocks.{i}.{original}.bias"]
        return views
    views |= {f"value_embeds.{j}.weight": t[f"value_embeds.{j}.weight"] for j in range(3)}
    views["smear_gate.weight"] = t["smear_gate.weight"].T
    return views | (_record62 if config.record == "62" else _record46)(config, t)


def _record62(config: ModdedConfig, t: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    d, scalars = config.n_embd, t["scalars"]
    views = {
        "lm_head.weight": t["lm_head.weight"].T, "bigram_embed.weight": t["bigram_embed.weight"],
        "skip_gate.weight": t["skip_gate.weight"].T, "x0_lambdas": t["x0_lambdas"],
        "resid_lambdas": scalars[:11], "attn_lambdas": scalars[11:33].reshape(11, 2), "bigram_lambdas": scalars[33:44],
        "smear_lambda": scalars[44:45], "backout_lambda": scalars[45:46], "skip_lambda": scalars[46:47],
    }  # fmt: skip
    attention = [layer for layer in range(11) if config.has_attention(layer)]
    for row, layer in enumerate(attention):
        for k, name in enumerate(KINDS):
            views[f"h.{layer}.attn.{name}.weight"] = t["attn_bank"][row, k * d : (k + 1) * d].T
        views[f"h.{layer}.attn.gate.weight"] = t["attn_gate_bank"][row].T
    for row, layer in enumerate([layer for layer in range(11) if config.value_table(layer) is not None]):
        views[f"h.{layer}.attn.ve_gate.weight"] = t["ve_gate_bank"][row].T
    for layer in range(11):
        views[f"h.{layer}.mlp.c_fc.weight"] = t["mlp_bank"][layer, 0].T
        views[f"h.{layer}.mlp.c_proj.weight"] = t["mlp_bank"][layer, 1]
    return views


def _record46(config: ModdedConfig, t: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    d, scalars = config.n_embd, t["scalars"]
    block_lambdas = scalars[12:36].reshape(12, 2)[1:]
    views = {
        "lm_head.weight": t["lm_head.weight"], "resid_lambdas": block_lambdas[:, 0], "x0_lambdas": block_lambdas[:, 1],
        "attn_lambdas": scalars[36:60].reshape(12, 2)[1:], "skip_lambda": scalars[1:2],
        "smear_lambda": scalars[60:61], "backout_lambda": scalars[61:62],
    }  # fmt: skip
    for layer in range(11):
        block = f"blocks.{layer + 1}"
        if config.has_attention(layer):
            matrices = t[f"{block}.attn.qkvo_w"].reshape(4, d, d)
            views |= {f"h.{layer}.attn.{name}.weight": matrices[k].T for k, name in enumerate(KINDS)}
            views[f"h.{layer}.attn.gate.weight"] = t[f"{block}.attn.attn_gate.weight"].T
        views[f"h.{layer}.mlp.c_fc.weight"] = t[f"{block}.mlp.c_fc"]
        views[f"h.{layer}.mlp.c_proj.weight"] = t[f"{block}.mlp.c_proj"].T
    return views


def fill(shapes: dict[str, tuple[int, ...]], seed: int, offset_and_scale) -> dict[str, np.ndarray]:
    """Float64 tensors: number k of the sorted names is offset + scale x default_rng([seed, k]).standard_normal.

    Args:
      offset_and_scale: name -> (offset, scale).
    """
    filled = {}
    for k, name in enumerate(sorted(shapes)):
        offset, scale = offset_and_scale(name)
        filled[name] = offset + scale * np.random.default_rng([seed, k]).standard_normal(shapes[name])
    return filled
