"""Clients of a server: each asks for one streamed text after another, and times the pieces as they come.

A piece of text may hold several tokens, as where a character has several; so tokens are counted by the usage that the
server reports, and the time per token is that of all after the first piece over their number.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx
import numpy as np

from jaxgpt.bench.served import connect, resident_bytes
from jaxgpt.errors import Failure, InputError

N_IDS = 16
"""Prompts are made of so many ids, which every vocabulary has."""
HEADER = ("clients", "prompt", "first token, ms", "95 %", "per token, ms", "tokens/s", "MB", "refused")


@dataclass(frozen=True)
class Answer:
    """One streamed answer, in seconds from its request.

    Attributes:
      first_s: when its first piece of text came; None: it has no text.
      last_s: when its last one came.
      n_tokens: that were generated.
    """

    first_s: float | None
    last_s: float
    n_tokens: int

    @property
    def token_s(self) -> float | None:
        """Time per token after the first; None where there is no second."""
        return (self.last_s - self.first_s) / (self.n_tokens - 1) if self.first_s and self.n_tokens > 1 else None


def make_prompt(n_tokens: int, seed: str) -> list[int]:
    """Random ids, the same for a seed."""
    draw = random.Random(seed)
    return [draw.randrange(N_IDS) for _ in range(n_tokens)]


def ask(client: httpx.Client, model: str, prompt: Sequence[int], n_tokens: int) -> Answer | float:
    """An answer; or how many seconds the server wants to be left alone, where it refuses with 429.

    Raises:
      Failure: any other answer than a whole stream.
    """
    body = {
        "model": model, "prompt": list(prompt), "max_tokens": n_tokens, "seed": 1, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    begin = time.perf_counter()
    try:
        with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code == 429:
                return float(response.headers.get("retry-after", 1))
            if response.status_code != 200:
                raise Failure(f"the server answers {response.status_code}: {response.read().decode()[:300]}")
            return _read(response.iter_lines(), begin)
    except httpx.HTTPError as error:
        raise Failure(f"the server broke off an answer: {error or type(error).__name__}") from error


def _read(lines: Iterator[str], begin: float) -> Answer:
    first_s, last_s, usage = None, 0.0, None
    for line in lines:
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise Failure(f"the server broke off an answer: {event['error'].get('message')}")
        if any(choice["text"] for choice in event["choices"]):
            last_s = time.perf_counter() - begin
            first_s = last_s if first_s is None else first_s
        usage = event.get("usage") or usage
    if usage is None:
        raise Failure("the server's stream has no usage at its end; its tokens cannot be counted")
    return Answer(first_s, last_s, usage["completion_tokens"])


def time_clients(
    address: str, model: str, *, n_clients: int, n_requests: int, n_prompt: int, n_tokens: int,
    say: Callable[[int], None] = lambda n_done: None,
) -> dict[str, Any]:  # fmt: skip
    """Lets clients ask at once, and returns their figures.

    Args:
      n_requests: of each client, one after another.
      say: called with the number of requests that have ended.

    Raises:
      Failure: as `ask`.
    """
    answers: list[Answer] = []
    refused: list[float] = []

    def work(client_index: int) -> None:
        with connect(address) as client:
            for i in range(n_requests):
                prompt = make_prompt(n_prompt, f"{n_clients} {n_prompt} {client_index} {i}")
                answer = ask(client, model, prompt, n_tokens)
                if isinstance(answer, Answer):
                    answers.append(answer)
                else:
                    refused.append(answer)
                    time.sleep(answer)
                say(len(answers) + len(refused))

    begin = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool:
        list(pool.map(work, range(n_clients)))
    wall_s = time.perf_counter() - begin
    if not answers:
        raise Failure(f"the server refused all {len(refused)} requests with 429; let fewer clients ask at once")
    return {
        "clients": n_clients, "prompt_tokens": n_prompt, "max_tokens": n_tokens, "requests": n_clients * n_requests,
        **summarise_answers(answers, wall_s), "memory_bytes": resident_bytes(address), "refused": len(refused),
    }  # fmt: skip


def summarise_answers(answers: Sequence[Answer], wall_s: float) -> dict[str, Any]:
    """Times in seconds, each the median and the 95th percentile over answers, and tokens per second of all together."""
    first_s = [answer.first_s for answer in answers if answer.first_s is not None]
    token_s = [answer.token_s for answer in answers if answer.token_s is not None]
    n_tokens = sum(answer.n_tokens for answer in answers)
    figures: dict[str, Any] = {"tokens": n_tokens, "tokens_per_s": n_tokens / wall_s, "wall_s": wall_s}
    for name, times in (("ttft_s", first_s), ("tpot_s", token_s)):
        figures[name] = median(times) if times else None
        figures[f"{name}_p95"] = float(np.quantile(times, 0.95, method="inverted_cdf")) if times else None
    return figures


def require_room(prompts: Sequence[int], n_tokens: int, n_context: int | None) -> None:
    """Raises InputError where a prompt and its answer do not fit the context of the model (None: not known)."""
    if n_context is not None and max(prompts) + n_tokens > n_context:
        raise InputError(
            f"--prompts={max(prompts)} + --tokens={n_tokens} is above the model's context of {n_context}; shorten one"
        )


def serve_rows(figures: Sequence[dict[str, Any]]) -> list[list[str]]:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value * 1e3:,.1f}"

    return [
        [
            str(one["clients"]), str(one["prompt_tokens"]), ms(one["ttft_s"]), ms(one["ttft_s_p95"]),
            ms(one["tpot_s"]), f"{one['tokens_per_s']:,.0f}",
            "-" if one["memory_bytes"] is None else f"{one['memory_bytes'] / 1e6:,.0f}", str(one["refused"]),
        ]
        for one in figures
    ]  # fmt: skip
