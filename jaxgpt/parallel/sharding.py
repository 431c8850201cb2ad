"""The mesh of devices, and one table from parameter path to how it is split.

Three axes: `data` and `fsdp` split the rows of a batch, `fsdp` and `tensor` split parameters. The compiler
derives every collective from these specs ("pjit" is `jax.jit` with NamedShardings today). A parameter that no
rule matches, a rule that no parameter matches, and an axis that does not divide are errors that name the path.

References: GSPMD, arXiv:2105.04663; ZeRO, arXiv:1910.02054; Megatron-LM, arXiv:1909.08053.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.config.families import ModelConfig
from jaxgpt.errors import InputError
from jaxgpt.parallel.mesh import count_batch_devices

BATCH = ("data", "fsdp")
"""Mesh axes over which the rows of a batch are split."""


def shard_params(shapes: dict[str, tuple[int, ...]], model: ModelConfig, mesh: Mesh) -> dict[str, NamedSharding]:
    """Path -> sharding for the parameters of a model, by the rules of its family.

    Raises:
      InputError: an axis does not divide; names path, axis and sizes.
      KeyError: a path without a rule, or a rule without a path: the table has a hole.
    """
    unused = {rule.pattern for rule in model.RULES if not rule.is_optional}
    shardings = {}
    for path, shape in shapes.items():
        rule = next((rule for rule in model.RULES if re.fullmatch(rule.pattern, path)), None)
        if rule is None:
            raise KeyError(f"no sharding rule matches the parameter {path} {shape}")
        unused.discard(rule.pattern)
        for size, axes in zip(shape, rule.axes, strict=False):
            names = (axes,) if isinstance(axes, str) else axes or ()
            if size % math.prod(mesh.shape[name] for name in names):
                split = " x ".join(f"mesh.{name}={mesh.shape[name]}" for name in names if mesh.shape[name] > 1)
                raise InputError(f"{split} does not divide {path}'s axis of {size}; choose a divisor")
        shardings[path] = NamedSharding(mesh, P(*rule.axes))
    if unused:
        raise KeyError(f"sharding rules that match no parameter: {sorted(unused)}")
    return shardings


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, n_leading: int = 0) -> NamedSharding:
    """Rows split over the batch axes, after `n_leading` axes that are not (microbatches)."""
    return NamedSharding(mesh, P(*[None] * n_leading, BATCH))


def own_rows(mesh: Mesh, n_rows: int) -> tuple[int, int]:
    """Which of a batch's rows this process's devices hold: lo, hi."""
    held = batch_sharding(mesh).addressable_devices_indices_map((n_rows,)).values()
    spans = [index[0].indices(n_rows) for index in held if index is not None]
    return min(lo for lo, _, _ in spans), max(hi for _, hi, _ in spans)


def put_rows(tree: Any, n_rows: int, mesh: Mesh, axis: int = 0) -> Any:
    """Global arrays, split by rows, from the rows that this process read.

    Args:
      tree: numpy arrays with the process's `own_rows` along `axis`.
      n_rows: of all processes.
    """
    sharding, first = batch_sharding(mesh, axis), own_rows(mesh, n_rows)[0]

    def put(rows: np.ndarray) -> jax.Array:
        shape = (*rows.shape[:axis], n_rows, *rows.shape[axis + 1 :])

        def piece(index):
            lo, hi, _ = index[axis].indices(n_rows)
            return rows[(slice(None),) * axis + (slice(lo - first, hi - first),)]

        return jax.make_array_from_callback(shape, sharding, piece)

    return jax.tree.map(put, tree)


def shard_batch(x):
    """Pins the rows of an activation to the batch axes; the identity outside a mesh.

    Left to itself the partitioner may split heads instead, which flash attention cannot follow.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH, *[None] * (x.ndim - 1)))


def count_row_devices(mesh: AbstractMesh) -> int:
    """Devices that split rows under the mesh in force; 0 without one, and where the compiler may not use its axes."""
    return count_batch_devices(mesh) if {*BATCH} <= {*mesh.auto_axes} else 0


def shard_rows(tree):
    """Splits the first axis of arrays over the batch axes; the identity where these do not divide it.

    Also outside a mesh, and where another program's mesh has no such axes that the compiler may use.
    """
    n_devices = count_row_devices(jax.sharding.get_abstract_mesh())
    is_even = n_devices > 1 and jax.tree.leaves(tree)[0].shape[0] % n_devices == 0
    return jax.tree.map(shard_batch, tree) if is_even else tree


def share(x):
    """Pins an array to be whole on each device, so that each process can read it; else as `shard_rows`."""
    mesh = jax.sharding.get_abstract_mesh()
    is_ours = mesh.size > 1 and count_row_devices(mesh) > 0
    return jax.lax.with_sharding_constraint(x, P()) if is_ours else x


def shard_stack(x):
    """Splits a stack of matrices by its first axis, each matrix whole: over fsdp, or over data where fsdp is 1.

    Zero matrices are appended where the axis does not divide their number. The identity outside a mesh, on one device,
    and where another program's mesh has no such axes that the compiler may use.
    """
    axis = _stack_axis()
    if axis is None:
        return x
    n_padding = -x.shape[0] % jax.sharding.get_abstract_mesh().shape[axis]
    if n_padding:
        x = jnp.pad(x, ((0, n_padding), *[(0, 0)] * (x.ndim - 1)))
    if axis == "data":  # each device cuts its part off; by itself, the compiler exchanges parts of every matrix
        x = jax.lax.with_sharding_constraint(x, P())
    return jax.lax.with_sharding_constraint(x, P(axis))


def gather_stack(x):
    """A stack that `shard_stack` split over data, whole on each device; over fsdp it stays as it is."""
    return jax.lax.with_sharding_constraint(x, P()) if _stack_axis() == "data" else x


def _stack_axis() -> str | None:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or not count_row_devices(mesh):
        return None
    return "fsdp" if mesh.shape["fsdp"] > 1 else "data"


def per_shard(kernel: Callable) -> Callable:
    """Runs a kernel that XLA cannot partition on each device's own rows and heads, under the mesh in force.

    Args:
      kernel: takes arrays [B, T, N, H] and [B, T], the first of them [B, T, N, H]; its result is like that one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel
    heads, rows = P(BATCH, None, "tensor", None), P(BATCH, None)

    def run(*arrays):
        specs = tuple(heads if x.ndim == 4 else rows for x in arrays)
        return jax.shard_map(kernel, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)(*arrays)

    return run
