"""A model's tensors in a file of another program, checked against the model and read.

Names, shapes and dtypes are compared with the model's before a tensor is read, and weights arrive as numpy arrays of
float32 whatever the file held; of float64 where the caller asks for it and the file has it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.config.families import ModelConfig
from jaxgpt.errors import InputError
from jaxgpt.models import param_shapes

Params = dict[str, np.ndarray]

FLOAT_DTYPES = ("F32", "F16", "BF16", "torch.float32", "torch.float16", "torch.bfloat16")
"""Dtypes of files, as safetensors and torch spell them, that float32 holds exactly."""
DOUBLE = "torch.float64"


class Stored(NamedTuple):
    """A tensor in a file: what it is, and how to read it as numpy."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def linear_weights(config: ModelConfig) -> Callable[[str], bool]:
    """Whether a path is a linear weight: [in, out] here, [out, in] in torch."""
    return lambda path: any(rule.is_transposed and re.fullmatch(rule.pattern, path) for rule in config.RULES)


def read_model(
    config: ModelConfig,
    stored: dict[str, Stored],
    source: Path,
    *,
    is_transposed: Callable[[str], bool],
    keeps_double: bool = False,
) -> Params:
    """Checks names, shapes and dtypes against the model, then reads. Errors name the tensors as the file does.

    Args:
      is_transposed: path of a parameter -> whether the file has it the other way round.
      keeps_double: whether float64 is read, as float64, instead of refused.
    """
    name_of = {name.removeprefix("transformer."): name for name in stored}
    if len(name_of) < len(stored):
        twice = next(name for name in stored if name_of[name.removeprefix("transformer.")] != name)
        raise InputError(f"{source} holds {twice} twice, with and without transformer.; save it again")
    n_blocks = len({path.split(".")[1] for path in name_of if path.startswith("h.")})
    if n_blocks != config.n_layer:  # before building a model as deep as an unchecked file says
        raise InputError(
            f"{source}: its config says n_layer={config.n_layer}, it holds {n_blocks}; fetch both from one model"
        )
    shapes = param_shapes(config)
    _check_names(set(shapes), name_of, source)
    is_flipped = {}
    for path, shape in shapes.items():
        tensor = stored[name_of[path]]
        flip = is_transposed(path) and len(shape.shape) == 2
        wanted = shape.shape[::-1] if flip else shape.shape
        if tensor.shape != wanted:
            raise InputError(
                f"{source}: {name_of[path]} is {tensor.shape}, its config says {wanted}; fetch both from one model"
            )
        if tensor.dtype not in FLOAT_DTYPES and not (keeps_double and tensor.dtype == DOUBLE):
            raise InputError(f"{source}: {name_of[path]} is {tensor.dtype}; convert it to float32, float16 or bfloat16")
        is_flipped[path] = flip
    params = {}
    for path, flip in is_flipped.items():
        weight = _read(stored[name_of[path]])
        if not np.isfinite(weight).all():
            what = "NaN" if np.isnan(weight).any() else "infinite"
            raise InputError(f"{source}: {name_of[path]} holds {what} values; its training diverged, use other weights")
        params[path] = np.ascontiguousarray(weight.T) if flip else weight
    if "lm_head.weight" in name_of and "lm_head.weight" not in shapes:
        head_VD = _read(stored[name_of["lm_head.weight"]])
        if not np.array_equal(head_VD, params["wte.weight"]):
            raise InputError(f"{source}: lm_head.weight is not wte.weight; this GPT-2 ties them")
    return params


def _read(tensor: Stored) -> np.ndarray:
    return np.asarray(tensor.read(), np.float64 if tensor.dtype == DOUBLE else np.float32)


def _check_names(wanted: set[str], name_of: dict[str, str], source: Path) -> None:
    is_buffer = {path for path in name_of if path.endswith((".attn.bias", ".attn.masked_bias"))}  # causal masks
    missing = sorted(wanted - name_of.keys())
    extra = sorted(name_of[path] for path in name_of.keys() - wanted - is_buffer - {"lm_head.weight"})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        hint = f"; it does hold {extra[0]}" if extra else ""
        raise InputError(f"{source} lacks {missing[0]}{more}{hint}; fetch config and weights of one model")
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise InputError(f"{source} holds {extra[0]}{more}, which its config has no place for; it is another model")


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
