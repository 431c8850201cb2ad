"""How fast a step can be at best: the slowest of arithmetic, memory traffic and collectives, each at its peak.

A bound, not a forecast: real steps of small models reach a third to a half of it, large ones somewhat more. Each part
counts only what cannot be avoided, and assumes that the other two hide behind it.

Arithmetic: the model's FLOPs (`flops.py`), attention by the half below the diagonal where the kernel skips the rest,
and another forward pass of the blocks under train.remat=block. Memory: weights read for forward and backward, gradient
sums read and written for each microbatch, what the backward pass finds of the forward written and read once, and
one pass over parameters, gradients and optimizer state. Collectives: bytes of `census.py` over the links; of groups
that span hosts, what must cross between hosts over the network; on a torus over the links along the axes of the group.

References: Williams et al. 2009, the roofline model.
"""

import math
from dataclasses import dataclass

from jaxgpt.config import Config
from jaxgpt.config.activations import COMPUTE_BYTES
from jaxgpt.config.flops import flops_per_token
from jaxgpt.config.hardware import DEVICES_PER_HOST
from jaxgpt.errors import InputError
from jaxgpt.plan.topology import Topology


@dataclass(frozen=True)
class Bound:
    """Least seconds of one optimizer step, by what takes them; collectives take none on one device."""

    compute_s: float
    memory_s: float
    collectives_s: float

    @property
    def step_s(self) -> float:
        return max(self.compute_s, self.memory_s, self.collectives_s)

    @property
    def limit(self) -> str:
        """What takes the longest."""
        parts = {"compute": self.compute_s, "memory": self.memory_s, "collectives": self.collectives_s}
        return max(parts, key=lambda name: parts[name])


def peak_flops(config: Config, topology: Topology) -> float:
    """FLOP/s of one device in the config's dtype. float32 products pass a TPU's bfloat16 units six times.

    Raises:
      InputError: the device does not compute in this dtype.
    """
    peaks, dtype = topology.device.peak_flops, config.train.dtype
    if not topology.device.is_gpu:
        passes = {"bfloat16": 1, "float32": {"highest": 6, "high": 3, "default": 1}[config.train.matmul_precision]}
        if dtype in passes:
            return peaks["bfloat16"] / passes[dtype]
    elif dtype in peaks:
        return peaks[dtype]
    raise InputError(f"train.dtype={dtype} has no peak on {topology.device.name}; choose {' or '.join(peaks)}")


def step_flops(config: Config, attention: str) -> float:
    """FLOPs of the stage with the largest batch, recomputation included, over all devices.

    Args:
      config: derived.
      attention: the implementation; xla computes the masked half of the scores too.
    """
    config = config.largest_stage()
    model = config.model
    per_token = flops_per_token(model, causal=attention != "xla")
    head = 6 * model.vocab_size * model.n_embd
    if config.train.remat == "block":
        per_token += (per_token - head) / 3
    return per_token * config.train.batch_tokens


def bound_step(
    config: Config, topology: Topology, *, attention: str, state_bytes: tuple[int, int],
    kept_bytes: float, collectives: tuple[tuple[str, int, int, float], ...]) -> Bound:  # fmt: skip
    """The roofline of the stage with the largest batch.

    Args:
      config: derived, with its mesh's axes filled in.
      state_bytes: parameters and optimizer state on one device.
      kept_bytes: activations that one microbatch keeps for its backward pass, on one device.
      collectives: rows of `census.summarize`.
    """
    config = config.largest_stage()
    params_bytes, opt_state_bytes = state_bytes
    mesh, train = config.mesh, config.train
    rows = train.micro_batch_size * mesh.data * mesh.fsdp
    n_micro = train.batch_tokens / (rows * config.model.seq_len)
    weights = config.model.count_params().linear * COMPUTE_BYTES[train.dtype] / mesh.tensor
    traffic = n_micro * (2 * weights + 2 * params_bytes + 2 * kept_bytes) + 3 * params_bytes + 2 * opt_state_bytes
    return Bound(
        compute_s=step_flops(config, attention) / (topology.n_devices * peak_flops(config, topology)),
        memory_s=traffic / topology.device.bandwidth_bytes_s,
        collectives_s=sum(transfer_s(row, config, topology) for row in collectives),
    )


def transfer_s(row: tuple[str, int, int, float], config: Config, topology: Topology) -> float:
    """Seconds that one row of collectives keeps links or network busy."""
    _, size, _, sent = row
    device = topology.device
    linked_s = sent / (device.link_bytes_s * reached_links(size, topology))
    n_hosts = -(-topology.n_devices // DEVICES_PER_HOST)
    if not device.is_gpu or n_hosts == 1 or size < 2:
        return linked_s
    inner = config.mesh.fsdp * config.mesh.tensor
    is_strided = size == config.mesh.data and inner >= DEVICES_PER_HOST
    per_host = 1 if is_strided else min(size, DEVICES_PER_HOST)
    spanned = size // per_host
    if spanned == 1:
        return linked_s
    crossing = sent * size / (size - 1) * (spanned - 1) / spanned / per_host
    return max(linked_s if per_host > 1 else 0.0, crossing / device.network_bytes_s)


def reached_links(size: int, topology: Topology) -> float:
    """The part of its links that a device uses in a group of so many: on a TPU those along the axes the group spans."""
    axes = [] if topology.device.is_gpu else sorted(n for n in map(int, topology.shape.split("x")) if n > 1)
    n_spanned = 0
    while n_spanned < len(axes) and math.prod(axes[len(axes) - n_spanned :]) < size:
        n_spanned += 1
    return n_spanned / len(axes) if axes and size > 1 else 1.0
