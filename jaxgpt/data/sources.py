"""Where a run's rows come from, token shards or text shards, behind one shape for both training loops.

    source = open_source(config.data)
    reader = source.reader(seq_len, seed, vocab_size, cursors)     training rows, step after step
    rows, indices = source.val_rows(seq_len, n_tokens, vocab_size)  validation rows, the same each time

A reader gives the microbatches of a step, [M, n, T + 1], and says in JSON where it stands (`cursors`; empty where a
batch depends on the step alone).
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from jaxgpt.config import DataConfig
from jaxgpt.data.batches import Batches, eval_rows
from jaxgpt.data.packing import Packing
from jaxgpt.data.shards import Dataset, Split, check_ids, open_dataset
from jaxgpt.data.text_batches import PackedRows, TextBatches, require_lanes, val_rows
from jaxgpt.data.text_data import TextData, open_text
from jaxgpt.data.tokenizer import Tokenizer, tokenizer_from_json
from jaxgpt.errors import InputError

FULL_CHECK_TOKENS = 100_000_000
"""Splits up to this size have all their ids checked at the start; larger ones batch by batch."""


class Rows(Protocol):
    """Rows that are read again and again: `Batches` by position, `PackedRows` by index."""

    def at(self, starts: Any, /) -> np.ndarray:
        """Rows int32 [n, seq_len + 1]."""
        ...


class ShardReader:
    """Training rows of token shards: row m * n_rows + r of a step is row r of microbatch m."""

    def __init__(self, batches: Batches):
        self._batches = batches

    def micro_rows(self, step: int, n_before: int, n_micro: int, n_rows: int, lo: int, hi: int) -> np.ndarray:
        """Rows lo..hi of each of the step's microbatches, int32 [n_micro, hi - lo, seq_len + 1].

        Args:
          step: index of the optimizer step, from 0.
          n_before: rows of all earlier steps together.
          n_rows: rows of a microbatch over all devices.
        """
        read = self._batches.rows
        parts = [read(step, n_before, n_micro * n_rows, m * n_rows + lo, m * n_rows + hi) for m in range(n_micro)]
        return np.stack(parts)

    def cursors(self) -> dict[str, Any]:
        """Empty: a batch depends on the step."""
        return {}

    def summary(self) -> str:
        """Nothing to say."""
        return ""

    def close(self) -> None:
        """Nothing to stop."""


class TextReader:
    """Training rows of text shards: row r * n_micro + m of a step is row r of microbatch m.

    So the rows of a process lie together, and its lanes are the only ones that it tokenizes.
    """

    def __init__(self, batches: TextBatches):
        self._batches = batches

    def micro_rows(self, step: int, n_before: int, n_micro: int, n_rows: int, lo: int, hi: int) -> np.ndarray:
        """As `ShardReader.micro_rows`; to be called once a step, in order."""
        rows = self._batches.rows(n_micro * n_rows, lo * n_micro, hi * n_micro)
        return np.ascontiguousarray(rows.reshape(hi - lo, n_micro, -1).swapaxes(0, 1))

    def cursors(self) -> dict[str, Any]:
        """Where this process's lanes stand after the last step."""
        return self._batches.cursors()

    def summary(self) -> str:
        """What packing cost, for the end of a run; empty where it costs nothing."""
        fraction = self._batches.discarded_fraction
        return f"best_fit cut off {fraction:.1%} of the tokens that it took" if fraction else ""

    def close(self) -> None:
        """Stops the tokenizing threads."""
        self._batches.close()


@dataclass(frozen=True)
class Source:
    """What a run needs to know of its data.

    Attributes:
      data: the token shards or the text shards.
      tokenizer, tokenizer_json: None for token shards that name none.
      digest: changes when the tokens do.
      n_ids: of the tokenizer; 0 where it is not known.
      n_train_tokens: None for text, which nobody has counted.
    """

    config: DataConfig
    data: Dataset | TextData
    tokenizer: Tokenizer | None
    tokenizer_json: dict[str, Any] | None
    digest: str
    n_ids: int
    n_train_tokens: int | None

    def describe(self) -> str:
        """In words, for the header."""
        if isinstance(self.data, Dataset):
            return f"{self.data.directory}: {self.data.train.n_tokens:,} train, {self.data.val.n_tokens:,} val tokens"
        train, val = self.data.train, self.data.val
        n_files = f"{len(train.files)} text shard{'s' * (len(train.files) > 1)}"
        return (
            f"{self.data.directory}: {n_files}, {train.n_rows:,} documents; {val.n_rows:,} for "
            f"validation; {self.config.sampling}, {self.n_ids:,} ids, {self.config.tokenizer_threads} threads"
        )

    def reader(
        self,
        seq_len: int,
        seed: int,
        vocab_size: int,
        cursors: dict[str, Any] | None = None,
        rows_of_steps: Iterable[int] = (),
    ) -> ShardReader | TextReader:
        """Training rows from the start, or from where `cursors` say.

        Args:
          rows_of_steps: rows of a step, for each size of batch that will be asked for.

        Raises:
          InputError: too little text, cursors of another run, or a step that the lanes do not divide.
        """
        config = self.config
        if isinstance(self.data, Dataset):
            sampling = cast(Literal["random", "sequential"], config.sampling)
            return ShardReader(Batches(self.data.train, seq_len, seed, sampling, vocab_size))
        for n_rows in rows_of_steps:
            require_lanes(config.lanes, n_rows)
        batches = TextBatches(
            self.data, seq_len, cast(Packing, config.sampling), n_lanes=config.lanes, vocab_size=vocab_size,
            n_threads=config.tokenizer_threads, cursors=cursors,
        )  # fmt: skip
        return TextReader(batches)

    def val_rows(
        self, seq_len: int, n_tokens: int, vocab_size: int, split: Literal["train", "val"] = "val"
    ) -> tuple[Rows, np.ndarray]:
        """Rows for validation, and the arguments of `at` that give each once.

        Args:
          n_tokens: targets, cut to whole rows; 0 takes all there are.
          split: train is for token shards.

        Raises:
          InputError: too little text for a row, or the training split of text.
        """
        if isinstance(self.data, Dataset):
            part = self.data.val if split == "val" else self.data.train
            return Batches(part, seq_len, 0, "sequential", vocab_size), eval_rows(part, seq_len, n_tokens)
        if split == "train":
            raise InputError(f"{self.data.directory} holds text shards, of which only val is evaluated; --split val")
        rows: PackedRows = val_rows(
            self.data, seq_len, cast(Packing, self.config.sampling), n_tokens, vocab_size=vocab_size,
            n_threads=self.config.tokenizer_threads,
        )  # fmt: skip
        return rows, rows.indices


def open_source(config: DataConfig) -> Source:
    """Opens the data that a config names.

    Raises:
      InputError: it is not there, is damaged, or is of the other kind than data.sampling.
    """
    if has_text(config.dir) and not config.is_text:
        raise InputError(
            f"data.dir={config.dir} holds text shards, data.sampling={config.sampling} is for token shards; "
            "choose --data.sampling=best_fit or stream"
        )
    if config.is_text:
        text = open_text(config.dir, config.tokenizer)
        n_ids = text.tokenizer.vocab_size
        return Source(config, text, text.tokenizer, text.tokenizer_json, text.digest, n_ids, None)
    data = open_dataset(config.dir)
    tokenizer = tokenizer_from_json(data.tokenizer_json) if data.tokenizer_json else None
    return Source(config, data, tokenizer, data.tokenizer_json, data.digest, data.vocab_size or 0, data.train.n_tokens)


def has_text(directory: str) -> bool:
    """Whether a directory holds text shards."""
    return any(Path(directory).glob("shard_*.parquet"))


def open_directory(directory: str, like: DataConfig | None = None) -> Source:
    """Opens a directory without a config of its own: read like a run's data, as far as its kind permits.

    Raises:
      InputError: as `open_source`.
    """
    like = like or DataConfig()
    if like.is_text != has_text(directory):
        like = dataclasses.replace(like, sampling="best_fit" if has_text(directory) else "sequential", tokenizer="")
    return open_source(dataclasses.replace(like, dir=directory))


def choose_vocab_size(wanted: int, source: Source) -> int:
    """Rows of the embedding: model.vocab_size, or the tokenizer's ids. Checks the ids of splits of moderate size.

    Raises:
      InputError: neither says, or the tokenizer has more ids.
    """
    directory, n_ids = source.data.directory, source.n_ids
    vocab_size = wanted or n_ids
    if not vocab_size:
        raise InputError(
            f"model.vocab_size=0 takes the tokenizer's, but {directory} names none; "
            "set --model.vocab_size=50304 for GPT-2 tokens"
        )
    if n_ids and vocab_size < n_ids:
        raise InputError(
            f"model.vocab_size={vocab_size} is below the {n_ids} ids of {directory}'s tokenizer; "
            f"set --model.vocab_size={n_ids} or more"
        )
    splits: list[Split] = [source.data.train, source.data.val] if isinstance(source.data, Dataset) else []
    for split in splits:
        if split.n_tokens <= FULL_CHECK_TOKENS:
            check_ids(split, vocab_size)
    return vocab_size


def count_token_bytes(source: Source, say: Callable[[str], None]) -> np.ndarray | None:
    """Bytes of each id, for bits per byte; None, and a word, where the vocabulary cannot be had."""
    try:
        return source.tokenizer.token_bytes() if source.tokenizer else None
    except InputError as error:
        say(f"bits per byte are left out: {error}")
        return None
