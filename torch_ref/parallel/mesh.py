"""jaxgpt/parallel/mesh.py in PyTorch: one process per device."""

from dataclasses import dataclass

import torch

from jaxgpt.config import MeshConfig
from jaxgpt.errors import InputError
from torch_ref.parallel.hosts import pick_device, process_count, process_index


@dataclass(frozen=True)
class Mesh:
    """This process's device; its number; how many there are."""

    device: torch.device
    index: int
    size: int

    @property
    def device_kind(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def make_mesh(config: MeshConfig) -> Mesh:
    """This process's place.

    Raises:
      InputError: the platform is not available, parameters are to be split, or torchrun started another number of
        processes than mesh.data says.
    """
    device, size = pick_device(config.platform), process_count()
    for name in ("fsdp", "tensor"):
        value = getattr(config, name)
        if value > 1:
            raise InputError(f"mesh.{name}={value}: torch_ref splits no parameters; set --mesh.{name}=1")
    if config.data not in (0, size):
        raise InputError(
            f"mesh.data={config.data}, but there are {size} process(es); start them with "
            f"torchrun --nproc_per_node={config.data}, or set --mesh.data=0"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Mesh(device, process_index(), size)


def count_batch_devices(mesh: Mesh) -> int:
    return mesh.size
