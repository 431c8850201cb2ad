"""The table of accelerators: peak rates, and what compilers need to know. Read by MFU and by planning.

Peaks are the vendors' dense figures (no sparsity) with float32 accumulation; bfloat16 and float16 run at one rate on
every card here but the Turing T4, which has no bfloat16. Links count one direction, all links of a device together:
NVLink 3, 4 and 5 inside a host, PCIe 4 x16 for cards without it, ICI on a TPU. Networks are those of the usual hosts
of eight: DGX A100 (200 Gb/s a card), DGX H100, H200 and B200 (400 Gb/s a card), and 100 Gb/s a host for the others.

Sources: NVIDIA data sheets (A100, H100, H200, B200, L4, T4) and white papers (Ampere GA102, Ada AD102); Google Cloud
TPU documentation. What a compiler must know of a GPU is XLA's GpuDeviceInfoProto: A100, H100, H200 and B200 as XLA
ships them (xla/backends/gpu/target_config/specs), RTX 3090, RTX 4090 and L4 from the CUDA programming guide's table of
compute capabilities and the white papers, their memory as `torch.cuda.get_device_properties` shows it. The memory
of a TPU is what libtpu 0.0.42 says a program may use.
"""

import os
import re
from dataclasses import dataclass

GIB = 2**30
GPU_MEMORY_FRACTION = 0.75
"""Fraction of a GPU's memory that JAX preallocates unless XLA_CLIENT_MEM_FRACTION overrides it."""
GPU_RESERVE_BYTES = 1.25 * GIB
"""What a GPU process needs outside that pool: CUDA context and modules (about 0.5 GiB), cuBLAS, cuDNN and NCCL."""


@dataclass(frozen=True)
class GpuDescription:
    """What XLA's GPU compiler asks of a card.

    Attributes:
      capability: CUDA compute capability.
      n_cores: streaming multiprocessors.
      fpus_per_core: float32 units per multiprocessor.
      threads_per_core: resident at most.
      shared_bytes_per_core: shared memory of a multiprocessor; a block can opt in to 1 KiB less.
      l2_bytes: second level cache.
      clock_ghz: boost clock.
      title: as the driver names the card.
    """

    capability: tuple[int, int]
    n_cores: int
    fpus_per_core: int
    threads_per_core: int
    shared_bytes_per_core: int
    l2_bytes: int
    clock_ghz: float
    title: str


@dataclass(frozen=True)
class TpuDescription:
    """What libtpu's compiler asks of a slice.

    Attributes:
      name: of the generation, before the colon of a topology such as v5e:4x4.
      slices: chips -> shape of the slice.
      chip_config: of the two cores of a chip as one device, where that is not the default.
      cores_per_chip: Google's names count them: v5p-8 has four chips.
    """

    name: str
    slices: dict[int, str]
    chip_config: str = ""
    cores_per_chip: int = 1


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
      name: on the command line of `jaxgpt.plan`.
      kinds: lower-case fragments of what JAX (`device.device_kind`) or torch call it; the first that fits wins.
      peak_flops: dense FLOP/s by dtype of the operands. float32 is the rate without TF32; TPUs have none.
      memory_bytes: nominal memory.
      visible_bytes: what the driver or libtpu shows a program.
      bandwidth_bytes_s: memory bandwidth.
      link_bytes_s: to the other devices of the host (GPU) or slice (TPU), one direction.
      network_bytes_s: per device, between hosts; 0 where the links reach everywhere.
      compiler: description for a compiler without the device; None: this table does not know one.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: dict[str, float]
    memory_bytes: int
    visible_bytes: int
    bandwidth_bytes_s: float
    link_bytes_s: float
    network_bytes_s: float
    compiler: GpuDescription | TpuDescription | None = None

    @property
    def is_gpu(self) -> bool:
        return not isinstance(self.compiler, TpuDescription)


DEVICES_PER_HOST = 8
"""GPUs of one host, joined by NVLink or PCIe."""


def _gpu(
    name: str, kinds: tuple[str, ...], half: float, single: float, gib: int, visible: int, gb_s: float,
    link_gb_s: float, network_gb_s: float, compiler: GpuDescription | None = None,
) -> Device:  # fmt: skip
    peaks = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12}
    if compiler and compiler.capability < (8, 0):
        del peaks["bfloat16"]
    return Device(name, kinds, peaks, gib * GIB, visible, gb_s * 1e9, link_gb_s * 1e9, network_gb_s * 1e9, compiler)


def _tpu(
    name: str, kinds: tuple[str, ...], half: float, gib: int, visible_gib: float, gb_s: float, link_gb_s: float,
    compiler: TpuDescription,
) -> Device:  # fmt: skip
    peaks = {"bfloat16": half * 1e12}
    return Device(name, kinds, peaks, gib * GIB, int(visible_gib * GIB), gb_s * 1e9, link_gb_s * 1e9, 0.0, compiler)


_AMPERE = {"fpus_per_core": 64, "threads_per_core": 2048, "shared_bytes_per_core": 167_936}
_HOPPER = {"fpus_per_core": 128, "threads_per_core": 2048, "shared_bytes_per_core": 233_472}
_CONSUMER = {"fpus_per_core": 128, "threads_per_core": 1536, "shared_bytes_per_core": 102_400}
_A100 = {**_AMPERE, "capability": (8, 0), "n_cores": 108, "l2_bytes": 41_943_040, "clock_ghz": 1.41}
_H100 = {**_HOPPER, "capability": (9, 0), "n_cores": 132, "l2_bytes": 52_428_800, "clock_ghz": 1.98}
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
          512: "8x8x8"}  # fmt: skip

DEVICES = (
    _gpu("a100-80gb", ("a100-sxm4-80gb", "a100 80gb", "a100-80gb"), 312, 19.5, 80, 85_100_068_864, 2039, 300, 25,
         GpuDescription(**_A100, title="NVIDIA A100-SXM4-80GB")),
    _gpu("a100-40gb", ("a100",), 312, 19.5, 40, 42_298_834_944, 1555, 300, 25,
         GpuDescription(**_A100, title="NVIDIA A100-SXM4-40GB")),
    _gpu("h200", ("h200",), 989, 67, 141, 151_397_597_184, 4800, 450, 50,
         GpuDescription(**_H100, title="NVIDIA H200")),
    _gpu("h100", ("h100",), 989, 67, 80, 84_942_979_072, 3350, 450, 50,
         GpuDescription(**_H100, title="NVIDIA H100 80GB HBM3")),
    _gpu("b200", ("b200",), 2250, 75, 180, 191_514_411_008, 7700, 900, 50,
         GpuDescription(**_HOPPER, capability=(10, 0), n_cores=148, l2_bytes=132_644_864, clock_ghz=1.965,
                        title="NVIDIA B200")),
    _gpu("rtx4090", ("rtx 4090",), 165.2, 82.6, 24, 25_393_692_672, 1008, 32, 1.5,
         GpuDescription(**_CONSUMER, capability=(8, 9), n_cores=128, l2_bytes=75_497_472, clock_ghz=2.52,
                        title="NVIDIA GeForce RTX 4090")),
    _gpu("rtx3090", ("rtx 3090",), 71, 35.6, 24, 25_438_126_080, 936, 32, 1.5,
         GpuDescription(**_CONSUMER, capability=(8, 6), n_cores=82, l2_bytes=6_291_456, clock_ghz=1.695,
                        title="NVIDIA GeForce RTX 3090")),
    _gpu("l4", ("nvidia l4",), 121, 30.3, 24, 23_659_216_896, 300, 32, 1.5,
         GpuDescription(**_CONSUMER, capability=(8, 9), n_cores=58, l2_bytes=50_331_648, clock_ghz=2.04,
                        title="NVIDIA L4")),
    _gpu("t4", ("tesla t4",), 65, 8.1, 16, 15_835_660_288, 320, 16, 1.5,
         GpuDescription(capability=(7, 5), n_cores=40, fpus_per_core=64, threads_per_core=1024,
                        shared_bytes_per_core=65_536, l2_bytes=4_194_304, clock_ghz=1.59, title="Tesla T4")),
    _tpu("v4", ("tpu v4",), 275, 32, 30.75, 1228, 300, TpuDescription("v4", _CUBES, "megacore", 2)),
    _tpu("v5e", ("tpu v5 lite", "tpu v5e"), 197, 16, 15.75, 819, 200, TpuDescription("v5e", _FLAT)),
    _tpu("v5p", ("tpu v5p", "tpu v5"), 459, 95, 94.75, 2765, 600, TpuDescription("v5p", _CUBES, "", 2)),
    _tpu("v6e", ("tpu v6 lite", "tpu v6e"), 918, 32, 31.25, 1640, 448, TpuDescription("v6e", _FLAT)),
)  # fmt: skip


def find_device(kind: str) -> Device | None:
    """The entry of a kind such as 'NVIDIA A100-SXM4-80GB' or 'TPU v5 lite'; None for a CPU or an unknown one."""
    kind = kind.lower()
    return next((device for device in DEVICES if any(_names(part, kind) for part in device.kinds)), None)


def _names(part: str, kind: str) -> bool:
    """Whether a kind has this fragment, and not that of a longer number: an A1000 is no A100."""
    return re.search(rf"{re.escape(part)}(?!\d)", kind) is not None


def memory_fraction() -> float:
    """Fraction of a GPU's memory that JAX will take: XLA_CLIENT_MEM_FRACTION, its old name, or JAX's default."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    return next((float(os.environ[name]) for name in names if os.environ.get(name)), GPU_MEMORY_FRACTION)


def usable_bytes(device: Device, fraction: float | None = None) -> int:
    """Memory that a compiled step can have on one device, its arguments included.

    A GPU: the pool that JAX takes at the start, `fraction` of what the driver shows (None: `memory_fraction()`), but
    never what the context and the libraries need besides. JAX refuses to allocate past the pool, so the rest of the
    card is out of reach (docs.jax.dev, "GPU memory allocation"). A TPU: what libtpu reports as usable.
    """
    if not device.is_gpu:
        return device.visible_bytes
    fraction = memory_fraction() if fraction is None else fraction
    return int(min(device.visible_bytes * fraction, device.visible_bytes - GPU_RESERVE_BYTES))


def largest_fraction(device: Device) -> float:
    """The XLA_CLIENT_MEM_FRACTION that still leaves the reserve, in hundredths."""
    return int((1 - GPU_RESERVE_BYTES / device.visible_bytes) * 100) / 100
