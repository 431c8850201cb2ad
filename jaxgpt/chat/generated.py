"""Questions that a model answers in its own words: it writes, with its tool, and the task's rule judges the text.

Each device generates for its share of the problems, a few rows at once. What a problem gets depends neither on the
others nor on the number of devices.

Reference: nanochat c6abcdf scripts/chat_eval.py run_generative_eval.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jaxgpt.chat.tools import answer_stop_ids, calculator_tool
from jaxgpt.data.conversations import MAX_TOKENS, render_for_completion
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError, require
from jaxgpt.inference.completions import complete
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request, check_settings
from jaxgpt.inference.trained import Trained
from jaxgpt.tasks.task import Task


@dataclass(frozen=True)
class Writing:
    """How answers are written; by default as nanochat evaluates.

    Raises InputError where a value is outside its range.

    Attributes:
      max_tokens: of an answer.
      n_samples: answers to each problem; it counts as right when one of them is.
      temperature: 0 takes the most likely token.
      top_k: samples among this many tokens; 0: all.
      seed: of the samples.
      n_rows: answers that a device writes at once.
    """

    max_tokens: int = 512
    n_samples: int = 1
    temperature: float = 0.0
    top_k: int = 50
    seed: int = 42
    n_rows: int = 8

    def __post_init__(self) -> None:
        check_settings(
            max_tokens=self.max_tokens, temperature=self.temperature, top_k=self.top_k, top_p=1.0, seed=self.seed,
            n_samples=self.n_samples,
        )  # fmt: skip
        require(self.n_rows >= 1, f"n_rows={self.n_rows} is below 1; write at least one answer at once")


@dataclass(frozen=True)
class GeneratedResult:
    """Answers to one task.

    Attributes:
      texts: what the model wrote, by problem and sample, without the end token; the tool's output and the names of
        other control tokens are in it.
      answers: a digit for each problem; 1: a sample is right.
      n_cropped: prompts longer than the model's context, of which the last tokens were kept.
      n_unfinished: samples that reached max_tokens before they ended.
    """

    name: str
    texts: tuple[tuple[str, ...], ...]
    answers: str
    n_cropped: int
    n_unfinished: int

    @property
    def accuracy(self) -> float:
        return self.answers.count("1") / len(self.answers)


def engines_of(trained: Trained) -> list[Engine]:
    """An engine on each device of the model's mesh, which all hold the whole model."""
    n_valid = trained.tokenizer.vocab_size if trained.tokenizer else None
    engines = []
    for device in trained.mesh.local_devices:
        params = {
            path: next(shard.data for shard in leaf.addressable_shards if shard.device == device)
            for path, leaf in trained.params.items()
        }
        assert all(params[path].shape == leaf.shape for path, leaf in trained.params.items()), "split parameters"
        engines.append(Engine(trained.model, params, dtype=trained.compute_dtype, n_valid=n_valid))
    return engines


def evaluate_generated(
    task: Task,
    engines: Sequence[Engine],
    tokenizer: Tokenizer,
    writing: Writing = Writing(),
    *,
    max_problems: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> GeneratedResult:
    """Asks the first `max_problems` problems of a task of kind generated (0: all).

    Args:
      engines: of the same model, one for each device.
      on_progress: receives problems done and problems in all.

    Raises:
      InputError: the task has no problem, the tokenizer lacks a control token, or top_k is above the vocabulary.
      Failure: an answer cannot be judged, see `run_python`.
    """
    assert task.kind == "generated", (task.name, task.kind)
    n_problems, n_samples = min(len(task), max_problems or len(task)), writing.n_samples
    require(n_problems > 0, f"{task.name} has no problem to answer; give a task that has rows")
    if writing.top_k > tokenizer.vocab_size:
        raise InputError(f"top_k={writing.top_k} is above the vocabulary of {tokenizer.vocab_size}; 0 keeps all tokens")
    texts = [[""] * n_samples for _ in range(n_problems)]
    is_right = np.zeros((n_problems, n_samples), bool)
    n_positions, stop_ids, tool = engines[0].n_positions, answer_stop_ids(tokenizer), calculator_tool(tokenizer)
    prompts = [render_for_completion(task[i], tokenizer, MAX_TOKENS) for i in range(n_problems)]
    n_done = itertools.count(1)

    def requests_of(share: Sequence[tuple[int, int]]) -> Iterator[Request]:
        for i, sample in share:
            yield Request(
                prompts[i][-n_positions:].tolist(), writing.max_tokens, stop_ids, temperature=writing.temperature,
                top_k=writing.top_k, seed=writing.seed, sample=sample, tool=tool,
            )  # fmt: skip

    def answer(first: int) -> int:
        """The share of one engine; samples that reached max_tokens."""
        pairs = [(i, sample) for i in range(first, n_problems, len(engines)) for sample in range(n_samples)]
        n_unfinished = 0
        for number, written in complete(engines[first], requests_of(pairs), n_rows=writing.n_rows):
            i, sample = pairs[number]
            texts[i][sample] = tokenizer.decode(written.text_ids)
            is_right[i, sample] = task.judge(task[i], texts[i][sample])
            n_unfinished += written.end == "length"
            if on_progress:
                on_progress(next(n_done) // n_samples, n_problems)
        return n_unfinished

    with ThreadPoolExecutor(len(engines)) as pool:
        n_unfinished = sum(pool.map(answer, range(min(len(engines), n_problems))))
    return GeneratedResult(
        task.name,
        tuple(map(tuple, texts)),
        "".join("1" if right else "0" for right in map(any, is_right)),
        sum(len(prompt) > n_positions for prompt in prompts),
        n_unfinished,
    )
