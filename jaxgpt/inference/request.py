"""What one row of an engine is asked for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxgpt.errors import InputError

MAX_LOG_PROBS = 20
"""Alternatives to a token that can be asked for; OpenAI's API has the same limit."""


class Tool(Protocol):
    """Reads the tokens of one row, and may answer."""

    def feed(self, token_id: int) -> Sequence[int]:
        """Takes the row's next token, sampled or forced, and returns the ids to force after it; often none."""
        ...


@dataclass(frozen=True)
class Request:
    """A prompt, and how to go on from it.

    Raises InputError where a value is outside its range.

    Attributes:
      prompt_ids: at least one id; stored as a tuple.
      max_tokens: the row ends after this many, forced ones among them.
      stop_ids: each ends the row; it is yielded still.
      temperature: divides the logits; 0 takes the most likely token.
      top_k: samples among this many most likely tokens; 0: all.
      top_p: samples among the fewest most likely tokens whose probabilities, after temperature and top_k, sum to this;
        1: all.
      seed, sample: the randomness. Samples 0, 1, 2, ... of a seed differ.
      tool: makes the tool that reads this row; None: no tool. It reads nothing after the row's last token.
      n_log_probs: None: no log-probabilities. Otherwise those of the row's tokens, and of so many most likely ones.
      presence_penalty, frequency_penalty: taken off the logit of an id that the row has got already: once, and once per
        occurrence. The prompt does not count.
      logit_bias: (id, what is added to its logit) pairs.
      slides: whether the row continues from the last half of its text when its context is full. If not, it ends there.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    stop_ids: Sequence[int] = ()
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    sample: int = 0
    tool: Callable[[], Tool] | None = None
    n_log_probs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Sequence[tuple[int, float]] = ()
    slides: bool = True

    def __post_init__(self):
        check_settings(
            max_tokens=self.max_tokens, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed
        )
        if len(self.prompt_ids) == 0:
            raise InputError("the prompt is empty; give at least one token")
        if self.n_log_probs is not None and not 0 <= self.n_log_probs <= MAX_LOG_PROBS:
            raise InputError(f"n_log_probs={self.n_log_probs} is outside [0, {MAX_LOG_PROBS}]; choose one inside")
        object.__setattr__(self, "prompt_ids", tuple(map(int, self.prompt_ids)))
        object.__setattr__(self, "stop_ids", tuple(map(int, self.stop_ids)))
        object.__setattr__(self, "logit_bias", tuple((int(i), float(bias)) for i, bias in self.logit_bias))
        added = (self.presence_penalty, self.frequency_penalty, *(bias for _, bias in self.logit_bias))
        if not all(map(math.isfinite, added)):
            raise InputError("a penalty or a bias is not a finite number; give numbers")

    @property
    def is_biased(self) -> bool:
        """Whether anything is added to its logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)


def check_settings(
    *, max_tokens: int, temperature: float, top_k: int, top_p: float, seed: int, n_samples: int = 1
) -> None:
    """Raises InputError for settings that no model can generate with."""
    for is_good, message in (
        (max_tokens >= 1, f"max_tokens={max_tokens} is below 1; ask for at least one token"),
        (0 <= temperature < float("inf"), f"temperature={temperature} is not a number from 0; 0 is greedy"),
        (top_k >= 0, f"top_k={top_k} is negative; 0 keeps all tokens"),
        (0 < top_p <= 1, f"top_p={top_p} is outside (0, 1]; 1 keeps all tokens"),
        (0 <= seed < 2**32, f"seed={seed} is outside [0, 2**32); choose one inside"),
        (n_samples >= 1, f"samples={n_samples} is below 1; ask for at least one"),
    ):
        if not is_good:
            raise InputError(message)
