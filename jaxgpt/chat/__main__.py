"""Talks to a trained model in the terminal. A chat model converses, a base model completes what you type.

A model that was trained on conversations remembers what was said, as far as its context reaches, and may use its
calculator. Lines from a pipe are answered one after another; --prompt asks for one answer. Facts go to stderr.
/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.

  jaxgpt chat --run runs/sft_cpu
  jaxgpt chat --run runs/sft_cpu --prompt "Why is the sky blue?" --temperature 0
  jaxgpt chat --model gpt2 --prompt - < beginning.txt
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse
import secrets

from jaxgpt.errors import InputError, answer_early
from jaxgpt.inference.arguments import add_draft_flags, source_parser
from jaxgpt.inference.request import check_settings

MODES = ("chat", "complete")


def read_arguments(args: list[str]) -> argparse.Namespace:
    parser = source_parser("jaxgpt chat", __doc__, "[flags]", "--run runs/sft_cpu")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="one answer to this, and end; - reads stdin to its end")
    parser.add_argument("--system", metavar="TEXT", default="", help="instructions before the first message")
    for flag, kind, usual, about in (
        ("--max-tokens", int, 256, "length of an answer (256)"),
        ("--temperature", float, 0.6, "0: the likeliest token; 1: as the model says (0.6)"),
        ("--top-k", int, None, "among the N likeliest tokens; 0: all (50, or all)"),
        ("--top-p", float, 1.0, "among the likeliest of this total probability (1)"),
        ("--seed", int, None, "same seed and messages, same answers (drawn)"),
    ):
        parser.add_argument(flag, type=kind, default=usual, metavar="N" if kind is int else "X", help=about)
    parser.add_argument("--mode", choices=MODES, help="converse, or complete (what the model was trained for)")
    add_draft_flags(parser)
    given = parser.read(args)
    given.seed = secrets.randbits(32) if given.seed is None else given.seed
    check_settings(
        max_tokens=given.max_tokens, temperature=given.temperature, top_k=given.top_k or 0, top_p=given.top_p,
        seed=given.seed,
    )  # fmt: skip
    return given


if __name__ == "__main__":
    answer_early(read_arguments)

import sys

from jaxgpt.chat.talk import Sampling, Talk, converses
from jaxgpt.chat.terminal import Terminal
from jaxgpt.errors import EXIT_DONE, run_verb
from jaxgpt.inference.speculative import open_drafted
from jaxgpt.inference.trained import open_source

DEFAULT_TOP_K = 50
PROMPT_LIMIT_BYTES = 16 << 20


def main(args: list[str]) -> int:
    given = read_arguments(args)
    prompt = read_stdin() if given.prompt == "-" else given.prompt
    talk = open_talk(given)
    terminal = Terminal(talk)
    if prompt is None:
        terminal.run()
    else:
        terminal.say(prompt)
    return EXIT_DONE


def open_talk(given: argparse.Namespace) -> Talk:
    """The model that the arguments name, with nothing said yet.

    Raises:
      InputError: it cannot be opened, has no tokenizer, or cannot converse and is to.
    """
    trained = open_source(given)
    tokenizer = trained.tokenizer
    if tokenizer is None:
        raise InputError(
            f"{trained.origin} has no tokenizer for its {trained.model.vocab_size} ids; "
            "jaxgpt sample --data DIR takes that of a data directory"
        )
    does_converse = converses(trained) if given.mode is None else given.mode == "chat"
    top_k = min(DEFAULT_TOP_K, tokenizer.vocab_size) if given.top_k is None else given.top_k
    if given.draft:
        rows = open_drafted(trained, given.draft, n_draft=given.draft_tokens, platform=given.platform)
    else:
        rows = trained.engine().rows([None])
    talk = Talk(
        rows,
        tokenizer,
        Sampling(given.max_tokens, given.temperature, top_k, given.top_p, given.seed),
        n_positions=trained.model.seq_len,
        converses=does_converse,
    )
    if given.system:
        talk.need_dialogue("--system").system = given.system
    device = trained.mesh.devices.flat[0].device_kind
    how = "converses" if does_converse else "completes what you type"
    print(f"{trained.origin}: {how}; {trained.compute_dtype} on {device}; /help", file=sys.stderr, flush=True)
    return talk


def read_stdin() -> str:
    """All of stdin, without the newline at its end.

    Raises:
      InputError: too much, or not UTF-8.
    """
    data = sys.stdin.buffer.read(PROMPT_LIMIT_BYTES + 1)
    if len(data) > PROMPT_LIMIT_BYTES:
        raise InputError(f"the prompt on stdin has more than {PROMPT_LIMIT_BYTES} bytes; give its end")
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on stdin is not UTF-8 at byte {error.start}; convert it") from error


if __name__ == "__main__":
    run_verb(main, prints="stream")
