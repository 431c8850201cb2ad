"""Which parameter is where in nanochat's optimizers, and what each of its processes holds.

2025: two optimizers in a list. AdamW for lm_head and wte: of n processes each holds its rows of both moments. Muon for
the matrices in the blocks: one process has groups by size, several by shape, and of each group process r holds the
momentum of matrices r, r + n, r + 2n. 2026: one optimizer. AdamW's parameters of fewer than 1024 values are whole in
each process, of others its rows; Muon stacks the matrices of one shape, pads the stack with zeros and deals it out in
equal parts, momentum and second moment alike.

References: nanochat adamw.py (449494c), muon.py (23c5171), gpt.py (025c432, setup_optimizers) for 2025; optim.py
(0e4b3fa), gpt.py (setup_optimizer) for 2026.
"""

import functools
import math

from jaxgpt.config.families import NanochatConfig
from jaxgpt.formats.stored import linear_weights
from jaxgpt.models import param_shapes

_WHOLE_BELOW = 1024
"""2026: AdamW's parameters of fewer values are whole in each process."""


def adamw_groups(config: NanochatConfig) -> dict[str, list[str]]:
    """AdamW's groups in the original's order: name of ours -> paths."""
    groups = {"lm_head": ["lm_head.weight"], "wte": ["wte.weight"]}
    if config.era == "2026":
        layers = [layer for layer in range(config.depth) if config.has_value_embed(layer)]
        groups |= {
            "value_embeds": [f"value_embeds.{layer}.weight" for layer in layers],
            "resid_lambdas": ["resid_lambdas"],
            "x0_lambdas": ["x0_lambdas"],
            "smear": ["smear_gate.weight", "smear_lambda", "backout_lambda"],
        }
    return groups


def matrix_paths(config: NanochatConfig) -> list[str]:
    """Muon's parameters in the order in which the original's modules hold them."""
    paths = []
    for layer in range(config.depth):
        names = ["attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "attn.ve_gate", "mlp.c_fc", "mlp.c_proj"]
        paths += [f"h.{layer}.{n}.weight" for n in names if n != "attn.ve_gate" or config.has_value_embed(layer)]
    return paths


@functools.cache
def torch_shapes(config: NanochatConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape as torch has it, linear weights [out, in]."""
    is_transposed = linear_weights(config)
    shapes = {path: tuple(leaf.shape) for path, leaf in param_shapes(config).items()}
    return {path: shape[::-1] if is_transposed(path) else shape for path, shape in shapes.items()}


def matrix_groups(config: NanochatConfig, *, is_one_process: bool) -> list[list[str]]:
    """Muon's groups in the original's order. 2025 on one process goes by size, in the order of a Python set."""
    shapes, paths = torch_shapes(config), matrix_paths(config)
    if config.era == "2025" and is_one_process:
        sizes = {math.prod(shapes[path]) for path in paths}
        return [[path for path in paths if math.prod(shapes[path]) == size] for size in sizes]
    return [[path for path in paths if shapes[path] == shape] for shape in sorted({shapes[path] for path in paths})]


def is_whole(config: NanochatConfig, shape: tuple[int, ...]) -> bool:
    """Whether each process holds all of AdamW's moments of a parameter of this shape."""
    return config.era == "2026" and math.prod(shape) < _WHOLE_BELOW
