"""What a request gets is the same to the bit: alone or among others, in any slot, with reused prefixes or without."""

import asyncio
import contextlib
import dataclasses
import threading
import time

import jax
import numpy as np
import pytest

from jaxgpt.config import GPT2Config, MeshConfig, ModdedConfig, NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.inference import rows as engine_rows
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.inference.row_cache import decode_step
from jaxgpt.inference.trained import Trained
from jaxgpt.models import param_shapes
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.serve.backend import BrokenModel, QueueFull, Settings
from jaxgpt.serve.batching import Batching
from parity_tests.helpers.scripted_server import TOKENIZER

N_VOCAB, N_SLOTS = 265, 4


CONFIGS = {
    "gpt2": GPT2Config(seq_len=150, n_layer=1, n_head=2, n_embd=32, vocab_size=N_VOCAB),
    "modded": ModdedConfig(
        record="track3", n_layer=2, n_embd=64, head_dim=32, seq_len=160, paired_heads="-P", value_embeds="--",
        vocab_size=N_VOCAB,
    ).complete(0),
    "nanochat": NanochatConfig(
        era="2026", depth=2, head_dim=16, n_embd=64, n_kv_head=2, seq_len=224, short_window=40, window_pattern="SL",
        vocab_size=N_VOCAB,
    ).complete(0),
}  # fmt: skip
"""Short windows, paired heads, value embeddings, smear."""


def params_of(config):
    rng = np.random.default_rng(5)
    return {
        path: (0.2 * rng.standard_normal(leaf.shape) + (leaf.ndim == 1)).astype(np.float32)
        for path, leaf in sorted(param_shapes(config).items())
    }  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def engine(request):
    config = CONFIGS[request.param]
    return Engine(config, params_of(config), dtype="float32", n_valid=250)


def ids_of(n_tokens, seed):
    return np.random.default_rng(seed).integers(250, size=n_tokens).tolist()


def finish(rows, row):
    """The tokens of a row until its end, log-probabilities among them."""
    tokens = []
    while row not in rows.free:
        tokens.append(rows.step()[row])
    return tokens


SHARED = ids_of(80, 0)
REQUESTS = [
    Request(ids_of(3, 1), 12, temperature=0, n_log_probs=3),
    Request([*SHARED, *ids_of(9, 2)], 40, temperature=0.9, top_k=20, seed=3, n_log_probs=3),
    Request([*SHARED, *ids_of(30, 3)], 20, top_p=0.8, seed=4, n_log_probs=3, presence_penalty=3.0),
    Request(ids_of(130, 4), 70, seed=5, n_log_probs=3, logit_bias=((7, 4.0),), frequency_penalty=0.5),
]


@pytest.mark.parametrize("is_apart", [False, True], ids=["whole", "in_pieces"])
def test_rows_are_the_same_alone_and_among_others(engine, is_apart):
    """REQUESTS[1] and [2] share 80 tokens, one whole chunk; [3] slides past the context of two of the families."""
    alone = [finish(rows, 0) for rows in (engine.rows([request, None, None, None]) for request in REQUESTS)]
    rows = engine.rows([None] * N_SLOTS)
    for request in REQUESTS[::-1]:
        rows.add(request)
    tokens = [[] for _ in REQUESTS]
    while len(rows.free) < N_SLOTS:
        for row, token in enumerate(rows.step_apart() if is_apart else rows.step()):
            tokens[row] += [token] if token else []
    assert tokens == alone[::-1], "in other slots, beside others"
    rows.start(0, REQUESTS[1])
    assert finish(rows, 0) == alone[1], "from a row that had ended while others went on"


def test_a_long_prompt_comes_in_a_chunk_per_step():
    """Row 0 gets a token in each step. Rows 1 and 2 have one prompt of 3 chunks; that of row 3 is given up half way."""
    config = CONFIGS["nanochat"]
    rows = Engine(config, params_of(config), dtype="float32", n_valid=250).rows([Request([1], 60, seed=2)] + [None] * 3)
    long, given_up = [Request(ids_of(180, 6), 8, seed=1, sample=i) for i in range(2)], Request(ids_of(190, 7), 8)
    found, n_computed = [[] for _ in range(N_SLOTS)], [0]
    for n_steps in range(15):
        if n_steps == 2:
            rows.start(3, given_up)
            rows.start(1, long[0])
        if n_steps == 3:
            rows.stop(3)
        if n_steps == 4:
            rows.start(2, long[1])
        for tokens, token in zip(found, rows.step_apart(), strict=True):
            tokens.append(token)
        n_computed.append(rows.n_prefilled_tokens)
    assert np.diff(n_computed)[:8].tolist() == [1, 0, 64, 64, 64, 52, 0, 0]
    assert None not in found[0] and set(found[3]) == {None}
    for tokens, request in zip(found[1:], long, strict=False):
        assert tokens[:5] == [None] * 5 and tokens[5:13] == finish(rows_of_one(config, request), 0)


def rows_of_one(config, request):
    return Engine(config, params_of(config), dtype="float32", n_valid=250).rows([request, None, None, None])


def test_a_next_turn_computes_only_what_is_new(engine):
    """After 150 tokens of conversation a chunk of the prompt is held, and when settled one of the answer too."""
    first = Request(ids_of(90, 1), 50, temperature=0)
    counts, turns = [], []
    for n_settled, is_held in ((0, True), (9, True), (0, False)):
        rows = engine.rows([None] * N_SLOTS)
        answer = finish(rows, rows.add(first))
        n_done = sum(rows.settle() for _ in range(n_settled))
        assert n_done == (1 if n_settled else 0)
        history = [*first.prompt_ids, *(token.id for token in answer)]
        if not is_held:
            rows = engine.rows([None] * N_SLOTS)
        finish(rows, rows.add(Request(ids_of(5, 9), 2)))
        before = rows.n_prefilled_tokens
        turns.append(finish(rows, rows.add(Request([*history, 1, 2, 3], 5, seed=8, n_log_probs=5))))
        counts.append(rows.n_prefilled_tokens - before)
    assert turns[0] == turns[1] == turns[2]
    assert counts == [143 - 64, 143 - 128, 143]


@pytest.mark.parametrize("name", ["gpt2", "nanochat"])
def test_a_row_that_breaks_ends_alone(name):
    """gpt2: at position 100, in the middle of its text; nanochat: at id 9, in its prompt. What shares a chunk with it
    goes on, and so does what continues its text up to there."""
    config, broken = CONFIGS[name], dict(params_of(CONFIGS[name]))
    path, i = ("wpe.weight", 100) if name == "gpt2" else ("wte.weight", 9)
    broken[path] = broken[path].copy()
    broken[path][i] = np.nan
    engine = Engine(config, broken, dtype="float32", n_valid=250)
    ban = ((9, -1e9),)
    shared = [token for token in SHARED[:80] if token != 9]
    breaking = Request([*shared, 3, 9, 4] if name == "nanochat" else shared, 60, seed=1, logit_bias=ban)
    short, sharing = Request([1, 2], 80, seed=2, logit_bias=ban), Request([*shared[:70], 5], 20, seed=3, logit_bias=ban)
    alone = [finish(engine.rows([request, None, None, None]), 0) for request in (short, sharing)]
    rows, found, n_steps = engine.rows([breaking, short, None, None]), [[], [], []], 0
    while len(rows.free) < N_SLOTS:
        for tokens, token in zip(found, rows.step_apart(), strict=False):
            tokens += [token] if token else []
        if n_steps == (15 if name == "gpt2" else 0):
            rows.start(2, sharing)
        n_steps += 1
    assert found[1:] == alone
    assert found[0].pop() == (-1, False, None, (), "broken") and len(found[0]) == (101 - len(shared)) * (name == "gpt2")
    again = rows.add(sharing)
    assert again == 0 and finish(rows, again) == alone[1], "in its slot, from its chunk"
    with pytest.raises(InputError, match="not finite"):
        finish(engine.rows([breaking, short, None, None]), 0)


def test_a_slot_is_chosen_so_that_others_keep_their_texts():
    config = CONFIGS["gpt2"]
    rows = Engine(config, params_of(config), dtype="float32", n_valid=250).rows([None] * 3)
    texts = [ids_of(70, seed) for seed in range(3)]
    for text in texts:
        finish(rows, rows.add(Request(text, 1)))
    assert rows.add(Request([*texts[1], 5], 1)) == 1, "the prompt continues its text"
    finish(rows, 1)
    assert rows.add(Request(ids_of(70, 9), 1)) == 0, "started longest ago"


def test_a_first_token_does_not_wait_for_the_next_step(monkeypatch):
    """The step that begins a row starts no decoding; the next one makes up for it, and is ahead again."""
    config, counts, calls = CONFIGS["gpt2"], [], []
    monkeypatch.setattr(engine_rows, "decode_step", lambda *args: calls.append(1) or decode_step(*args))
    rows = Engine(config, params_of(config), dtype="float32", n_valid=250).rows([Request([1], 9), None, None, None])
    for n_steps in range(7):
        if n_steps == 3:
            rows.start(1, Request([2], 9))
        rows.step()
        counts.append(len(calls))
    assert np.diff([0, *counts]).tolist() == [0, 2, 1, 0, 2, 1, 1]


def test_a_row_that_has_ended_costs_no_more_than_the_chunks_that_stay(monkeypatch):
    """A step reads a row up to where it stands: of row 0, which ends after 72 tokens, the 64 that later prompts use."""
    config, places = CONFIGS["gpt2"], []
    monkeypatch.setattr(engine_rows, "decode_step", lambda *args: places.append(args[-1]) or decode_step(*args))
    requests = [Request(ids_of(70, 1), 2), Request([1], 9), None, None]
    rows = Engine(config, params_of(config), dtype="float32", n_valid=250).rows(requests)
    list(rows)
    assert places[0].tolist() == [70, 1, 0, 0] and places[-1].tolist() == [64, 8, 0, 0]


# the backend


@contextlib.contextmanager
def backend_of(params):
    mesh = make_mesh(dataclasses.replace(MeshConfig(data=1), platform="cpu"))
    params = {path: jax.numpy.asarray(leaf) for path, leaf in params.items()}
    trained = Trained(None, CONFIGS["nanochat"], params, TOKENIZER, "float32", mesh, "fresh")
    backend = Batching(trained, "fresh", n_slots=N_SLOTS, n_queue=64)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def backend():
    with backend_of(params_of(CONFIGS["nanochat"])) as backend:
        yield backend


async def read(backend, prompt_ids, settings):
    stream = backend.submit(prompt_ids, settings)
    tokens = [token async for token in stream]
    return tokens, stream.finish_reason


def test_a_text_that_breaks_is_told_so_alone():
    """Id 9 breaks the model."""
    params = params_of(CONFIGS["nanochat"])
    params["wte.weight"][9] = np.nan
    settings = Settings(max_tokens=30, temperature=0, logit_bias={9: -1e9})

    async def run(backend):
        good = [read(backend, ids, settings) for ids in ([1, 2, 3], [4, 5])]
        return await asyncio.gather(good[0], read(backend, [1, 9, 3], settings), good[1], return_exceptions=True)

    with backend_of(params) as backend:
        first, broken, second = asyncio.run(run(backend))
        assert [first, second] == [asyncio.run(read(backend, ids, settings)) for ids in ([1, 2, 3], [4, 5])]
    assert not isinstance(first, BaseException) and len(first[0]) == 30
    assert isinstance(broken, BrokenModel) and "not finite" in str(broken)


def draw_settings(rng) -> Settings:
    return Settings(
        max_tokens=int(rng.integers(1, 24)),
        temperature=float(rng.choice([0, 0.7, 1.3])),
        top_p=float(rng.choice([1, 0.9])),
        top_k=int(rng.choice([0, 5, 50])),
        seed=int(rng.integers(5)),
        stop_ids=tuple(rng.integers(250, size=2).tolist()),
        n_logprobs=int(rng.integers(4)),
        has_tools=bool(rng.integers(2)),
        presence_penalty=float(rng.choice([0, 1.5])),
        logit_bias={int(rng.integers(250)): 3.0} if rng.integers(2) else {},
    )


def test_64_requests_get_what_each_gets_alone(backend):
    rng = np.random.default_rng(1)
    system = ids_of(100, 7)
    asked = [
        ([*system[: int(rng.choice([0, 70, 100]))], *ids_of(int(rng.integers(1, 90)), i)], draw_settings(rng))
        for i in range(64)
    ]

    async def ask_all():
        return await asyncio.gather(*(read(backend, *one) for one in asked))

    async def ask_one_by_one():
        return [await read(backend, *one) for one in asked]

    together, alone = asyncio.run(ask_all()), asyncio.run(ask_one_by_one())
    assert together == alone and len({len(tokens) for tokens, _ in alone}) > 10
    assert {reason for _, reason in alone} == {"stop", "length"}


def test_cancelling_frees_a_slot_within_one_step(backend):
    async def run():
        long = Settings(max_tokens=200, temperature=0)
        streams = [backend.submit(ids_of(4, seed), long) for seed in range(N_SLOTS)]
        waiting = backend.submit(ids_of(4, 9), Settings(max_tokens=3))
        firsts = [await anext(aiter(stream)) for stream in streams]
        assert len(firsts) == backend.n_active == N_SLOTS and backend.n_waiting == 1
        for stream in streams[:2]:
            stream.cancel()
        n_before = streams[2]._queue.qsize()
        tokens = [token async for token in waiting]
        n_meanwhile = streams[2]._queue.qsize() - n_before
        for stream in streams:
            stream.cancel()
        return len(tokens), n_meanwhile

    n_tokens, n_meanwhile = asyncio.run(run())
    assert n_tokens == 3 and n_meanwhile < 60, "it waited for the end of those that were cancelled"
    end = time.monotonic() + 5
    while backend.n_active and time.monotonic() < end:
        time.sleep(0.01)
    assert backend.n_active == 0


def test_more_than_the_queue_is_refused(backend, monkeypatch):
    """The engine takes a step where the test permits one, so no text ends; one on its way into a slot counts."""
    permits, step, add = threading.Semaphore(0), backend._rows.step_apart, backend._rows.add
    monkeypatch.setattr(backend._rows, "add", lambda request: time.sleep(0.1) or add(request))
    monkeypatch.setattr(backend._rows, "step_apart", lambda: permits.acquire() and step())

    async def run():
        streams = [backend.submit([1], Settings(max_tokens=220)) for _ in range(backend.n_capacity)]
        time.sleep(0.05)  # the engine is adding the first one
        with pytest.raises(QueueFull):
            backend.submit([1], Settings(max_tokens=1))
        for stream in streams[N_SLOTS:]:
            stream.cancel()
        end = time.monotonic() + 60
        while backend.n_waiting and time.monotonic() < end:
            permits.release()
            await asyncio.sleep(0.01)
        n_left = backend.n_active, backend.n_waiting
        for stream in streams:
            stream.cancel()
        while backend.n_active and time.monotonic() < end:
            permits.release()
            await asyncio.sleep(0.01)
        return n_left

    assert asyncio.run(run()) == (N_SLOTS, 0), "cancelled texts wait for a slot"


def test_calls_of_the_calculator_are_answered(backend):
    """Biases and a penalty make the model write a call of 2*3."""
    call = [TOKENIZER.special_id("<|python_start|>"), *b"2*3", TOKENIZER.special_id("<|python_end|>")]
    settings = Settings(
        max_tokens=9, temperature=0, presence_penalty=1e6, has_tools=True,
        logit_bias={token: 1e5 - 1e4 * i for i, token in enumerate(call)},
    )  # fmt: skip
    answer = [TOKENIZER.special_id("<|output_start|>"), *b"6", TOKENIZER.special_id("<|output_end|>")]
    for has_tools in (True, False):
        wanted = dataclasses.replace(settings, has_tools=has_tools)
        tokens, _ = asyncio.run(read(backend, ids_of(5, 1), wanted))
        ids = [token.id for token in tokens]
        assert ids[:5] == call and (ids[5:8] == answer) == has_tools
