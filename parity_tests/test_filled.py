"""Attention over a cache in blocks: the same function as over all of it, from what a row has filled alone."""

import functools

import jax
import numpy as np
import pytest

from jaxgpt.compare import tolerances
from jaxgpt.models.attention import _xla, attention
from jaxgpt.models.filled import BLOCK

N_SLOTS, HEAD_DIM = 3 * BLOCK - 10, 8
OFFSETS = [0, BLOCK - 1, BLOCK, 150]
"""The first token, both sides of a block's end, and the last block, which begins within the one before it."""
CASES = {
    "one_token": {"n_queries": 1, "n_kv_heads": 4, "window": None},
    "drafted": {"n_queries": 5, "n_kv_heads": 2, "window": None},
    "window": {"n_queries": 5, "n_kv_heads": 4, "window": 40},
}  # fmt: skip


def inputs(n_queries, n_kv_heads):
    rng = np.random.default_rng(2)
    shapes = [(n_queries, 4), (N_SLOTS, n_kv_heads), (N_SLOTS, n_kv_heads)]
    return [rng.standard_normal((len(OFFSETS), length, n, HEAD_DIM)).astype(np.float32) for length, n in shapes]


@functools.cache
def compiled(window):
    return jax.jit(lambda q, k, v, offset: attention(q, k, v, offset_B=offset, window=window))


@pytest.mark.parametrize("case", CASES)
def test_blocks_give_what_the_whole_cache_gives(case):
    n_queries, n_kv_heads, window = CASES[case].values()
    q, k, v = inputs(n_queries, n_kv_heads)
    offset = np.array(OFFSETS, np.int32)
    whole = jax.jit(functools.partial(_xla, window=window, dropout_rate=0.0, dropout_key=None))(q, k, v, offset)
    assert np.abs(compiled(window)(q, k, v, offset) - whole).max() < tolerances.FP32_OP * np.abs(whole).max()


@pytest.mark.parametrize("case", CASES)
def test_a_row_reads_its_own_blocks_alone(case):
    """Each row to the bit, where all other blocks and all other rows are NaN and the others have other lengths."""
    n_queries, n_kv_heads, window = CASES[case].values()
    arrays, offset = inputs(n_queries, n_kv_heads), np.array(OFFSETS, np.int32)
    together = np.asarray(compiled(window)(*arrays, offset))
    for row, n_before in enumerate(OFFSETS):
        first = 0 if window is None else max(n_before - window + 1, 0) // BLOCK * BLOCK
        end = ((n_before + n_queries - 1) // BLOCK + 1) * BLOCK
        first = min(first, N_SLOTS - BLOCK)  # the last block is a whole one
        q, *cache = (np.full_like(array, np.nan) for array in arrays)
        q[row] = arrays[0][row]
        for ours, theirs in zip(cache, arrays[1:], strict=True):
            ours[row, first:end] = theirs[row, first:end]
        others = np.full_like(offset, N_SLOTS - n_queries)
        others[row] = n_before
        alone = np.asarray(compiled(window)(q, *cache, others))
        assert np.isfinite(alone[row]).all() and (alone[row] == together[row]).all(), n_before
