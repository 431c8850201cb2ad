"""Prepares data: text in, token shards and their manifest out. Or text shards, which are tokenized while training.

    jaxgpt prepare shakespeare_char
    jaxgpt prepare mytext --input book.txt
    jaxgpt prepare mydocs --input 'crawl/*.parquet' --tokenizer gpt2
    jaxgpt prepare mydocs --input 'crawl/*.parquet' --tokenizer DIRECTORY     (that has a tokenizer.json)
    jaxgpt prepare mydocs --input 'crawl/*.parquet' --format text
    jaxgpt prepare mydocs --input 'crawl/*.parquet' --format modded
    jaxgpt prepare climbmix --shards 8
    jaxgpt prepare fineweb10B --shards 9
    jaxgpt prepare chat --input conversations.jsonl
    jaxgpt prepare sft_2026 --mixture sft_2026
    jaxgpt prepare mine --mixture own+gsm8k:200 --input own=conversations.jsonl gsm8k=train.jsonl

--input reads text files (.txt, .md, and others that you name), .jsonl or .ndjson, .json, .csv, .tsv, .parquet, .arrow
and directories that Hugging Face's datasets saved, also compressed (.gz, .zst, .bz2, .xz). Where its name does not say
what a file is, its content does. Documents without text and empty files are left out and counted; a list of texts
becomes one document of as many lines.

A single text file is split by position, its last part for validation; documents (several files, lines, entries or
rows) are split by a hash of their index. GPT-2's end-of-text token follows every document; the character
and byte tokenizers, which have none, put a blank line there.

--format text writes parquet files, a document per row, the last file for validation. Models like nanochat's train on
those, with a tokenizer that `jaxgpt train_tokenizer` learns from them. Each page of a single text is a
document.

--format modded writes what modded-nanogpt reads, for --data.sampling=bos_aligned: files in llm.c's format, GPT-2's
end-of-text token in front of every document (byte: a token of id 256; or a tokenizer's own, of a file that
`jaxgpt train_tokenizer` wrote). Each page of a single text is a document here too. fineweb10B is published like this.
--format chat, or the name chat, reads conversations: {"messages": [...]} per line, OpenAI's and ShareGPT's layouts too.
--mixture writes what a stage of nanochat's trains on (mid_2025, sft_2025, sft_2026, sft_2026_spelling), or tasks joined
by +, in the order of nanochat's shuffle; chat_cpu is 500 short conversations that are made here, rl_gsm8k and rl_sums
are questions for jaxgpt rl. The others are fetched from the hub, or read from --input TASK=FILE.

The work happens in DIR/.tmp and is moved into place when it is complete: until then what was in DIR stays as it is.
Preparing the same data again does nothing. Published text is fetched file by file: ask for more at any time; existing
files are kept.
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse
import difflib
import re

from jaxgpt.config.parser import Parser
from jaxgpt.errors import InputError, answer_early
from jaxgpt.files import is_location, user_location, user_path
from jaxgpt.prepare.corpora import CORPORA, FINEWEB_TRAIN_SHARDS, TEXT_CORPORA
from jaxgpt.prepare.inputs import READERS

USUAL = {
    "shard_tokens": 100_000_000,
    "shard_chars": 250_000_000,
    "group_documents": 1000,
    "workers": 4,
}
"""Counts where none is given."""
TAKES = {
    "tokens": ("input", "tokenizer", "val_fraction", "shard_tokens", "text_field", "input_format"),
    "text": ("input", "val_fraction", "shard_chars", "group_documents", "text_field", "input_format"),
    "modded": ("input", "tokenizer", "val_fraction", "shard_tokens", "text_field", "input_format"),
    "chat": ("input", "val_fraction", "mixture"),
    "fineweb10B": ("input", "shards"),
    "fetched": ("shards",),
}
"""Options that mean something for a form, or for a corpus that is published."""


def dashed(flag: str) -> str:
    return f"--{flag.replace('_', '-')}"


def make_parser(about: dict[str, str]) -> Parser:
    """The arguments.

    Args:
      about: name -> description of each corpus.
    """
    corpora = "\n".join(f"  {name:<18}{line}" for name, line in about.items())
    parser = Parser(
        "jaxgpt prepare", f"{__doc__}\ncorpora:\n{corpora}\n  any other name    what --input names",
        "NAME [--input PATH ...] [flags]", "mytext --input book.txt",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(about)}; or a name for --input")
    parser.add_argument(
        "--input", nargs="+", metavar="PATH", type=user_path, default=[], help="files, directories or globs to read"
    )
    parser.add_argument("--out", metavar="DIR", type=user_location, default="", help="the result (data/NAME)")
    parser.add_argument("--tokenizer", metavar="NAME", help="char, byte, gpt2, a JSON file or directory of one")
    parser.add_argument("--val-fraction", type=float, metavar="X", help="part for validation (the corpus's; 0.1)")
    parser.add_argument(
        "--format", dest="form", choices=("tokens", "text", "chat", "modded"), help="what to write (tokens)"
    )
    parser.add_argument("--mixture", metavar="NAME", help="a stage of nanochat's, or tasks joined by +")
    parser.add_argument("--text-field", metavar="NAME", help="field or column that holds the text (text)")
    parser.add_argument("--input-format", metavar="NAME", choices=tuple(READERS), help=f"{', '.join(READERS)}")
    for flag, about_flag in (
        ("shards", "published corpora: how many training files"),
        ("shard_tokens", "tokens per file"),
        ("shard_chars", "--format text: characters per file"),
        ("group_documents", "--format text: documents per row group"),
        ("workers", "threads that tokenize or fetch"),
    ):
        usual = f" ({USUAL[flag]})" if flag in USUAL else ""
        parser.add_argument(dashed(flag), type=int, metavar="N", help=about_flag + usual)
    parser.add_argument("--force", action="store_true", help="replace what was prepared in DIR before")
    return parser


def read_arguments(args: list[str]) -> argparse.Namespace:
    """The command line, checked as far as it can be without looking at files."""
    about = {name: corpus.about for name, corpus in {**CORPORA, **TEXT_CORPORA}.items()}
    options = make_parser(about).read(args)
    name = options.name
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{name!r} is not a name for data; use letters, digits, - and _, and --out DIR for the place")
    if name not in about and not options.input and not options.mixture:
        near = difflib.get_close_matches(name, about, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"no corpus {name}; {guess}corpora: {', '.join(about)}; or give files: --input PATH")
    if name == "pydocs" and options.input:
        raise InputError("pydocs reads no --input; choose another name for your files")
    is_chat = name == "chat" or bool(options.mixture)
    form_published = "text" if name in TEXT_CORPORA else "chat" if is_chat else "tokens"
    options.form = options.form or form_published
    if name == "fineweb10B" and options.form == "modded":
        options.form = "tokens"  # it is published in that format
    refuse_flags(options)
    if options.val_fraction is not None and not 0 < options.val_fraction < 1:
        raise InputError(f"--val-fraction={options.val_fraction} is outside (0, 1); 0.1 is usual")
    for flag, usual in USUAL.items():
        if getattr(options, flag) is None:
            setattr(options, flag, usual)
        elif getattr(options, flag) < 1:
            raise InputError(f"{dashed(flag)}={getattr(options, flag)} is not positive; {usual} is usual")
    options.text_field = options.text_field or "text"
    suffix = f"_{options.form}" if options.form not in ("tokens", form_published) else ""
    options.out = options.out or f"data/{name}{suffix}"
    options.is_modded = options.form == "modded"
    options.form = "tokens" if options.is_modded else options.form
    if options.is_modded and options.shard_tokens >= 2**31:
        raise InputError(f"--shard-tokens={options.shard_tokens} is above {2**31 - 1}, what llm.c's header can say")
    options.out = options.out or f"data/{name}" + (
        "" if options.form in ("tokens", form_published) else f"_{options.form}"
    )
    return options


def refuse_flags(options: argparse.Namespace) -> None:
    """Raises InputError for an option that does not apply to what is asked."""
    name = options.name
    published = {"fineweb10B": ("tokens", FINEWEB_TRAIN_SHARDS)}
    published |= {text: ("text", corpus.n_train) for text, corpus in TEXT_CORPORA.items()}
    form, n_most = published.get(name, (options.form, 0))
    if form != options.form:
        raise InputError(f"{name} is published as {form}; --format {options.form} is not available")
    if form == "chat" and name in CORPORA:
        raise InputError(f"{name} is no conversations; choose another name for yours")
    takes = TAKES.get(name, TAKES["fetched"] if name in TEXT_CORPORA else TAKES[form])
    for flag in sorted({flag for flags in TAKES.values() for flag in flags} - set(takes)):
        value = getattr(options, flag)
        if value not in (None, []):
            what = name if n_most else f"{name} as {form}"
            there = ", ".join(map(dashed, takes))
            raise InputError(
                f"{dashed(flag)}={' '.join(value) if flag == 'input' else value} is not for {what}; options: {there}"
            )
    if name in TEXT_CORPORA and options.shards is None:
        raise InputError(
            f"--shards is missing: {name} has {n_most} files of 100 MB for training; "
            "8 will do for a tokenizer, 170 for nanochat's 24 layers"
        )
    if options.shards is not None and not 1 <= options.shards <= n_most:
        raise InputError(f"--shards={options.shards} is outside [1, {n_most}]; there are that many")
    if name in TEXT_CORPORA and options.force:
        raise InputError(f"--force does not apply to {name}; remove the files that you do not trust, and run it again")


if __name__ == "__main__":
    answer_early(read_arguments)

import hashlib
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt import signals
from jaxgpt.data.manifest import read_manifest
from jaxgpt.data.shards import open_dataset
from jaxgpt.data.text_data import read_tokenizer as read_saved_tokenizer
from jaxgpt.data.text_manifest import read_text_manifest
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import EXIT_DONE, run_verb
from jaxgpt.formats.vocabulary import read_tokenizer
from jaxgpt.mirror import directory_of, upload_directory
from jaxgpt.prepare.chat import describe_chat, write_conversations, write_mixture
from jaxgpt.prepare.corpora import (
    SHAKESPEARE_BYTES,
    Corpus,
    open_corpus,
)
from jaxgpt.prepare.destination import FORMS, claim, is_prepared, publish, publish_chat, publish_text, train_command
from jaxgpt.prepare.encode import NAMED, encode_source
from jaxgpt.prepare.inputs import find_inputs, open_files
from jaxgpt.prepare.source import describe_left_out
from jaxgpt.prepare.text_shards import describe_text, fetch_text_shards, write_text_shards
from jaxgpt.prepare.token_shards import gather_shards
from jaxgpt.run.console import console, working
from jaxgpt.run.progress import Progress
from jaxgpt.stores import Store
from jaxgpt.tasks.mixtures import MIXTURES, RL_STAGES, Sources, read_inputs, read_parts
from jaxgpt.tasks.task import Chain, Mixture


def main(args: list[str]) -> int:
    options = read_arguments(args)
    if not is_location(options.out):
        return prepare(options, Path(options.out))
    out = directory_of(options.out, "prepared")
    Store(options.out, "--out").list()  # before any work
    code = prepare(options, out)
    with working(f"uploading to {options.out}"):
        upload_directory(out, options.out, "--out", FORMS[options.form].manifest)
    return code


def prepare(options: argparse.Namespace, out: Path) -> int:
    kept = "is unchanged; run the same command to start again"
    if options.name in TEXT_CORPORA:
        kept = "keeps what was fetched; run the same command to continue"
    signals.enter(signals.Phase(f"interrupted; {out} {kept}"))
    try:
        if options.name in TEXT_CORPORA:
            return fetch_text(options, out)
        corpus = CORPORA.get(options.name, Corpus("", "documents", "char", 0.1))
        left_out: Counter[str] = Counter()
        mixture = find_mixture(options) if options.mixture else None
        inputs = mixture.files() if mixture else find_local(options, corpus, left_out)
        own = read_own_tokenizer(options)
        request = describe_request(options, corpus, inputs, own)
        if is_prepared(out, options.form, options.name, request, options.force):
            console.say(f"{out} is already prepared from the same input; --force prepares it again")
            return report(out, options.form)
        began = time.monotonic()
        with claim(out) as scratch, Progress() as progress:
            about = {"corpus": options.name, "request": request}
            wants: dict[str, Any] = {"val_fraction": request.get("val_fraction", 0)}
            if mixture:
                splits = mixture.splits()
                wants["advance"] = progress.count(sum(map(len, splits.values())), "documents")("conversations")
                publish_chat(out, scratch, about | write_mixture(splits, scratch / "shards", **wants))
            elif options.form == "chat":
                advance = progress.count(sum(path.stat().st_size for path in inputs), "bytes")("conversations")
                wants["advance"] = advance
                publish_chat(out, scratch, about | write_conversations(inputs, scratch / "shards", **wants))
            elif corpus.kind == "shards":
                made = gather_shards(inputs, options.shards, out, scratch, progress)
                publish(out, scratch, {"format": 1, **about, **made})
            else:
                source = open_files(inputs, options.text_field, options.input_format or "") if inputs else None
                source = source or open_corpus(options.name, scratch / "downloads", progress.download(options.name))
                if source.note:
                    console.say(f"note: {source.note}")
                named = ("input", "text_field", "input_format", "tokenizer_file")
                wants = {name: value for name, value in request.items() if name not in named}
                wants["progress"] = progress.count(source.total, source.unit)
                if options.form == "text":
                    publish_text(out, scratch, about | write_text_shards(source, scratch / "shards", **wants))
                else:
                    wants["tokenizer"] = own or wants["tokenizer"]
                    made = encode_source(source, scratch / "shards", n_threads=options.workers, **wants)
                    publish(out, scratch, {"format": 1, **about, **made})
                left_out.update(source.left_out)
        signals.enter(signals.Phase(f"interrupted; {out} is prepared"))
        console.say(f"{out} is prepared, in {time.monotonic() - began:.1f} s")
        if words := describe_left_out(left_out):
            console.say(f"left out: {words}")
        return report(out, options.form)
    except BrokenPipeError:
        raise  # the reader of our output left; run_verb handles it
    except OSError as error:
        raise InputError(
            f"{error.filename or out}: {error.strerror or error}; free space or choose another --out"
        ) from error


@dataclass(frozen=True)
class TaskMixture:
    """What --mixture names: a stage, or tasks; and the local copies of tasks."""

    name: str
    sources: Sources

    def files(self) -> list[Path]:
        """The local copies."""
        return [path for paths in self.sources.inputs.values() for path in paths]

    def splits(self) -> dict[str, Mixture | Chain]:
        """train and, of a stage, val. Raises InputError where a task is not to be had."""
        if self.name in RL_STAGES:
            train, val = RL_STAGES[self.name]
            return {"train": self.sources.chain_of([train]), "val": self.sources.chain_of([val])}
        if self.name not in MIXTURES:
            return {"train": self.sources.mixture_of(read_parts(self.name))}
        val = next(other for other in (f"{self.name}_val", "sft_2026_val") if other in MIXTURES)
        return {"train": self.sources.mixture(self.name), "val": self.sources.mixture(val)}


def find_mixture(options: argparse.Namespace) -> TaskMixture:
    """Reads --mixture and --input TASK=FILE ..."""
    return TaskMixture(options.mixture, Sources(inputs=read_inputs(options.input, "--input")))


def find_local(options: argparse.Namespace, corpus: Corpus, left_out: Counter[str]) -> list[Path]:
    """The files that --input names. Counts those that it leaves out."""
    if not options.input:
        return []
    if corpus.kind == "shards":
        return find_inputs(options.input, (".bin",))
    inputs = find_inputs(options.input, left_out=left_out)
    if corpus.kind == "text" and (n_bytes := sum(path.stat().st_size for path in inputs)) != SHAKESPEARE_BYTES:
        console.say(f"note: --input has {n_bytes} bytes, {options.name} has {SHAKESPEARE_BYTES}; counts will differ")
    return inputs


def read_own_tokenizer(options: argparse.Namespace) -> Tokenizer | None:
    """The tokenizer in the directory or the JSON file that --tokenizer names; None for one that has a name."""
    if options.tokenizer is None or options.tokenizer in NAMED:
        return None
    path = Path(user_path(options.tokenizer, "--tokenizer"))
    if path.is_file():
        return read_saved_tokenizer(path, path.parent)[0]
    tokenizer = read_tokenizer(path) if path.is_dir() else None
    if tokenizer is None:
        raise InputError(
            f"--tokenizer={options.tokenizer} is not one of {', '.join(NAMED)}, nor a directory with a tokenizer.json, "
            "nor a file that train_tokenizer wrote; choose one of them"
        )
    return tokenizer


def describe_request(
    options: argparse.Namespace, corpus: Corpus, inputs: list[Path], own: Tokenizer | None
) -> dict[str, Any]:
    """What decides the result, for the manifest: the same request need not be answered twice."""
    listed = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in inputs]
    digest = hashlib.sha256(repr(listed).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    request: dict[str, Any] = {"input": f"{len(inputs)} files ({digest})" if inputs else "the corpus"}
    if corpus.kind == "shards":
        return {**request, "shards": options.shards or "all"}
    request["val_fraction"] = options.val_fraction or corpus.val_fraction
    if options.form == "chat":
        return request | ({"mixture": options.mixture} if options.mixture else {})
    request["text_field"] = options.text_field
    if options.input_format:
        request["input_format"] = options.input_format
    if options.form == "text":
        return {**request, "shard_chars": options.shard_chars, "group_documents": options.group_documents}
    request["shard_tokens"] = options.shard_tokens
    if own:
        request["tokenizer"] = f"{options.tokenizer} ({own.digest()[:12]})"
    else:
        request["tokenizer"] = options.tokenizer or ("gpt2" if options.is_modded else corpus.tokenizer)
    return request | ({"is_modded": True} if options.is_modded else {})


# Text that is published


def fetch_text(options: argparse.Namespace, out: Path) -> int:
    """Fetches the requested shards that are missing."""
    corpus, began = TEXT_CORPORA[options.name], time.monotonic()
    about: dict[str, Any] = {"corpus": options.name, "request": {"repository": corpus.repository}}
    names = sorted(path.name for path in out.iterdir() if path.name != ".tmp") if out.is_dir() else []
    if FORMS["text"].manifest in names:
        there = read_text_manifest(out)
        if there.get("corpus") != options.name:
            raise InputError(f"--out {out} holds {there.get('corpus')}; choose another --out for {options.name}")
        about["files"] = there["files"]
        revision = there["request"].get("revision") if isinstance(there.get("request"), dict) else None
        if isinstance(revision, str) and re.fullmatch("[0-9a-f]{40}", revision):
            about["request"]["revision"] = revision
    elif names or out.is_file():
        what = f"holds {', '.join(names[:4])}, and nothing says that this is {options.name}" if names else "is a file"
        raise InputError(f"--out {out} {what}; choose another --out")
    with claim(out) as scratch, Progress() as progress:
        n_fetched = fetch_text_shards(
            corpus, options.shards, out, scratch / "downloads", manifest=about, n_threads=options.workers,
            progress=progress.download,
        )  # fmt: skip
    if n_fetched:
        revision = read_text_manifest(out).get("request", {}).get("revision", "main, which is not pinned")
        console.say(f"{out}: {n_fetched} files fetched, in {time.monotonic() - began:.1f} s")
        console.say(f"from {corpus.repository}, revision {revision}")
    else:
        console.say(f"{out} already has the {options.shards} shards for training, and the one for validation")
    return report(out, "text")


# What the user sees


def report(out: Path, form: str) -> int:
    """Opens the directory as training will, prints what it is, and what to type next."""
    from rich.table import Table

    next_verb, notes = "", []
    if form == "text":
        rows, next_verb = describe_text(out)
    elif form == "chat":
        rows, notes = describe_chat(out)
    else:
        open_dataset(out)
        rows = [("split", "tokens", "documents", "bytes", "bytes/token", "files")]
        for split, about in read_manifest(out).values["splits"].items():
            n_tokens, n_bytes = about["n_tokens"], about.get("n_bytes", 0)
            counts = (f"{n_tokens:,}", f"{about.get('n_documents', 0):,}", f"{n_bytes:,}")
            rows.append((split, *counts, f"{n_bytes / n_tokens:.3f}", str(len(about["files"]))))
    table = Table(box=None, pad_edge=False)
    for title in rows[0]:
        table.add_column(title, justify="left" if title == "split" else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.say(note)
    console.say(f"next: {next_verb or train_command(out, form)}")
    return EXIT_DONE


if __name__ == "__main__":
    run_verb(main)
