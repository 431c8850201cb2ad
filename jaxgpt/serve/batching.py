"""The backend: a thread around the rows of an engine. Each text has a slot, and all slots take a token per step.

A text that waits gets the first slot that is free, between two steps. Whoever shares the engine, a text is the same to
the byte: the same compiled step serves all slots, however many of them are at work. A long prompt is computed a piece
per step, so that the others go on beside it; a text that the model cannot continue ends alone (`Rows.step_apart`).
While nobody waits and nothing is at work, the cache of finished texts is made ready for their next turn
(`Rows.settle`).
"""

import collections
import threading
from collections.abc import Sequence
from typing import NamedTuple

from jaxgpt.chat.tools import calculator_tool
from jaxgpt.data.tokenizer import CHAT_SPECIALS
from jaxgpt.errors import InputError
from jaxgpt.inference import row as engine_row
from jaxgpt.inference.prompt_scores import score_prompt
from jaxgpt.inference.request import Request
from jaxgpt.inference.trained import Trained
from jaxgpt.serve.backend import BrokenModel, FinishReason, QueueFull, Settings, ThreadStream, Token, push_all


class Work(NamedTuple):
    """A text that waits, or is generated."""

    stream: ThreadStream
    prompt_ids: tuple[int, ...]
    settings: Settings


class Batching:
    """A `Backend` with a fixed number of slots."""

    def __init__(self, trained: Trained, model_name: str, *, n_slots: int, n_queue: int):
        """Starts the thread; compiles nothing yet.

        Args:
          n_slots: texts that are generated at once, at least 1. Each has memory for a whole context.
          n_queue: texts that may wait.

        Raises:
          InputError: the model has no tokenizer.
        """
        if trained.tokenizer is None:
            raise InputError(
                f"{trained.origin} has no tokenizer for its {trained.model.vocab_size} ids; serve a model that has"
            )
        self.tokenizer, self.model_name = trained.tokenizer, model_name
        self.n_context, self.n_capacity = trained.model.seq_len, n_slots + n_queue
        self.is_chat = all(name in self.tokenizer.specials for name in CHAT_SPECIALS)
        self._tool = calculator_tool(self.tokenizer) if self.is_chat else None
        self._engine = trained.engine()
        self._n_slots, self._rows = n_slots, self._engine.rows([None] * n_slots)
        self._waiting: collections.deque[Work] = collections.deque()
        self._at_work: dict[int, Work] = {}
        self._is_closed, self._has_news = False, threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def n_active(self) -> int:
        return len(self._at_work)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_prefilled_tokens(self) -> int:
        """Tokens of prompts, and of answers for their next turn, that were computed; reused ones do not count."""
        return self._rows.n_prefilled_tokens

    def submit(self, prompt_ids: Sequence[int], settings: Settings) -> ThreadStream:
        if self.n_active + self.n_waiting >= self.n_capacity:
            raise QueueFull
        stream = ThreadStream()
        self._waiting.append(Work(stream, tuple(prompt_ids), settings))
        self._has_news.set()
        return stream

    def close(self) -> None:
        self._is_closed = True
        self._has_news.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closed:
            self._drop_cancelled()
            self._admit()
            try:
                is_busy = self._step() if self._at_work else self._rows.settle()
            except Exception as error:  # belongs to the texts at work; the thread serves the next ones
                for work in self._at_work.values():
                    work.stream.push(error)
                self._at_work.clear()
                self._rows = self._engine.rows([None] * self._n_slots)
                continue
            if not is_busy and not self._waiting:
                self._has_news.wait()
            self._has_news.clear()

    def _drop_cancelled(self) -> None:
        for row in [row for row, work in self._at_work.items() if work.stream.is_cancelled]:
            self._rows.stop(row)
            del self._at_work[row]
        for work in list(self._waiting):
            if work.stream.is_cancelled:
                self._waiting.remove(work)

    def _admit(self) -> None:
        """Gives free slots to texts that wait. Texts at work wait for one prompt that is scored at most."""
        has_scored = False
        while self._waiting and len(self._at_work) < self._n_slots:
            if self._at_work and has_scored and self._waiting[0].settings.is_prompt_scored:
                return
            work = self._waiting[0]  # it counts as waiting until it is at work
            try:
                if work.stream.is_cancelled:
                    continue
                if work.settings.is_prompt_scored:
                    has_scored = True
                    self._push_prompt(work)
                if work.settings.max_tokens == 0:
                    work.stream.push("length")
                else:
                    self._at_work[self._rows.add(self._request(work))] = work
            except Exception as error:  # belongs to this text
                work.stream.push(error)
            finally:
                self._waiting.popleft()

    def _push_prompt(self, work: Work) -> None:
        for token in score_prompt(self._engine, work.prompt_ids, work.settings.n_logprobs or 0):
            work.stream.push(_as_served(token))

    def _request(self, work: Work) -> Request:
        settings = work.settings
        return Request(
            work.prompt_ids, settings.max_tokens, settings.stop_ids, temperature=settings.temperature,
            top_k=settings.top_k, top_p=settings.top_p, seed=settings.seed, sample=settings.sample,
            tool=self._tool if settings.has_tools else None, n_log_probs=settings.n_logprobs,
            presence_penalty=settings.presence_penalty, frequency_penalty=settings.frequency_penalty,
            logit_bias=tuple(settings.logit_bias.items()), slides=False,
        )  # fmt: skip

    def _step(self) -> bool:
        pushes: list[tuple[ThreadStream, Token | FinishReason | Exception]] = []
        for row, token in enumerate(self._rows.step_apart()):
            if token is None:
                continue
            stream = self._at_work[row].stream
            if token.end in ("", "length"):
                pushes.append((stream, _as_served(token)))
            if token.end:
                pushes.append((stream, BrokenModel(engine_row.BROKEN) if token.end == "broken" else token.end))
                del self._at_work[row]
        push_all(pushes)
        return True


def _as_served(token: engine_row.Token) -> Token:
    return Token(token.id, token.log_prob, token.likeliest)
