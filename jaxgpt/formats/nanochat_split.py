"""Our optimizer's state as the optim files that nanochat's processes load (see `nanochat_layout`).

On one process 2025 uses torch.optim.AdamW and Muon, on several DistAdamW and DistMuon; 2026 has MuonAdamW for both.
Learning rates of the groups are those of the step that was made last; nanochat sets them anew from initial_lr.
"""

import math
from typing import Any

import numpy as np

from jaxgpt.config import Config
from jaxgpt.config.families import NanochatConfig
from jaxgpt.config.param_groups import ParamSettings, param_groups
from jaxgpt.config.schedule import hyper_at
from jaxgpt.errors import InputError
from jaxgpt.formats.nanochat_layout import adamw_groups, is_whole, matrix_groups, torch_shapes
from jaxgpt.formats.nanochat_optim import Moments
from jaxgpt.formats.stored import linear_weights
from jaxgpt.formats.torch_file import import_torch


class OptimSplit:
    """The optimizer's state of a run, dealt out to `n_ranks` processes.

    Raises:
      InputError: nanochat cannot deal it out to so many.
    """

    def __init__(self, config: Config, n_updates: int, moments: Moments, narrow: frozenset[str], n_ranks: int):
        """
        Args:
          config: complete; what `nanochat_settings` found to be expressible.
          narrow: paths whose moments are written in bfloat16.
        """
        assert isinstance(config.model, NanochatConfig)
        self.torch = import_torch("a checkpoint of nanochat's")
        self.model, self.config, self.moments, self.narrow = config.model, config, moments, narrow
        self.n_updates, self.n_ranks = n_updates, n_ranks
        self.shapes = torch_shapes(config.model)
        self.settings = param_groups(config.optim, self.shapes)
        self.hyper = hyper_at(config, max(n_updates - 1, 0))
        for path in (path for paths in adamw_groups(config.model).values() for path in paths):
            rows = self.shapes[path][0]
            if rows % n_ranks and not is_whole(config.model, self.shapes[path]):
                raise InputError(f"--ranks={n_ranks} does not divide the {rows} rows of {path}; choose a divisor")

    def part(self, rank: int) -> Any:
        """The value of optim_NNNNNN_rankR.pt."""
        adamw = self._adamw(rank)
        if self.model.era == "2026":
            groups, state = self._join_optimizers(adamw, self._stacks(rank))
            return {"state": state, "param_groups": groups}
        return [{"state": state, "param_groups": groups} for groups, state in (adamw, self._matrices(rank))]

    def _tensor(self, field: str, path: str) -> Any:
        array = self.moments[field][path]
        tensor = self.torch.from_numpy(np.array(array.T if linear_weights(self.model)(path) else array, order="C"))
        return tensor.bfloat16() if path in self.narrow else tensor

    def _adamw(self, rank: int) -> tuple[list[dict], dict[int, dict]]:
        groups, state, n = [], {}, 0
        for paths in adamw_groups(self.model).values():
            for i, path in enumerate(paths, n):
                moments = {"exp_avg": self._tensor("mu", path), "exp_avg_sq": self._tensor("nu", path)}
                if not is_whole(self.model, self.shapes[path]):
                    n_rows = self.shapes[path][0] // self.n_ranks
                    moments = {k: v[rank * n_rows : (rank + 1) * n_rows].clone() for k, v in moments.items()}
                state[i] = {"step": self._step(), **moments}
            groups.append(self._adamw_group(self.settings[paths[0]]) | {"params": list(range(n, n + len(paths)))})
            n += len(paths)
        return groups, state

    def _step(self) -> Any:
        if self.model.era == "2026":
            return self.n_updates
        dtype = self.torch.float32 if self.n_ranks == 1 else self.torch.int64
        return self.torch.tensor(self.n_updates, dtype=dtype)

    def _adamw_group(self, setting: ParamSettings) -> dict[str, Any]:
        values = {
            "lr": setting.lr * self.hyper["lr_scale"], "betas": (setting.beta1, setting.beta2), "eps": setting.eps,
            "weight_decay": setting.weight_decay,
        }  # fmt: skip
        if self.model.era == "2026":
            values = {"kind": "adamw", **values}
        elif self.n_ranks == 1:  # torch's own class, which has more settings
            like = self.torch.optim.AdamW([self.torch.nn.Parameter(self.torch.zeros(1))], **values, fused=True)
            values = {k: v for k, v in like.state_dict()["param_groups"][0].items() if k != "params"}
        return values | {"initial_lr": setting.lr}

    def _muon_group(self, setting: ParamSettings) -> dict[str, Any]:
        muon = self.config.optim.muon
        values: dict[str, Any] = {"lr": setting.lr * self.hyper["lr_scale"], "momentum": self.hyper["momentum"]}
        if self.model.era == "2026":
            decay = setting.weight_decay * self.hyper["decay_scale"]
            values = {"kind": "muon", **values, "beta2": muon.norm_beta2, "weight_decay": decay}
        else:
            values["nesterov"] = muon.nesterov
        return values | {"ns_steps": muon.ns_steps, "initial_lr": setting.lr}

    def _matrices(self, rank: int) -> tuple[list[dict], dict[int, dict]]:
        """2025's Muon."""
        groups, state, n = [], {}, 0
        for paths in matrix_groups(self.model, is_one_process=self.n_ranks == 1):
            for i in range(rank, len(paths), self.n_ranks):
                state[n + i] = {"momentum_buffer": self._tensor("momentum", paths[i])}
            group = self._muon_group(self.settings[paths[0]]) | {"params": list(range(n, n + len(paths)))}
            if self.n_ranks > 1:
                group["zero_buffer"] = self.torch.zeros_like(self._tensor("momentum", paths[0]))
            groups.append(group)
            n += len(paths)
        return groups, state

    def _stacks(self, rank: int) -> tuple[list[dict], dict[int, dict]]:
        """2026's Muon."""
        groups, state, n = [], {}, 0
        for paths in matrix_groups(self.model, is_one_process=self.n_ranks == 1):
            n_each = math.ceil(len(paths) / self.n_ranks)
            held = {}
            for field, theirs in (("momentum", "momentum_buffer"), ("square", "second_momentum_buffer")):
                stack = [self._tensor(field, path) for path in paths[rank * n_each : (rank + 1) * n_each]]
                stack += [self.torch.zeros_like(self._tensor(field, paths[0]))] * (n_each - len(stack))
                held[theirs] = self.torch.stack(stack)
            state[n] = held
            groups.append(self._muon_group(self.settings[paths[0]]) | {"params": list(range(n, n + len(paths)))})
            n += len(paths)
        return groups, state

    @staticmethod
    def _join_optimizers(adamw: Any, muon: Any) -> tuple[list[dict], dict[int, dict]]:
        """Two optimizers' groups and states as one's: the ids of the second follow."""
        n = sum(len(group["params"]) for group in adamw[0])
        groups = [group | {"params": [n + i for i in group["params"]]} for group in muon[0]]
        return [*adamw[0], *groups], adamw[1] | {n + i: held for i, held in muon[1].items()}
