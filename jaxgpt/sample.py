"""Writes text with a trained model.

The prompt and the generated text go to stdout as they come; facts and speed go to stderr. Text ends after --max-tokens,
or where the model ends it (GPT-2's <|endoftext|>). When the context is full, the model continues from its last half.

  jaxgpt sample --run runs/quickstart --prompt "To be"
  jaxgpt sample --model gpt2 --prompt "The answer is" --max-tokens 100 --temperature 0
  jaxgpt sample --run runs/owt --step 20000 --prompt @question.txt
  jaxgpt sample --model ckpt.pt --data DIR --prompt "ROMEO:"       (nanoGPT's; DIR holds its meta.pkl)
  jaxgpt sample --run runs/large --draft runs/small                (same distribution, fewer forwards)
  jaxgpt sample --model gpt2-xl --samples 4 --top-k 0 --top-p 0.95 > texts.txt
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse

from jaxgpt.errors import InputError, answer_early
from jaxgpt.files import user_location, user_path
from jaxgpt.inference.arguments import add_draft_flags, source_parser
from jaxgpt.inference.request import Request, check_settings


def read_arguments(args: list[str]) -> argparse.Namespace:
    parser = source_parser(
        "jaxgpt sample", __doc__, "[--prompt TEXT] [flags]", '--run runs/quickstart --prompt "To be" --max-tokens 100'
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="\n", metavar="TEXT", help="to continue; @FILE reads a file (a newline)")
    prompt.add_argument("--prompt-file", metavar="FILE", type=user_path, help="the same, to its last byte; - is stdin")
    for flag, kind, usual, about in (
        ("--max-tokens", int, 500, "length of a sample (500)"),
        ("--temperature", float, 0.8, "0: the likeliest token; 1: as the model says (0.8)"),
        ("--top-k", int, None, "among the N likeliest tokens; 0: all (200, or all)"),
        ("--top-p", float, 1.0, "among the likeliest of this total probability (1)"),
        ("--samples", int, 1, "texts to write, all at once (1)"),
        ("--seed", int, 1337, "same seed, same text (1337)"),
    ):
        parser.add_argument(flag, type=kind, default=usual, metavar="N" if kind is int else "X", help=about)
    parser.add_argument(
        "--data", metavar="DIR", type=user_location, help="data whose tokenizer fits, if the model has none"
    )
    add_draft_flags(parser)
    parser.add_argument("--verify", action="store_true", help="with --data: hash all of the data again")
    settings = parser.read(args)
    check_settings(
        max_tokens=settings.max_tokens, temperature=settings.temperature, top_k=settings.top_k or 0,
        top_p=settings.top_p, seed=settings.seed, n_samples=settings.samples,
    )  # fmt: skip
    if settings.draft and settings.samples > 1:
        raise InputError(f"--samples={settings.samples} is above 1, and --draft is for one text; keep one of them")
    return settings


if __name__ == "__main__":
    answer_early(read_arguments)

import dataclasses
import sys
import time
from collections.abc import Iterator

from jaxgpt.data.sources import open_directory
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import EXIT_DONE, run_verb
from jaxgpt.files import read_bounded
from jaxgpt.inference.speculative import open_drafted
from jaxgpt.inference.trained import open_source, with_tokenizer_of
from jaxgpt.streams import visible

SEPARATOR = "---------------"
PROMPT_LIMIT_BYTES = 16 << 20


def main(args: list[str]) -> int:
    return sample(read_arguments(args))


def sample(settings: argparse.Namespace) -> int:
    prompt = read_prompt(settings)
    trained = open_source(settings)
    if settings.data:
        trained = with_tokenizer_of(trained, open_directory(settings.data, verify_again=settings.verify))
    tokenizer = trained.tokenizer
    if tokenizer is None:
        raise InputError(
            f"{trained.origin} has no tokenizer for its {trained.model.vocab_size} ids; "
            "give --data DIR, a directory prepared with its tokenizer"
        )
    engine = trained.engine()
    try:
        prompt_ids = tokenizer.encode_prompt(prompt)
    except InputError as error:
        raise InputError(f"--prompt={prompt[:40]!r} cannot be read: {error}; or choose another --prompt") from error
    request = Request(
        prompt_ids,
        max_tokens=settings.max_tokens,
        stop_ids=tokenizer.stop_ids(),
        temperature=settings.temperature,
        top_k=min(200, tokenizer.vocab_size) if settings.top_k is None else settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
    )
    drafted = None
    if settings.draft:
        drafted = open_drafted(trained, settings.draft, n_draft=settings.draft_tokens, platform=settings.platform)
        drafted.start(0, request)
    samples = [dataclasses.replace(request, sample=i) for i in range(settings.samples)]
    steps = drafted or engine.rows(samples)
    device = trained.mesh.devices.flat[0].device_kind
    say(f"{trained.origin}: {engine.model.dtype} on {device}, {tokenizer.name} tokens")
    n_steps = write(steps, prompt, tokenizer, settings.samples)
    if drafted:
        say(drafted.summary())
    if len(prompt_ids) + n_steps - 1 > engine.n_positions:
        say(f"longer than the context of {engine.n_positions} tokens: whenever it was full, its last half was kept")
    return EXIT_DONE


def read_prompt(settings: argparse.Namespace) -> str:
    """The prompt of the command line, or of the file that it names."""
    file, prompt = settings.prompt_file, settings.prompt
    if file is None and prompt.startswith("@"):
        file = user_path(prompt[1:], "--prompt")
    if file is not None:
        try:
            limit = PROMPT_LIMIT_BYTES
            data = sys.stdin.buffer.read(limit + 1) if file == "-" else read_bounded(file, limit)
            if len(data) > limit:
                raise InputError(f"the prompt on stdin has more than {limit} bytes; give its end")
            prompt = data.decode("utf-8")
        except OSError as error:
            raise InputError(f"prompt file {file} cannot be read: {error.strerror}; give another") from error
        except UnicodeDecodeError as error:
            raise InputError(f"prompt file {file} is not UTF-8 at byte {error.start}; convert it") from error
    return prompt


def write(steps: Iterator[list[int | None]], prompt: str, tokenizer: Tokenizer, n_samples: int) -> int:
    """Shows the first sample as it comes, then the others, and says how fast they came. Returns how many steps."""
    decoders = [tokenizer.stream_decoder(tokenizer.encode(prompt)) for _ in range(n_samples)]
    texts = [prompt] * n_samples
    n_steps, n_tokens, times_s = 0, 0, [time.perf_counter()]
    show(prompt)
    try:
        for ids in steps:
            times_s = [*times_s[:2], time.perf_counter()]
            for row, token_id in enumerate(ids):
                if token_id is not None and token_id not in tokenizer.stop_ids():
                    text = decoders[row].feed(token_id)
                    texts[row] += text
                    if row == 0:
                        show(text)
            n_steps += 1
            n_tokens += n_samples - ids.count(None)
    finally:
        n_shown = len(texts[0])
        texts = [text + decoder.finish() for text, decoder in zip(texts, decoders, strict=True)]
        texts = [text if text.endswith("\n") else f"{text}\n" for text in texts]
        show(texts[0][n_shown:])
        say(speed_of(n_tokens, n_samples, times_s))
    for text in texts[1:]:
        show(f"{SEPARATOR}\n{text}")
    return n_steps


def speed_of(n_tokens: int, n_samples: int, times_s: list[float]) -> str:
    """In words. The first step is counted apart: it waits for the compiler.

    Args:
      times_s: when generating began, when the first step ended, and the last.
    """
    if len(times_s) < 3:
        return f"{n_tokens} tokens"
    begin, first, last = times_s
    per_s = (n_tokens - n_samples) / (last - first)
    return f"{n_tokens} tokens, the first after {first - begin:.1f} s, then {per_s:,.1f} tokens/s"


def show(text: str) -> None:
    """Writes text to stdout at once. A model can write escape sequences, which a terminal would obey."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def say(message: str) -> None:
    """Writes a line to stderr, below the text where both go to one terminal."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_verb(main, prints="stream")
