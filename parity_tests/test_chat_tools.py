"""The tool of a chat model: what a scripted model's calls are answered with, row by row, and in any thread."""

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.chat.tools import ToolMachine, answer_stop_ids, calculator_tool
from jaxgpt.config import GPT2Config
from jaxgpt.data.tokenizer import BPETokenizer, ByteTokenizer
from jaxgpt.errors import InputError
from jaxgpt.inference.completions import complete
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request

BYTES = BPETokenizer([bytes([i]) for i in range(256)])
BOS, AE, PS, PE, OS, OE = (
    BYTES.special_id(f"<|{name}|>")
    for name in ("bos", "assistant_end", "python_start", "python_end", "output_start", "output_end")
)
VALUES = {"12*3": "36", "1+1": "2", "2+2": "4"}
N_POSITIONS = 40


def ids_of(*parts: str | int) -> list[int]:
    """Text as bytes, control tokens as they are."""
    return [i for part in parts for i in (BYTES.encode(part) if isinstance(part, str) else [part])]


CASES = {
    "answer": (ids_of("x", PS, "12*3", PE, "AAAAy", AE), 32, ids_of("x", PS, "12*3", PE, OS, "36", OE, "y", AE)),
    "no value": (ids_of(PS, "2**3", PE, "y", AE), 32, ids_of(PS, "2**3", PE, "y", AE)),
    "empty": (ids_of(PS, PE, "y", AE), 32, ids_of(PS, PE, "y", AE)),
    "cut": (ids_of(PS, "1+1", PE, "AAAA"), 7, ids_of(PS, "1+1", PE, OS, "2")),
    "begun anew": (
        ids_of(PS, "1", PS, "2+2", PE, "AAAy", AE), 32, ids_of(PS, "1", PS, "2+2", PE, OS, "4", OE, "y", AE),
    ),
    "bos": (ids_of("x", BOS, "y"), 32, ids_of("x", BOS)),
}  # fmt: skip
"""What the model would say at each position, max_tokens, and what is emitted: chat.md's rows, measured on nanochat."""
MASKS = {
    "answer": [1] * 7 + [0] * 4 + [1, 1],
    "no value": [1] * 8,
    "empty": [1] * 4,
    "cut": [1] * 5 + [0, 0],
    "begun anew": [1] * 7 + [0] * 3 + [1, 1],
    "bos": [1, 1],
}


class Script:
    """A model that says, as the n-th token after a prompt of one id, the n-th of that id's script."""

    dtype = jnp.dtype("float32")
    config = GPT2Config(seq_len=N_POSITIONS, n_layer=1, n_head=1, n_embd=8, vocab_size=BYTES.vocab_size)

    def bind(self, params):
        self.params = params
        return self

    def init_cache(self, n_rows, n_positions):
        return jnp.zeros((n_rows, n_positions), jnp.int32)

    def decode(self, tokens_BT, cache, offset_B):
        cache = jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,)))(cache, tokens_BT, offset_B)
        at_BT = offset_B[:, None] + jnp.arange(tokens_BT.shape[1])
        return self.params[cache[:, :1], at_BT][..., None], cache

    def logits(self, x_BT1):
        return jax.nn.one_hot(x_BT1[..., 0], BYTES.vocab_size)


@pytest.fixture(scope="module")
def engine():
    scripts = np.zeros((len(CASES), N_POSITIONS), np.int32)
    for row, (said, _, _) in enumerate(CASES.values()):
        scripts[row, : len(said)] = said
    engine = Engine(Script.config, jnp.array(scripts), dtype="float32", n_valid=BYTES.vocab_size)
    model: Any = Script()
    engine.model = model
    return engine


def request(name, tool=None):
    prompt, max_tokens = [list(CASES).index(name)], CASES[name][1]
    return Request(prompt, max_tokens, answer_stop_ids(BYTES), temperature=0, tool=tool)


def run(engine, names, n_rows, evaluate=VALUES.get):
    requests = [request(name, calculator_tool(BYTES, evaluate)) for name in names]
    return {names[number]: found for number, found in complete(engine, requests, n_rows=n_rows)}


@pytest.mark.parametrize("n_rows", [6, 2])
def test_calls_are_answered_row_by_row(engine, n_rows):
    """All in one batch; and in two rows that take one after the other."""
    found = run(engine, list(CASES), n_rows)
    assert {name: list(one.ids) for name, one in found.items()} == {name: case[2] for name, case in CASES.items()}
    assert {name: list(one.mask) for name, one in found.items()} == MASKS
    ends = {name: one.end for name, one in found.items()}
    assert ends == dict.fromkeys(CASES, "stop") | {"cut": "length"}
    assert found["bos"].text_ids == (120,) and found["cut"].text_ids == found["cut"].ids


def test_without_a_tool_nothing_is_forced(engine):
    (_, found), = complete(engine, [request("answer")])  # fmt: skip
    assert list(found.ids) == CASES["answer"][0] and set(found.mask) == {1}


def test_rows_that_ended_call_no_tool(engine):
    """nanochat continues to call until the last row ends."""
    calls = []
    tool = calculator_tool(BYTES, lambda text: calls.append(text))
    ending = Request([list(CASES).index("cut")], 5, temperature=0, tool=tool)  # with python_end
    dict(complete(engine, [ending, request("bos", tool), request("answer", tool)]))
    assert calls == ["12*3"]


def test_the_calculator_answers_in_a_worker_thread(engine):
    found = {}
    requests = [request(name, calculator_tool(BYTES)) for name in CASES]
    worker = threading.Thread(target=lambda: found.update(complete(engine, requests)))
    worker.start()
    worker.join(60)
    assert [list(found[i].ids) for i in range(6)] == [case[2] for case in CASES.values()]


def test_calls_of_any_tokens_are_read():
    """Bytes that are no text, and control tokens, are a call without a value. Only python_end ends it."""
    seen = []
    machine = ToolMachine(BYTES, lambda text: seen.append(text))
    for token_id in [PE, 49, PS, 255, OS, AE, PE, PE, 50]:
        assert machine.feed(token_id) == []
    assert seen == ["\ufffd<|output_start|><|assistant_end|>"]


def test_results_are_text_only():
    machine = ToolMachine(BYTES, lambda text: f"<|assistant_end|>{text}")
    assert [machine.feed(i) for i in (PS, 49, PE)][-1] == [OS, *b"<|assistant_end|>1", OE]


def test_a_tokenizer_without_control_tokens_is_refused():
    with pytest.raises(InputError, match="the byte tokenizer has no <|python_start|>".replace("|", r"\|")):
        calculator_tool(ByteTokenizer())
