"""Writes text with a trained model.

The prompt and the generated text go to stdout as they come; facts and speed go to stderr. Text ends after --max-tokens,
or where the model ends it (GPT-2's <|endoftext|>). When the context is full, the model continues from its last half.

  python -m jaxgpt.sample --run runs/quickstart --prompt "To be"
  python -m jaxgpt.sample --model gpt2 --prompt "The answer is" --max-tokens 100 --temperature 0
  python -m jaxgpt.sample --run runs/owt --step 20000 --prompt @question.txt
  python -m jaxgpt.sample --model ckpt.pt --data DIR --prompt "ROMEO:"       (nanoGPT's; DIR holds its meta.pkl)
  python -m jaxgpt.sample --model gpt2-xl --samples 4 --top-k 0 --top-p 0.95 > texts.txt
"""

import argparse
import sys
import time
from collections.abc import Iterator

from jaxgpt.data.sources import open_directory
from jaxgpt.data.tokenizer import StreamDecoder, Tokenizer
from jaxgpt.errors import EXIT_DONE, InputError, run_verb
from jaxgpt.files import read_bounded, user_location, user_path
from jaxgpt.inference.request import check_settings
from jaxgpt.inference.trained import open_source, source_parser, with_tokenizer_of
from jaxgpt.streams import visible

SEPARATOR = "---------------"
PROMPT_LIMIT_BYTES = 16 << 20


def main(args: list[str]) -> int:
    return sample(parse_args(args))


def parse_args(args: list[str]) -> argparse.Namespace:
    parser = source_parser("jaxgpt.sample", __doc__ or "")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt",
        default="\n",
        metavar="TEXT",
        help="text to continue, '' to begin one; @FILE reads a file (default: a newline)",
    )
    prompt.add_argument(
        "--prompt-file", metavar="FILE", type=user_path, help="text to continue, to the last byte; - reads stdin"
    )
    parser.add_argument("--max-tokens", type=int, default=500, metavar="N", help="length of a sample (default: 500)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="X",
        help="0 chooses the most likely token, 1 samples from the model's distribution (default: 0.8)",
    )  # fmt: skip
    parser.add_argument(
        "--top-k", type=int, metavar="N", help="sample among the N most likely tokens; 0: all (default: 200, or all)"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="X",
        help="sample among the most likely tokens that together have this probability (default: 1, all)",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="texts to write, all at once (default: 1)")
    parser.add_argument("--seed", type=int, default=1337, metavar="N", help="same seed, same text (default: 1337)")
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=user_location,
        help="data directory to take the tokenizer from, if the model has none",
    )
    parser.add_argument(
        "--verify", action="store_true", help="with --data: hash all of the data again, also what was hashed before"
    )
    settings = parser.parse_args(args)
    check_settings(
        max_tokens=settings.max_tokens, temperature=settings.temperature, top_k=settings.top_k or 0,
        top_p=settings.top_p, seed=settings.seed, n_samples=settings.samples,
    )  # fmt: skip
    return settings


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
    steps = engine.generate(
        prompt_ids,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_k=min(200, tokenizer.vocab_size) if settings.top_k is None else settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
        n_samples=settings.samples,
        stop_ids=tokenizer.stop_ids(),
    )
    device = trained.mesh.devices.flat[0].device_kind
    say(f"{trained.origin}: {engine.model.dtype} on {device}, {tokenizer.name} tokens")
    n_steps = write(steps, prompt, tokenizer, settings.samples)
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
    decoders = [StreamDecoder(tokenizer) for _ in range(n_samples)]
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
