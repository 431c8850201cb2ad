"""A batch is a function of (data, seed, step): however it is cut, whenever it is read."""

import gc
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.data.batches import Batches, eval_rows
from jaxgpt.data.prefetch import SWITCH_S, prefetch
from jaxgpt.data.shards import ShardFile, Split, inspect_shard
from jaxgpt.errors import InputError
from jaxgpt.prepare.shard_writer import write_shard

SEQ_LEN = 16


def make_split(directory: Path, *sizes: int, dtype=np.uint16, name="train") -> tuple[Split, np.ndarray]:
    """A split whose files have these sizes, and its tokens: 0, 1, 2, ..."""
    tokens = np.arange(sum(sizes)).astype(dtype)
    paths = [directory / f"{name}_{i:06d}.bin" for i in range(len(sizes))]
    for path, part in zip(paths, np.split(tokens, np.cumsum(sizes)[:-1]), strict=True):
        write_shard(path, part)
    return Split(name, directory, tuple(inspect_shard(path) for path in paths)), tokens


@pytest.mark.parametrize("sampling", ["random", "sequential"])
def test_rows_are_consecutive_tokens(tmp_path, sampling):
    split, _ = make_split(tmp_path, 700, 40, 300)
    rows = Batches(split, SEQ_LEN, 1337, sampling).rows(3, 100 * SEQ_LEN, 200, 0, 200)
    assert rows.dtype == np.int32 and rows.shape == (200, SEQ_LEN + 1)
    np.testing.assert_array_equal(rows - rows[:, :1], np.tile(np.arange(SEQ_LEN + 1), (200, 1)))


@pytest.mark.parametrize("sampling", ["random", "sequential"])
def test_a_batch_does_not_depend_on_who_reads_it(tmp_path, sampling):
    split, _ = make_split(tmp_path, 700, 40, 300)
    batches = Batches(split, SEQ_LEN, 1337, sampling)
    whole = batches.rows(5, 40 * SEQ_LEN, 8, 0, 8)
    batches.rows(9, 72 * SEQ_LEN, 8, 3, 4)  # what was read before does not matter
    again = Batches(split, SEQ_LEN, 1337, sampling)
    for cuts in ((0, 4, 8), (0, 1, 3, 7, 8), (0, 0, 8)):
        parts = [again.rows(5, 40 * SEQ_LEN, 8, lo, hi) for lo, hi in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_random_rows_depend_on_seed_and_step_and_never_change(tmp_path):
    split, _ = make_split(tmp_path, 5000)

    def read(seed, step, tokens_before=0, n_rows=4):
        return Batches(split, SEQ_LEN, seed, "random").rows(step, tokens_before, n_rows, 0, 4)[:, 0].tolist()

    assert len({tuple(read(seed, step)) for seed in (0, 1, 2**32 - 1) for step in (0, 1, 10**9)}) == 9
    assert read(7, 3) == read(7, 3, tokens_before=999, n_rows=6)
    assert read(1337, 0) == [689, 2787, 1398, 797]
    assert read(1337, 600_000) == [1937, 4549, 4595, 1872]


def test_random_rows_reach_both_ends_and_are_even(tmp_path):
    split, _ = make_split(tmp_path, SEQ_LEN + 10)
    starts = Batches(split, SEQ_LEN, 0, "random").rows(0, 0, 20_000, 0, 20_000)[:, 0]
    counts = np.bincount(starts)
    assert len(counts) == 10
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


def test_sequential_rows_are_the_shards_from_front_to_back(tmp_path):
    split, tokens = make_split(tmp_path, 700, 40, 300)
    batches = Batches(split, SEQ_LEN, 0, "sequential")
    n_epoch = (1040 - 1) // SEQ_LEN
    read = np.concatenate([batches.rows(step, step * 4 * SEQ_LEN, 4, 0, 4) for step in range(40)])
    expected = np.stack([tokens[r % n_epoch * SEQ_LEN :][: SEQ_LEN + 1] for r in range(160)])
    np.testing.assert_array_equal(read, expected)
    # the inputs of one epoch are each token once, up to what fills no row
    np.testing.assert_array_equal(read[:n_epoch, :-1].ravel(), tokens[: n_epoch * SEQ_LEN])


def test_rows_that_grow_and_shrink_continue_where_the_last_ended(tmp_path):
    """Within an epoch each token is an input once, in order; a random row starts anywhere where it ends in time."""
    split, tokens = make_split(tmp_path, 700, 40, 300)
    batches, position = Batches(split, 32, 0, "sequential"), 0
    for step, (n_rows, seq_len) in enumerate([(4, 8), (4, 8), (3, 32), (5, 24), (2, 8), (9, 8)]):
        rows = batches.rows(step, position, n_rows, 0, n_rows, seq_len)
        whole = tokens[position : position + n_rows * seq_len]
        np.testing.assert_array_equal(rows[:, :-1].ravel(), whole)
        np.testing.assert_array_equal(rows[:, 1:].ravel(), tokens[position + 1 :][: n_rows * seq_len])
        position += n_rows * seq_len
    for sampling in ("sequential", "random"):
        rows = Batches(split, 32, 0, sampling).rows(3, 5 * 8, 400, 0, 400, 24)
        assert rows.shape == (400, 25)
        np.testing.assert_array_equal(rows - rows[:, :1], np.tile(np.arange(25), (400, 1)))


def test_one_row_is_enough(tmp_path):
    split, tokens = make_split(tmp_path, SEQ_LEN + 1)
    for sampling in ("random", "sequential"):
        rows = Batches(split, SEQ_LEN, 0, sampling).rows(7, 30 * SEQ_LEN, 3, 0, 3)
        np.testing.assert_array_equal(rows, np.tile(tokens, (3, 1)))


class _Line(Split):
    """A split too long to exist: token p is p modulo 50257."""

    def read(self, start, n):
        return ((np.arange(n, dtype=np.int64) + start) % 50257).astype(np.uint16)


@pytest.mark.parametrize("sampling", ["random", "sequential"])
def test_positions_above_32_bits(tmp_path, sampling):
    """Faults: C91."""
    n = 300_000_000_000
    split = _Line("train", tmp_path, (ShardFile(tmp_path / "x", n, np.dtype("<u2"), 0, 2 * n, "nanogpt"),))
    seen = []
    split_read = split.read
    object.__setattr__(split, "read", lambda start, count: seen.append(start) or split_read(start, count))
    rows = Batches(split, 1024, 1, sampling, 50257).rows(10**6, 200_000_000 * 1024, 64, 0, 64)
    assert rows.shape == (64, 1025) and min(seen) >= 0 and max(seen) > 2**37 and max(seen) + 1025 <= n
    if sampling == "sequential":
        assert seen[0] == 200_000_000 * 1024


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_an_id_outside_the_vocabulary_is_located(tmp_path, dtype):
    """Faults: C30."""
    write_shard(tmp_path / "a.bin", np.zeros(100, dtype))
    bad = np.zeros(100, dtype)
    bad[40] = 50257
    write_shard(tmp_path / "b.bin", bad)
    split = Split("train", tmp_path, tuple(inspect_shard(tmp_path / name) for name in ("a.bin", "b.bin")))
    batches = Batches(split, SEQ_LEN, 0, "sequential", 50257)
    with pytest.raises(InputError) as error:
        batches.rows(0, 0, 12, 0, 12)
    assert f"shard {tmp_path / 'b.bin'}: token 40 is id 50257, outside the vocabulary of 50257" in str(error.value)
    assert Batches(split, SEQ_LEN, 0, "sequential", 50258).rows(0, 0, 12, 0, 12).max() == 50257
    assert Batches(split, SEQ_LEN, 0, "sequential").rows(0, 0, 12, 0, 12).max() == 50257


def test_an_id_that_int32_cannot_hold_is_refused(tmp_path):
    write_shard(tmp_path / "a.bin", np.full(100, 2**31 + 5, np.uint32))
    batches = Batches(Split("train", tmp_path, (inspect_shard(tmp_path / "a.bin"),)), SEQ_LEN, 0, "sequential")
    with pytest.raises(InputError, match="token 0 is id 2147483653"):
        batches.at([0])


def test_a_split_shorter_than_a_row(tmp_path):
    """Faults: C29."""
    split, _ = make_split(tmp_path, 40, name="val")
    expected = f"{tmp_path} val has 40 tokens, model.seq_len=64 needs 65; choose model.seq_len <= 39 or more text"
    for call in (lambda: Batches(split, 64, 0, "random"), lambda: eval_rows(split, 64, 0)):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == expected
    with pytest.raises(InputError, match=r"has 40 tokens, model.seq_len=40 needs 41"):
        Batches(split, 40, 0, "sequential")
    assert Batches(split, 39, 0, "random").rows(0, 0, 1, 0, 1).shape == (1, 40)


def test_eval_rows_do_not_overlap_and_spread(tmp_path):
    split, tokens = make_split(tmp_path, 700, 340)
    n_there = (1040 - 1) // SEQ_LEN
    for n_tokens in (0, 1, SEQ_LEN, 100, 500, 1039, 10**12):
        starts = eval_rows(split, SEQ_LEN, n_tokens)
        n_wanted = max(n_tokens // SEQ_LEN, 1) if n_tokens else n_there
        assert starts.dtype == np.int64 and len(starts) == min(n_wanted, n_there)
        assert (np.diff(starts) >= SEQ_LEN).all() and starts[0] == 0 and starts[-1] + SEQ_LEN + 1 <= 1040
    np.testing.assert_array_equal(eval_rows(split, SEQ_LEN, 0), np.arange(n_there) * SEQ_LEN)
    first = eval_rows(split, SEQ_LEN, 10 * SEQ_LEN, spread=False)
    np.testing.assert_array_equal(first, np.arange(10) * SEQ_LEN)
    gaps = np.diff(eval_rows(split, SEQ_LEN, 10 * SEQ_LEN))
    assert gaps.max() - gaps.min() <= SEQ_LEN and gaps.min() >= 6 * SEQ_LEN
    rows = Batches(split, SEQ_LEN, 0, "random").at(eval_rows(split, SEQ_LEN, 0))
    np.testing.assert_array_equal(rows[:, :-1].ravel(), tokens[: n_there * SEQ_LEN])


def prefetch_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_prefetch_yields_the_same_in_order():
    assert list(prefetch(range(100), depth=3)) == list(range(100))
    assert list(prefetch([])) == []
    assert prefetch_threads() == 0


@pytest.mark.parametrize(("before_s", "after_s"), [(5e-3, SWITCH_S), (1e-4, 1e-4)], ids=["usual", "shorter"])
def test_prefetch_lowers_the_switch_interval(before_s, after_s):
    """So that the loop gets Python's lock soon; who has chosen a shorter one keeps it."""
    own_s = sys.getswitchinterval()
    try:
        sys.setswitchinterval(before_s)
        assert list(prefetch([1])) == [1]
        assert sys.getswitchinterval() == pytest.approx(after_s, rel=1e-2)
    finally:
        sys.setswitchinterval(own_s)


def test_prefetch_works_ahead_by_its_depth():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    feed = prefetch(items(), depth=2)
    assert next(feed) == 0
    deadline = time.monotonic() + 30
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # one taken, two waiting, one in the making
    feed.close()
    assert prefetch_threads() == 0


def test_prefetch_raises_what_was_raised_in_its_turn():
    """Faults: C37."""

    def items():
        yield 1
        yield 2
        raise InputError("shard x is missing")

    feed = prefetch(items())
    assert [next(feed), next(feed)] == [1, 2]
    with pytest.raises(InputError, match="shard x is missing"):
        next(feed)
    assert prefetch_threads() == 0


@pytest.mark.parametrize("how", ["close", "drop"])
def test_prefetch_stops_its_thread_and_closes_its_source(how):
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    feed = prefetch(items())
    next(feed)
    if how == "close":
        feed.close()
    else:
        del feed
        gc.collect()
    assert closed == ["prefetch"] and prefetch_threads() == 0
