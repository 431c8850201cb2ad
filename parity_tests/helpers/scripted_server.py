"""A server whose model is a script: what it answers, and how fast, is in the question. No JAX.

    say TEXT        TEXT
    slow N          N numbers, STEP_S each
    break           a fault of the engine after two tokens
    overflow        a model that breaks after two tokens
Everything else is answered with itself. As a program it serves until a signal comes: `python -m ... PORT`.
"""

import asyncio
import contextlib
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jaxgpt import signals
from jaxgpt.data.tokenizer import BPETokenizer
from jaxgpt.serve.app import State, make_app
from jaxgpt.serve.backend import Backend, BrokenModel, QueueFull, Settings, ThreadStream, Token
from jaxgpt.serve.server import DRAINING, make_server, open_socket, serve

STEP_S = 0.01
ANSWERS = {
    "What does attention do?": "Each token asks all tokens before it, and reads those whose keys fit its query.\n\n"
    "The weights are a softmax over the products of query and key, so they sum to 1."
}
TOKENIZER = BPETokenizer([bytes([i]) for i in range(256)])
"""The byte tokenizer of nanochat's examples: control tokens from 256 on."""


class Scripted:
    """A `Backend` with threads for slots. A token's logprob is minus its id / 100."""

    model_name, n_context, is_chat, tokenizer = "scripted", 1024, True, TOKENIZER

    def __init__(self, n_slots: int = 4, n_queue: int = 8):
        self.n_capacity = n_slots + n_queue
        self._n_queue, self._queue = n_queue, queue.Queue()
        self._lock, self.n_active, self.asked = threading.Lock(), 0, []
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(n_slots)]
        for thread in self._threads:
            thread.start()

    @property
    def n_waiting(self) -> int:
        return self._queue.qsize()

    def submit(self, prompt_ids: Sequence[int], settings: Settings) -> ThreadStream:
        with self._lock:
            if self.n_active + self.n_waiting >= self.n_capacity:
                raise QueueFull
            stream = ThreadStream()
            self.asked = [*self.asked[-9:], (tuple(prompt_ids), settings)]
            self._queue.put((stream, prompt_ids, settings))
        return stream

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            self._count(1)
            try:
                self._generate(*work)
            except (RuntimeError, BrokenModel) as error:
                work[0].push(error)
            finally:
                self._count(-1)

    def _count(self, n: int) -> None:
        with self._lock:
            self.n_active += n

    def _generate(self, stream: ThreadStream, prompt_ids: Sequence[int], settings: Settings) -> None:
        def score(token_id: int) -> Token:
            n = settings.n_logprobs
            top = [((token_id + i) % 256, -(token_id / 100 + i)) for i in range(n or 0)]
            return Token(token_id) if n is None else Token(token_id, -token_id / 100, tuple(top))

        for token_id in prompt_ids if settings.is_prompt_scored else ():
            stream.push(score(token_id))
        ids, step_s = script_of(prompt_ids, settings.seed + settings.sample)
        for i, token_id in enumerate(ids[: settings.max_tokens]):
            if stream.is_cancelled:
                return
            if token_id < 0:
                raise RuntimeError("the script breaks") if token_id == -1 else BrokenModel("not finite")
            time.sleep(step_s if i else 0)
            stream.push(score(token_id))
        stream.push("stop" if len(ids) < settings.max_tokens else "length")


def script_of(prompt_ids: Sequence[int], seed: int) -> tuple[list[int], float]:
    text = TOKENIZER.decode(prompt_ids)
    question = text.removeprefix("<|bos|>").rpartition("<|user_start|>")[2].partition("<|user_end|>")[0]
    question = question.rpartition("\n\n")[2]
    if question in ANSWERS:
        return list(ANSWERS[question].encode()), 0.002
    word, _, rest = question.partition(" ")
    if word == "slow":
        return [byte for i in range(int(rest)) for byte in b"%d " % i], STEP_S
    if word == "break":
        return [111, 107, -1], 0.0
    if word == "overflow":
        return [111, 107, -2], 0.0
    if word == "seeded":
        return list(b"%d" % seed), 0.0
    return list((rest if word == "say" else question).encode()), 0.0


@contextlib.contextmanager
def served_at(backend: Backend, **options: Any) -> Iterator[tuple[str, State]]:
    """The address of a server in a thread of this process."""
    app = make_app(backend, **options)
    listening = open_socket("127.0.0.1", 0)
    server = make_server(app)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.shared
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        backend.close()


@contextlib.contextmanager
def scripted_server(backend: Scripted | None = None, **options: Any) -> Iterator[tuple[str, Scripted, State]]:
    backend = backend or Scripted()
    with served_at(backend, **options) as (address, state):
        yield address, backend, state


def main() -> None:
    assert "jax" not in sys.modules, "the request layer imports JAX"
    signals.start()
    listening = open_socket("127.0.0.1", int(sys.argv[1]))
    print(listening.getsockname()[1], flush=True)
    signals.enter(DRAINING)
    asyncio.run(serve(make_app(Scripted()), listening))
    print("left", flush=True)


if __name__ == "__main__":
    main()
