"""Flash attention over documents and windows on NVIDIA cards: one Pallas-Triton kernel, forward and backward.

The mask is two vectors that never fall along a row: the first key that a query sees, and one past the last query that
sees a key. So each block of queries knows the range of keys to visit from its first query alone, and each block of keys
the range of queries from its last key; whatever no query of a block sees is not read. The backward pass is two kernels,
one per block of queries and one per block of keys, without atomic additions: sums have one order, and a resumed run
repeats bit for bit.

Left out: tuning on a card (block sizes are what the compiler accepts), and a loop without masks over blocks that are
wholly visible. Pallas' Triton backend is deprecated since JAX 0.11, which still has it.

References: Dao, arXiv:2307.08691 (FlashAttention-2). The ranges take the place of FlexAttention's block masks
(arXiv:2412.05496).
"""

import functools
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgpt.config.hardware import GpuDescription, find_device
from jaxgpt.models.packed_scan import MASKED, first_seen

ROW_MULTIPLE = 128
"""A row is a multiple of so many tokens: the largest block."""
HEAD_DIMS = (16, 32, 64, 128)
"""Widths of a head for which the tiles are powers of two and fit."""
LEAST_CAPABILITY = (8, 0)
LARGE_SHARED_BYTES = 163_840
"""Shared memory of a multiprocessor from which the large blocks fit."""
KNOWN_KINDS = (
    "NVIDIA A10", "NVIDIA A30", "NVIDIA A100", "NVIDIA H100", "NVIDIA H200", "NVIDIA GH200", "NVIDIA B200",
    "NVIDIA GB200", "NVIDIA B300", "NVIDIA GB300", "NVIDIA GB10", "NVIDIA L4", "NVIDIA L40", "Tesla T4",
    "NVIDIA GeForce RTX 4090", "NVIDIA RTX PRO 4500", "NVIDIA RTX PRO 5000", "NVIDIA RTX PRO 6000", "NVIDIA Thor",
)  # fmt: skip
"""The cards for which Pallas' Triton backend of JAX 0.11 compiles, by the first words of their names."""


@dataclass(frozen=True)
class Blocks:
    """Tile of one kernel: queries x keys, warps that compute it, loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """Blocks of the three kernels: forward, gradient of the queries, gradients of keys and values."""

    forward: Blocks
    d_queries: Blocks
    d_keys: Blocks


LARGE = Tiles(Blocks(128, 64, 8, 3), Blocks(64, 64, 4, 3), Blocks(64, 64, 4, 2))
"""A100, H100, H200, B200."""
SMALL = Tiles(Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 2))
"""99 KiB of shared memory per block: RTX 3090, RTX 4090, L4, and cards that `config.hardware` does not list."""


def tiles_for(device_kind: str) -> Tiles:
    """The tiles that fit into a card's shared memory; the small ones for a card that is not known."""
    gpu = _describe(device_kind)
    return LARGE if gpu and gpu.shared_bytes_per_core >= LARGE_SHARED_BYTES else SMALL


def refusal(device_kind: str, jax_version: tuple[int, ...] = jax.__version_info__) -> str:
    """Why the kernel cannot run on a card, in words; empty if it can or no card is given.

    JAX 0.10 compiles for every card from compute capability 8.0 up. JAX 0.11 looks the card up in a table; from 0.11.2
    on, a card that is present need not be in it.

    Args:
      device_kind: as JAX names it; empty: no card in particular.
    """
    gpu = _describe(device_kind)
    if gpu and gpu.capability < LEAST_CAPABILITY:
        capability, least = (".".join(map(str, version)) for version in (gpu.capability, LEAST_CAPABILITY))
        return f"{device_kind} has compute capability {capability}; it takes {least} and up"
    is_listed = any(re.search(rf"\b{kind}\b", device_kind) for kind in KNOWN_KINDS)
    if not device_kind or is_listed or jax_version < (0, 11):
        return ""
    is_present = any(device.device_kind == device_kind for device in jax.local_devices())
    if is_present and jax_version >= (0, 11, 2):
        return ""
    return f"JAX {'.'.join(map(str, jax_version))} compiles no Triton kernel for {device_kind}"


def _describe(device_kind: str) -> GpuDescription | None:
    device = find_device(device_kind) if device_kind else None
    return device.compiler if device and isinstance(device.compiler, GpuDescription) else None


def packed_triton(q_BTNH, k_BTNH, v_BTNH, begin_BT, *, window, scale, tiles, interpret=False):
    """Causal softmax attention as `packed.packed_attention` has it.

    Args:
      q_BTNH, k_BTNH, v_BTNH: bfloat16 or float16 on a card; T a multiple of ROW_MULTIPLE, H one of HEAD_DIMS.
      tiles: from `tiles_for`.
      interpret: runs the kernel's own steps one by one, on any machine.
    """
    assert q_BTNH.shape[1] % ROW_MULTIPLE == 0, q_BTNH.shape
    assert q_BTNH.shape[3] in HEAD_DIMS, q_BTNH.shape
    first_BT = first_seen(begin_BT, min(window, q_BTNH.shape[1]))
    call = _Call(float(scale), tiles, interpret)
    return _attention(call, q_BTNH, k_BTNH, v_BTNH, first_BT, end_of_seen(first_BT))


def end_of_seen(first_BT):
    """One past the last query that sees each key, int32 [B, T]: as many queries as begin at or before the key."""
    keys_T = jnp.arange(first_BT.shape[1], dtype=jnp.int32)
    count = functools.partial(jnp.searchsorted, side="right", method="scan_unrolled")
    return jax.vmap(lambda first_T: count(first_T, keys_T))(first_BT).astype(jnp.int32)


@dataclass(frozen=True)
class _Call:
    """What a call fixes besides its arrays."""

    scale: float
    tiles: Tiles
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call: _Call, q_BTNH, k_BTNH, v_BTNH, first_BT, end_BT):
    return _attention_forward(call, q_BTNH, k_BTNH, v_BTNH, first_BT, end_BT)[0]


def _attention_forward(call: _Call, q_BTNH, k_BTNH, v_BTNH, first_BT, end_BT):
    blocks = call.tiles.forward
    query, every = _specs(q_BTNH, blocks.queries), _specs(q_BTNH, q_BTNH.shape[1])
    n_rows, n_queries, n_heads, _ = q_BTNH.shape
    y_BTNH, lse_BNT = _run(
        call, _forward_kernel, blocks, q_BTNH, n_queries // blocks.queries,
        (query.heads, every.heads, every.heads, every.vector), (query.heads, query.statistic),
        (_like(q_BTNH), jax.ShapeDtypeStruct((n_rows, n_heads, n_queries), jnp.float32)),
    )(q_BTNH, k_BTNH, v_BTNH, first_BT)  # fmt: skip
    return y_BTNH, (q_BTNH, k_BTNH, v_BTNH, first_BT, end_BT, y_BTNH, lse_BNT)


def _attention_backward(call: _Call, kept, d_y_BTNH):
    q_BTNH, k_BTNH, v_BTNH, first_BT, end_BT, y_BTNH, lse_BNT = kept
    n_queries = q_BTNH.shape[1]
    delta_BNT = jnp.einsum("BTNH,BTNH->BNT", y_BTNH, d_y_BTNH, preferred_element_type=jnp.float32)
    every = _specs(q_BTNH, n_queries)

    blocks = call.tiles.d_queries
    query = _specs(q_BTNH, blocks.queries)
    d_q_BTNH = _run(
        call, _d_queries_kernel, blocks, q_BTNH, n_queries // blocks.queries,
        (query.heads, every.heads, every.heads, every.vector, query.heads, query.statistic, query.statistic),
        query.heads, _like(q_BTNH),
    )(q_BTNH, k_BTNH, v_BTNH, first_BT, d_y_BTNH, lse_BNT, delta_BNT)  # fmt: skip

    blocks = call.tiles.d_keys
    key = _specs(q_BTNH, blocks.keys)
    d_k_BTNH, d_v_BTNH = _run(
        call, _d_keys_kernel, blocks, q_BTNH, n_queries // blocks.keys,
        (every.heads, key.heads, key.heads, every.vector, every.vector, every.heads, every.statistic, every.statistic),
        (key.heads, key.heads), (_like(k_BTNH), _like(v_BTNH)),
    )(q_BTNH, k_BTNH, v_BTNH, first_BT, end_BT, d_y_BTNH, lse_BNT, delta_BNT)  # fmt: skip
    return d_q_BTNH, d_k_BTNH, d_v_BTNH, None, None


_attention.defvjp(_attention_forward, _attention_backward)


def _run(call: _Call, kernel, blocks: Blocks, like_BTNH, n_blocks: int, inputs, outputs, shapes):
    """A kernel over the grid blocks x heads x rows, to be called with its arrays."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    return pallas.pallas_call(
        functools.partial(kernel, scale=call.scale, blocks=blocks),
        grid=(n_blocks, like_BTNH.shape[2], like_BTNH.shape[0]),
        in_specs=inputs,
        out_specs=outputs,
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=call.interpret,
        name=f"packed{kernel.__name__.removesuffix('_kernel')}",
    )


class _Specs(NamedTuple):
    """Where a program finds its block of an array [B, T, N, H], [B, T] or [B, N, T]."""

    heads: Any
    vector: Any
    statistic: Any


def _specs(like_BTNH, length: int) -> _Specs:
    """Blocks of `length` tokens; of the whole row if it is the row's length."""
    from jax.experimental import pallas

    head_dim, is_whole = like_BTNH.shape[3], length == like_BTNH.shape[1]

    def at(i):
        return 0 if is_whole else i

    return _Specs(
        pallas.BlockSpec((None, length, None, head_dim), lambda i, head, row: (row, at(i), head, 0)),
        pallas.BlockSpec((None, length), lambda i, head, row: (row, at(i))),
        pallas.BlockSpec((None, None, length), lambda i, head, row: (row, head, at(i))),
    )


def _like(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _forward_kernel(q_ref, k_ref, v_ref, first_ref, y_ref, lse_ref, *, scale: float, blocks: Blocks):
    """One block of queries: softmax in base 2, renormalised as larger scores are met."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    queries_T, first_T, begin, end = _keys_of_block(first_ref, blocks)
    q_TH = q_ref[...]

    def step(j, carry):
        y_TH, most_T, sum_T = carry
        at = pallas.ds(j * blocks.keys, blocks.keys)
        k_SH, v_SH = k_ref[at, :], v_ref[at, :]
        is_seen_TS = _is_seen(queries_T, first_T, j * blocks.keys + jnp.arange(blocks.keys))
        scores_TS = jnp.where(is_seen_TS, triton.dot(q_TH, k_SH.T) * (scale * math.log2(math.e)), MASKED)
        new_most_T = jnp.maximum(most_T, scores_TS.max(axis=1))
        probs_TS = jnp.exp2(scores_TS - new_most_T[:, None])
        shrink_T = jnp.exp2(most_T - new_most_T)
        y_TH = y_TH * shrink_T[:, None] + triton.dot(probs_TS.astype(v_SH.dtype), v_SH)
        return y_TH, new_most_T, sum_T * shrink_T + probs_TS.sum(axis=1)

    zeros_T = jnp.zeros((blocks.queries,), jnp.float32)
    zeros_TH = jnp.zeros(q_TH.shape, jnp.float32)
    y_TH, most_T, sum_T = jax.lax.fori_loop(begin, end, step, (zeros_TH, zeros_T + 2 * MASKED, zeros_T))
    y_ref[...] = (y_TH / sum_T[:, None]).astype(y_ref.dtype)
    lse_ref[...] = most_T + jnp.log2(sum_T)


def _d_queries_kernel(
    q_ref, k_ref, v_ref, first_ref, d_y_ref, lse_ref, delta_ref, d_q_ref, *, scale: float, blocks: Blocks
):
    """One block of queries, over the keys that the forward pass visits."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    queries_T, first_T, begin, end = _keys_of_block(first_ref, blocks)
    q_TH, d_y_TH, lse_T, delta_T = q_ref[...], d_y_ref[...], lse_ref[...], delta_ref[...]

    def step(j, d_q_TH):
        at = pallas.ds(j * blocks.keys, blocks.keys)
        k_SH, v_SH = k_ref[at, :], v_ref[at, :]
        is_seen_TS = _is_seen(queries_T, first_T, j * blocks.keys + jnp.arange(blocks.keys))
        scores_TS = triton.dot(q_TH, k_SH.T) * (scale * math.log2(math.e))
        probs_TS = jnp.where(is_seen_TS, jnp.exp2(scores_TS - lse_T[:, None]), 0.0)
        d_scores_TS = probs_TS * (triton.dot(d_y_TH, v_SH.T) - delta_T[:, None])
        return d_q_TH + triton.dot(d_scores_TS.astype(k_SH.dtype), k_SH)

    d_q_TH = jax.lax.fori_loop(begin, end, step, jnp.zeros(q_TH.shape, jnp.float32))
    d_q_ref[...] = (d_q_TH * scale).astype(d_q_ref.dtype)


def _d_keys_kernel(
    q_ref, k_ref, v_ref, first_ref, end_ref, d_y_ref, lse_ref, delta_ref, d_k_ref, d_v_ref, *,
    scale: float, blocks: Blocks,
):  # fmt: skip
    """One block of keys, over the queries that see any of it."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    j = pallas.program_id(0)
    keys_S = j * blocks.keys + jnp.arange(blocks.keys)
    k_SH, v_SH = k_ref[...], v_ref[...]

    def step(i, carry):
        d_k_SH, d_v_SH = carry
        at = pallas.ds(i * blocks.queries, blocks.queries)
        q_TH, d_y_TH = q_ref[at, :], d_y_ref[at, :]
        is_seen_TS = _is_seen(i * blocks.queries + jnp.arange(blocks.queries), first_ref[at], keys_S)
        scores_ST = triton.dot(k_SH, q_TH.T) * (scale * math.log2(math.e))
        probs_ST = jnp.where(is_seen_TS.T, jnp.exp2(scores_ST - lse_ref[at][None, :]), 0.0)
        d_v_SH = d_v_SH + triton.dot(probs_ST.astype(d_y_TH.dtype), d_y_TH)
        d_scores_ST = probs_ST * (triton.dot(v_SH, d_y_TH.T) - delta_ref[at][None, :])
        return d_k_SH + triton.dot(d_scores_ST.astype(q_TH.dtype), q_TH), d_v_SH

    begin = jax.lax.div(j * blocks.keys, blocks.queries)
    end = pallas.cdiv(end_ref[j * blocks.keys + blocks.keys - 1], blocks.queries)
    zeros_SH = jnp.zeros(k_SH.shape, jnp.float32)
    d_k_SH, d_v_SH = jax.lax.fori_loop(begin, end, step, (zeros_SH, zeros_SH))
    d_k_ref[...] = (d_k_SH * scale).astype(d_k_ref.dtype)
    d_v_ref[...] = d_v_SH.astype(d_v_ref.dtype)


def _keys_of_block(first_ref, blocks: Blocks):
    """Positions of this program's queries, the first key that each sees, and the range of blocks of keys to visit."""
    from jax.experimental import pallas

    start = pallas.program_id(0) * blocks.queries
    queries_T = start + jnp.arange(blocks.queries)
    begin = jax.lax.div(first_ref[start], blocks.keys)
    end = pallas.cdiv(start + blocks.queries, blocks.keys)
    return queries_T, first_ref[pallas.ds(start, blocks.queries)], begin, end


def _is_seen(queries_T, first_T, keys_S):
    return (keys_S[None, :] <= queries_T[:, None]) & (keys_S[None, :] >= first_T[:, None])
