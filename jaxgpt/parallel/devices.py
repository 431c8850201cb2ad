"""Devices, opened: what everything that runs a model does before it makes an array."""

import jax
from jax.sharding import Mesh

from jaxgpt.config import Config
from jaxgpt.parallel.compile_cache import remember_programs
from jaxgpt.parallel.hosts import start_hosts
from jaxgpt.parallel.mesh import make_mesh


def open_devices(config: Config) -> Mesh:
    """Joins the processes of the run, sets the width of numbers and the cache of programs; gives the mesh.

    Raises:
      InputError: the platform, the devices or the other processes are not available.
    """
    start_hosts(config.hosts, config.mesh.platform)
    jax.config.update("jax_enable_x64", config.train.dtype == "float64")
    remember_programs()
    return make_mesh(config.mesh)
