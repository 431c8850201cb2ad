"""A dialogue with a chat model: what was said so far, and the prompt that asks for the next answer.

Answers are kept as the ids that the model gave, not as text that is encoded again: so the prompt of a turn begins with
the prompt and the answer of the turn before, to the last id, and what the engine has cached of them is reused.

A prompt fits the context: the oldest turns are left out of it, each with its answer. The system text stays.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.data.conversations import PART_TOKENS, Conversation, Message, Part, require_chat_tokens
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded, write_atomically

FILE_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True)
class Turn:
    """A question and its answer, without the token that ends it."""

    question: str
    answer_ids: tuple[int, ...]


class Prompt(NamedTuple):
    """What the model reads.

    Attributes:
      n_left_out: the oldest turns, which had no room.
    """

    ids: list[int]
    n_left_out: int


class Dialogue:
    """Questions and answers in turns, under a system text that may be empty.

    Attributes:
      turns: all of them, also those that no longer fit a prompt.
    """

    def __init__(self, tokenizer: Tokenizer):
        """
        Raises:
          InputError: the tokenizer lacks a control token.
        """
        require_chat_tokens(tokenizer)
        self._tokenizer = tokenizer
        self.system, self.turns = "", list[Turn]()

    def prompt(self, question: str, *, n_positions: int, n_answer: int) -> Prompt:
        """The ids that ask for the answer to a question, as `render_for_completion` renders them.

        Args:
          n_positions: tokens of the context.
          n_answer: tokens to leave for the answer. Only a question that is too long alone gets fewer.

        Raises:
          InputError: the question alone, with the system text, fills the context.
        """
        n_left_out, ids = 0, self._render(self.turns, question)
        while len(ids) + n_answer > n_positions and n_left_out < len(self.turns):
            n_left_out += 1
            ids = self._render(self.turns[n_left_out:], question)
        if len(ids) >= n_positions:
            what = "the message and the system text have" if self.system else "the message has"
            raise InputError(f"{what} {len(ids)} tokens, the context {n_positions}; shorten it")
        return Prompt(ids, n_left_out)

    def _render(self, turns: Sequence[Turn], question: str) -> list[int]:
        encode, special = self._tokenizer.encode, self._tokenizer.special_id
        ids, system = [special("<|bos|>")], f"{self.system}\n\n" if self.system else ""
        for text, answer_ids in (*((turn.question, turn.answer_ids) for turn in turns), (question, None)):
            ids += [special("<|user_start|>"), *encode(system + text), special("<|user_end|>")]
            ids.append(special("<|assistant_start|>"))
            if answer_ids is not None:
                ids += [*answer_ids, special("<|assistant_end|>")]
            system = ""
        return ids

    # Files

    def save(self, path: str | Path) -> None:
        """Writes the dialogue as one conversation in JSON, which `load` and the training data's readers know.

        Raises:
          InputError: nothing was said yet.
          OSError: the file cannot be written.
        """
        if not self.turns:
            raise InputError("nothing was said yet; save after the first answer")
        system = (Message("system", (Part("text", self.system),)),) if self.system else ()
        said = [
            Message(role, parts)
            for turn in self.turns
            for role, parts in (
                ("user", (Part("text", turn.question),)),
                ("assistant", answer_parts(turn.answer_ids, self._tokenizer)),
            )
        ]
        value = Conversation((*system, *said)).to_json()
        write_atomically(Path(path), json.dumps(value, ensure_ascii=False) + "\n")

    def load(self, path: str | Path) -> None:
        """Replaces the dialogue by that of a file.

        Raises:
          InputError: it holds no conversation, or one whose last message has no answer; nothing was replaced.
          OSError: the file cannot be read.
        """
        try:
            value: Any = json.loads(read_bounded(path, FILE_LIMIT_BYTES))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON in UTF-8; name a file that /save wrote") from error
        conversation = Conversation.read(value if isinstance(value, Mapping) else {"messages": value})
        messages = list(conversation.messages)
        system = messages.pop(0).text if messages[0].role == "system" else ""
        if len(messages) % 2:
            raise InputError(f"{path} ends with a question; add its answer, or remove it")
        pairs = zip(messages[::2], messages[1::2], strict=True)
        self.turns = [Turn(asked.text, tuple(answer_ids(said.parts, self._tokenizer))) for asked, said in pairs]
        self.system = system


def answer_ids(parts: Sequence[Part], tokenizer: Tokenizer) -> list[int]:
    """The ids of an answer, without its end token."""
    ids: list[int] = []
    for part in parts:
        marks = [tokenizer.special_id(name) for name in PART_TOKENS[part.kind] if name]
        ids += [*marks[:1], *tokenizer.encode(part.text), *marks[1:]]
    return ids


def answer_parts(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[Part, ...]:
    """The parts of an answer. A call or an output whose end is missing reaches to the next mark, or to the end."""
    marks = {tokenizer.special_id(name): kind for kind, names in PART_TOKENS.items() for name in names[:1] if name}
    ends = {tokenizer.special_id(names[1]) for names in PART_TOKENS.values() if names[1]}
    found: list[tuple[str, list[int]]] = [("text", [])]
    for token_id in ids:
        if token_id in marks or token_id in ends:
            found.append((marks.get(token_id, "text"), []))
        else:
            found[-1][1].append(token_id)
    parts = tuple(Part(kind, tokenizer.decode(held)) for kind, held in found if held)
    return parts or (Part("text", ""),)
