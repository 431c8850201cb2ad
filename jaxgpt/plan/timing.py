"""How long a compiled step is likely to last: the kernels of `kernels.py`, each at a rate that such kernels reach.

A kernel lasts as long as the slower of its arithmetic and its memory traffic, and a launch. Arithmetic runs at the
device's peak, times the fraction that a large product reaches (RATES), times what a product's shape leaves of it: on a
GPU output tiles that do not fill the last round of multiprocessors, edges, short sums; on a TPU sides padded to the
units' width. Attention kernels have the model's FLOPs, causal, the backward pass 2.5 times the forward (it computes
the scores again), at the fraction that flash attention reaches. Memory runs at a fraction of the bandwidth, or of a
GPU's second level cache, where all that a kernel touches fits into it. A collective lasts as its bytes take over the
links, less what runs beside it.

The fractions are few, and the same for every model. They are fitted to public step times by
`python -m parity_tests.forecast`, which states what is left of the error.

References: NVIDIA's "Matrix multiplication background" on tile and wave quantization; Dao, arXiv:2307.08691, on the
FLOPs of attention and what part of the peak kernels reach.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from jaxgpt.config import Config
from jaxgpt.config.flops import flops_per_token
from jaxgpt.config.hardware import Device, GpuDescription
from jaxgpt.plan.kernels import Kernel, Product
from jaxgpt.plan.roofline import peak_flops, transfer_s
from jaxgpt.plan.topology import Topology


@dataclass(frozen=True)
class Rates:
    """What kernels reach of a device's peaks.

    Attributes:
      products: fraction of the peak FLOP/s, a large matrix product.
      attention: fraction of the peak FLOP/s, forward flash attention with a head_dim of 128.
      memory: fraction of the bandwidth, an elementwise kernel over large arrays.
      launch_s: from the end of a kernel to the begin of the next.
    """

    products: float
    attention: float
    memory: float
    launch_s: float


RATES = {
    "a100": Rates(0.84, 0.60, 0.85, 2e-6),
    "h": Rates(0.60, 0.50, 0.85, 2e-6),
    "b200": Rates(0.44, 0.30, 0.85, 2e-6),
    "rtx4090": Rates(1.06, 0.90, 0.88, 2e-6),
    "rtx3090": Rates(0.90, 0.75, 0.88, 2e-6),
    "l4": Rates(0.44, 0.44, 0.85, 2e-6),
    "t4": Rates(0.60, 0.40, 0.85, 2e-6),
    "v": Rates(0.85, 0.40, 0.80, 1e-6),
}
"""By the beginning of a device's name: h is H100 and H200, v every TPU. Those of RTX 3090, T4 and TPUs are not fitted:
no public step time of a model that is here was found. An RTX 4090 runs above the clock of its data sheet."""
CACHE_GAIN = 2.5
"""Speed of a GPU's second level cache over its memory, for a kernel whose arrays fit into it together."""
LINKS = 0.8
"""Fraction of the links' bandwidth that large collectives reach."""
COLLECTIVE_S = 15e-6
"""Until the first byte of a collective."""
TILES = ((256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.8), (64, 64, 0.6))
"""Output tiles of a GPU's products, and what each reaches of the best."""
SPLITS = (1, 2, 4, 8)
"""Parts that a product's sum may be split into, so that more multiprocessors have work."""
RAMP = 128
"""Terms of a product's sum that pass while its pipeline fills and drains."""
TPU_WIDTHS = {"v6e": 256}
"""Width of a matrix unit where it is not 128."""


@dataclass(frozen=True)
class Cost:
    """Seconds that one row of kernels takes of a step, and what takes them: compute, memory, launch or link.

    Attributes:
      flops: each time, attention included.
    """

    kernel: Kernel
    flops: float
    seconds: float
    limit: str


@dataclass(frozen=True)
class Timing:
    """A step's kernels, the costliest first."""

    costs: tuple[Cost, ...]

    @property
    def step_s(self) -> float:
        return math.fsum(cost.seconds for cost in self.costs)

    @property
    def n_launches(self) -> int:
        return sum(cost.kernel.count for cost in self.costs)

    @property
    def product_flops(self) -> float:
        """FLOPs of one device in one step, recomputation and padding included."""
        return math.fsum(cost.flops * cost.kernel.count for cost in self.costs)

    def seconds_by(self) -> dict[str, float]:
        """Seconds of products, attention, collectives, and of the other kernels: memory."""
        parts = {"products": 0.0, "attention": 0.0, "memory": 0.0, "collectives": 0.0}
        for cost in self.costs:
            kernel = cost.kernel
            is_product = bool(kernel.products)
            group = "attention" if kernel.attention else "products" if is_product else "memory"
            parts["collectives" if kernel.collective else group] += cost.seconds
        return parts


def rates_of(device: Device) -> Rates:
    return next(rates for name, rates in RATES.items() if device.name.startswith(name))


def time_step(kernels: Iterable[Kernel], config: Config, topology: Topology, rates: Rates | None = None) -> Timing:
    """The likely time of one step.

    Args:
      kernels: of one device's step.
      config: of the step's stage, derived, with its mesh's axes filled in.
      rates: instead of the device's.
    """
    kernels, rates = tuple(kernels), rates or rates_of(topology.device)
    attention_flops = _attention_flops(kernels, config)
    costs = [_cost(kernel, attention_flops, config, topology, rates) for kernel in kernels]
    return Timing(tuple(sorted(costs, key=lambda cost: -cost.seconds)))


def _attention_flops(kernels: tuple[Kernel, ...], config: Config) -> dict[str, float]:
    """FLOPs of each attention kernel, forward and backward, averaged over layers."""
    model, mesh = config.model, config.mesh
    n_tokens = config.train.batch_tokens / (mesh.data * mesh.fsdp)
    per_token = flops_per_token(model, causal=True) - 6 * model.count_params().linear
    forward = per_token / 3 * n_tokens / mesh.tensor
    n_runs = {which: sum(k.count for k in kernels if k.attention == which) for which in ("forward", "backward")}
    n_micro = n_tokens / (config.train.micro_batch_size * model.seq_len)
    passes = max(1, round(n_runs["forward"] / (model.n_layer * n_micro)))
    return {
        "forward": passes * forward / max(n_runs["forward"], 1),
        "backward": 2.5 * forward / max(n_runs["backward"], 1),
    }


def _cost(kernel: Kernel, attention_flops: dict[str, float], config: Config, topology: Topology, rates: Rates) -> Cost:
    device, peak = topology.device, peak_flops(config, topology)
    if kernel.collective:
        kind, size, sent = kernel.collective
        seconds = COLLECTIVE_S + transfer_s((kind, size, 1, sent), config, topology) / LINKS
        if kernel.beside:
            flops, n_bytes = kernel.beside
            hidden_s = max(flops / (peak * rates.products), n_bytes / (device.bandwidth_bytes_s * rates.memory))
            seconds = max(seconds - hidden_s, 0.0)
        return Cost(kernel, 0.0, kernel.count * seconds, "link")
    flops = attention_flops[kernel.attention] if kernel.attention else kernel.flops
    if kernel.attention:
        compute_s = flops / (peak * rates.attention * min(config.model.head_dim / 128, 1) ** 0.5)
    else:
        compute_s = sum(product_s(product, config, topology, rates) for product in kernel.products)
    in_cache = isinstance(device.compiler, GpuDescription) and kernel.n_bytes <= device.compiler.l2_bytes
    bandwidth = device.bandwidth_bytes_s * rates.memory * (CACHE_GAIN if in_cache else 1)
    memory_s = kernel.n_bytes / bandwidth
    if kernel.beside:  # an asynchronous copy
        beside_flops, beside_bytes = kernel.beside
        hidden_s = beside_flops / (peak * rates.products) - beside_bytes / (device.bandwidth_bytes_s * rates.memory)
        memory_s = max(memory_s - max(hidden_s, 0.0), 0.0)
        return Cost(kernel, flops, kernel.count * memory_s, "memory")
    parts = {"compute": compute_s, "memory": memory_s, "launch": rates.launch_s}
    return Cost(
        kernel, flops, kernel.count * (max(compute_s, memory_s) + rates.launch_s), max(parts, key=lambda n: parts[n])
    )


def product_s(product: Product, config: Config, topology: Topology, rates: Rates) -> float:
    """Seconds of one matrix product, were memory no limit."""
    device = topology.device
    if product.dtype.startswith("f8"):
        peak = 2 * device.peak_flops["bfloat16"]
    elif product.dtype in ("bf16", "f16"):
        peak = device.peak_flops["bfloat16" if "bfloat16" in device.peak_flops else "float16"]
    else:
        peak = device.peak_flops.get("float32", peak_flops(config, topology))
    gpu = device.compiler
    if isinstance(gpu, GpuDescription):
        fraction = max(_filled(product, gpu.n_cores, *tile, split) for tile in TILES for split in SPLITS)
    elif gpu is None:  # a processor
        fraction = 1.0
    else:
        width = TPU_WIDTHS.get(device.name, 128)
        fraction = math.prod(
            size / (math.ceil(size / unit) * unit)
            for size, unit in ((product.m, 8), (product.n, width), (product.k, width))
        )
    return product.flops / (peak * rates.products * fraction)


def _filled(product: Product, n_cores: int, rows: int, columns: int, best: float, split: int) -> float:
    """Part of its multiprocessors' work that a product by such tiles uses, in whole rounds of all of them."""
    tiles_m, tiles_n = math.ceil(product.m / rows), math.ceil(product.n / columns)
    edges = product.m * product.n / (tiles_m * rows * tiles_n * columns)
    n_tiles = product.n_batch * tiles_m * tiles_n * split
    rounds = math.ceil(n_tiles / n_cores) * n_cores
    terms = product.k / split
    return best * edges * n_tiles / rounds * terms / (terms + RAMP)
