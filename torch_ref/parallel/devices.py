"""jaxgpt/parallel/devices.py in PyTorch."""

from jaxgpt.config import Config
from torch_ref.parallel.hosts import start_hosts
from torch_ref.parallel.mesh import Mesh, make_mesh


def open_devices(config: Config) -> Mesh:
    start_hosts(config.hosts, config.mesh.platform)
    return make_mesh(config.mesh)
