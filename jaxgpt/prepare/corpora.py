"""Corpora with a name: where their text comes from."""

import http.client
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxgpt.data.download import download
from jaxgpt.data.hub_repository import Repository
from jaxgpt.data.pydocs import python_docs
from jaxgpt.errors import InputError
from jaxgpt.extras import pip_install
from jaxgpt.prepare.inputs import open_files
from jaxgpt.prepare.source import Piece, Source, split_document

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_BYTES = 1_115_394
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
OPENWEBTEXT = "Skylion007/openwebtext"
OPENWEBTEXT_DOCUMENTS = 8_013_769
FINEWEB = Repository("kjj0/fineweb10B-gpt2", "889765ea1f903759787add96995d81171b632d0c", "dataset")
FINEWEB_TRAIN_SHARDS = 103
SHARD_LIMIT_BYTES = 1 << 30
"""Of a published shard; they have 100 and 200 MB."""


@dataclass(frozen=True)
class Corpus:
    """A row of the table of corpora."""

    about: str
    kind: Literal["text", "documents", "shards"]
    """text: one text, split by position. documents: split by a hash of the index. shards: published as tokens."""
    tokenizer: str
    val_fraction: float


CORPORA = {
    "pydocs": Corpus("Python's own documentation, from this interpreter; no network", "documents", "char", 0.1),
    "shakespeare_char": Corpus("tiny Shakespeare, 1.1 MB, by characters", "text", "char", 0.1),
    "shakespeare": Corpus("tiny Shakespeare, 1.1 MB, GPT-2 tokens", "text", "gpt2", 0.1),
    "openwebtext": Corpus("OpenWebText, 8 M documents, 9 G tokens; needs datasets", "documents", "gpt2", 0.0005),
    "fineweb10B": Corpus("FineWeb, published as GPT-2 tokens, up to 103 shards of 200 MB", "shards", "gpt2", 0.01),
}


@dataclass(frozen=True)
class TextCorpus:
    """Text that is published in parquet files, a document per row."""

    about: str
    repository: str
    """On the Hugging Face hub. Its files are numbered from 0; the last is for validation."""
    n_files: int
    revision: str = "main"
    """Not pinned: no commit is known to this version. The one that the hub names with the first file is kept in
    text.json, and later files come from it."""

    @property
    def n_train(self) -> int:
        return self.n_files - 1


TEXT_CORPORA = {
    "climbmix": TextCorpus("ClimbMix, nanochat's text, 100 MB a shard", "karpathy/climbmix-400b-shuffle", 6543),
    "fineweb-edu": TextCorpus(
        "FineWeb-Edu, nanochat's text of 2025, 100 MB a shard", "karpathy/fineweb-edu-100b-shuffle", 1823
    ),
}


def open_corpus(name: str, scratch: Path, progress: Callable[[int, int | None], None]) -> Source:
    """The text of a corpus that is not published as tokens.

    Args:
      scratch: a directory for downloads; partial ones are resumed.
      progress: called with the bytes on disk, and the total if it is known.

    Raises:
      InputError: no network, a package is missing, or a download is not the expected file.
    """
    if name == "pydocs":
        documents = python_docs(Path(sysconfig.get_path("stdlib")))
        pieces = [Piece(text, True, 1) for text in documents]
        return Source(lambda: iter(pieces), len(pieces), "documents", False)
    if name == "openwebtext":
        return Source(lambda: _openwebtext(), OPENWEBTEXT_DOCUMENTS, "documents", False)
    path = scratch / "input.txt"
    download(SHAKESPEARE_URL, path, sha256=SHAKESPEARE_SHA256, size=SHAKESPEARE_BYTES, progress=progress)
    return open_files([path], "text")


# Text that comes over the network


def _openwebtext() -> Iterator[Piece]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
        from huggingface_hub.errors import HTTPError
    except ImportError as error:
        raise InputError(
            f"openwebtext comes through the package datasets; {pip_install('hf')}, "
            "or give local files: --input DIRECTORY_OF_PARQUET"
        ) from error
    reason, n_rows = "", 0
    for revision in (None, "refs/convert/parquet"):  # the second serves where the first is a script: datasets 4 and on
        try:
            stream = datasets.load_dataset(OPENWEBTEXT, split="train", streaming=True, revision=revision)
            for row in stream:
                n_rows += 1
                yield from split_document(row["text"], 1)
            return
        except (OSError, ValueError, RuntimeError, http.client.HTTPException, HTTPError) as error:
            reason = reason or f"{type(error).__name__}: {error}".splitlines()[0]
            if n_rows:
                break
    raise InputError(
        f"{OPENWEBTEXT} cannot be read after {n_rows} documents ({reason}); "
        "try again, or download its parquet files and give them by --input"
    )


def fineweb_names(n_train: int) -> list[str]:
    """The validation shard and the first `n_train` training shards."""
    return ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06d}.bin" for i in range(1, n_train + 1))]
