"""jaxgpt/models/__init__.py in PyTorch: a module's parameters are the tensors of the dict, not copies."""

from typing import Any

import torch
from torch import nn

from jaxgpt.config.families import ModelConfig
from torch_ref.models.gpt2 import GPT2
from torch_ref.models.modded import Modded
from torch_ref.models.nanochat import Nanochat

FAMILIES: dict[str, Any] = {"gpt2": GPT2, "nanochat": Nanochat, "modded": Modded}


def build(
    config: ModelConfig, *, dtype=torch.float32, param_dtype=torch.float32, implementation="math", remat="none", seed
) -> GPT2 | Nanochat | Modded:
    """Fresh weights are drawn on the CPU: the same on any device, and other ones than jaxgpt's."""
    rngs = None if seed is None else torch.Generator().manual_seed(seed)
    return FAMILIES[config.family](
        config, dtype=dtype, param_dtype=param_dtype, implementation=implementation, remat=remat, rngs=rngs
    )


def init_params(config: ModelConfig, *, param_dtype=torch.float32, seed=0) -> dict[str, torch.Tensor]:
    module = build(config, param_dtype=param_dtype, seed=seed)
    return {path: param.detach() for path, param in module.named_parameters()}


def param_shapes(config: ModelConfig, param_dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Tensors on the meta device, which have a shape and a dtype and no memory."""
    with torch.device("meta"):
        module = build(config, param_dtype=param_dtype, seed=None)
    return {path: param.detach() for path, param in module.named_parameters()}


class Model:
    def __init__(self, config: ModelConfig, dtype=torch.float32, implementation="math", remat="none"):
        self.config, self.dtype, self.implementation, self.remat = config, dtype, implementation, remat
        with torch.device("meta"):
            self._module = build(config, dtype=dtype, implementation=implementation, remat=remat, seed=None)
        names = {path: path.rpartition(".") for path, _ in self._module.named_parameters()}
        self._slots = {path: (self._module.get_submodule(owner), name) for path, (owner, _, name) in names.items()}

    def bind(self, params: dict[str, nn.Parameter]) -> GPT2 | Nanochat | Modded:
        """There is one module: it holds what was bound last."""
        _bind(self._slots, params)  # pyright: ignore[reportCallIssue], the decorator has no types
        return self._module


@torch.compiler.disable
def _bind(slots: dict[str, tuple[nn.Module, str]], params: dict[str, nn.Parameter]) -> None:
    for path, (owner, name) in slots.items():
        if owner._parameters[name] is not params[path]:
            owner._parameters[name] = params[path]
