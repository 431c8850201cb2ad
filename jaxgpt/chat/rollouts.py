"""Rollouts: a model's own answers to questions, drawn with its tools, and whether they are right.

A question is a conversation whose last message is the reference answer, with a number after "#### " in its last part.
The rule is GSM8K's: an answer is right if the number after its own first "#### " is the same text.

An answer's randomness is that of (run.seed, step, question, sample). So it depends neither on which answers are drawn
at one time nor on the devices that share the work, and a resumed run draws what the uninterrupted one would.

The answer's end token is one of its tokens: the model chose it, and it is trained. Tool output it did not choose.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxgpt.chat.tools import answer_stop_ids, calculator_tool
from jaxgpt.config.rl import RLConfig
from jaxgpt.data.chat_batches import Conversations
from jaxgpt.data.conversations import Conversation, render_for_completion
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.inference.completions import complete
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request
from jaxgpt.tasks.gsm8k import find_number

EVAL_SEED = 42
"""Of the answers that pass@k is measured on. nanochat draws each question's by this seed itself, which makes the
answers to like questions right or wrong together."""


class Question(NamedTuple):
    """What a model is asked.

    Attributes:
      prompt_ids: up to the token that begins the answer.
      reference: the number of the right answer, as text.
    """

    prompt_ids: tuple[int, ...]
    reference: str


class Rollout(NamedTuple):
    """An answer.

    Attributes:
      ids: its tokens, without the prompt; with the end token, where it has one.
      mask: 1 for a token that the model chose, 0 for one that was forced.
      text: without the end token.
      has_ended: whether it ends by itself; if not, it was cut.
    """

    ids: Sequence[int]
    mask: Sequence[int]
    text: str
    has_ended: bool


def read_questions(
    conversations: Conversations, tokenizer: Tokenizer, max_prompt: int, n_questions: int = 0
) -> tuple[list[Question], int]:
    """The questions of conversations in their order, and how many were left out because they are too long.

    Args:
      max_prompt: tokens of a prompt.
      n_questions: only the first ones are read; 0: all.

    Raises:
      InputError: a reference has no number, or a conversation does not end with an answer; names it. Or all are too
        long.
    """
    found, n_left_out = [], 0
    n_read = min(n_questions or len(conversations), len(conversations))
    for i in range(n_read):
        try:
            conversation = Conversation.read(conversations[i])
            prompt = render_for_completion(conversation, tokenizer, None)
            parts = conversation.messages[-1].parts
            reference = find_number(parts[-1].text) if parts else None
            if reference is None:
                raise InputError("the answer does not end with '#### number', the only rule for rewards; correct it")
        except InputError as error:
            raise InputError(f"conversation {i}: {error}") from error
        if len(prompt) > max_prompt:
            n_left_out += 1
        else:
            found.append(Question(tuple(prompt.tolist()), reference))
    if not found:
        raise InputError(
            f"all {n_read} questions have more than {max_prompt} tokens, which is model.seq_len + 1 - rl.max_tokens; "
            "set a larger model.seq_len"
        )
    return found, n_left_out


def seed_of(run_seed: int, step: int, place: int) -> int:
    """The seed of the answers to a step's question, below 2**32.

    Args:
      place: the question's, counted from the first of the run, so that a question that comes again is drawn anew.
    """
    return int.from_bytes(hashlib.sha256(f"{run_seed} {step} {place}".encode()).digest()[:4], "little")


def reward_of(question: Question, rollout: Rollout) -> float:
    """1 if the answer is right, else 0."""
    return float(find_number(rollout.text) == question.reference)


@dataclass
class Writer:
    """Draws answers.

    Attributes:
      n_rows: answers that are written at one time.
    """

    engine: Engine
    tokenizer: Tokenizer
    rl: RLConfig
    n_rows: int

    def __post_init__(self):
        self._tool, self._stop_ids = calculator_tool(self.tokenizer), answer_stop_ids(self.tokenizer)

    def write(self, questions: Sequence[Question], seeds: Sequence[int], n_samples: int) -> list[list[Rollout]]:
        """Answers 0 .. n_samples - 1 of each question's seed.

        Raises:
          InputError: the model's logits are not finite.
        """
        requests = [
            self._request(question, seed, sample)
            for question, seed in zip(questions, seeds, strict=True)
            for sample in range(n_samples)
        ]
        found = dict(complete(self.engine, requests, n_rows=self.n_rows))
        rollouts = [
            Rollout(one.ids, one.mask, self.tokenizer.decode(one.text_ids), one.end == "stop")
            for one in (found[number] for number in range(len(requests)))
        ]
        return [rollouts[begin : begin + n_samples] for begin in range(0, len(rollouts), n_samples)]

    def _request(self, question: Question, seed: int, sample: int) -> Request:
        rl = self.rl
        return Request(
            question.prompt_ids, rl.max_tokens, self._stop_ids, temperature=rl.temperature, top_k=rl.top_k,
            seed=seed, sample=sample, tool=self._tool, slides=False,
        )  # fmt: skip
