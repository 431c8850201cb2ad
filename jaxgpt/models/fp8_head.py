"""The head's three products on 8-bit floats, as modded-nanogpt's records have it, and the same rounding anywhere.

Hidden states and head are rounded to e4m3 (3 bits of mantissa, up to 448), the logits' gradient to e5m2 (2 bits, up to
57344), each divided by a fixed scale before. The backward products take the rounded operands of the forward one.

    logits = (xq @ wq^T) x_s w_s        d_x = (gq @ wq) g_s w_s        d_w = (gq^T @ xq) g_s x_s

Every e4m3 and e5m2 number is exact in bfloat16. So `float8_emulated` rounds the same operands and multiplies them in
the dtype of the computation: on any device its numbers are those of `float8` up to the order of summation. `float8`
hands float8 arrays to the matmuls of logits and d_x, which need compute capability 8.9; an older card's compiler would
widen them to 16 bits in silence, so it is refused. d_w is multiplied in the computation's dtype in both: as an fp8
product it would need transposed copies of both operands (802 MiB for 16,384 tokens and 50,304 rows).

JAX casts what exceeds e4m3's range to NaN, torch to 448: both clip first here.

Source: modded-nanogpt, `mm_op` and its backward (record 62: `CastedLinear` of lm_head).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import TrainConfig
from jaxgpt.errors import InputError

E4M3 = jnp.float8_e4m3fn
E5M2 = jnp.float8_e5m2
MIN_CAPABILITY = (8, 9)


@dataclass(frozen=True)
class Fp8Head:
    """The products of a head whose operands are rounded to float8.

    Attributes:
      x_scale, weight_scale, gradient_scale: operands are divided by these before they are rounded.
      is_emulated: multiply in the dtype of the computation.
    """

    x_scale: float
    weight_scale: float
    gradient_scale: float
    is_emulated: bool

    def round_weight(self, weight_VD):
        """The rounded head, e4m3 [V, D], which the products take: once for all chunks."""
        return round_to(weight_VD, self.weight_scale, E4M3)

    def logits(self, x_PD, wq_VD, dtype):
        """Logits [P, V] of hidden states, summed and scaled in float32 or wider, in this dtype."""
        wide = jnp.promote_types(x_PD.dtype, jnp.float32)
        xq_PD = round_to(x_PD, self.x_scale, E4M3)
        logits_PV = self._multiply(xq_PD, wq_VD, 1, x_PD.dtype, wide)
        return (logits_PV * _product(self.x_scale, self.weight_scale)).astype(dtype)

    def gradients(self, d_logits_PV, x_PD, wq_VD, wide):
        """Gradients of the hidden states [P, D], in their dtype, and of the head [V, D], in the dtype `wide`."""
        dtype = x_PD.dtype
        xq_PD = round_to(x_PD, self.x_scale, E4M3)
        gq_PV = round_to(d_logits_PV, self.gradient_scale, E5M2)
        d_x_PD = self._multiply(gq_PV, wq_VD, 0, dtype, wide) * _product(self.gradient_scale, self.weight_scale)
        d_weight_VD = jax.lax.dot_general(
            gq_PV.astype(dtype), xq_PD.astype(dtype), (((0,), (0,)), ((), ())), preferred_element_type=wide
        )
        return d_x_PD.astype(dtype), d_weight_VD * _product(self.gradient_scale, self.x_scale)

    def _multiply(self, left_PC, right, axis, dtype, wide):
        """The product along the last axis of the left operand and this one of the right."""
        if self.is_emulated:
            left_PC, right = left_PC.astype(dtype), right.astype(dtype)
        return jax.lax.dot_general(left_PC, right, (((1,), (axis,)), ((), ())), preferred_element_type=wide)


def round_to(array, scale, dtype):
    """array / scale in float32, clipped to the range of a float8 dtype and rounded to it."""
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(array.astype(jnp.float32) / np.float32(scale), -limit, limit).astype(dtype)


def _product(scale, other):
    """Of two scales, each rounded to float32, as a Python number."""
    return float(np.float32(scale)) * float(np.float32(other))


def make_fp8_head(train: TrainConfig) -> Fp8Head | None:
    """What train.head_dtype asks for; None for a head in the dtype of the computation."""
    if train.head_dtype == "compute":
        return None
    scales = (train.head_x_scale, train.head_weight_scale, train.head_gradient_scale)
    return Fp8Head(*scales, is_emulated=train.head_dtype == "float8_emulated")


def require_head(train: TrainConfig, device: Any) -> None:
    """Raises InputError where train.head_dtype=float8 and this device, or one to compile for, cannot multiply it."""
    if train.head_dtype == "float8":
        require_float8(device.device_kind, str(getattr(device, "compute_capability", "")))


def require_float8(kind: str, capability: str) -> None:
    """Raises InputError unless a device of this compute capability, such as 9.0, multiplies float8.

    Args:
      kind: the device's name.
      capability: empty, or another maker's word, where the device is not NVIDIA's.
    """
    parts = capability.split(".")
    if not all(part.isdecimal() for part in parts) or tuple(map(int, parts)) < MIN_CAPABILITY:
        what = f"{kind} has {capability}" if capability else f"{kind} has none"
        raise InputError(
            f"train.head_dtype=float8 needs an NVIDIA card of compute capability 8.9 or more, {what}; "
            "set --train.head_dtype=float8_emulated, which rounds the same operands anywhere"
        )
