"""From text to shards: which split a document belongs to, which tokenizer reads it, what the manifest says of it.

Text streams through: what is in memory at a time is one batch of pieces per thread, however large the source.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.data.shards import pick_dtype
from jaxgpt.data.tokenizer import (
    CHAT_SPECIALS,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
)
from jaxgpt.errors import InputError
from jaxgpt.prepare.shard_writer import Format, ShardWriter
from jaxgpt.prepare.source import PIECE_CHARS, Piece, Source, is_val
from jaxgpt.prepare.text_shards import cut_pages

NAMED = ("char", "byte", "gpt2")
"""Tokenizers that need no file."""
Progress = Callable[[str], Callable[[float], None]]
"""Given the name of a pass over the source, returns a function that is called with each n_read of it."""


def encode_source(
    source: Source,
    directory: Path,
    *,
    tokenizer: str | Tokenizer,
    val_fraction: float,
    shard_tokens: int,
    n_threads: int,
    progress: Progress,
    is_modded: bool = False,
) -> dict[str, Any]:
    """Writes the shards of both splits into a directory.

    One text is cut after the first 1 - val_fraction of its characters. Documents go where `is_val` says, each
    followed by the tokenizer's end-of-text token, or by a blank line where it has none.

    Args:
      tokenizer: one of `NAMED`, or a tokenizer. char reads the source twice: its vocabulary is every
        character that occurs.
      is_modded: shards as modded-nanogpt reads them: llm.c's header, the token that separates documents in front of
        each of them, and one text in pages, each a document.

    Returns:
      The manifest's fields on tokenizer and splits.

    Raises:
      InputError: the source cannot be read, or is too small for two splits.
    """
    has_pages = is_modded and source.is_one_text
    n_chars, chars = 0, set()
    if (source.is_one_text and not has_pages) or tokenizer == "char":
        n_chars, chars = _survey(source, progress("surveying"))
    reader = _make_modded_tokenizer(tokenizer) if is_modded else tokenizer
    if isinstance(reader, str):
        reader = _make_tokenizer(reader, chars if source.is_one_text else chars | {"\n"})
    n_train_chars = int(n_chars * (1 - val_fraction)) if source.is_one_text else None
    dtype = pick_dtype(reader.vocab_size)
    file_format: Format = "llmc" if is_modded else "jaxgpt"
    writers = {name: ShardWriter(directory, name, dtype, shard_tokens, file_format) for name in ("train", "val")}
    n_bytes, n_documents = dict.fromkeys(writers, 0), dict.fromkeys(writers, 0)
    begins_document = True
    pieces = _assign(source, val_fraction, n_train_chars)
    if has_pages:
        pages = cut_pages(source, val_fraction, progress)
        pieces = ((name, Piece(text, bool(text), n_read)) for name, text, n_read in pages)
    advance = progress("tokenizing")
    try:
        for batch in _batches(pieces, n_threads * PIECE_CHARS):
            texts = [piece.text if is_modded else _text_of(piece, reader, source.is_one_text) for _, piece in batch]
            for (name, piece), text, ids in zip(batch, texts, reader.encode_batch(texts, n_threads), strict=True):
                if is_modded and text and begins_document:
                    writers[name].write(np.array(reader.stop_ids()[:1]))
                    begins_document = False
                writers[name].write(ids)
                n_bytes[name] += len(text.encode("utf-8"))
                n_documents[name] += piece.ends_document
                begins_document = begins_document or piece.ends_document
                if piece.ends_document and reader.end_of_text is not None and not source.is_one_text and not is_modded:
                    writers[name].write(np.array([reader.end_of_text]))
            advance(sum(piece.n_read for _, piece in batch))
        for name, writer in writers.items():
            if not writer.n_tokens:
                advice = "give more text" if source.is_one_text else "give two documents or more, or one text file"
                raise InputError(f"nothing is left for {name} (val_fraction={val_fraction}); {advice}")
        splits = {name: {"files": writer.close(), "n_tokens": writer.n_tokens} for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abandon()
    for name, split in splits.items():
        split |= {"n_bytes": n_bytes[name], "n_documents": n_documents[name]}
    return describe_tokens(reader, dtype, splits)


def describe_tokens(tokenizer: Tokenizer, dtype: np.dtype, splits: dict[str, Any]) -> dict[str, Any]:
    """The manifest's fields on tokenizer and splits."""
    return {
        "tokenizer": tokenizer.to_json(),
        "tokenizer_sha256": tokenizer.digest(),
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.name,
        "splits": splits,
    }


def _survey(source: Source, advance: Callable[[float], None]) -> tuple[int, set[str]]:
    """Characters in the source: how many, and which."""
    n_chars, chars = 0, set()
    for piece in source.pieces():
        n_chars += len(piece.text)
        chars.update(piece.text)
        advance(piece.n_read)
    return n_chars, chars


def _make_tokenizer(name: str, chars: set[str]) -> Tokenizer:
    if name == "char":
        return CharTokenizer("".join(sorted(chars)))
    return GPT2Tokenizer() if name == "gpt2" else ByteTokenizer()


def _make_modded_tokenizer(wanted: str | Tokenizer) -> Tokenizer:
    """One whose ids fit uint16, with a token to separate documents; for byte: <|bos|>, behind the bytes."""
    if wanted == "gpt2":
        return GPT2Tokenizer()
    if wanted == "byte":
        return BPETokenizer([bytes([byte]) for byte in range(256)], CHAT_SPECIALS[:1])
    if isinstance(wanted, str) or not wanted.stop_ids():
        name = wanted if isinstance(wanted, str) else wanted.name
        raise InputError(
            f"--tokenizer={name} has no token that separates documents, which --format modded needs; choose gpt2, "
            "byte, or the file that train_tokenizer wrote"
        )
    if wanted.vocab_size > 1 << 16:
        raise InputError(
            f"--tokenizer has {wanted.vocab_size} ids, --format modded holds up to {1 << 16}; train a smaller one"
        )
    return wanted


def _assign(source: Source, val_fraction: float, n_train_chars: int | None) -> Iterator[tuple[str, Piece]]:
    """Each piece with its split."""
    index, n_left = 0, n_train_chars or 0
    for piece in source.pieces():
        if n_train_chars is None:
            yield "val" if is_val(index, val_fraction) else "train", piece
            index += piece.ends_document
        elif len(piece.text) <= n_left:
            n_left -= len(piece.text)
            yield "train", piece._replace(ends_document=n_left == 0)
        else:
            if n_left:
                yield "train", Piece(piece.text[:n_left], True, 0)
            yield "val", piece._replace(text=piece.text[n_left:])
            n_left = 0


def _batches(pieces: Iterator[tuple[str, Piece]], min_chars: int) -> Iterator[list[tuple[str, Piece]]]:
    batch, n_chars = [], 0
    for split, piece in pieces:
        batch.append((split, piece))
        n_chars += len(piece.text)
        if n_chars >= min_chars:
            yield batch
            batch, n_chars = [], 0
    if batch:
        yield batch


def _text_of(piece: Piece, tokenizer: Tokenizer, is_one_text: bool) -> str:
    if is_one_text or not piece.ends_document or tokenizer.end_of_text is not None:
        return piece.text
    return piece.text + ("\n" if piece.text.endswith("\n") else "\n\n")
