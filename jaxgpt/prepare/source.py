"""Text on its way to shards: pieces of documents, from a source that can be read again and again.

Text arrives in pieces, so that no document has to fit in memory as tokens: a document of up to 8 MiB characters is one
piece, a longer one is cut at line ends. (For BPE the cut changes the tokens beside it, so short ones stay whole.)

nanoGPT splits openwebtext by a permutation of all documents, for which it needs them all at once; here documents
stream by, and a hash of a document's index says which split it belongs to. The sizes agree, the documents differ.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jaxgpt.streams import one_line

PIECE_CHARS = 8 << 20


class Piece(NamedTuple):
    """A part of a document, or all of it."""

    text: str
    ends_document: bool
    n_read: float
    """How much of the source was read for it, in the unit of `Source.total`."""


@dataclass(frozen=True)
class Source:
    """Documents that can be read again and again, in one order."""

    pieces: Callable[[], Iterator[Piece]]
    total: float
    """Sum of all n_read, for a progress bar."""
    unit: Literal["bytes", "documents"]
    is_one_text: bool
    """One text, to be split by position; else documents."""
    note: str = ""
    """One line on how it is read, where that was guessed."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What the last pass over the pieces did not give, in words, and how often."""


def is_val(index: int, val_fraction: float) -> bool:
    """Whether document `index` is for validation: a hash decides. Each split gets one of the first two for sure."""
    if index < 2:
        return index == 1
    digest = hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < val_fraction * 2**64


def first_piece(text: str) -> int:
    """Where to cut a text that is longer than a piece: after a line end, else before a blank, else anywhere."""
    return text.rfind("\n", 0, PIECE_CHARS) + 1 or max(text.rfind(" ", 1, PIECE_CHARS), 0) or PIECE_CHARS


def split_document(text: str, n_read: float) -> Iterator[Piece]:
    """The pieces of a document that is complete in memory."""
    while len(text) > PIECE_CHARS:
        cut = first_piece(text)
        yield Piece(text[:cut], False, 0)
        text = text[cut:]
    yield Piece(text, True, n_read)


def describe_left_out(counts: Counter[str]) -> str:
    """In words; empty where nothing was left out. Names in it come from files, and are shown as what they are."""
    words = [f"{n:,} {what}" for what, n in counts.items() if n]
    return one_line(", ".join(words[:8]) + (f" and {len(words) - 8} more kinds" if len(words) > 8 else ""))
