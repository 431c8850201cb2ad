"""A BPE vocabulary, learned from text by rustbpe.

Text is cut by the tokenizer's pattern, and each distinct cut is counted once; then the most frequent pair of
neighbours becomes a token, again and again. The result depends on the text alone: of pairs as frequent as each other
the one with the lower ids goes first, however many threads there are.

What rustbpe does not do is checked here: it stops silently where there is nothing left to merge, and it counts
in 32 bits.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator

import rustbpe

from jaxgpt.data.tokenizer import CHAT_SPECIALS, MAX_VOCAB_SIZE, SPLIT_PATTERN, BPETokenizer
from jaxgpt.errors import InputError

MAX_DOCUMENT_CHARS = 1 << 18
"""Longest document: the pattern works on so many blanks in a row, and fails on four times as many."""
MAX_CHARS = 2**31 - 1 - MAX_DOCUMENT_CHARS
"""Most text, plus one document: a pair that fills 2**31 characters would overflow rustbpe's counts."""
BUFFER_DOCUMENTS = 2048
"""Documents that rustbpe buffers before its threads count them: what is in memory at a time."""


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    specials: tuple[str, ...] = CHAT_SPECIALS,
    progress: Callable[[int, int], None] = lambda n_merges, total: None,
) -> BPETokenizer:
    """Learns a tokenizer from texts.

    Args:
      texts: documents of at most `MAX_DOCUMENT_CHARS` characters, `MAX_CHARS` and one document in all, without lone
        surrogates. What the iterator raises passes through.
      vocab_size: all ids: 256 bytes, the merges, the specials.
      progress: called a hundred times with the merges that are done and their total. Counting comes before.

    Raises:
      InputError: the vocabulary cannot have this size, or the text has fewer different words than it needs.
    """
    check_vocab_size(vocab_size, specials)
    n_tokens = vocab_size - len(specials)
    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue] - compiled, without stubs
    with _listen(progress):
        trainer.train_from_iterator(iter(texts), n_tokens, buffer_size=BUFFER_DOCUMENTS, pattern=SPLIT_PATTERN)
    tokens = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])]
    if len(tokens) < n_tokens:
        reached = len(tokens) + len(specials)
        raise InputError(
            f"vocab_size={vocab_size} is more than this text can fill: at {reached} every word is one token; "
            f"use at most {reached} (better a quarter of it), or more text"
        )
    return BPETokenizer(tokens, specials)


def check_vocab_size(vocab_size: int, specials: tuple[str, ...] = CHAT_SPECIALS) -> None:
    """Raises InputError where no vocabulary can have this size."""
    least = 256 + len(specials)
    if not least <= vocab_size <= MAX_VOCAB_SIZE:
        raise InputError(
            f"vocab_size={vocab_size} is outside [{least}, {MAX_VOCAB_SIZE}]: 256 bytes and {len(specials)} control "
            "tokens are always included; 4096 suits a small model, 32768 a large one"
        )


_MERGES = re.compile(r"Progress: \d+% \((\d+)/(\d+) merges\)")


@contextlib.contextmanager
def _listen(progress: Callable[[int, int], None]) -> Iterator[None]:
    """Reports the merges that rustbpe logs; it has no other report of them."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := _MERGES.match(record.getMessage()):
                progress(int(match[1]), int(match[2]))

    log, listener = logging.getLogger("rustbpe"), Listener()
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(listener)
    try:
        yield
    finally:
        log.removeHandler(listener)
        log.setLevel(before[0])
        log.propagate = before[1]
