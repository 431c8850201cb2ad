"""The settings of where a run runs: the layout of its devices, and its processes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxgpt.config.section import Section, show
from jaxgpt.errors import require


@dataclass(frozen=True)
class MeshConfig(Section):
    """How devices are laid out. data and fsdp split the batch, fsdp and tensor split the parameters."""

    PATH: ClassVar = "mesh."

    data: int = 0
    """Copies of the model, each with its part of the batch; 0: all devices that fsdp and tensor leave."""
    fsdp: int = 1
    """Devices over which parameters, gradients and optimizer state are split."""
    tensor: int = 1
    """Devices over which heads, MLP width and vocabulary are split."""
    platform: Literal["", "cpu", "gpu", "tpu"] = ""
    """Kind of device; empty: the fastest available."""

    def __post_init__(self):
        super().__post_init__()
        require(self.data >= 0, f"mesh.data={self.data} is negative; 0 uses all remaining devices")
        for name in ("fsdp", "tensor"):
            value = getattr(self, name)
            require(value >= 1, f"mesh.{name}={value} is below 1; 1 turns it off")


@dataclass(frozen=True)
class HostsConfig(Section):
    """Several processes, one run. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do the same."""

    PATH: ClassVar = "hosts."

    coordinator: str = ""
    """host:port of process 0; empty: from the environment (SLURM, Open MPI, TPU pods, the variables above)."""
    count: int = 0
    """Number of processes; 0: from the environment, else 1."""
    index: int = -1
    """Number of this process, from 0; -1: from the environment."""
    timeout_s: int = 60
    """Seconds without a sign of life after which a process counts as dead, and the others stop."""

    def __post_init__(self):
        super().__post_init__()
        host, _, port = self.coordinator.rpartition(":")
        is_address = bool(host) and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16
        require(
            not self.coordinator or is_address,
            f"hosts.coordinator={show(self.coordinator)} is not host:port of process 0, such as 10.0.0.1:1234",
        )
        require(self.count >= 0, f"hosts.count={self.count} is negative; 0 takes it from the environment")
        require(self.timeout_s >= 1, f"hosts.timeout_s={self.timeout_s} is below 1; 60 is usual")
        require(self.index >= -1, f"hosts.index={self.index} is below -1, which takes it from the environment")
        require(
            not self.count or self.index < self.count,
            f"hosts.index={self.index} is not below hosts.count={self.count}; processes are counted from 0",
        )
