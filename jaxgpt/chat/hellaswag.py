"""HellaSwag as modded-nanogpt runs it: the ending with the lowest mean loss after the context.

It differs from CORE's two HellaSwag tasks: rows are those of the data set itself (ctx, endings, label), not DCLM's
rewritten ones, each ending is encoded by itself behind a space, nothing stands in front of the context, and the score
is the plain accuracy (guessing: .25). modded-nanogpt packs the rows of several problems into one sequence, with an end
of text between them that belongs to the row before; a row of its own computes the same.

References: modded-nanogpt cb8b5c1 evals/hellaswag.py; arXiv:1905.07830.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.chat.span import Scorer, Span
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError, require
from jaxgpt.files import read_bounded
from jaxgpt.run.console import working

CHUNK_PROBLEMS = 512
LIMIT_BYTES = 1 << 30
N_ENDINGS = 4


@dataclass(frozen=True)
class HellaSwagResult:
    """Answers: a digit for each problem, 1: right. n_cropped: problems whose rows were longer than the context."""

    answers: str
    n_cropped: int

    @property
    def accuracy(self) -> float:
        return self.answers.count("1") / len(self.answers)


def read_problems(path: Path) -> list[Mapping[str, Any]]:
    """The lines of hellaswag_val.jsonl, in its order, on which nothing depends.

    Raises:
      InputError: the file cannot be read, has no problem, or a line is none.
    """
    try:
        lines = read_bounded(path, LIMIT_BYTES).decode("utf-8").splitlines()
        problems = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}; give hellaswag_val.jsonl") from error
    require(len(problems) > 0, f"{path} has no problem; give hellaswag_val.jsonl")
    for i, problem in enumerate(problems):
        is_good = (
            isinstance(problem, dict)
            and isinstance(problem.get("ctx"), str)
            and isinstance(problem.get("endings"), list)
            and len(problem["endings"]) == N_ENDINGS
            and all(isinstance(ending, str) for ending in problem["endings"])
            and str(problem.get("label")) in ("0", "1", "2", "3")
        )
        require(is_good, f"{path} line {i + 1} has no ctx, {N_ENDINGS} endings and label; give hellaswag_val.jsonl")
    return problems


def evaluate_hellaswag(problems: Sequence[Mapping[str, Any]], scorer: Scorer, tokenizer: Tokenizer) -> HellaSwagResult:
    """Answers all problems; the first of equally likely endings wins. Says on stderr that it is at work.

    Raises:
      InputError: a context of no tokens.
    """
    answers, n_cropped = "", 0
    with working("HellaSwag") as pulse:
        for first in range(0, len(problems), CHUNK_PROBLEMS):
            pulse.what = f"HellaSwag, {first:,} of {len(problems):,} problems"
            chunk = problems[first : first + CHUNK_PROBLEMS]
            rows = [problem_spans(problem, tokenizer) for problem in chunk]
            n_cropped += sum(any(len(span.ids) > scorer.max_tokens for span in spans) for spans in rows)
            scores = iter(scorer([span.keep_last(scorer.max_tokens) for spans in rows for span in spans]))
            for problem in chunk:
                losses = [next(scores).mean_nats for _ in range(N_ENDINGS)]
                answers += str(int(losses.index(min(losses)) == int(problem["label"])))
    return HellaSwagResult(answers, n_cropped)


def problem_spans(problem: Mapping[str, Any], tokenizer: Tokenizer) -> list[Span]:
    """A row per ending, whose tokens are scored.

    Raises:
      InputError: the context has no tokens, so that an ending's first token would follow nothing.
    """
    context = tokenizer.encode(problem["ctx"])
    require(len(context) > 0, "a HellaSwag problem has an empty context; remove it")
    endings = [tokenizer.encode(f" {ending}") for ending in problem["endings"]]
    return [
        Span(np.array([*context, *ending], np.int32), len(context), len(context) + len(ending)) for ending in endings
    ]
