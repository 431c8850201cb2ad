"""Prepares data: text in, token shards and their manifest out.

    python -m jaxgpt.prepare shakespeare_char
    python -m jaxgpt.prepare mytext --input book.txt
    python -m jaxgpt.prepare mydocs --input 'crawl/*.parquet' --tokenizer gpt2

A single text file is split by position, its last part for validation; documents (several files, lines of .jsonl,
rows of .parquet) are split by a hash of their index. GPT-2's end-of-text token follows every document; the character
and byte tokenizers, which have none, put a blank line there.

The work happens in DIR/.tmp and is moved into place when it is complete: until then what was in DIR stays as it is.
Asked again for what is there, it says so and does nothing.
"""

import argparse
import contextlib
import difflib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxgpt.data.corpora import (
    CORPORA,
    FINEWEB_TRAIN_SHARDS,
    SHAKESPEARE_BYTES,
    Corpus,
    Source,
    download,
    find_inputs,
    fineweb_names,
    fineweb_url,
    open_corpus,
    open_files,
)
from jaxgpt.data.encode import describe_tokens, encode_source
from jaxgpt.data.manifest import MANIFEST, read_manifest, write_manifest
from jaxgpt.data.shards import Split, check_ids, inspect_shard, open_dataset, sha256_of, split_blocks
from jaxgpt.errors import EXIT_DONE, InputError, run_verb
from jaxgpt.tokenizer import GPT2Tokenizer

EXIT_INTERRUPTED = 130
_OURS = re.compile(r"(fineweb_)?(train|val)_\d{6}\.bin|manifest\.json(\.tmp)?|\.tmp")


def main(args: list[str]) -> int:
    options = parse_args(args)
    out = Path(options.out)
    try:
        corpus = CORPORA.get(options.name, Corpus("", "documents", "char", 0.1))
        inputs = find_local(options, corpus)
        request = describe_request(options, corpus, inputs)
        if is_there(out, options.name, request, options.force):
            print(f"{out} is already prepared from the same input; --force prepares it again")
            return report(out)
        began = time.monotonic()
        with claim(out) as scratch, Progress() as progress:
            if corpus.kind == "shards":
                made = gather_shards(inputs, options.shards, out, scratch, progress)
            else:
                source = open_files(inputs, options.text_field) if inputs else None
                source = source or open_corpus(options.name, scratch / "downloads", progress.download(options.name))
                made = encode_source(
                    source,
                    scratch / "shards",
                    tokenizer=request["tokenizer"],
                    val_fraction=request["val_fraction"],
                    shard_tokens=request["shard_tokens"],
                    n_threads=options.workers,
                    progress=progress.count(source),
                )
            publish(out, scratch, {"format": 1, "corpus": options.name, "request": request, **made})
        print(f"{out} is prepared, in {time.monotonic() - began:.1f} s")
        return report(out)
    except BrokenPipeError:
        raise  # the reader of our output left; run_verb knows
    except OSError as error:
        raise InputError(
            f"{error.filename or out}: {error.strerror or error}; free space or choose another --out"
        ) from error
    except KeyboardInterrupt:
        print(f"interrupted; {out} is as it was, and the same command starts again", file=sys.stderr)
        return EXIT_INTERRUPTED


# What is asked for


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; python -m jaxgpt.prepare --help lists the options")


def parse_args(args: list[str]) -> argparse.Namespace:
    """The command line, checked as far as it can be without looking at files."""
    corpora = "\n".join(f"  {name:<18}{corpus.about}" for name, corpus in CORPORA.items())
    parser = _Parser(
        prog="python -m jaxgpt.prepare",
        description=f"{__doc__}\ncorpora:\n{corpora}\n  any other name    what --input names",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help="a corpus of the list, or a name for --input")
    parser.add_argument("--input", nargs="+", metavar="PATH", default=[], help="files, directories or globs to read")
    parser.add_argument("--out", metavar="DIR", default="", help="where the shards go (data/<name>)")
    parser.add_argument("--tokenizer", choices=("char", "byte", "gpt2"), help="(the corpus's own; char for --input)")
    parser.add_argument("--val-fraction", type=float, metavar="X", help="part for validation (the corpus's own; 0.1)")
    parser.add_argument("--shards", type=int, metavar="N", help="fineweb10B: number of train shards (all, 103)")
    parser.add_argument(
        "--shard-tokens", type=int, metavar="N", default=100_000_000, help="tokens per file (%(default)s)"
    )
    parser.add_argument(
        "--text-field", metavar="NAME", default="text", help=".jsonl, .parquet: where the text is (text)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", default=min(4, os.cpu_count() or 1), help="threads (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace what was prepared in DIR before")
    options = parser.parse_args(args)
    name = options.name
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{name!r} is no name for data; take letters, digits, - and _, and --out DIR for a place")
    if name not in CORPORA and not options.input:
        near = difflib.get_close_matches(name, CORPORA, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"no corpus {name}; {guess}there are {', '.join(CORPORA)}, or give files: --input PATH")
    if name == "pydocs" and options.input:
        raise InputError("pydocs reads no --input; choose another name for your files")
    if options.shards is not None and name != "fineweb10B":
        raise InputError(f"--shards={options.shards} is for fineweb10B; {name} takes --shard-tokens")
    if name == "fineweb10B" and (options.tokenizer not in (None, "gpt2") or options.val_fraction is not None):
        raise InputError("fineweb10B is published as GPT-2 tokens, and split; leave out --tokenizer and --val-fraction")
    if options.shards is not None and not 1 <= options.shards <= FINEWEB_TRAIN_SHARDS:
        raise InputError(f"--shards={options.shards} is outside [1, {FINEWEB_TRAIN_SHARDS}]; there are that many")
    if options.val_fraction is not None and not 0 < options.val_fraction < 1:
        raise InputError(f"--val-fraction={options.val_fraction} is outside (0, 1); 0.1 is usual")
    if options.shard_tokens < 1 or options.workers < 1:
        raise InputError(f"--shard-tokens={options.shard_tokens}, --workers={options.workers}: both are at least 1")
    options.out = options.out or f"data/{name}"
    return options


def find_local(options: argparse.Namespace, corpus: Corpus) -> list[Path]:
    """The files that --input names."""
    if not options.input:
        return []
    if corpus.kind == "shards":
        return find_inputs(options.input, (".bin",))
    inputs = find_inputs(options.input)
    if corpus.kind == "text" and (n_bytes := sum(path.stat().st_size for path in inputs)) != SHAKESPEARE_BYTES:
        print(f"note: --input has {n_bytes} bytes, {options.name} has {SHAKESPEARE_BYTES}; counts will differ")
    return inputs


def describe_request(options: argparse.Namespace, corpus: Corpus, inputs: list[Path]) -> dict[str, Any]:
    """What decides the result, for the manifest: the same request need not be answered twice."""
    listed = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in inputs]
    digest = hashlib.sha256(repr(listed).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    request: dict[str, Any] = {"input": f"{len(inputs)} files ({digest})" if inputs else "the corpus"}
    if corpus.kind == "shards":
        return {**request, "shards": options.shards or "all"}
    return {
        **request,
        "tokenizer": options.tokenizer or corpus.tokenizer,
        "val_fraction": options.val_fraction or corpus.val_fraction,
        "shard_tokens": options.shard_tokens,
        "text_field": options.text_field,
    }


# Where it goes


def is_there(out: Path, name: str, request: dict[str, Any], force: bool) -> bool:
    """Whether the directory holds the answer already. What it holds instead is only replaced by force.

    Raises:
      InputError: something else is there, or the same, damaged.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"--out {out} is a file; choose a directory")
    names = sorted(path.name for path in out.iterdir())
    strangers = [name for name in names if not _OURS.fullmatch(name)]
    if MANIFEST not in names:
        if strangers:
            raise InputError(
                f"--out {out} holds {', '.join(strangers[:4])}, which prepare did not write; choose another"
            )
        if [name for name in names if name != ".tmp"] and not force:
            raise InputError(f"--out {out} has shards but no {MANIFEST}; --force takes their place, or choose another")
        return False
    if force:
        return False
    try:
        values = read_manifest(out).values
        request_there = values.get("request")
        there = {"corpus": values.get("corpus"), **(request_there if isinstance(request_there, dict) else {})}
        asked = {"corpus": name, **request}
        if there == asked:
            open_dataset(out)
            return True
    except InputError as error:
        raise InputError(f"{error} (--force prepares {out} again)") from error
    differs = ", ".join(f"{k}={there.get(k)} there, {k}={v} asked" for k, v in asked.items() if there.get(k) != v)
    raise InputError(
        f"--out {out} has other data ({differs or 'made by another version'}); "
        "--force replaces it, or choose another --out"
    )


@contextlib.contextmanager
def claim(out: Path) -> Iterator[Path]:
    """A scratch directory in `out` that no other prepare uses. Only downloads outlive it, and only if it fails."""
    is_new = not out.exists()
    scratch = out / ".tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with open(scratch / "lock", "w") as lock:
        _lock(lock, out)
        for path in scratch.iterdir():
            if path.name not in ("lock", "downloads"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (scratch / "downloads").mkdir(exist_ok=True)
        (scratch / "shards").mkdir()
        try:
            yield scratch
        except BaseException:
            shutil.rmtree(scratch / "shards")
            if not any((scratch / "downloads").iterdir()):
                shutil.rmtree(scratch)
                if is_new:
                    out.rmdir()
            raise
        shutil.rmtree(scratch)


def _lock(file: Any, out: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another prepare is writing {out}; wait for it, or choose another --out") from None
    except OSError:  # some network file systems have no locks
        return


def publish(out: Path, scratch: Path, values: dict[str, Any]) -> None:
    """Moves complete shards into place. The manifest goes first and comes last."""
    old: list[str] = []
    if (out / MANIFEST).exists():
        with contextlib.suppress(InputError):
            entries = [entry for entries in read_manifest(out).splits.values() for entry in entries]
            old = [entry.name for entry in entries if entry.format == "jaxgpt"]  # what was fetched may serve again
        (out / MANIFEST).unlink()
    for path in (scratch / "shards").iterdir():
        os.replace(path, out / path.name)
    write_manifest(out, values)
    new = {entry["name"] for split in values["splits"].values() for entry in split["files"]}
    for name in set(old) - new:
        (out / name).unlink(missing_ok=True)


# Tokens that are published


def gather_shards(
    inputs: list[Path], n_shards: int | None, out: Path, scratch: Path, progress: "Progress"
) -> dict[str, Any]:
    """Brings FineWeb's shards to `out` (those that are there already stay) and describes them for the manifest."""
    local = {path.name: path for path in inputs}
    if inputs and n_shards is None:
        n_shards = sum(name.startswith("fineweb_train_") for name in local)
    tokenizer = GPT2Tokenizer()
    token_bytes = tokenizer.token_bytes().astype(np.int64)
    splits = {name: {"files": [], "n_tokens": 0, "n_bytes": 0, "n_documents": 0} for name in ("train", "val")}
    for name in fineweb_names(n_shards or FINEWEB_TRAIN_SHARDS):
        path = place_shard(name, local, out, scratch, progress)
        file = inspect_shard(path, wants="llmc")
        split = splits["val" if "_val_" in name else "train"]
        whole = Split(name, path.parent, (file,))
        check_ids(whole, tokenizer.vocab_size)
        counts = np.zeros(tokenizer.vocab_size, np.int64)
        for _, tokens in split_blocks(whole):
            counts += np.bincount(tokens, minlength=tokenizer.vocab_size)
        entry = {"name": name, "n_tokens": file.n_tokens, "size_bytes": file.size_bytes, "sha256": sha256_of(path)}
        split["files"].append({**entry, "format": "llmc"})
        split["n_tokens"] += file.n_tokens
        split["n_bytes"] += int(counts @ token_bytes)
        split["n_documents"] += int(counts[tokenizer.end_of_text])
    for path in (scratch / "downloads").glob("*.bin"):
        os.replace(path, scratch / "shards" / path.name)
    return describe_tokens(tokenizer, np.dtype(np.uint16), splits)


def place_shard(name: str, local: dict[str, Path], out: Path, scratch: Path, progress: "Progress") -> Path:
    """Where the shard is now: in `out`, or in scratch/downloads after a copy or a download."""
    if (out / name).exists():
        return out / name
    path = scratch / "downloads" / name
    if not local:
        download(fineweb_url(name), path, progress=progress.download(name))
    elif name not in local:
        raise InputError(f"--input has no {name}; fetch it, or ask for fewer with --shards")
    else:
        shutil.copyfile(local[name], path)
    return path


# What the user sees


class Progress:
    """Bars on a terminal, with the time that is left; a line now and then where there is none."""

    LINE_EVERY_S = 30.0

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._is_terminal, self._line_at_s = console.is_terminal, time.monotonic() + self.LINE_EVERY_S
        self._bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _bar(self, what: str) -> Callable[[float, float | None, str], None]:
        task = self._bars.add_task(what, total=None, amount="")

        def show(done: float, total: float | None, amount: str) -> None:
            self._bars.update(task, completed=done, total=total, amount=amount)
            if not self._is_terminal and time.monotonic() > self._line_at_s:
                self._line_at_s = time.monotonic() + self.LINE_EVERY_S
                print(f"{what}: {amount}", file=sys.stderr, flush=True)

        return show

    def download(self, name: str) -> Callable[[int, int | None], None]:
        bar = None

        def show(n_bytes: int, total: int | None) -> None:
            nonlocal bar
            bar = bar or self._bar(f"fetching {name}")
            bar(n_bytes, total, f"{n_bytes / 1e6:,.1f}{f' of {total / 1e6:,.1f}' if total else ''} MB")

        return show

    def count(self, source: Source) -> Callable[[str], Callable[[float], None]]:
        def begin(what: str) -> Callable[[float], None]:
            bar, n_done = self._bar(what), 0.0

            def advance(n: float) -> None:
                nonlocal n_done
                n_done += n
                if source.unit == "bytes":
                    bar(n_done, source.total, f"{n_done / 1e6:,.1f} of {source.total / 1e6:,.1f} MB")
                else:
                    bar(n_done, source.total, f"{n_done:,.0f} of {source.total:,.0f} documents")

            return advance

        return begin


def report(out: Path) -> int:
    """Opens what is there as training will, prints what it is, and what to type next."""
    from rich.console import Console
    from rich.table import Table

    open_dataset(out)
    table = Table(box=None, pad_edge=False)
    for title in ("split", "tokens", "documents", "bytes", "bytes/token", "files"):
        table.add_column(title, justify="left" if title == "split" else "right")
    for split, about in read_manifest(out).values["splits"].items():
        n_tokens, n_bytes = about["n_tokens"], about.get("n_bytes", 0)
        counts = (f"{n_tokens:,}", f"{about.get('n_documents', 0):,}", f"{n_bytes:,}")
        table.add_row(split, *counts, f"{n_bytes / n_tokens:.3f}", str(len(about["files"])))
    Console(highlight=False).print(table)
    config, setting = find_config(out)
    print(f"next: python -m jaxgpt.train --config {config}{setting}")
    return EXIT_DONE


def find_config(out: Path) -> tuple[str, str]:
    """A shipped config that trains on this directory; else the setting that makes quickstart do so."""
    for path in sorted(Path("configs").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f'"{out.as_posix()}"' in text and "jaxgpt.train" in text:
            return str(path), ""
    return "configs/quickstart.py", f" --data.dir={out}"


if __name__ == "__main__":
    run_verb(main)
