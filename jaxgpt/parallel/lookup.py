"""Rows of a table whose columns are split over fsdp.

The gradient of a table is a sum of rows at the places that the ids name. Left to itself, where the mesh has data and
fsdp, or many devices, the partitioner gathers the whole table in float32 and sums it over all devices.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxgpt.parallel.sharding import BATCH, count_row_devices


def take_rows(table_VD, ids, dtype=None) -> Any:
    """The rows of a table by id, [..., D], in the table's dtype or in `dtype`.

    Each device looks up, and in the backward pass adds up, its columns for the rows of the batch that its fsdp group
    holds. So activations travel, not the table; then gradients are summed over data. Rows or columns that the devices
    do not divide, such as positions that all rows share, are left to the partitioner.
    """
    mesh = jax.sharding.get_abstract_mesh()
    n_devices = count_row_devices(mesh)
    n_fsdp = mesh.shape["fsdp"] if n_devices else 1
    if n_fsdp == 1 or ids.shape[0] % n_devices or table_VD.shape[1] % n_fsdp:
        rows = table_VD[ids]
        return rows if dtype is None else rows.astype(dtype)
    return _take(table_VD, ids, jnp.dtype(dtype or table_VD.dtype))


ROWS, COLUMNS = P(BATCH), P(None, "fsdp")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _take(table_VD, ids, dtype):
    def look_up(table_VC, ids):
        rows = table_VC[jax.lax.all_gather(ids, "fsdp", axis=0, tiled=True)].astype(dtype)
        return jax.lax.all_to_all(rows, "fsdp", split_axis=0, concat_axis=rows.ndim - 1, tiled=True)

    return _on_each(look_up, (COLUMNS, ROWS), ROWS)(table_VD, ids)


def _take_backward(_, inputs, d_rows):
    table_VD, ids = inputs

    def add_up(ids, d_rows):
        ids = jax.lax.all_gather(ids, "fsdp", axis=0, tiled=True)
        d_rows = jax.lax.all_to_all(d_rows, "fsdp", split_axis=d_rows.ndim - 1, concat_axis=0, tiled=True)
        d_table_VC = jnp.zeros((table_VD.shape[0], d_rows.shape[-1]), table_VD.dtype)
        return jax.lax.psum(d_table_VC.at[ids].add(d_rows.astype(table_VD.dtype)), "data")

    return _on_each(add_up, (ROWS, ROWS), COLUMNS)(ids, d_rows), None


_take.defvjp(lambda table_VD, ids, dtype: (_take(table_VD, ids, dtype), (table_VD, ids)), _take_backward)


def _on_each(function, in_specs, out_specs):
    """A function of each device's own parts, under the mesh in force."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
