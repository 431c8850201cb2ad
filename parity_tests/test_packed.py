"""Attention by document and window: three forms against one that is written out, what a query must not see, the choice.

The kernels run their own steps, interpreted. test_packed_compiled.py compiles them for cards.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgpt.compare import tolerances
from jaxgpt.models.attention import attention
from jaxgpt.models.packed import document_begins, packed_attention
from jaxgpt.models.packed_scan import choose_block, packed_scan
from jaxgpt.models.packed_splash import packed_splash
from jaxgpt.models.packed_triton import LARGE, Blocks, Tiles, end_of_seen, packed_triton
from torch_ref.models import packed as torch_packed

SCALE = 0.1
TILES = Tiles(Blocks(64, 32, 4, 2), Blocks(32, 64, 4, 2), Blocks(64, 32, 4, 2))
FORMS = {
    "xla": packed_scan,
    "triton": functools.partial(packed_triton, tiles=TILES, interpret=True),
    "splash": functools.partial(packed_splash, interpret=True),
}
KERNEL_T = 256
LENGTHS = ((1, 63, 64, 1, 1, 126), (130, 2, 124))
"""Documents of two rows of KERNEL_T tokens: of one token, with ends on and next to edges of blocks."""


def begins_of(rows):
    """[B, T] begins of documents of these lengths."""
    edges = [np.cumsum([0, *lengths]) for lengths in rows]
    return np.array([np.repeat(edge[:-1], lengths) for edge, lengths in zip(edges, rows, strict=True)], np.int32)


def random_rows(n_tokens, seed):
    """Two rows of documents of random lengths, a quarter of them one token long."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(2):
        lengths = rng.integers(1, 60, n_tokens) ** rng.choice([0, 1, 1, 1], n_tokens)
        ends = np.cumsum(lengths)
        lengths = lengths[: np.searchsorted(ends, n_tokens) + 1]
        lengths[-1] -= lengths.sum() - n_tokens
        rows.append(tuple(lengths))
    return rows


def arrays(n_tokens, n_heads=2, head_dim=16, dtype=np.float64):
    """q, k, v and the gradient of the output, [2, T, N, H]."""
    rng = np.random.default_rng(5)
    return [rng.standard_normal((2, n_tokens, n_heads, head_dim)).astype(dtype) for _ in range(4)]


def literal(q, k, v, d_y, begin, window):
    """Query by query, and the gradients of sum(y * d_y) by the formulas; [y, d_q, d_k, d_v]."""
    y, d_q, d_k, d_v = (np.zeros_like(x) for x in (q, q, k, v))
    for row, t, head in np.ndindex(q.shape[:3]):
        keys = slice(max(begin[row, t], t - window + 1), t + 1)
        seen_k, seen_v = k[row, keys, head], v[row, keys, head]
        weights = np.exp(SCALE * seen_k @ q[row, t, head])
        weights /= weights.sum()
        y[row, t, head] = weights @ seen_v
        d_out = d_y[row, t, head]
        d_scores = SCALE * weights * (seen_v @ d_out - y[row, t, head] @ d_out)
        d_q[row, t, head] = d_scores @ seen_k
        d_k[row, keys, head] += np.outer(d_scores, q[row, t, head])
        d_v[row, keys, head] += np.outer(weights, d_out)
    return y, d_q, d_k, d_v


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(form, window, q, k, v, d_y, begin):
    y, pull_back = jax.vjp(lambda q, k, v: form(q, k, v, begin, window=window, scale=SCALE), q, k, v)
    return y, *pull_back(d_y)


def largest_error(ours, theirs):
    """Relative to the largest value of each array; values below 0.1 count as 0.1, for some are 0 but for rounding."""
    return max(
        np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 0.1)
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("window", [1, 20, 1000])
@pytest.mark.parametrize("n_tokens", [1, 95])
def test_the_scan_is_attention_query_by_query(n_tokens, window):
    """In float64, rows of any length; the window that is longer than the row counts for nothing."""
    begin = begins_of(random_rows(n_tokens, seed=window))
    inputs = arrays(n_tokens)
    with jax.enable_x64(True):
        ours = value_and_gradients(packed_attention, window, *map(jnp.asarray, inputs), begin)
    theirs = literal(*inputs, begin, window)
    assert largest_error(ours, theirs) < 1e-12
    q, k, v, d_y = (torch.tensor(x, requires_grad=True) for x in inputs)
    y = torch_packed.packed_attention(q, k, v, torch.tensor(begin), window=window, scale=SCALE)
    y.backward(d_y)
    assert largest_error([x.detach() for x in (y, q.grad, k.grad, v.grad)], theirs) < 1e-12


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_the_written_out_one():
    """Its forward pass: FlexAttention has no backward pass on a CPU."""
    begin, inputs = torch.tensor(begins_of(LENGTHS)), [torch.tensor(x) for x in arrays(KERNEL_T, dtype=np.float32)[:3]]
    run = functools.partial(torch_packed.packed_attention, *inputs, begin, window=50, scale=SCALE)
    assert largest_error([run(implementation="flex")], [run().double().numpy()]) < 4 * tolerances.FP32_OP


@pytest.mark.parametrize(
    "rows", [LENGTHS, ((KERNEL_T,),) * 2, random_rows(KERNEL_T, 3)], ids=["edges", "one", "random"]
)
@pytest.mark.parametrize("window", [1, 50, 300])
@pytest.mark.parametrize("form", ["triton", "splash"])
def test_forms_agree(form, window, rows):
    begin, inputs = begins_of(rows), arrays(KERNEL_T, dtype=np.float32)
    theirs = value_and_gradients(packed_scan, window, *inputs, begin)
    ours = value_and_gradients(FORMS[form], window, *inputs, begin)
    assert largest_error(ours, [np.asarray(x, np.float64) for x in theirs]) < 4 * tolerances.FP32_OP


@pytest.mark.parametrize("form", FORMS)
def test_nothing_leaks_from_the_future_from_other_documents_or_past_the_window(form):
    """Property: a query's gradients are exactly zero outside the keys that it sees; for values, nowhere zero inside."""
    window, begin = 50, begins_of(LENGTHS)
    q, k, v, _ = arrays(KERNEL_T, dtype=np.float32)
    positions = np.arange(KERNEL_T)
    for t in (0, 1, 63, 64, 127, 128, 130, 131, 200, 255):
        d_y = np.zeros_like(q)
        d_y[:, t] = 1
        _, d_q, d_k, d_v = map(np.asarray, value_and_gradients(FORMS[form], window, q, k, v, d_y, begin))
        is_seen = (positions <= t) & (positions >= np.maximum(begin[:, t], t - window + 1)[:, None])
        assert not d_q[:, positions != t].any()
        assert not d_k[~is_seen].any() and not d_v[~is_seen].any(), t
        assert d_v[is_seen].all()


def test_large_tiles_agree_too():
    begin, inputs = begins_of(LENGTHS), arrays(KERNEL_T, dtype=np.float32)
    large = functools.partial(packed_triton, tiles=LARGE, interpret=True)
    theirs = [np.asarray(x, np.float64) for x in value_and_gradients(packed_scan, 90, *inputs, begin)]
    assert largest_error(value_and_gradients(large, 90, *inputs, begin), theirs) < 4 * tolerances.FP32_OP


def test_end_of_seen_is_one_past_the_last_query_that_sees_a_key():
    rows = random_rows(200, 8)
    for window in (1, 9, 300):
        first = np.maximum(begins_of(rows), np.arange(200) - window + 1)
        expected = [[max(t for t in range(200) if row[t] <= s <= t) + 1 for s in range(200)] for row in first]
        assert np.array_equal(end_of_seen(jnp.asarray(first)), expected)


def test_begins_follow_from_the_tokens():
    tokens = jnp.array([[9, 1, 9, 9, 2, 3], [4, 4, 9, 1, 1, 1]])
    assert document_begins(tokens, 9).tolist() == [[0, 0, 2, 3, 3, 3], [0, 0, 2, 2, 2, 2]]
    assert document_begins(tokens, 9).dtype == jnp.int32
    theirs = torch_packed.document_begins(torch.tensor(np.asarray(tokens)), 9)
    assert theirs.dtype == torch.int32 and theirs.tolist() == document_begins(tokens, 9).tolist()


@pytest.mark.parametrize(("window", "block"), [(1, 16), (33, 16), (129, 64), (256, 128), (767, 256), (10_000, 256)])
def test_blocks_are_about_half_a_window(window, block):
    assert choose_block(window) == block


@pytest.mark.parametrize(("n_tokens", "window"), [(512, 129), (600, 1), (700, 300)])
def test_long_rows_with_windows_go_by_blocks(n_tokens, window):
    """Attention without documents: the same function in float64, and no array of T x T any more."""
    inputs = arrays(n_tokens, n_heads=4)
    inputs = [inputs[0], inputs[1][:, :, :2], inputs[2][:, :, :2], inputs[3]]

    def run(mask_window, q, k, v, d_y):
        y, pull_back = jax.vjp(lambda q, k, v: attention(q, k, v, **mask_window), q, k, v)
        return y, *pull_back(d_y)

    with jax.enable_x64(True):
        inputs = [jnp.asarray(x) for x in inputs]
        blocks = jax.jit(functools.partial(run, {"window": window})).lower(*inputs).compile()
        masked = jax.jit(functools.partial(run, {"window": window, "offset_B": jnp.zeros(2, int)})).lower(*inputs)
        masked = masked.compile()
        assert largest_error(blocks(*inputs), [np.asarray(x) for x in masked(*inputs)]) < 1e-12
    assert f"{n_tokens},{n_tokens}]" in masked.as_text()
    assert f"{n_tokens},{n_tokens}]" not in blocks.as_text()
