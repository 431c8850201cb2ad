"""Rows of a table that is split over fsdp: values, gradients, and what travels for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.config import MeshConfig
from jaxgpt.parallel.lookup import take_rows
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.sharding import batch_sharding, replicated
from jaxgpt.plan.census import gathered_whole, take_census

V, D, B, T = 96, 32, 16, 24


def make_inputs():
    """Whole numbers, so that sums are exact in any order."""
    rng = np.random.default_rng(0)
    table_VD, weights_BTD = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((V, D), (B, T, D)))
    return table_VD, rng.integers(0, V, (B, T)).astype(np.int32), weights_BTD


def summed(table_VD, ids, weights_BTD, dtype=None):
    rows = take_rows(table_VD, ids, dtype)
    return (rows * weights_BTD.astype(rows.dtype)).astype(jnp.float32).sum(), rows


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(1, 8, 1), (2, 4, 1), (2, 2, 2)], ids=str)
def test_rows_and_gradient_are_those_of_one_device(data, fsdp, tensor, dtype):
    inputs = make_inputs()
    (_, rows), gradient = jax.value_and_grad(summed, has_aux=True)(*inputs, dtype)
    np.testing.assert_array_equal(np.asarray(rows, np.float32), inputs[0][inputs[1]])
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    table = NamedSharding(mesh, P("tensor", "fsdp"))
    split = jax.jit(
        lambda *inputs: jax.value_and_grad(summed, has_aux=True)(*inputs, dtype),
        in_shardings=(table, batch_sharding(mesh), batch_sharding(mesh)),
        out_shardings=((replicated(mesh), batch_sharding(mesh)), table),
    )
    with jax.set_mesh(mesh):
        program = split.lower(*inputs).compile()
        (_, mine), my_gradient = program(
            *(jax.device_put(x, s) for x, s in zip(inputs, program.input_shardings[0], strict=True))
        )
    assert mine.dtype == rows.dtype
    np.testing.assert_array_equal(np.asarray(mine), np.asarray(rows))
    np.testing.assert_array_equal(np.asarray(my_gradient), np.asarray(gradient))
    census = take_census(str(program.as_text()), mesh.size)
    assert gathered_whole(census, {"table": (V, D), "half": (V // tensor, D)}) == {}
    part = 2 * 4 * V * D / fsdp
    assert all(one.sent_bytes <= part for one in census if one.kind == "all-reduce")


def test_what_does_not_divide_and_another_mesh_are_looked_up_as_they_are():
    """Ids that all rows share, columns that fsdp does not divide, axes that the compiler may not use."""
    table_VD, ids, _ = make_inputs()
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(take_rows(table_VD, ids[:1]), table_VD[ids[:1]])
        np.testing.assert_array_equal(take_rows(table_VD[:, :30], ids), table_VD[ids][..., :30])
    with jax.set_mesh(jax.make_mesh((8,), ("fsdp",))):
        np.testing.assert_array_equal(take_rows(jnp.asarray(table_VD), ids), table_VD[ids])
