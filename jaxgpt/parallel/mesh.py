"""The mesh of devices: data x fsdp x tensor."""

import os

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxgpt.config import MeshConfig
from jaxgpt.errors import InputError
from jaxgpt.extras import pip_install
from jaxgpt.parallel.cpu_threads import enough_threads
from jaxgpt.parallel.malloc import keep_freed_memory
from jaxgpt.parallel.xla_flags import check_xla_flags


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """The mesh data x fsdp x tensor over the devices of the platform asked for.

    Without `devices` it also sets this process up for them: see below what a CPU needs.

    Raises:
      InputError: the platform is not available, the devices do not multiply to the mesh, or a copy of the model would
        lie on several TPU slices.
    """
    if devices is None:
        # A CPU runs programs in this thread, the only one for which glibc keeps large blocks.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        check_xla_flags(os.environ.get("XLA_FLAGS", ""))
        try:
            with enough_threads():
                devices = jax.devices(config.platform or None)
        except (RuntimeError, AssertionError) as error:  # the second where a platform has no plugin
            name, asked = "mesh.platform", config.platform
            if not asked:
                name, asked = "JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "")
            first_line = next(iter(str(error).splitlines()), "JAX has no plugin for it")
            raise InputError(
                f"{name}={asked} is not available: {first_line[:300]}; "
                f"{pip_install('cuda')} (or {pip_install('tpu')}), or drop the setting"
            ) from error
        if devices[0].platform == "cpu":
            keep_freed_memory()
    inner = config.fsdp * config.tensor
    data = config.data or max(len(devices) // inner, 1)
    wanted = data * inner
    shape = f"mesh.data={data} x mesh.fsdp={config.fsdp} x mesh.tensor={config.tensor} = {wanted} devices"
    if wanted > len(devices):
        raise InputError(f"{shape}, but there are {len(devices)} ({devices[0].device_kind}); lower one of them")
    if wanted < len(devices) and (not config.data or jax.process_count() > 1):
        raise InputError(f"{shape} of the {len(devices)} available; choose axes that multiply to {len(devices)}")
    _require_whole_copies(devices[:wanted], data, config)
    grid = np.array(devices[:wanted]).reshape(data, config.fsdp, config.tensor)
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def count_batch_devices(mesh: Mesh | AbstractMesh) -> int:
    """Devices that split the rows of a batch between them."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _require_whole_copies(devices: list, data: int, config: MeshConfig) -> None:
    """Several TPU slices hold whole copies of the model; JAX lists their chips slice by slice, as data splits them."""
    n_slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"})
    if n_slices > 1 and data % n_slices:
        whole = f"--mesh.data={n_slices} --mesh.fsdp={len(devices) // n_slices // config.tensor}"
        raise InputError(
            f"mesh.data={data} is no multiple of the {n_slices} TPU slices, so weights would be gathered over the "
            f"network between them; {whole} is a copy on each"
        )
