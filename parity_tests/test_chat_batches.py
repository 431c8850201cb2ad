"""Conversations become the rows that nanochat gives them; no token is lost, no row empty, and a resume is exact."""

import itertools
import json
from typing import Any

import numpy as np
import pytest

from jaxgpt.data.chat_batches import ChatReader, ChatSettings, chat_val_rows, count_epoch, progress_at
from jaxgpt.data.chat_packing import N_BUFFER, BestFit, Feed
from jaxgpt.data.conversations import Rendered, render
from jaxgpt.data.tokenizer import ByteTokenizer
from jaxgpt.errors import InputError
from parity_tests.helpers.chat_data import BYTES, digest, mixture, planned, say

BOS, END = 256, 260


def _open(conversations, seq_len, packing: Any = "best_fit", cursors=None, **settings):
    settings = ChatSettings(seq_len, packing, **settings)
    return ChatReader(conversations, "x", BYTES, settings, cursors=cursors)


def _xy(batch, rows=slice(None), width=None):
    """Inputs and targets of the first microbatch as nanochat has them: -1 where a target does not count."""
    x, y = batch.tokens[0, rows, :-1], np.where(batch.mask[0, rows], batch.tokens[0, rows, 1:], -1)
    return [x[:, :width].tolist(), y[:, :width].tolist()]


@pytest.fixture(scope="module")
def mixed():
    return mixture()


@pytest.fixture(scope="module")
def rendered(mixed):
    return [render(conversation, BYTES, None) for conversation in mixed]


# Digests of nanochat


def test_stream_of_2025(mixed):
    reader = _open(mixed, 512, "stream", trained="all", max_tokens=2048, is_shared=False)
    batches = [_xy(reader.read(planned(4, 512), 0, 4)) for _ in range(5)]
    assert digest(batches) == "ff07acbc0e1afc31a2c510497830e91dab1ae3c5f0bc33feb918ec96d05bba5e"


def test_rows_of_2025(mixed):
    reader = _open(mixed, 2048, "rows")
    widths, batches = [719, 1072, 664, 472, 689], []
    for width in widths:
        batch = reader.read(planned(4, 2048), 0, 4)
        assert (batch.tokens[0, :, width:] == END).all() and not batch.mask[0, :, width:].any()
        batches.append(_xy(batch, width=width))
    assert digest(batches) == "9dede9978f2539d27604ad3084d910fd7ccee89c345a605ef17f96a4211c0e0e"


def test_best_fit_of_2026(mixed):
    reader = _open(mixed, 1024, max_tokens=2048, spans_epochs=True)
    batches, n_trained, progress = [], [], []
    for _ in range(5):
        batch = reader.read(planned(4, 1024), 0, 4)
        batches.append(_xy(batch))
        n_trained.append(int(batch.mask.sum()))
        progress.append(f"{reader.progress():.6f}")
    assert digest(batches) == "8a98cf148e426f14abc1fa18bf4a12d046b9972f98a76db87f1e98874f60b7d5"
    assert n_trained == [2282, 2266, 2000, 1894, 1801]
    assert progress == ["0.000826", "0.001770", "0.002715", "0.003659", "0.004603"]


def test_best_fit_of_2026_on_the_second_of_two_ranks(mixed):
    reader = _open(mixed, 1024, max_tokens=2048, spans_epochs=True, n_lanes=2)
    batches = [_xy(reader.read(planned(8, 1024), 0, 8), slice(4, 8)) for _ in range(5)]
    assert digest(batches) == "741fcdb9a7fb464a096797fe822ea9afb66b181c2e45092298058dd92f45fe90"


def test_an_epoch_of_2026(mixed):
    reader = _open(mixed, 2048, max_tokens=2048, spans_epochs=True)
    n_batches = n_trained = 0
    while reader.progress() < 1:
        n_batches, n_trained = n_batches + 1, n_trained + int(reader.read(planned(8, 2048), 0, 8).mask.sum())
    assert (n_batches, n_trained, reader.counts.n_trained) == (255, 2_181_943, 2_181_943)


# What any packing must keep


def _chat(lengths):
    """Conversations of 5 + n tokens, each of another letter, half of them question."""
    return [say(chr(97 + i % 26) * (n // 2), chr(65 + i % 26) * (n - n // 2)) for i, n in enumerate(lengths)]


def _split(ids):
    """A row's conversations without padding."""
    starts = [*np.flatnonzero(ids == BOS), len(ids)]
    return [ids[a:b].tolist() for a, b in itertools.pairwise(starts) if b - a > 1]


@pytest.mark.parametrize("n_lanes", [1, 3])
def test_every_conversation_is_placed_once_an_epoch(n_lanes):
    chat = _chat(np.random.default_rng(0).integers(0, 90, 500))
    whole = sorted(render(conversation, BYTES).ids.tolist() for conversation in chat)
    if n_lanes == 1:
        epoch = chat_val_rows(chat, BYTES, ChatSettings(100))
        assert sorted(part for row in epoch.tokens for part in _split(row)) == whole
        assert count_epoch(chat, BYTES, ChatSettings(100)) == epoch.counts
    reader, placed = _open(chat, 100, n_lanes=n_lanes), []
    while reader.progress() < 3:
        placed += [part for row in reader.read(planned(3, 100), 0, 3).tokens[0] for part in _split(row)]
    if n_lanes == 1:
        assert all(sorted(placed[i : i + 500]) == whole for i in (0, 500, 1000))
    n_held = sum(len(cursor["held"]) for cursor in reader.cursors().values())
    assert len(placed) + n_held == sum(cursor["n_taken"] for cursor in reader.cursors().values())


@pytest.mark.parametrize(
    "lengths, rows",
    [([5, 3, 9, 4, 7, 2, 6, 8, 5], [[9], [7, 3], [6, 4], [8, 2], [5, 5]]), ([10, 10, 3], [[10], [10], [3]])],
)
def test_best_fit_by_hand(monkeypatch, lengths, rows):
    """With a buffer of four."""
    monkeypatch.setattr("jaxgpt.data.chat_packing.N_BUFFER", 4)
    rendered = [Rendered(np.full(n, 10 * i + n, np.int32), np.ones(n, np.uint8)) for i, n in enumerate(lengths)]
    packer = BestFit(Feed(rendered.__getitem__, len(lengths), None, n_epochs=1), 999, [], spans_epochs=False)
    ids, mask = np.zeros((len(rows), 10), np.int32), np.zeros((len(rows), 10), np.uint8)
    assert packer.fill(ids, mask) and not packer.fill(ids[:1].copy(), mask[:1].copy())
    for wanted, row, counted in zip(rows, ids, mask, strict=True):
        assert [row.tolist().count(i) for i in dict.fromkeys(row.tolist()) if i != 999] == wanted
        assert counted.sum() == sum(wanted) and (row[sum(wanted) :] == 999).all()


@pytest.mark.parametrize("seq_len", [64, 128, 256])
def test_short_contexts_train_to_the_end_of_the_epoch(mixed, rendered, seq_len):
    """Question and answer in bytes are longer than most of these rows; the originals' reader stops here."""
    reader, n_steps = _open(mixed, seq_len), 0
    while reader.progress() < 1:
        batch = reader.read(planned(4, seq_len, 16), 0, 4)
        assert (batch.tokens[..., 1:] != BOS).any(-1).all(), "a row without content"
        n_steps += 1
    counts = reader.counts
    assert counts.n_rows == 64 * n_steps
    print(f"seq_len={seq_len}: {reader.summary()}")
    words = f"warning: {counts.n_untrained:,} conversations have no trained token"
    assert words in reader.summary()
    cursor = reader.cursors()["0"]
    taken = [rendered[i % len(mixed)] for i in range(cursor["n_taken"])]
    masks = [mask[1 : seq_len + 1] for _, mask in taken]
    assert counts.n_truncated == sum(len(ids) > seq_len + 1 for ids, _ in taken)
    assert counts.n_untrained == sum(not mask.any() for mask in masks)
    assert counts.n_trained == sum(int(mask.sum()) for i, mask in enumerate(masks) if i not in cursor["held"])


TAKE = BestFit._take


def _take_or_pad(self, room, *, is_first):
    """nanochat's way."""
    try:
        return TAKE(self, room, is_first=is_first)
    except InputError:
        return None


def test_with_the_limit_of_2048_a_short_context_is_an_error_not_padding(mixed, monkeypatch):
    """nanochat continues with rows of padding: 597 of its first 600 batches have no trained token."""
    reader, n_read = _open(mixed, 256, max_tokens=2048, spans_epochs=True), 0
    with pytest.raises(InputError, match="none of the 100 buffered conversations fits a row; set max_tokens=257"):
        for _ in range(40):
            reader.read(planned(4, 256), 0, 4)
            n_read += 1
    assert n_read == 2
    monkeypatch.setattr(BestFit, "_take", _take_or_pad)
    reader = _open(mixed, 256, max_tokens=2048, spans_epochs=True)
    n_trained = [int(reader.read(planned(4, 256), 0, 4).mask.sum()) for _ in range(600)]
    assert all(n_trained[:3]) and not any(n_trained[3:]) and f"{reader.progress():.5f}" == "0.00165"


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_stream_is_the_plain_algorithm(is_shared):
    """Each microbatch is a run of 3 x 40 + 1 tokens; the next begins with the last of them, or behind it."""
    chat = _chat(np.random.default_rng(2).integers(0, 90, 50))
    ids, mask = (np.tile(np.concatenate(parts), 3) for parts in zip(*(render(c, BYTES) for c in chat), strict=True))
    reader = _open(chat, 40, "stream", is_shared=is_shared)
    for i in range(len(ids) // 121 - 1):
        batch, at = reader.read(planned(3, 40), 0, 3), i * (120 if is_shared else 121)
        starts = [at, at + 40, at + 80]
        np.testing.assert_array_equal(batch.tokens[0], [ids[start : start + 41] for start in starts])
        np.testing.assert_array_equal(batch.mask[0], [mask[start + 1 : start + 41] for start in starts])
    assert reader.progress() > 2


def test_what_cannot_be_trained_is_counted():
    chat = [say("q" * 50, "a"), say("q", "a" * 50), say("q", "a"), say("unanswered")]
    reader = _open(chat, 19, "rows")
    batch = reader.read(planned(4, 19), 0, 4)
    assert batch.mask.sum(-1).tolist() == [[0, 15, 2, 0]]
    assert reader.summary() == (
        "4 conversations in 4 rows, 17 trained tokens, 25.0% padding; 2 cut to max_tokens=20; "
        "warning: 2 conversations have no trained token; 2 rows have none"
    )
    message = r"^2 conversations, cut to max_tokens=20, have no trained token; set a larger model.seq_len, or give "
    for check in (chat_val_rows, count_epoch):
        with pytest.raises(InputError, match=message):
            check([chat[0], chat[3]], BYTES, ChatSettings(19))
        with pytest.raises(InputError, match=r"^1 conversations have no trained token; give conversations with"):
            check([say("q")], BYTES, ChatSettings(19))


def test_trained_all_counts_everything_but_padding():
    rows = chat_val_rows(_chat([10, 20]), BYTES, ChatSettings(63, trained="all"))
    assert rows.mask.tolist() == [[1] * 39 + [0] * 24]
    rows = chat_val_rows(_chat([10, 20, 30]), BYTES, ChatSettings(36, "stream", trained="all"))
    assert rows.mask.sum() == 75 - 1 and len(rows.tokens) == 3  # 75 tokens; each but the first is a target


# Hosts and resume

CASES = {
    "best_fit": {"packing": "best_fit"},
    "best_fit_across_epochs_in_lanes": {"packing": "best_fit", "spans_epochs": True, "n_lanes": 2},
    "rows": {"packing": "rows", "n_lanes": 2},
    "stream": {"packing": "stream"},
    "stream_by_microbatch": {"packing": "stream", "is_shared": False, "n_lanes": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_a_resume_is_exact_on_any_number_of_hosts(name):
    """Stopped after each of 30 steps, over epochs of other lengths than the steps."""
    chat, step = _chat(np.random.default_rng(1).integers(0, 60, 131)), planned(4, 70, 2)
    whole, cursors, counts = _open(chat, 70, **CASES[name]), [], []
    batches = []
    for _ in range(30):
        cursors.append(json.loads(json.dumps(whole.cursors())))
        counts.append(whole.counts)
        batches.append(whole.read(step, 0, 4))
        assert progress_at(whole.cursors()) == whole.progress()
    assert whole.progress() > 1.8
    for at in range(30):
        hosts = [_open(chat, 70, cursors=cursors[at], **CASES[name]) for _ in range(2)]
        assert hosts[0].counts == counts[at]
        for batch in batches[at : at + 3]:
            parts = [host.read(step, 2 * i, 2 * i + 2) for i, host in enumerate(hosts)]
            np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts], 1), batch.tokens)
            np.testing.assert_array_equal(np.concatenate([part.mask for part in parts], 1), batch.mask)
        if at + 3 < 30:
            assert hosts[1].cursors() == cursors[at + 3]


DAMAGE = {
    "no_object": (lambda c: [], "data cursor: it is no JSON object of cursors"),
    "text": (lambda c: {"0": {"format": 1, "packing": "best_fit"}}, "the checkpoint was trained on text"),
    "format": (lambda c: {"0": {**c["0"], "format": 2}}, "format=2, this code reads 1"),
    "seq_len": (lambda c: {"0": {**c["0"], "seq_len": 32}}, "seq_len=64, the checkpoint was written with 32"),
    "data": (lambda c: {"0": {**c["0"], "data": "x"}}, "the conversations or the tokenizer changed"),
    "lanes": (lambda c: {**c, "1": c["0"]}, "1 lanes have one cursor each; missing, or too many: ['1']"),
    "field": (lambda c: {"0": {**c["0"], "more": 1}}, "its fields are"),
    "held_twice": (lambda c: {"0": {**c["0"], "held": [0, 0]}}, "held=0 is not one of the lane's, or occurs twice"),
    "held_ahead": (lambda c: {"0": {**c["0"], "held": [10**6]}}, "held=1000000 is not in [0, "),
    "held_many": (lambda c: {"0": {**c["0"], "held": [*range(N_BUFFER + 1)]}}, "is no list of up to 100"),
    "counts": (lambda c: {"0": {**c["0"], "counts": {}}}, "counts={}"),
    "negative": (lambda c: {"0": {**c["0"], "n_taken": -1}}, "n_taken=-1 is not in [0, "),
    "number": (lambda c: {"0": {**c["0"], "n_conversations": 41}}, "it is of lane 0 and 41 conversations"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_cursors_are_refused(name):
    damage, message = DAMAGE[name]
    reader = _open(_chat([9] * 40), 64)
    reader.read(planned(2, 64), 0, 2)
    with pytest.raises(InputError) as error:
        _open(_chat([9] * 40), 64, cursors=damage(reader.cursors()))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(InputError, match=r"^there are 0 conversations, n_lanes=1 needs one each; "):
        _open([], 64)
    with pytest.raises(InputError, match=r"^conversation 1: messages\[0\]\.role=assistant is not user; "):
        _open([say("a", "b"), {"messages": [{"role": "assistant", "content": "x"}]}], 64).read(planned(1, 64), 0, 1)
    with pytest.raises(InputError, match=r"^n_lanes=2 does not divide the 3 rows of a microbatch; "):
        _open(_chat([3] * 9), 64, n_lanes=2).read(planned(3, 64), 0, 3)
    with pytest.raises(InputError, match=r"^packing=best is not one of stream, rows, best_fit; "):
        _open(_chat([3]), 64, "best")
    with pytest.raises(InputError, match=r"^the byte tokenizer has no "):
        ChatReader(_chat([3]), "x", ByteTokenizer(), ChatSettings(64))
