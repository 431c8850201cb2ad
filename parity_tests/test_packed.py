"""Attention by document and window: three forms against one that is written out, what a query must not see, the choice.

The kernels run their own steps, interpreted. test_packed_compiled.py compiles them for cards.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.compare import tolerances
from jaxgpt.config import Config, GPT2Config, MeshConfig, TrainConfig
from jaxgpt.errors import InputError
from jaxgpt.models.attention import _xla, attention, choose_attention
from jaxgpt.models.packed import cached_attention, document_begins, packed_attention
from jaxgpt.models.packed_scan import choose_block, packed_scan
from jaxgpt.models.packed_splash import packed_splash
from jaxgpt.models.packed_triton import (
    LARGE,
    SMALL,
    Blocks,
    Tiles,
    end_of_seen,
    packed_triton,
    refusal,
    tiles_for,
)
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.sharding import BATCH, per_shard
from torch_ref.models import attention as torch_attention
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


def arrays(n_tokens, n_heads=2, head_dim=16, dtype: type = np.float64):
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
    q, k, v, d_y = arrays(n_tokens)
    theirs = literal(q, k, v, d_y, begin, window)
    with jax.enable_x64(True):
        ours = value_and_gradients(packed_attention, window, q, k, v, d_y, begin)
    assert largest_error(ours, theirs) < 1e-12
    q, k, v, d_y = (torch.tensor(x, requires_grad=True) for x in (q, k, v, d_y))
    y = torch_packed.packed_attention(q, k, v, torch.tensor(begin), window=window, scale=SCALE)
    y.backward(d_y)
    assert largest_error([y.detach(), *(x.grad for x in (q, k, v))], theirs) < 1e-12


@pytest.mark.parametrize("window", [1, 20, 1000])
def test_new_tokens_after_a_cache_are_the_tail_of_the_whole(window):
    """Rows of different lengths, in a cache with room for more."""
    begin, offset, n_new = begins_of(random_rows(60, 2)), np.array([50, 31]), 7
    q, k, v, _ = arrays(60)
    with jax.enable_x64(True):
        whole = np.asarray(jax.jit(functools.partial(packed_attention, window=window, scale=SCALE))(q, k, v, begin))
        new = offset[:, None] + np.arange(n_new)
        tail, q_new, begin_new = (np.stack([x[row, new[row]] for row in (0, 1)]) for x in (whole, q, begin))
        settings = {"window": window, "scale": SCALE}
        ours = cached_attention(*map(jnp.asarray, (q_new, k, v, begin_new)), offset_B=jnp.asarray(offset), **settings)
    assert largest_error([ours], [tail]) < 1e-12
    inputs = [torch.tensor(x) for x in (q_new, k, v, begin_new)]
    theirs = torch_packed.cached_attention(*inputs, offset_B=torch.tensor(offset), **settings)
    assert largest_error([theirs], [tail]) < 1e-12


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

    def run(attend, q, k, v, d_y):
        y, pull_back = jax.vjp(attend, q, k, v)
        return y, *pull_back(d_y)

    with jax.enable_x64(True):
        inputs = [jnp.asarray(x) for x in inputs]
        blocks = jax.jit(functools.partial(run, functools.partial(attention, window=window))).lower(*inputs).compile()
        masked = jax.jit(functools.partial(run, lambda q, k, v: _xla(q, k, v, None, window, 0.0, None)))
        masked = masked.lower(*inputs).compile()
        assert largest_error(blocks(*inputs), [np.asarray(x) for x in masked(*inputs)]) < 1e-12
    assert f"{n_tokens},{n_tokens}]" in str(masked.as_text())
    assert f"{n_tokens},{n_tokens}]" not in str(blocks.as_text())


class Packed(GPT2Config):
    """A family with documents."""

    HAS_PACKED_ATTENTION = True


def packed_config(model, **train):
    model = Packed(**{"n_head": 6, "n_embd": 768, "seq_len": 1024} | model)
    return Config(model=model, train=TrainConfig(batch_tokens=12 * model.seq_len, **train))


@pytest.mark.parametrize(
    ("platform", "kind", "model", "train", "expected"),
    [
        ("cpu", "", {}, {}, ("xla", "blocks of queries; no kernel for documents on cpu")),
        ("cuda", "NVIDIA H100 80GB HBM3", {}, {}, ("triton", "flash, by document")),
        ("gpu", "", {}, {"attention": "triton"}, ("triton", "as configured")),
        ("gpu", "", {}, {"attention": "xla"}, ("xla", "as configured")),
        ("tpu", "TPU v5 lite", {}, {}, ("splash", "flash, by document")),
        ("gpu", "Tesla T4", {}, {}, ("xla", "triton cannot: Tesla T4 has compute capability 7.5; it takes 8.0 and up")),
        ("gpu", "", {}, {"dtype": "float32"}, ("xla", "triton cannot: train.dtype=float32")),
        ("gpu", "", {"n_embd": 576}, {}, ("xla", "triton cannot: head_dim=96; it takes 16, 32, 64, 128")),
        ("gpu", "", {"seq_len": 1000}, {}, ("xla", "triton cannot: model.seq_len=1000")),
        ("tpu", "", {"seq_len": 1000}, {}, ("xla", "splash cannot: model.seq_len=1000")),
        ("tpu", "", {"seq_len": 32_768}, {}, ("xla", "splash cannot: model.seq_len=32768; it takes up to 16384")),
    ],
)
def test_the_form_is_chosen_by_target_and_the_reason_is_said(platform, kind, model, train, expected):
    form, reason = choose_attention(packed_config(model, **train), platform, kind)
    assert form == expected[0] and expected[1] in reason


@pytest.mark.parametrize(
    ("platform", "wanted", "reason"),
    [
        ("cpu", "triton", "the platform is cpu, not gpu"),
        ("gpu", "splash", "the platform is gpu, not tpu"),
        ("gpu", "cudnn", "model.family=gpt2 has documents, which it cannot tell apart"),
    ],
)
def test_forms_that_cannot_run_are_refused(platform, wanted, reason):
    config = packed_config({}, attention=wanted)
    for choose in (choose_attention, torch_attention.choose_attention):
        with pytest.raises(InputError, match=f"train.attention={wanted} cannot run: {reason}"):
            choose(config, platform)


def test_torch_ref_writes_the_mask_out_except_on_cuda():
    assert torch_attention.choose_attention(packed_config({}), "cuda")[0] == "flex"
    assert torch_attention.choose_attention(packed_config({}), "cpu")[0] == "math"
    form, reason = torch_attention.choose_attention(packed_config({}, dtype="float32"), "cuda")
    assert form == "math" and "flex cannot: train.dtype=float32" in reason


def test_attention_without_documents_refuses_triton():
    config = Config(train=TrainConfig(attention="triton"))
    for choose in (choose_attention, torch_attention.choose_attention):
        with pytest.raises(InputError, match=r"model\.family=gpt2 has no documents to tell apart"):
            choose(config, "gpu")


@pytest.mark.parametrize(
    ("kind", "version", "is_refused"),
    [
        ("NVIDIA GeForce RTX 3090", (0, 10, 2), False),
        ("NVIDIA GeForce RTX 3090", (0, 11, 0), True),
        ("NVIDIA GeForce RTX 3090", (0, 11, 2), True),
        ("NVIDIA GeForce RTX 4090", (0, 11, 0), False),
        ("NVIDIA A100-SXM4-80GB", (0, 11, 2), False),
        ("NVIDIA A1000", (0, 11, 2), True),
        ("Tesla T4", (0, 10, 2), True),
        ("", (0, 11, 2), False),
    ],
)
def test_cards_that_pallas_does_not_know_are_refused(kind, version, is_refused):
    """JAX 0.11 looks an absent card up in a table; 0.10 does not."""
    assert bool(refusal(kind, version)) == is_refused


def test_a_card_that_is_here_need_not_be_in_the_table(monkeypatch):
    here = [SimpleNamespace(device_kind="NVIDIA GeForce RTX 3090")]
    monkeypatch.setattr(jax, "local_devices", lambda: here)
    assert not refusal("NVIDIA GeForce RTX 3090", (0, 11, 2))
    assert refusal("NVIDIA GeForce RTX 3090", (0, 11, 1))


def test_tiles_follow_the_cards_shared_memory():
    assert {tiles_for(kind) for kind in ("NVIDIA A100-SXM4-40GB", "NVIDIA H200", "NVIDIA B200")} == {LARGE}
    assert {tiles_for(kind) for kind in ("NVIDIA GeForce RTX 4090", "NVIDIA L4", "NVIDIA L40S", "cpu")} == {SMALL}


@pytest.mark.parametrize("form", ["xla", "triton"])
def test_eight_devices_equal_one(form):
    """Rows over data and fsdp, heads over tensor."""
    begin = np.concatenate([begins_of(LENGTHS), begins_of(random_rows(KERNEL_T, 4))])
    inputs = [np.concatenate([x, x[::-1]]) for x in arrays(KERNEL_T, dtype=np.float32)]
    alone = [np.asarray(x, np.float64) for x in value_and_gradients(FORMS[form], 50, *inputs, begin)]
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, platform="cpu"))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, P(BATCH, None, "tensor"))) for x in inputs]
        rows = jax.device_put(begin, NamedSharding(mesh, P(BATCH)))
        kernel = functools.partial(FORMS[form], window=50, scale=SCALE)
        whole = per_shard(kernel) if form == "triton" else kernel
        y, pull_back = jax.vjp(lambda q, k, v: whole(q, k, v, rows), *placed[:3])
        assert largest_error([y, *pull_back(placed[3])], alone) < 4 * tolerances.FP32_OP
