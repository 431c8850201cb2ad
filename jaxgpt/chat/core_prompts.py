"""From an item of CORE to prompts, and to the tokens of them that decide. Knows no model.

    choices        prompts that differ in their end: scored is what follows their common beginning
    contexts       prompts that differ in the middle: scored is their common end
    continuation   one prompt: scored is its continuation, which must be the most likely token at each place

Reference: nanochat c6abcdf nanochat/core_eval.py, whose templates put a blank line between shots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgpt.chat.core_tasks import CoreTask
from jaxgpt.chat.span import Span, SpanScore
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """An item, ready for a model.

    Attributes:
      spans: of its options in order; of a continuation the one.
      gold: the option that is right; None: the span must be greedy.
      is_cropped: an option was longer than the model's context.
    """

    spans: tuple[Span, ...]
    gold: int | None
    is_cropped: bool

    def is_right(self, scores: Sequence[SpanScore]) -> bool:
        """Whether the model's option is the right one: that of the lowest mean loss, the first where several are.

        An option without a scored token, which is a beginning of all others, has a loss of NaN: Python's `min` takes
        it where it is first, and nowhere else. nanochat does the same.
        """
        if self.gold is None:
            return scores[0].is_greedy
        losses = [score.mean_nats for score in scores]
        return losses.index(min(losses)) == self.gold


def ask(task: CoreTask, item: Item, shots: Sequence[Item], tokenizer: Tokenizer, max_tokens: int) -> Question:
    """The question of an item after its shots.

    Args:
      max_tokens: of longer rows the last ones are kept.

    Raises:
      InputError: the tokenizer has no token that begins a text, or joins the last token of a prompt with its answer.
    """
    texts = write_prompts(task, item, shots)
    begin = text_begin(tokenizer)
    rows = [np.array([begin, *tokenizer.encode(text)], np.int32) for text in texts]
    spans = [Span(row, start, end) for row, (start, end) in zip(rows, scored_tokens(task, rows), strict=True)]
    if task.kind == "continuation":
        spans = spans[1:]
    kept = tuple(span.keep_last(max_tokens) for span in spans)
    return Question(kept, item.get("gold"), any(len(span.ids) > max_tokens for span in spans))


def write_prompts(task: CoreTask, item: Item, shots: Sequence[Item]) -> list[str]:
    """The texts: one per option; for a continuation the prompt without it, then with it."""
    head = "".join(f"{_solve(task, shot)}\n\n" for shot in shots)
    if task.kind == "choices":
        return [f"{head}{item['query']}{task.delimiter}{choice}" for choice in item["choices"]]
    if task.kind == "contexts":
        return [f"{head}{context}{task.delimiter}{item['continuation']}" for context in item["context_options"]]
    prompt = f"{head}{item['context'].strip()}{task.delimiter}"
    return [prompt.rstrip(), prompt + item["continuation"]]  # a space at the end would be a token of the answer


def scored_tokens(task: CoreTask, rows: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """(start, end) in each row of ids, each of which begins with the token that begins a text."""
    if task.kind == "choices":
        start = _count_common(rows)
        return [(start, len(row)) for row in rows]
    if task.kind == "contexts":
        n_common = _count_common([row[::-1] for row in rows])
        return [(max(len(row) - n_common, 1), len(row)) for row in rows]
    without, whole = rows
    if len(without) >= len(whole) or not np.array_equal(whole[: len(without)], without):
        raise InputError(
            f"{task.name}: the tokens of a prompt are not those of the prompt with its answer; "
            "this tokenizer joins words across a space, and cannot be evaluated on continuations"
        )
    return [(len(without), len(without)), (len(without), len(whole))]


def text_begin(tokenizer: Tokenizer) -> int:
    """The id in front of every prompt.

    Raises:
      InputError: there is none.
    """
    begins = tokenizer.stop_ids()
    if not begins:
        raise InputError(
            f"the {tokenizer.name} tokenizer has no token that begins or ends a text; prompts need one in front: "
            "evaluate a model of GPT-2's or nanochat's vocabulary"
        )
    return begins[0]


def _solve(task: CoreTask, shot: Item) -> str:
    """A shot with its right answer."""
    if task.kind == "choices":
        return f"{shot['query']}{task.delimiter}{shot['choices'][shot['gold']]}"
    if task.kind == "contexts":
        return f"{shot['context_options'][shot['gold']]}{task.delimiter}{shot['continuation']}"
    return f"{shot['context'].strip()}{task.delimiter}{shot['continuation']}"


def _count_common(rows: Sequence[np.ndarray]) -> int:
    """How many tokens at their beginning all rows share."""
    shortest = min(map(len, rows))
    differs = np.any([row[:shortest] != rows[0][:shortest] for row in rows], axis=0)
    return int(differs.argmax()) if differs.any() else shortest
