"""Learns a tokenizer from text: a byte-level BPE, whose tokens are the most frequent pieces of words in this text.

    jaxgpt prepare pydocs --format text
    jaxgpt train_tokenizer --data data/pydocs_text --vocab-size 4096
    jaxgpt train_tokenizer --data data/climbmix
    jaxgpt train_tokenizer --input 'crawl/*.jsonl.gz' --out tokenizer.json

DIR holds text shards: shard_*.parquet, a column `text`, a document per row. All but the last file, which is for
validation, are read in order until more than --max-chars characters are read, and of each document the first --doc-cap
characters, so that a few long ones do not decide. The tokenizer goes to DIR/tokenizer.json, where training on DIR finds
it. --input reads files instead, the same ones as `jaxgpt prepare --input`.

A larger vocabulary makes fewer tokens of a text, and more rows of the embedding: 32768 suits nanochat's models, 4096 a
model of a few million parameters. Its last nine ids are control tokens (<|bos|>, <|user_start|> ...), which text never
becomes. The same text and settings give the same tokenizer.
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse
from pathlib import Path

from jaxgpt.config.parser import Parser
from jaxgpt.data.bpe import MAX_CHARS, MAX_DOCUMENT_CHARS, check_vocab_size
from jaxgpt.data.text_data import TOKENIZER
from jaxgpt.errors import InputError, answer_early
from jaxgpt.files import user_path
from jaxgpt.prepare.inputs import READERS


def read_arguments(args: list[str]) -> argparse.Namespace:
    """The command line, checked before any text is read."""
    parser = Parser(
        "jaxgpt train_tokenizer", __doc__, "(--data DIR | --input PATH ... --out FILE) [flags]",
        "--data data/pydocs_text --vocab-size 4096",
    )  # fmt: skip
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--data", metavar="DIR", type=user_path, default="", help="a directory of text shards")
    texts.add_argument(
        "--input", nargs="+", metavar="PATH", type=user_path, default=[], help="files, directories or globs to read"
    )
    parser.add_argument("--text-field", metavar="NAME", default="text", help="--input: field of the text (text)")
    parser.add_argument(
        "--input-format", metavar="NAME", choices=tuple(READERS), default="", help=f"--input: {', '.join(READERS)}"
    )
    for flag, usual, about in (
        ("--vocab-size", 32768, "all tokens"),
        ("--max-chars", 2_000_000_000, "characters to learn from"),
        ("--doc-cap", 10_000, "characters of one document"),
    ):
        parser.add_argument(flag, type=int, metavar="N", default=usual, help=f"{about} ({usual})")
    parser.add_argument("--out", metavar="FILE", type=user_path, default="", help=f"file to write (DIR/{TOKENIZER})")
    parser.add_argument("--force", action="store_true", help="replace an existing tokenizer")
    options = parser.read(args)
    try:
        check_vocab_size(options.vocab_size)
    except InputError as error:
        raise InputError(f"--{str(error).replace('_', '-', 1)}") from None
    for flag, most in (("max_chars", MAX_CHARS), ("doc_cap", MAX_DOCUMENT_CHARS)):
        value, usual = getattr(options, flag), parser.get_default(flag)
        if not 1 <= value <= most:
            raise InputError(f"--{flag.replace('_', '-')}={value} is outside [1, {most}]; {usual} is usual")
    if options.input and not options.out:
        raise InputError("--input needs --out FILE, such as --out tokenizer.json")
    options.out = options.out or str(Path(options.data, TOKENIZER))
    out = Path(options.out)
    if out.is_dir() or not out.parent.is_dir():
        problem = "is a directory" if out.is_dir() else f"has no directory {out.parent}"
        if options.input or Path(options.data).is_dir():
            raise InputError(f"--out {out} {problem}; name a file, such as {Path(options.data, TOKENIZER)}")
    if out.exists() and not options.force:
        raise InputError(f"--out {out} exists, and runs may need it; pass --force to replace it, or name another file")
    return options


if __name__ == "__main__":
    answer_early(read_arguments)

import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from jaxgpt.data.bpe import train_bpe
from jaxgpt.data.text_data import TextSplit, open_splits, verify_text
from jaxgpt.data.tokenizer import GPT2Tokenizer, Tokenizer
from jaxgpt.errors import EXIT_DONE, run_verb
from jaxgpt.files import write_atomically
from jaxgpt.prepare.destination import train_command
from jaxgpt.prepare.inputs import find_inputs, open_files
from jaxgpt.prepare.source import Source, describe_left_out
from jaxgpt.prepare.text_shards import PAGE_CHARS
from jaxgpt.run.console import console
from jaxgpt.run.progress import Progress

COMPARED_CHARS = 5_000_000
"""Characters of the validation file that are encoded to measure bytes per token."""


def main(args: list[str]) -> int:
    options = read_arguments(args)
    out = Path(options.out)
    try:
        source, val = open_input(options) if options.input else open_data(options.data)
        began = time.monotonic()
        with Progress() as progress:
            reading = progress.bar("counting words")
            merging = progress.bar("merging")
            tokenizer = train_bpe(
                read_texts(source, options.max_chars, options.doc_cap, reading),
                options.vocab_size,
                progress=lambda n, total: merging(n, total, f"{n:,} of {total:,} merges"),
            )
        write_tokenizer(tokenizer, out)
        console.say(f"{out} has {tokenizer.vocab_size:,} tokens, learned in {time.monotonic() - began:.1f} s")
        if isinstance(source, Source) and (words := describe_left_out(source.left_out)):
            console.say(f"left out: {words}")
        compare(tokenizer, val)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise  # the reader of our output left; run_verb handles it
        raise InputError(f"{error.filename or out}: {error.strerror or error}; choose another --out") from error
    if options.data:
        settings = [] if out == Path(options.data, TOKENIZER) else [f"--data.tokenizer={out}"]
        console.say(f"next: {train_command(Path(options.data), 'text', settings)}")
    return EXIT_DONE


def open_data(directory: str) -> tuple[TextSplit, TextSplit]:
    """The documents of the directory, for training and for validation, if they are what was prepared."""
    if not Path(directory).is_dir():
        raise InputError(
            f"--data {directory} is not a directory; "
            f"`jaxgpt prepare NAME --format text --out {shlex.quote(directory)}` creates one"
        )
    try:
        train, val = open_splits(Path(directory))
        verify_text(train, val)
        return train, val
    except InputError as error:
        raise InputError(str(error).replace("data.dir=", "--data ", 1)) from error


def open_input(options: argparse.Namespace) -> tuple[Source, Source]:
    """The documents of the files, to learn from and to measure on."""
    left_out: Counter[str] = Counter()
    source = open_files(find_inputs(options.input, left_out=left_out), options.text_field, options.input_format)
    if words := describe_left_out(left_out):
        console.say(f"left out: {words}")
    if source.note:
        console.say(f"note: {source.note}")
    return source, source


def read_texts(source: TextSplit | Source, max_chars: int, doc_cap: int, show: Any = None) -> Iterator[str]:
    """The first `doc_cap` characters of each document, up to the one that exceeds `max_chars` in total.

    That document is not cut: as in nanochat's tok_train, up to `doc_cap` characters more than `max_chars` are read.

    Raises:
      InputError: a file cannot be read, or is not UTF-8.
    """
    n_chars = 0
    for texts, fraction in _read_input(source) if isinstance(source, Source) else _read_groups(source):
        for text in texts:
            if text:
                text = text[:doc_cap]
                n_chars += len(text)
                yield text
            if n_chars > max_chars:
                return
        if show:
            total = min(max_chars, n_chars / max(fraction, 1e-9))
            show(n_chars, total, f"{n_chars / 1e6:,.1f} of about {total / 1e6:,.1f} M characters")


def _read_groups(split: TextSplit) -> Iterator[tuple[list[str | None], float]]:
    """The texts of each row group, and how much of all groups that is so far."""
    for group in range(split.n_groups):
        try:
            texts = split.read_group(group).to_pylist()
        except UnicodeDecodeError as error:
            raise InputError(f"{split.describe(group)} is not UTF-8 ({error.reason}); fetch the file again") from error
        yield texts, (group + 1) / split.n_groups


def _read_input(source: Source) -> Iterator[tuple[list[str | None], float]]:
    """Each document, and how much of all was read so far. Of one that comes in pieces the first counts."""
    n_read, is_new = 0.0, True
    for piece in source.pieces():
        n_read += piece.n_read
        if source.is_one_text:  # a book has no documents; its beginning would be all that is learned from
            texts = [piece.text[at : at + PAGE_CHARS] for at in range(0, len(piece.text), PAGE_CHARS)]
            yield [*texts], n_read / source.total
        elif is_new:
            yield [piece.text], n_read / source.total
        is_new = piece.ends_document


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes a tokenizer's JSON in one step, a token per line."""
    write_atomically(path, json.dumps(tokenizer.to_json(), indent=0))


def compare(tokenizer: Tokenizer, val: TextSplit | Source) -> None:
    """Prints how many bytes of text a token stands for, here and in GPT-2's vocabulary."""
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
        where = "the input" if isinstance(val, Source) else val.files[0].path.name
        console.say(f"bytes per token, on {n_bytes / 1e6:,.1f} MB of {where}: {', '.join(per_token)}")
    if note:
        console.say(note)


if __name__ == "__main__":
    run_verb(main)
