"""Learns a tokenizer from text: a byte-level BPE, whose tokens are the most frequent pieces of words in this text.

    python -m jaxgpt.prepare pydocs --format text
    python -m jaxgpt.train_tokenizer --data data/pydocs_text --vocab-size 4096
    python -m jaxgpt.train_tokenizer --data data/climbmix

DIR holds text shards: shard_*.parquet, a column `text`, a document per row. All but the last file, which is for
validation, are read in order until more than --max-chars characters are read, and of each document the first --doc-cap
characters, so that a few long ones do not decide. The tokenizer goes to DIR/tokenizer.json, where training on DIR finds
it.

A larger vocabulary makes fewer tokens of a text, and more rows of the embedding: 32768 suits nanochat's models, 4096 a
model of a few million parameters. Its last nine ids are control tokens (<|bos|>, <|user_start|> ...), which text never
becomes. The same text and settings give the same tokenizer.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from jaxgpt.data.bpe import MAX_CHARS, MAX_DOCUMENT_CHARS, check_vocab_size, train_bpe
from jaxgpt.data.text_data import TOKENIZER, TextSplit, open_splits
from jaxgpt.data.tokenizer import GPT2Tokenizer, Tokenizer
from jaxgpt.errors import EXIT_DONE, InputError, run_verb
from jaxgpt.files import write_atomically
from jaxgpt.prepare.destination import train_command
from jaxgpt.run.progress import Progress

COMPARED_CHARS = 5_000_000
"""Characters of the validation file that are encoded to measure bytes per token."""


def main(args: list[str]) -> int:
    options = parse_args(args)
    out = Path(options.out)
    try:
        train, val = open_data(options.data)
        began = time.monotonic()
        with Progress() as progress:
            reading = progress.bar("counting words")
            merging = progress.bar("merging")
            tokenizer = train_bpe(
                read_texts(train, options.max_chars, options.doc_cap, reading),
                options.vocab_size,
                progress=lambda n, total: merging(n, total, f"{n:,} of {total:,} merges"),
            )
        write_tokenizer(tokenizer, out)
        print(f"{out} has {tokenizer.vocab_size:,} tokens, learned in {time.monotonic() - began:.1f} s")
        compare(tokenizer, val)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise  # the reader of our output left; run_verb handles it
        raise InputError(f"{error.filename or out}: {error.strerror or error}; choose another --out") from error
    setting = "" if out == Path(options.data, TOKENIZER) else f" --data.tokenizer={out}"
    print(f"next: {train_command(Path(options.data), 'text')}{setting}")
    return EXIT_DONE


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; python -m jaxgpt.train_tokenizer --help lists the options")


def parse_args(args: list[str]) -> argparse.Namespace:
    """The command line, checked before any text is read."""
    parser = _Parser(
        prog="python -m jaxgpt.train_tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", metavar="DIR", required=True, help="a directory of text shards")
    parser.add_argument("--vocab-size", type=int, metavar="N", default=32768, help="all tokens (%(default)s)")
    parser.add_argument(
        "--max-chars", type=int, metavar="N", default=2_000_000_000, help="characters to learn from (%(default)s)"
    )
    parser.add_argument(
        "--doc-cap", type=int, metavar="N", default=10_000, help="characters of one document (%(default)s)"
    )
    parser.add_argument("--out", metavar="FILE", default="", help=f"the file to write (DIR/{TOKENIZER})")
    parser.add_argument("--force", action="store_true", help="replace an existing tokenizer")
    options = parser.parse_args(args)
    try:
        check_vocab_size(options.vocab_size)
    except InputError as error:
        raise InputError(f"--{str(error).replace('_', '-', 1)}") from None
    for flag, most in (("max_chars", MAX_CHARS), ("doc_cap", MAX_DOCUMENT_CHARS)):
        value, usual = getattr(options, flag), parser.get_default(flag)
        if not 1 <= value <= most:
            raise InputError(f"--{flag.replace('_', '-')}={value} is outside [1, {most}]; {usual} is usual")
    options.out = options.out or str(Path(options.data, TOKENIZER))
    out = Path(options.out)
    if out.is_dir() or not out.parent.is_dir():
        problem = "is a directory" if out.is_dir() else f"has no directory {out.parent}"
        if Path(options.data).is_dir():
            raise InputError(f"--out {out} {problem}; name a file, such as {Path(options.data, TOKENIZER)}")
    if out.exists() and not options.force:
        raise InputError(f"--out {out} exists, and runs may need it; pass --force to replace it, or name another file")
    return options


def open_data(directory: str) -> tuple[TextSplit, TextSplit]:
    """The documents of the directory, for training and for validation."""
    if not Path(directory).is_dir():
        raise InputError(
            f"--data {directory} is not a directory; "
            f"`python -m jaxgpt.prepare NAME --format text --out {directory}` creates one"
        )
    try:
        return open_splits(Path(directory))
    except InputError as error:
        raise InputError(str(error).replace("data.dir=", "--data ", 1)) from error


def read_texts(split: TextSplit, max_chars: int, doc_cap: int, show: Any = None) -> Iterator[str]:
    """The first `doc_cap` characters of each document, up to the one that exceeds `max_chars` in total.

    That document is not cut: as in nanochat's tok_train, up to `doc_cap` characters more than `max_chars` are read.

    Raises:
      InputError: a file cannot be read, or is not UTF-8.
    """
    n_chars, n_groups = 0, split.n_groups
    for group in range(n_groups):
        try:
            texts = split.read_group(group).to_pylist()
        except UnicodeDecodeError as error:
            raise InputError(f"{split.describe(group)} is not UTF-8 ({error.reason}); fetch the file again") from error
        for text in texts:
            if text:
                text = text[:doc_cap]
                n_chars += len(text)
                yield text
            if n_chars > max_chars:
                return
        if show:
            total = min(max_chars, n_chars * n_groups / (group + 1))
            show(n_chars, total, f"{n_chars / 1e6:,.1f} of about {total / 1e6:,.1f} M characters")


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes a tokenizer's JSON in one step, a token per line."""
    write_atomically(path, json.dumps(tokenizer.to_json(), indent=0))


def compare(tokenizer: Tokenizer, val: TextSplit) -> None:
    """Prints how many bytes of validation text a token stands for, here and in GPT-2's vocabulary."""
    tokenizers, note = [tokenizer, GPT2Tokenizer()], ""
    try:
        tokenizers[1].encode("a")
    except InputError as error:
        tokenizers.pop()
        note = f"not compared with GPT-2's: {error}"
    n_tokens, n_bytes = [0] * len(tokenizers), 0
    texts = read_texts(val, COMPARED_CHARS, COMPARED_CHARS)
    while batch := list(islice(texts, 1024)):
        n_bytes += sum(len(text.encode("utf-8")) for text in batch)
        for i, other in enumerate(tokenizers):
            n_tokens[i] += sum(map(len, other.encode_batch(batch, os.cpu_count() or 1)))
    if n_bytes:
        per_token = [
            f"{n_bytes / n:.3f} by {who}" for n, who in zip(n_tokens, ("this", "GPT-2's 50,257"), strict=False)
        ]
        print(f"bytes per token, on {n_bytes / 1e6:,.1f} MB of {val.files[0].path.name}: {', '.join(per_token)}")
    if note:
        print(note)


if __name__ == "__main__":
    run_verb(main)
