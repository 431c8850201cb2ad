"""The table of accelerators: what a card can do at best. Read by MFU, by planning and by the console.

Figures are the vendors' dense peaks (no sparsity), with float32 accumulation. bfloat16 and float16 run at one
rate on every card here but the Turing T4, which has no bfloat16. Sources: NVIDIA data sheets (A100, H100, H200,
L4, T4) and architecture white papers (Ampere GA102, Ada AD102); Google Cloud TPU documentation.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
      kinds: lower-case fragments of what JAX (`device.device_kind`) or torch call it; the first that fits wins.
      peak_flops: dense FLOP/s by dtype of the operands. float32 is the rate without TF32; TPUs have none.
      memory_bytes: nominal memory.
      bandwidth_bytes_s: memory bandwidth.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: dict[str, float]
    memory_bytes: int
    bandwidth_bytes_s: float


def _gpu(name: str, kinds: tuple[str, ...], half: float, single: float, gib: int, gb_s: float) -> Device:
    peaks = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12}
    return Device(name, kinds, peaks, gib * 2**30, gb_s * 1e9)


def _tpu(name: str, kinds: tuple[str, ...], half: float, gib: int, gb_s: float) -> Device:
    return Device(name, kinds, {"bfloat16": half * 1e12}, gib * 2**30, gb_s * 1e9)


DEVICES = (
    _gpu("a100-80gb", ("a100-sxm4-80gb", "a100 80gb", "a100-80gb"), 312, 19.5, 80, 2039),
    _gpu("a100-40gb", ("a100",), 312, 19.5, 40, 1555),
    _gpu("h200", ("h200",), 989, 67, 141, 4800),
    _gpu("h100", ("h100",), 989, 67, 80, 3350),
    _gpu("rtx4090", ("rtx 4090",), 165.2, 82.6, 24, 1008),
    _gpu("rtx3090", ("rtx 3090",), 71, 35.6, 24, 936),
    _gpu("l4", ("nvidia l4",), 121, 30.3, 24, 300),
    _gpu("t4", ("tesla t4",), 65, 8.1, 16, 320),
    _gpu("v4", ("tpu v4",), 275, 275 / 6, 32, 1228),
    _tpu("v5e", ("tpu v5 lite", "tpu v5e"), 197, 16, 819),
    _tpu("v5p", ("tpu v5p", "tpu v5"), 459, 95, 2765),
    _tpu("v6e", ("tpu v6 lite", "tpu v6e"), 918, 32, 1640),
)


def find_device(kind: str) -> Device | None:
    """The entry for a device kind such as 'NVIDIA A100-SXM4-80GB' or 'TPU v5 lite'; None for a CPU or a stranger."""
    kind = kind.lower()
    return next((device for device in DEVICES if any(part in kind for part in device.kinds)), None)
