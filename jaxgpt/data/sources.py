"""Where a run's rows come from, token shards or text shards, through one interface for both training loops.

    source = open_source(config.data)
    reader = source.reader(config, cursors)     training rows, step after step
    rows, indices = source.val_rows(config)     validation rows, the same each time

A reader gives the `Batch` of a step, [M, n, T + 1], and its position as JSON (`cursors`; empty where a batch
depends on the step alone).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from jaxgpt.config import Config, DataConfig
from jaxgpt.config.schedule import stage_index
from jaxgpt.config.steps import PlannedStep
from jaxgpt.data.batch import Batch
from jaxgpt.data.batches import Batches, eval_rows
from jaxgpt.data.bos_batches import BosBatches
from jaxgpt.data.packing import Packing
from jaxgpt.data.patterns import open_matching
from jaxgpt.data.shards import Dataset, Split, check_ids, open_dataset, verify
from jaxgpt.data.text_batches import PackedRows, TextBatches, require_lanes, val_rows
from jaxgpt.data.text_data import TextData, open_text, verify_text
from jaxgpt.data.tokenizer import Tokenizer, tokenizer_from_json
from jaxgpt.errors import InputError
from jaxgpt.files import is_location
from jaxgpt.mirror import fetch_directory, fetch_file

FULL_CHECK_TOKENS = 100_000_000
"""Splits up to this size have all their ids checked at the start; larger ones batch by batch."""


class Rows(Protocol):
    """Rows that are read again and again: `Batches` by position, `PackedRows` by index."""

    def at(self, starts: Any, /) -> np.ndarray:
        """Rows int32 [n, seq_len + 1]."""
        ...


class Reader(Protocol):
    """Training rows, step after step."""

    def read(self, planned: PlannedStep, lo: int, hi: int) -> Batch:
        """Rows lo..hi of each of the step's microbatches, [n_micro, hi - lo, seq_len + 1]; once a step, in order."""
        ...

    def cursors(self) -> dict[str, Any]:
        """Where this process's lanes stand after the last step, as JSON; empty where a batch depends on the step."""
        ...

    def summary(self) -> str:
        """What packing cost, for the end of a run; empty where it costs nothing."""
        ...

    def close(self) -> None:
        """Stops the reader's threads."""
        ...


class ShardReader:
    """Training rows of token shards: row m * n_rows + r of a step is row r of microbatch m."""

    def __init__(self, batches: Batches):
        self._batches = batches

    def read(self, planned: PlannedStep, lo: int, hi: int) -> Batch:
        n_rows, n_all = planned.n_rows, planned.n_micro * planned.n_rows
        parts = [
            self._batches.rows(
                planned.step, planned.tokens_before, n_all, m * n_rows + lo, m * n_rows + hi, planned.seq_len
            )
            for m in range(planned.n_micro)
        ]
        return Batch(np.stack(parts))

    def cursors(self) -> dict[str, Any]:
        return {}

    def summary(self) -> str:
        """Empty: nothing is discarded."""
        return ""

    def close(self) -> None:
        pass


class BosReader:
    """Training rows that begin with a document: row m * n_rows + r of a step is row r of microbatch m.

    Every process walks all rows, and reads the tokens of its own.
    """

    def __init__(self, batches: BosBatches):
        self._batches = batches

    def read(self, planned: PlannedStep, lo: int, hi: int) -> Batch:
        n_micro, n_rows = planned.n_micro, planned.n_rows
        own = [m * n_rows + row for m in range(n_micro) for row in range(lo, hi)]
        rows = self._batches.rows(n_micro * n_rows, planned.seq_len, own)
        return Batch(rows.reshape(n_micro, hi - lo, -1))

    def cursors(self) -> dict[str, Any]:
        return self._batches.cursors()

    def summary(self) -> str:
        """What was left out, for the end of a run."""
        return self._batches.summary()

    def close(self) -> None:
        pass


class TextReader:
    """Training rows of text shards: row r * n_micro + m of a step is row r of microbatch m.

    So the rows of a process lie together, and its lanes are the only ones that it tokenizes.
    """

    def __init__(self, batches: TextBatches):
        self._batches = batches

    def read(self, planned: PlannedStep, lo: int, hi: int) -> Batch:
        n_micro = planned.n_micro
        rows = self._batches.rows(n_micro * planned.n_rows, lo * n_micro, hi * n_micro)
        return Batch(np.ascontiguousarray(rows.reshape(hi - lo, n_micro, -1).swapaxes(0, 1)))

    def cursors(self) -> dict[str, Any]:
        return self._batches.cursors()

    def summary(self) -> str:
        """How much packing discarded, for the end of a run; empty where nothing was."""
        fraction = self._batches.discarded_fraction
        return f"best_fit packing discarded {fraction:.1%} of tokens" if fraction else ""

    def close(self) -> None:
        self._batches.close()


@dataclass(frozen=True)
class Source:
    """What a run needs to know about its data.

    Attributes:
      data: the token shards or the text shards.
      tokenizer, tokenizer_json: None for token shards that name none.
      digest: of what the data says of itself: a manifest, or names, sizes and ends of files.
      files: SHA-256 of each file, by name, where `digest` does not contain them.
      n_ids: of the tokenizer; 0 where it is not known.
      n_train_tokens: None for text, whose tokens are not counted.
    """

    config: DataConfig
    data: Dataset | TextData
    tokenizer: Tokenizer | None
    tokenizer_json: dict[str, Any] | None
    digest: str
    files: dict[str, str]
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

    def reader(self, config: Config, cursors: dict[str, Any] | None = None) -> Reader:
        """Training rows from the start, or from where `cursors` say.

        Args:
          config: complete.

        Raises:
          InputError: too little text, cursors of another run, or a step that the lanes do not divide.
        """
        data, seq_len = self.config, max(config.stage_seq_lens())
        if isinstance(self.data, Dataset):
            if data.sampling == "bos_aligned":
                return BosReader(self._bos_batches(config, cursors))
            sampling = cast(Literal["random", "sequential"], data.sampling)
            return ShardReader(Batches(self.data.train, seq_len, config.run.seed, sampling, config.model.vocab_size))
        for n_tokens in config.stage_batch_tokens():
            require_lanes(data.lanes, n_tokens // seq_len)
        batches = TextBatches(
            self.data, seq_len, cast(Packing, data.sampling), n_lanes=data.lanes, n_threads=data.tokenizer_threads,
            cursors=cursors,
        )  # fmt: skip
        return TextReader(batches)

    def _bos_batches(self, config: Config, cursors: dict[str, Any] | None = None) -> BosBatches:
        assert isinstance(self.data, Dataset)
        return BosBatches(
            self.data.train, self.bos_id(), self.config.max_document_tokens, n_epochs=self.config.epochs,
            id_limit=config.model.vocab_size, cursors=cursors,
        )  # fmt: skip

    def bos_id(self) -> int:
        """The id that begins a document: data.bos_id, or what the tokenizer puts between documents.

        Raises:
          InputError: neither says.
        """
        if self.config.bos_id >= 0:
            return self.config.bos_id
        ids = self.tokenizer.stop_ids() if self.tokenizer else ()
        if not ids:
            what = (
                f"the {self.tokenizer.name} tokenizer has" if self.tokenizer else "no tokenizer is known, so there is"
            )
            raise InputError(
                f"data.bos_id=-1, but {what} no id that begins a document; set --data.bos_id, or prepare "
                "with --format modded"
            )
        return ids[0]

    def require_steps(self, config: Config) -> None:
        """Reads where the documents begin, as far as the run goes, and checks that the data has rows for all its steps.

        Args:
          config: complete.

        Raises:
          InputError: it has not, or the ids of documents are not known.
        """
        if self.config.sampling != "bos_aligned":
            return
        lengths, n_steps = config.stage_seq_lens(), config.train.steps
        of_stage = [(n // length, length) for n, length in zip(config.stage_batch_tokens(), lengths, strict=True)]
        steps = (of_stage[stage_index(config, step)] for step in range(n_steps))
        batches = self._bos_batches(config)
        n_there = batches.count_steps(steps) if self.config.epochs else n_steps
        if n_there < n_steps:
            raise InputError(
                f"train.steps={n_steps} is above the {n_there} steps that data.epochs={self.config.epochs} of "
                f"{batches.split.directory} gives ({batches.split.n_tokens:,} tokens, {batches.n_used:,} of them in "
                f"bos_aligned rows); add shards, or set --data.epochs=0, or --train.steps={n_there}"
            )

    def val_rows(self, config: Config, split: Literal["train", "val"] = "val") -> tuple[Rows, np.ndarray]:
        """Rows for an evaluation of `config.eval.tokens`, and the arguments of `at` that give each once.

        Args:
          config: complete.
          split: train is for token shards.

        Raises:
          InputError: too little text for a row, or the training split of text.
        """
        seq_len, n_tokens = config.eval_models()[0].seq_len, config.eval.tokens
        if isinstance(self.data, Dataset):
            part = self.data.val if split == "val" else self.data.train
            rows = Batches(part, seq_len, 0, "sequential", config.model.vocab_size)
            return rows, eval_rows(part, seq_len, n_tokens, spread=config.eval.spread)
        if split == "train":
            raise InputError(f"{self.data.directory} holds text shards; only val can be evaluated: --split val")
        packed: PackedRows = val_rows(
            self.data, seq_len, cast(Packing, self.config.sampling), n_tokens, n_threads=self.config.tokenizer_threads
        )
        return packed, packed.indices

    def check_vocabulary(self, n_rows: int) -> None:
        """Checks an embedding of `n_rows` rows against the tokenizer, and against the ids of splits of moderate size.

        Raises:
          InputError: an id of the data has no row.
        """
        if n_rows < self.n_ids:
            raise InputError(
                f"model.vocab_size={n_rows} is below the {self.n_ids} ids of {self.data.directory}'s tokenizer; "
                f"set --model.vocab_size={self.n_ids} or more"
            )
        splits: list[Split] = [self.data.train, self.data.val] if isinstance(self.data, Dataset) else []
        for split in splits:
            if split.n_tokens <= FULL_CHECK_TOKENS:
                check_ids(split, n_rows)


def open_source(config: DataConfig, *, verify_again: bool = False) -> Source:
    """Opens the data that a config names, and checks all of its content.

    Args:
      verify_again: read also the files that were checked before and did not change since.

    Raises:
      InputError: the data is missing, damaged or changed, or data.sampling does not apply to its kind.
      Failure: its object store cannot be reached.
    """
    directory = _on_this_machine(config.dir)
    if has_text(directory) and not config.is_text:
        raise InputError(
            f"data.dir={config.dir} holds text shards, data.sampling={config.sampling} is for token shards; "
            "choose --data.sampling=best_fit or stream"
        )
    if config.is_text:
        at_store = is_location(config.tokenizer)
        tokenizer_path = fetch_file(config.tokenizer, "data.tokenizer") if at_store else config.tokenizer
        text = open_text(directory, tokenizer_path)
        n_ids = text.tokenizer.vocab_size
        files = verify_text(text.train, text.val, again=verify_again)
        return Source(config, text, text.tokenizer, text.tokenizer_json, text.digest, files, n_ids, None)
    has_patterns = bool(config.train_files)
    data = (
        open_matching(str(directory), config.train_files, config.val_files) if has_patterns else open_dataset(directory)
    )
    files = verify(data, again=verify_again)
    tokenizer = tokenizer_from_json(data.tokenizer_json) if data.tokenizer_json else None
    return Source(
        config, data, tokenizer, data.tokenizer_json, data.digest, {} if data.has_manifest else files,
        data.vocab_size or 0, data.train.n_tokens,
    )  # fmt: skip


def _on_this_machine(directory: str) -> Path:
    """A directory itself; of a location at an object store, a copy that is up to date."""
    return fetch_directory(directory, "data.dir") if is_location(directory) else Path(directory)


def has_text(directory: str | Path) -> bool:
    """Whether a directory holds text shards."""
    return any(Path(directory).glob("shard_*.parquet"))


def open_directory(directory: str, like: DataConfig | None = None, *, verify_again: bool = False) -> Source:
    """Opens a directory that no config names: with the settings of `like` where they apply to its kind of shards.

    Raises:
      InputError: as `open_source`.
    """
    like = like or DataConfig()
    is_text = has_text(_on_this_machine(directory))
    if like.is_text != is_text:
        like = dataclasses.replace(like, sampling="best_fit" if is_text else "sequential", tokenizer="")
    if directory != like.dir:
        like = dataclasses.replace(like, train_files="", val_files="")
    return open_source(dataclasses.replace(like, dir=directory), verify_again=verify_again)


def count_token_bytes(source: Source, say: Callable[[str], None]) -> np.ndarray | None:
    """Bytes of each id, for bits per byte; None, with a message, where the vocabulary is not available."""
    if source.tokenizer is None:
        return None
    try:
        sizes = source.tokenizer.token_bytes()
    except InputError as error:
        say(f"bits per byte not available: {error}")
        return None
    if sizes is None:
        say(f"bits per byte not available: the ids of the {source.tokenizer.name} tokenizer do not stand for bytes")
    return sizes
