"""The mesh of devices, and one table from parameter path to how it is split.

Three axes: `data` and `fsdp` split the rows of a batch, `fsdp` and `tensor` split parameters. The compiler
derives every collective from these specs ("pjit" is `jax.jit` with NamedShardings today). A parameter that no
rule matches, a rule that no parameter matches, and an axis that does not divide are errors that name the path.

References: GSPMD, arXiv:2105.04663; ZeRO, arXiv:1910.02054; Megatron-LM, arXiv:1909.08053.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.errors import InputError

BATCH = ("data", "fsdp")
"""Mesh axes over which the rows of a batch are split."""

RULES = {
    "gpt2": (
        (r"wte\.weight", P("tensor", "fsdp")),
        (r"wpe\.weight", P(None, "fsdp")),
        (r"h\.\d+\.attn\.c_attn\.weight", P("fsdp", "tensor")),
        (r"h\.\d+\.attn\.c_proj\.weight", P("tensor", "fsdp")),
        (r"h\.\d+\.mlp\.c_fc\.weight", P("fsdp", "tensor")),
        (r"h\.\d+\.mlp\.c_proj\.weight", P("tensor", "fsdp")),
        (r"h\.\d+\.(attn|mlp)\.c_\w+\.bias", P()),
        (r"(h\.\d+\.ln_[12]|ln_f)\.(weight|bias)", P()),
    ),
    "nanochat": (
        (r"(wte|lm_head)\.weight", P("tensor", "fsdp")),
        (r"value_embeds\.\d+\.weight", P("tensor", "fsdp")),
        (r"h\.\d+\.attn\.c_[qkv]\.weight", P("fsdp", "tensor")),
        (r"h\.\d+\.attn\.c_proj\.weight", P("tensor", "fsdp")),
        (r"h\.\d+\.mlp\.c_fc\.weight", P("fsdp", "tensor")),
        (r"h\.\d+\.mlp\.c_proj\.weight", P("tensor", "fsdp")),
        (r"h\.\d+\.attn\.ve_gate\.weight|smear_gate\.weight", P()),
        (r"(resid|x0)_lambdas|(smear|backout)_lambda", P()),
    ),
}
"""family -> (regular expression for the whole path, spec over the parameter's axes)."""

OPTIONAL = (
    r"h\.\d+\.(attn|mlp)\.c_\w+\.bias",
    r"value_embeds\.\d+\.weight",
    r"h\.\d+\.attn\.ve_gate\.weight|smear_gate\.weight",
    r"(resid|x0)_lambdas|(smear|backout)_lambda",
)
"""Rules that may match nothing: models without biases, and nanochat of 2025."""


def shard_params(shapes: dict[str, tuple[int, ...]], family: str, mesh: Mesh) -> dict[str, NamedSharding]:
    """Path -> sharding for the parameters of a model family.

    Raises:
      InputError: an axis does not divide; names path, axis and sizes.
      KeyError: a path without a rule, or a rule without a path: the table has a hole.
    """
    rules = RULES[family]
    unused = {pattern for pattern, _ in rules if pattern not in OPTIONAL}
    shardings = {}
    for path, shape in shapes.items():
        found = [(pattern, spec) for pattern, spec in rules if re.fullmatch(pattern, path)]
        if not found:
            raise KeyError(f"no sharding rule matches the parameter {path} {shape}")
        pattern, spec = found[0]
        unused.discard(pattern)
        for size, axis in zip(shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"mesh.{axis}={mesh.shape[axis]} does not divide {path}'s axis of {size}; choose a divisor"
                )
        shardings[path] = NamedSharding(mesh, spec)
    if unused:
        raise KeyError(f"sharding rules that match no parameter: {sorted(unused)}")
    return shardings


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, n_leading: int = 0) -> NamedSharding:
    """Rows split over the batch axes, after `n_leading` axes that are not (microbatches)."""
    return NamedSharding(mesh, P(*[None] * n_leading, BATCH))


def put_rows(read, shape: tuple[int, ...], sharding: NamedSharding, axis: int = 0) -> jax.Array:
    """A global array of which each process reads only the rows that its devices hold.

    Args:
      read: (lo, hi) -> numpy array with the rows lo .. hi along `axis`; called once.
      shape: of the whole array.
    """
    held = sharding.addressable_devices_indices_map(shape).values()
    spans = [index[axis].indices(shape[axis]) for index in held if index is not None]
    first, last = min(lo for lo, _, _ in spans), max(hi for _, hi, _ in spans)
    rows = read(first, last)

    def piece(index):
        lo, hi, _ = index[axis].indices(shape[axis])
        return rows[(slice(None),) * axis + (slice(lo - first, hi - first),)]

    return jax.make_array_from_callback(shape, sharding, piece)


def shard_batch(x):
    """Pins the rows of an activation to the batch axes; the identity outside a mesh.

    Left to itself the partitioner may split heads instead, which flash attention cannot follow.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH, *[None] * (x.ndim - 1)))


def shard_stack(x):
    """Splits a stack of matrices over fsdp by its first axis, each matrix whole.

    The identity outside a mesh, on one device, and where another program's mesh has no fsdp axis that the compiler
    may use.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or "fsdp" not in mesh.auto_axes:
        return x
    return jax.lax.with_sharding_constraint(x, P("fsdp", *[None] * (x.ndim - 1)))
