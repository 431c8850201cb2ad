"""nanochat's optimizer state, which each of its processes saves a part of, joined into ours (see `nanochat_layout`)."""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgpt.config.families import NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.formats.nanochat import NanochatFiles
from jaxgpt.formats.nanochat_layout import adamw_groups, is_whole, matrix_groups, torch_shapes
from jaxgpt.formats.stored import DOUBLE, FLOAT_DTYPES, linear_weights
from jaxgpt.formats.torch_file import load_torch, store, to_number

Moments = dict[str, dict[str, np.ndarray]]
"""Field of our optimizer's state (mu, nu, momentum, square) -> path -> array, in our layout."""


@dataclass(frozen=True)
class OptimState:
    """What a checkpoint's optim files say together.

    Attributes:
      n_updates: that AdamW has made.
      moments: of all parameters.
      groups: "muon", or the name of one of our groups, such as "lm_head" -> that group's settings in the file.
    """

    n_updates: int
    moments: Moments
    groups: dict[str, dict[str, Any]]


def find_ranks(files: NanochatFiles) -> int:
    """How many processes saved a part; 0: there are no optim files.

    Raises:
      InputError: the part of one is missing.
    """
    pattern = re.compile(rf"optim_{files.step:06d}_rank(\d{{1,6}})\.pt")
    ranks = sorted(int(found[1]) for file in files.directory.iterdir() if (found := pattern.fullmatch(file.name)))
    for rank, there in enumerate(ranks):
        if rank != there:
            raise InputError(f"{files.optim(rank)} is missing, rank {ranks[-1]}'s is there; copy those of all ranks")
    return len(ranks)


def read_optim(files: NanochatFiles, config: NanochatConfig) -> OptimState | None:
    """The optimizer's state of a step; None where it has no optim files.

    Raises:
      InputError: a part is missing, damaged, or of another model.
    """
    n_ranks = find_ranks(files)
    if not n_ranks:
        return None
    parts = [_Part.read(files, rank, config) for rank in range(n_ranks)]
    moments: Moments = {"mu": {}, "nu": {}, "momentum": {}}
    if config.era == "2026":
        moments["square"] = {}
    steps = _join_adamw(config, parts, moments)
    if len(set(steps.values())) > 1:
        few, many = min(steps, key=lambda p: steps[p]), max(steps, key=lambda p: steps[p])
        raise InputError(
            f"{files.optim(0)}: AdamW made {steps[few]} updates of {few} and {steps[many]} of {many}; "
            "here all parameters have as many: start a new run from the weights with train.init_from"
        )
    join = _join_matrices if config.era == "2025" else _join_stacks
    join(config, parts, moments)
    names = [*adamw_groups(config), "muon"]
    groups = {
        name: {k: v for k, v in g.items() if k != "params"} for name, g in zip(names, parts[0].groups, strict=False)
    }
    return OptimState(next(iter(steps.values())), moments, groups)


@dataclass(frozen=True)
class _Part:
    """One process's file: groups and state of AdamW, then of Muon."""

    name: str
    groups: list[dict[str, Any]]
    states: list[Mapping[Any, Any]]
    """Of each group, the mapping that its ids point into."""

    @classmethod
    def read(cls, files: NanochatFiles, rank: int, config: NanochatConfig) -> "_Part":
        path = files.optim(rank)
        value = load_torch(path)
        optimizers = value if config.era == "2025" else [value]
        groups, states = [], []
        is_list = isinstance(optimizers, list) and len(optimizers) == (2 if config.era == "2025" else 1)
        for optimizer in optimizers if is_list else [None]:
            held = optimizer if isinstance(optimizer, dict) else {}
            found, state = held.get("param_groups"), held.get("state")
            if not isinstance(found, list) or not isinstance(state, dict):
                raise InputError(f"{path} is no optimizer state of nanochat {config.era}; copy it again")
            for group in found:
                if not isinstance(group, dict) or not isinstance(group.get("params"), list):
                    raise InputError(f"{path}: a group has no list of params; copy it again")
                groups.append(group)
                states.append(state)
        return cls(str(path), groups, states)

    def state(self, group: int, i: int) -> Mapping[str, Any]:
        """What is held for parameter i of a group; empty where this process holds nothing."""
        found = self.states[group].get(self.groups[group]["params"][i], {})
        return found if isinstance(found, dict) else {}

    def array(self, group: int, i: int, field: str, path: str) -> np.ndarray:
        """A tensor of a parameter's state, as the file has it."""
        tensor = self.state(group, i).get(field)
        if not hasattr(tensor, "numpy"):
            raise InputError(f"{self.name} has no {field} of {path}; it is of another model, or copy it again")
        stored = store(tensor, f"{self.name}: {field} of {path}")
        if stored.dtype not in (*FLOAT_DTYPES, DOUBLE):
            raise InputError(f"{self.name}: {field} of {path} is {stored.dtype}; nanochat writes floats")
        return stored.read()


def _match_groups(parts: list[_Part], first: int, groups: list[list[str]]) -> None:
    """Raises InputError unless each part has these groups, by their numbers of parameters, from `first` on."""
    wanted = [len(paths) for paths in groups]
    for part in parts:
        found = [len(group["params"]) for group in part.groups[first : first + len(groups)]]
        if found != wanted:
            raise InputError(
                f"{part.name} has groups of {found} parameters, this model's have {wanted}; "
                "it is of another model or another version of nanochat"
            )


def _keep(moments: Moments, field: str, path: str, array: np.ndarray, config: NanochatConfig, place: str) -> None:
    """Puts an array in torch's layout into ours."""
    shape = torch_shapes(config)[path]
    if field == "square":
        shape = (shape[0], 1) if shape[0] >= shape[1] else (1, shape[1])
    if array.shape != shape:
        raise InputError(f"{place}: {field} of {path} is {array.shape}, this model has {shape}; copy all ranks' files")
    if not np.isfinite(array).all():
        raise InputError(f"{place}: {field} of {path} is not finite; its training diverged, use an earlier step")
    moments[field][path] = np.ascontiguousarray(array.T if linear_weights(config)(path) else array)


def _join_adamw(config: NanochatConfig, parts: list[_Part], moments: Moments) -> dict[str, int]:
    """Fills in mu and nu. Returns the updates that each parameter had."""
    groups, shapes, steps = list(adamw_groups(config).values()), torch_shapes(config), {}
    _match_groups(parts, 0, groups)
    for g, paths in enumerate(groups):
        for i, path in enumerate(paths):
            held = parts[:1] if is_whole(config, shapes[path]) else parts
            for field, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
                array = np.concatenate([part.array(g, i, theirs, path) for part in held])
                _keep(moments, field, path, array, config, parts[0].name)
            step = to_number(parts[0].state(g, i).get("step"))
            if not isinstance(step, int | float) or not 0 < step < 2**31:
                raise InputError(
                    f"{parts[0].name}: step of {path} is {step!r:.40}, not a count of updates; copy it again"
                )
            steps[path] = int(step)
    return steps


def _join_matrices(config: NanochatConfig, parts: list[_Part], moments: Moments) -> None:
    """2025: one process holds the momentum of each matrix."""
    first = len(adamw_groups(config))
    is_one_process = not any("zero_buffer" in group for group in parts[0].groups)
    groups = matrix_groups(config, is_one_process=is_one_process)
    if is_one_process:  # in the order of a Python set of sizes; what they hold tells which is which
        by_size = {math.prod(torch_shapes(config)[paths[0]]): paths for paths in groups}
        groups = [by_size.get(_first_size(parts[0], g), []) for g in range(first, len(parts[0].groups))]
    _match_groups(parts, first, groups)
    for g, paths in enumerate(groups, first):
        for i, path in enumerate(paths):
            part = next((part for part in parts if part.state(g, i)), parts[0])
            _keep(moments, "momentum", path, part.array(g, i, "momentum_buffer", path), config, part.name)


def _first_size(part: _Part, group: int) -> int:
    """Values in the first momentum of a group; 0: there is none."""
    tensor: Any = part.state(group, 0).get("momentum_buffer") if part.groups[group]["params"] else None
    return tensor.numel() if hasattr(tensor, "numel") else 0


def _join_stacks(config: NanochatConfig, parts: list[_Part], moments: Moments) -> None:
    """2026: the first parameter of a group holds the process's part of the stack."""
    first = len(adamw_groups(config))
    groups = matrix_groups(config, is_one_process=len(parts) == 1)
    _match_groups(parts, first, groups)
    for g, paths in enumerate(groups, first):
        for field, theirs in (("momentum", "momentum_buffer"), ("square", "second_momentum_buffer")):
            stacks = [part.array(g, 0, theirs, paths[0]) for part in parts]
            arrays = list(itertools.chain.from_iterable(stacks))
            if len(arrays) < len(paths):
                raise InputError(f"{parts[-1].name}: {len(arrays)} of {len(paths)} matrices; copy all ranks' files")
            for path, array in zip(paths, arrays, strict=False):
                _keep(moments, field, path, array, config, parts[0].name)
