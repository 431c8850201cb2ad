"""A trained model for EleutherAI's lm-evaluation-harness, under the name jaxgpt.

    python -m jaxgpt.chat.lm_eval_model --model jaxgpt --model_args run=runs/x --tasks arc_easy

takes lm_eval's own command line. From Python, `register()` makes the name known to `lm_eval.simple_evaluate`. Needs the
extra lm-eval, which nothing else here imports.

Texts become tokens as jaxgpt's prompts do: behind the token that begins a text, where the tokenizer has one (nanochat);
GPT-2's has none, so only an empty context is replaced, by the token that ends a text. Rows are cut to the model's
context from the left.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxgpt.chat.core_run import require_tokenizer
from jaxgpt.chat.span import Span
from jaxgpt.chat.span_scores import SpanScorer
from jaxgpt.errors import InputError, run_verb
from jaxgpt.extras import pip_install
from jaxgpt.inference.request import Request
from jaxgpt.inference.text_stream import TextStream
from jaxgpt.inference.trained import open_run, open_trained

DEFAULT_NEW_TOKENS = 256
"""Where a task names no number, as in lm_eval's own models."""
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SETTINGS = {"until", "do_sample", "temperature", "top_k", "top_p", "seed", *LENGTH_NAMES}
"""Settings of a generation that are obeyed; another one is an error."""


class JaxgptModel:
    """What lm_eval calls. `register` joins it with lm_eval's base class.

    Requests are lm_eval's: objects whose `args` are a tuple.
    """

    def __init__(
        self,
        run: str = "",
        model: str = "",
        step: int | None = None,
        platform: str = "",
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        """Opens the model on one device.

        Args:
          run: a run directory; or else model: what `jaxgpt.load` opens.
          step: of a run: this checkpoint; None: the newest.
          platform: cpu, gpu or tpu; empty: the fastest.
          batch_size: texts that are generated at once; auto: 8. Likelihoods are batched by tokens.
          max_batch_size, device: not read. lm_eval passes cuda:0 where its user named no device.

        Raises:
          InputError: both or none of run and model, or neither can be opened.
        """
        super().__init__()
        if bool(run) == bool(model):
            raise InputError(f"model_args: run={run} and model={model}; give one of them")
        opened = open_run(run, step=step, platform=platform) if run else open_trained(model, platform=platform)
        self.tokenizer = require_tokenizer(opened)
        self.engine, self.scorer, self.max_length = opened.engine(), SpanScorer(opened), opened.model.seq_len
        self.n_rows = 8 if str(batch_size).startswith("auto") else int(batch_size)

    @property
    def tokenizer_name(self) -> str:
        """For lm_eval's cache of requests."""
        return f"{self.tokenizer.name}-{self.tokenizer.digest()[:16]}"

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether it is the greedy text) of each (context, continuation)."""
        spans = [self._span(*self._encode_pair(*request.args)) for request in requests]
        return [(-score.nats, score.is_greedy) for score in self.scorer(spans)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each text, cut into windows that overlap by one token."""
        windows = [list(self._windows(self.tokenizer.encode(request.args[0]))) for request in requests]
        scores = iter(self.scorer([span for spans in windows for span in spans]))
        return [-sum(next(scores).nats for _ in spans) for spans in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, before the first stop text."""
        texts: list[str] = []
        for first in range(0, len(requests), self.n_rows):
            texts += self._generate([request.args for request in requests[first : first + self.n_rows]])
        return texts

    def _generate(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        asked, streams = [], []
        for context, settings in requests:
            unknown = set(settings) - SETTINGS
            if unknown:
                raise InputError(f"generation setting {', '.join(sorted(unknown))} is not supported; remove it")
            until = settings.get("until") or []
            stops = [until] if isinstance(until, str) else [text for text in until if text]
            n_new = next((settings[name] for name in LENGTH_NAMES if settings.get(name)), DEFAULT_NEW_TOKENS)
            n_new = min(int(n_new), self.max_length - 1)
            temperature = float(settings.get("temperature") or 0.0)
            if settings.get("do_sample") is False or (not temperature and not settings.get("do_sample")):
                temperature = 0.0
            elif not temperature:
                temperature = 1.0
            prompt = self.tokenizer.encode_prompt(context)[-(self.max_length - n_new) :]
            asked.append(
                Request(
                    prompt, n_new, self.tokenizer.stop_ids(), temperature=temperature,
                    top_k=int(settings.get("top_k") or 0), top_p=float(settings.get("top_p") or 1.0),
                    seed=int(settings.get("seed") or 0), sample=len(asked),
                )
            )  # fmt: skip
            streams.append(TextStream(self.tokenizer, stops, prompt))
        texts = [""] * len(asked)
        for ids in self.engine.rows(asked):
            texts = [text + stream.feed(token) for text, stream, token in zip(texts, streams, ids, strict=True)]
            if all(stream.has_ended for stream in streams):
                break
        return [text + stream.finish() for text, stream in zip(texts, streams, strict=True)]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of what follows it. Spaces between them belong to the continuation, as in lm_eval."""
        if not context:
            return self.tokenizer.encode_prompt(""), self.tokenizer.encode(continuation)
        text = context.rstrip()
        before = self.tokenizer.encode_prompt(text) if text else self.tokenizer.encode_prompt("")
        whole = self.tokenizer.encode_prompt(context + continuation)
        if not text and self.tokenizer.begin_of_text is None:
            return before, whole
        return before, whole[len(before) :]

    def _span(self, before: Sequence[int], after: Sequence[int]) -> Span:
        row = np.array([*before, *after], np.int32)
        return Span(row, len(before), len(row)).keep_last(self.max_length)

    def _windows(self, ids: Sequence[int]) -> Iterator[Span]:
        """Rows of at most the context in which each id is scored once, after as many others as fit."""
        ids = [*self.tokenizer.encode_prompt("")[:1], *ids]
        done = 1
        while done < len(ids):
            end = min(max(done, 1) + self.max_length - 1, len(ids))
            first = max(end - self.max_length, 0)
            yield Span(np.array(ids[first:end], np.int32), done - first, end - first)
            done = end


def register() -> type:
    """Makes the model known to lm_eval; its class.

    Raises:
      InputError: lm_eval is not installed.
    """
    try:
        from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
        from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"lm_eval cannot be imported ({error}); {pip_install('lm-eval')}") from error
    return register_model("jaxgpt")(type("JaxgptLM", (JaxgptModel, LM), {}))


def main(args: list[str]) -> int:
    """lm_eval's command line, with the model registered."""
    register()
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    sys.argv[1:] = args
    cli_evaluate()
    return 0


if __name__ == "__main__":
    run_verb(main, prints="result")
