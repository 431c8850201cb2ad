"""Devices that need not exist here: from a name such as h100x8 or v5e-256 to JAX devices to compile for.

The plug-in of the platform must be installed (the extras plan-gpu and plan-tpu), its hardware need not.
Compile for a topology in a separate process with `ENVIRONMENT` set: both plug-ins look for hardware when loaded, and
XLA ends the process on some errors.

References: JAX's documentation on ahead-of-time lowering and compilation; XLA's GpuTargetConfigProto.
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.config.hardware import DEVICES, DEVICES_PER_HOST, Device, GpuDescription, TpuDescription
from jaxgpt.errors import Failure, InputError
from jaxgpt.extras import pip_install

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""For the process that compiles: no local accelerator, no request to a metadata server, and no lock on a TPU."""

CACHE = Path(os.path.expanduser("~"), ".cache", "jaxgpt", "plan")
"""What compilers answered, beside the programs of `parallel/compile_cache.py`."""

PLUGINS = {"gpu": (("jax_plugins.xla_cuda13",), "plan-gpu"), "tpu": (("libtpu",), "plan-tpu")}
"""platform -> modules, and the extra that installs them."""


@dataclass(frozen=True)
class Topology:
    """Some number of one device.

    Attributes:
      name: as the user wrote it.
      shape: for the compiler: slices x hosts x GPUs, or the chips of a TPU slice along each axis.
    """

    name: str
    device: Device
    n_devices: int
    shape: str

    @property
    def platform(self) -> str:
        return "gpu" if self.device.is_gpu else "tpu"

    @property
    def device_kind(self) -> str:
        """JAX's name of a card; empty for a TPU."""
        return self.device.compiler.title if isinstance(self.device.compiler, GpuDescription) else ""


def parse_topology(name: str) -> Topology:
    """Reads h100, h100x8, h100x64, v5e-256, v5ex8 or v5p:2x2x4.

    After an x stands a number of cards or chips. After a dash stands Google's size of a TPU: chips for v5e and v6e,
    cores (two a chip) for v4 and v5p.

    Raises:
      InputError: no such device, or no such number of it.
    """
    known = {device.name: device for device in DEVICES}
    found = re.fullmatch(rf"({'|'.join(known)})(?:(x|-|:)([0-9x]+))?", name)
    if not found:
        raise InputError(
            f"--device={name} is not known; write one of {', '.join(known)}, a number as in h100x8, v5e-256"
        )
    device = known[found[1]]
    if isinstance(device.compiler, TpuDescription):
        return _parse_slice(name, device, device.compiler, found[2], found[3] or "1")
    if found[2] not in (None, "x") or not (found[3] or "1").isdigit() or found[3] == "0":
        raise InputError(f"--device={name} is not a number of cards; write {device.name}x8 for eight")
    count = int(found[3] or 1)
    n_hosts = -(-count // DEVICES_PER_HOST)
    if count % n_hosts:
        raise InputError(f"--device={name}: {count} cards do not fill hosts of {DEVICES_PER_HOST}; choose a multiple")
    return Topology(name, device, count, f"1x{n_hosts}x{count // n_hosts}")


def _parse_slice(name: str, device: Device, tpu: TpuDescription, mark: str | None, size: str) -> Topology:
    if mark == ":":
        shapes = {shape: n_chips for n_chips, shape in tpu.slices.items()}
        if size not in shapes:
            raise InputError(f"--device={name} is not a slice of {device.name}; slices: {', '.join(shapes)}")
        return Topology(name, device, shapes[size], size)
    count = int(size) if size.isdigit() else 0
    n_chips = count // tpu.cores_per_chip if mark == "-" else count
    if n_chips not in tpu.slices or (mark == "-" and n_chips * tpu.cores_per_chip != count):
        sizes = ", ".join(f"{device.name}x{n}" for n in tpu.slices)
        raise InputError(f"--device={name} is not a slice of {device.name}; slices: {sizes}")
    return Topology(name, device, n_chips, tpu.slices[n_chips])


def missing_plugin(platform: str) -> str:
    """The command that installs what compiling for a platform (gpu, tpu) needs; empty if it is installed."""
    modules, extra = PLUGINS[platform]
    try:
        is_installed = all(importlib.util.find_spec(module) for module in modules)
    except ModuleNotFoundError:
        is_installed = False
    return "" if is_installed else pip_install(extra)


def open_devices(topology: Topology) -> list:
    """JAX devices to compile for; nothing can run on them.

    Raises:
      Failure: the plug-in is missing or refuses the topology.
    """
    from jax.experimental import topologies

    install = missing_plugin(topology.platform)
    if install:
        raise Failure(f"compiling for {topology.name} needs a plug-in: {install}")
    try:
        compiler = topology.device.compiler
        if isinstance(compiler, TpuDescription):
            options: dict = {"chip_config_name": compiler.chip_config} if compiler.chip_config else {}
            if topology.n_devices == 1:
                options["chips_per_host_bounds"] = (1, 1, 1)
            found = topologies.get_topology_desc(f"{compiler.name}:{topology.shape}", "tpu", **options)
        else:
            assert compiler is not None, topology.device.name
            target = target_config(compiler, topology.device, cudnn_version())
            found = topologies.get_topology_desc("", "cuda", target_config=target, topology=topology.shape)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise Failure(f"the compiler does not know {topology.name}: {str(error).splitlines()[0]}") from error
    devices = list(found.devices)
    if len(devices) != topology.n_devices:
        raise Failure(f"the compiler sees {len(devices)} devices in {topology.name}, not {topology.n_devices}")
    return devices


def target_config(gpu: GpuDescription, device: Device, cudnn: tuple[int, int, int]) -> str:
    """XLA's GpuTargetConfigProto as text. Limits that all CUDA cards share are from the CUDA programming guide."""
    features = "ACCELERATED_FEATURES" if gpu.capability >= (9, 0) else "NONE"
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": gpu.shared_bytes_per_core,
        "threads_per_core_limit": gpu.threads_per_core,
        "core_count": gpu.n_cores,
        "fpus_per_core": gpu.fpus_per_core,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(device.bandwidth_bytes_s),
        "l2_cache_size": gpu.l2_bytes,
        "clock_rate_ghz": gpu.clock_ghz,
        "device_memory_size": device.visible_bytes,
        "shared_memory_per_block_optin": min(gpu.shared_bytes_per_core - 1024, 232_448),
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
    }
    major, minor = gpu.capability
    lines = [f"  {name}: {value}" for name, value in fields.items()]
    lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}")
    versions = " ".join(f"{name}: {value}" for name, value in zip(("major", "minor", "patch"), cudnn, strict=True))
    info = "\n".join(lines)
    return (
        f'gpu_device_info {{\n{info}\n}}\nplatform_name: "CUDA"\ndnn_version_info {{ {versions} }}\n'
        f'runtime_version {{ major: 13 }}\ndevice_description_str: "{gpu.title}"\n'
    )


def cudnn_version() -> tuple[int, int, int]:
    """The version of the installed wheel, whose library the compiler asks for kernels."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        major, minor, patch = (int(part) for part in version("nvidia-cudnn-cu13").split(".")[:3])
    except PackageNotFoundError as error:
        raise Failure(f"flash attention needs nvidia-cudnn-cu13: {pip_install('plan-gpu')}") from error
    return major, minor, patch
