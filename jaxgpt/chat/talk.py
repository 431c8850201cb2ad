"""One person and one model: a text goes in, the answer comes out piece by piece, and the next turn knows of it.

A chat model converses, with its calculator. A base model completes each text by itself. All turns use one row of the
engine, whose cache is kept between them: a turn computes only what its prompt adds to the one before.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxgpt.chat.answer_text import AnswerText
from jaxgpt.chat.dialogue import Dialogue, Turn
from jaxgpt.chat.tools import answer_stop_ids, calculator_tool
from jaxgpt.data.tokenizer import CHAT_SPECIALS, Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.inference.request import Request, check_settings
from jaxgpt.inference.row import Token
from jaxgpt.inference.trained import Trained


class OneRow(Protocol):
    """What generates: `jaxgpt.inference.rows.Rows` of one row, or what is called like it."""

    def start(self, row: int, request: Request) -> None: ...

    def step(self) -> Sequence[Token | None]: ...

    def stop(self, row: int) -> None: ...

    def settle(self) -> bool: ...


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled, see `Request`. Raises InputError for what nothing can be sampled with."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int

    def __post_init__(self):
        check_settings(**dataclasses.asdict(self))


class Talk:
    """Turns with one model.

    Attributes:
      dialogue: what was said; None: the model completes, and nothing is remembered.
      notes: what is to be said about the last answer, such as that it was cut; a line each.
    """

    def __init__(self, rows: OneRow, tokenizer: Tokenizer, sampling: Sampling, *, n_positions: int, converses: bool):
        """
        Args:
          rows: one row, not started.

        Raises:
          InputError: it is to converse, and the tokenizer lacks a control token.
        """
        self._rows, self._tokenizer, self.sampling, self._n_positions = rows, tokenizer, sampling, n_positions
        self.dialogue = Dialogue(tokenizer) if converses else None
        self.notes: list[str] = []
        self._tool = calculator_tool(tokenizer) if converses else None
        self._n_answers = self._n_left_out = 0
        self._is_stopped = False

    def set(self, **settings: Any) -> None:
        """Changes `sampling` for the answers to come.

        Raises:
          InputError: a value is out of range; nothing was changed.
        """
        changed = dataclasses.replace(self.sampling, **settings)
        n_vocab = self._tokenizer.vocab_size
        if changed.top_k > n_vocab:
            raise InputError(f"top_k={changed.top_k} is above the vocabulary of {n_vocab}; 0 keeps all tokens")
        self.sampling = changed

    def need_dialogue(self, command: str) -> Dialogue:
        """The dialogue, for a command that is about it.

        Raises:
          InputError: the model completes.
        """
        if self.dialogue is None:
            raise InputError(f"{command} is for a conversation, and this model completes texts; open a chat model")
        return self.dialogue

    def clear(self) -> None:
        """Forgets all turns; settings and the system text stay."""
        if self.dialogue is not None:
            self.dialogue.turns.clear()

    def stop(self) -> None:
        """Ends the answer that is being read, before its next token. What came of it is kept."""
        self._is_stopped = True

    def answer(self, text: str) -> Iterator[str]:
        """Yields the answer to a text, or its continuation, in pieces of whole characters that are not empty.

        The turn is remembered when the iterator ends. Where it is left earlier, nothing of the turn is.

        Raises:
          InputError: the text is too long, or has a character that the model does not know; at the first piece.
        """
        self.notes, self._is_stopped = [], False
        request = self._complete(text) if self.dialogue is None else self._ask(self.dialogue, text)
        shown = AnswerText(self._tokenizer, () if self.dialogue else tuple(request.prompt_ids))
        self._rows.start(0, request)
        self._n_answers += 1
        ids: list[int] = []
        end = ""
        while not (end or self._is_stopped):
            token = self._rows.step()[0]
            assert token is not None, "the row ended without saying so"
            end = token.end
            if end != "stop":
                ids.append(token.id)
                if piece := shown.feed(token.id):
                    yield piece
        self._rows.stop(0)
        if piece := shown.finish():
            yield piece
        while self._rows.settle():  # the answer, which the next turn's prompt holds
            pass
        if not end:
            self.notes.append("stopped")
        elif end == "length" and len(ids) < self.sampling.max_tokens:
            self.notes.append(f"the context of {self._n_positions} tokens is full")
        elif end == "length":
            self.notes.append(f"ended at --max-tokens={self.sampling.max_tokens}")
        if self.dialogue is not None and ids:
            self.dialogue.turns.append(Turn(text, tuple(ids)))

    def _complete(self, text: str) -> Request:
        return self._request(self._tokenizer.encode_prompt(text), self._tokenizer.stop_ids(), slides=True)

    def _ask(self, dialogue: Dialogue, text: str) -> Request:
        n_answer = min(self.sampling.max_tokens, self._n_positions // 2)
        prompt = dialogue.prompt(text, n_positions=self._n_positions, n_answer=n_answer)
        if prompt.n_left_out > self._n_left_out:
            turns = "turn is" if prompt.n_left_out == 1 else f"{prompt.n_left_out} turns are"
            self.notes.append(f"the oldest {turns} left out: the context holds {self._n_positions} tokens")
        self._n_left_out = prompt.n_left_out
        return self._request(prompt.ids, answer_stop_ids(self._tokenizer), slides=False)

    def _request(self, ids: Sequence[int], stop_ids: Sequence[int], *, slides: bool) -> Request:
        settings = self.sampling
        return Request(
            ids, settings.max_tokens, stop_ids, temperature=settings.temperature, top_k=settings.top_k,
            top_p=settings.top_p, seed=settings.seed, sample=self._n_answers, tool=self._tool, slides=slides,
        )  # fmt: skip


def converses(trained: Trained) -> bool:
    """Whether a model was trained on conversations.

    Weights from elsewhere do not say; they count as chat models where their tokenizer has the control tokens.
    """
    if trained.tokenizer is None or not all(name in trained.tokenizer.specials for name in CHAT_SPECIALS):
        return False
    return trained.config is None or trained.config.data.is_chat
