"""jaxgpt/models/fp8_head.py in PyTorch: torch._scaled_mm for a dot_general of float8 arrays.

It wants the right operand with its columns together in memory, so d_x needs a transposed copy of the head.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from jaxgpt.config import TrainConfig
from jaxgpt.errors import InputError
from torch_ref.models.loss import _dot

E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2
MIN_CAPABILITY = (8, 9)


@dataclass(frozen=True)
class Fp8Head:
    x_scale: float
    weight_scale: float
    gradient_scale: float
    is_emulated: bool

    def round_weight(self, weight_VD):
        return round_to(weight_VD, self.weight_scale, E4M3)

    def logits(self, x_PD, wq_VD, dtype):
        wide = torch.promote_types(x_PD.dtype, torch.float32)
        xq_PD = round_to(x_PD, self.x_scale, E4M3)
        logits_PV = self._multiply(xq_PD, wq_VD, 1, x_PD.dtype, wide)
        return (logits_PV * _product(self.x_scale, self.weight_scale)).to(dtype)

    def gradients(self, d_logits_PV, x_PD, wq_VD, wide):
        dtype = x_PD.dtype
        xq_PD = round_to(x_PD, self.x_scale, E4M3)
        gq_PV = round_to(d_logits_PV, self.gradient_scale, E5M2)
        d_x_PD = self._multiply(gq_PV, wq_VD, 0, dtype, wide) * _product(self.gradient_scale, self.weight_scale)
        d_weight_VD = _dot(gq_PV.to(dtype).mT, xq_PD.to(dtype), wide)
        return d_x_PD.to(dtype), d_weight_VD * _product(self.gradient_scale, self.x_scale)

    def _multiply(self, left_PC, right, axis, dtype, wide):
        if self.is_emulated:
            right = right.to(dtype)
            return _dot(left_PC.to(dtype), right.mT if axis else right, wide)
        one = torch.ones((), dtype=torch.float32, device=left_PC.device)
        right = right.mT if axis else right.mT.contiguous().mT
        return torch._scaled_mm(left_PC, right, scale_a=one, scale_b=one, out_dtype=wide)


def round_to(array, scale, dtype):
    limit = torch.finfo(dtype).max
    scale = torch.tensor(scale, dtype=torch.float32, device=array.device)
    return (array.float() / scale).clamp(-limit, limit).to(dtype)


def _product(scale, other):
    return float(np.float32(scale)) * float(np.float32(other))


def make_fp8_head(train: TrainConfig) -> Fp8Head | None:
    if train.head_dtype == "compute":
        return None
    scales = (train.head_x_scale, train.head_weight_scale, train.head_gradient_scale)
    return Fp8Head(*scales, is_emulated=train.head_dtype == "float8_emulated")


def require_head(train: TrainConfig, device: Any) -> None:
    if train.head_dtype == "float8":
        is_nvidia = device.type == "cuda" and torch.version.hip is None
        capability = ".".join(map(str, torch.cuda.get_device_capability(device))) if is_nvidia else ""
        require_float8(torch.cuda.get_device_name(device) if device.type == "cuda" else device.type, capability)


def require_float8(kind: str, capability: str) -> None:
    parts = capability.split(".")
    if not all(part.isdecimal() for part in parts) or tuple(map(int, parts)) < MIN_CAPABILITY:
        what = f"{kind} has {capability}" if capability else f"{kind} has none"
        raise InputError(
            f"train.head_dtype=float8 needs an NVIDIA card of compute capability 8.9 or more, {what}; "
            "set --train.head_dtype=float8_emulated, which rounds the same operands anywhere"
        )
