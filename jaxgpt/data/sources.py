"""Where a run's rows come from, shards of tokens or text, or conversations, through one interface for both loops.

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
from typing import Any, Literal, cast

import numpy as np

from jaxgpt.config import Config, DataConfig
from jaxgpt.config.schedule import stage_index
from jaxgpt.data.batches import Batches, eval_rows
from jaxgpt.data.bos_batches import BosBatches
from jaxgpt.data.chat_batches import ChatReader, ChatSettings, chat_val_rows
from jaxgpt.data.chat_data import CHAT_MANIFEST, ChatData, open_chat
from jaxgpt.data.conversations import require_chat_tokens
from jaxgpt.data.epoch_counts import epoch_rows
from jaxgpt.data.packing import Packing
from jaxgpt.data.patterns import open_matching
from jaxgpt.data.readers import BosReader, Reader, Rows, ShardReader, TextReader
from jaxgpt.data.shards import Dataset, Split, check_ids, open_dataset, verify
from jaxgpt.data.text_batches import PackedRows, TextBatches, require_lanes, val_rows
from jaxgpt.data.text_data import TextData, open_text, read_tokenizer, verify_text
from jaxgpt.data.tokenizer import Tokenizer, tokenizer_from_json
from jaxgpt.errors import InputError, require
from jaxgpt.files import is_location
from jaxgpt.mirror import fetch_directory, fetch_file

FULL_CHECK_TOKENS = 100_000_000
"""Splits up to this size have all their ids checked at the start; larger ones batch by batch."""


@dataclass(frozen=True)
class Source:
    """What a run needs to know about its data.

    Attributes:
      data: the token shards, the text shards or the conversations.
      tokenizer, tokenizer_json: None for token shards that name none.
      digest: of what the data says of itself: a manifest, or names, sizes and ends of files.
      files: SHA-256 of each file, by name, where `digest` does not contain them.
      n_ids: of the tokenizer; 0 where it is not known.
      n_train_tokens: None for text and conversations, whose tokens are not counted.
    """

    config: DataConfig
    data: Dataset | TextData | ChatData
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
        if isinstance(self.data, ChatData):
            return (
                f"{self.data.directory}: {len(self.data.train):,} conversations, {len(self.data.val):,} for validation"
            )
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
          InputError: too little text, cursors of another run, or a step that the lanes do not divide; or the rows are
            the model's own answers, which no data has.
        """
        require(not config.is_rl, f"rl.samples={config.rl.samples} has rows that the model writes; run it by jaxgpt rl")
        data, seq_len = self.config, max(config.stage_seq_lens())
        if isinstance(self.data, ChatData):
            return ChatReader(
                self.data.train, self.data.digest, self.chat_tokenizer(), chat_settings(config), cursors=cursors
            )
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

    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer of conversations, which has its control tokens."""
        assert self.tokenizer is not None, self.config
        return self.tokenizer

    def count_steps(self, config: Config) -> int:
        """Steps of `data.epochs` epochs of conversations. It packs all of them the first time, if not each has a row.

        Args:
          config: with model, batch and `data.epochs`; its steps are not read.

        Raises:
          InputError: no conversation has a trained token, or an epoch is less than a step.
        """
        assert isinstance(self.data, ChatData)
        settings, n_epochs = chat_settings(config), self.config.epochs
        n_rows = config.train.batch_tokens // settings.seq_len
        if config.is_rl:
            n_steps = len(self.data.train) * n_epochs // config.step_questions
        elif settings.packing == "rows":  # as nanochat: those that are left over begin the next epoch
            n_steps = len(self.data.train) // n_rows * n_epochs
        else:
            rows_of_epoch = epoch_rows(self.data.train, self.data.digest, self.chat_tokenizer(), settings)
            n_steps = -(-rows_of_epoch * n_epochs // n_rows)
        if not n_steps:
            raise InputError(
                f"train.steps=0: data.epochs={n_epochs} of {len(self.data.train)} conversations in {self.config.dir} "
                f"are less than one step of train.batch_tokens={config.train.batch_tokens}; lower it, or give a number"
            )
        return n_steps

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
        if isinstance(self.data, ChatData):
            settings = dataclasses.replace(chat_settings(config), seq_len=seq_len)
            found = chat_val_rows(getattr(self.data, split), self.chat_tokenizer(), settings, n_tokens)
            return found, found.indices
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


def chat_settings(config: Config) -> ChatSettings:
    """How a config packs conversations."""
    chat = config.chat
    return ChatSettings(
        config.model.seq_len, chat.packing, chat.trained, chat.max_tokens or None, n_lanes=config.data.lanes
    )


def open_source(
    config: DataConfig, *, verify_again: bool = False, tokenizer_json: dict[str, Any] | None = None
) -> Source:
    """Opens the data that a config names, and checks all of its content.

    Args:
      verify_again: read also the files that were checked before and did not change since.
      tokenizer_json: of the base run, for conversations where data.tokenizer names none.

    Raises:
      InputError: the data is missing, damaged or changed, or data.sampling does not apply to its kind.
      Failure: its object store cannot be reached.
    """
    directory = _on_this_machine(config.dir)
    if config.is_chat:
        return _open_conversations(config, directory, verify_again, tokenizer_json)
    if (directory / CHAT_MANIFEST).is_file():
        raise InputError(
            f"data.dir={config.dir} holds conversations, data.sampling={config.sampling} is for shards; "
            "train on them by jaxgpt sft"
        )
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


def _open_conversations(
    config: DataConfig, directory: Path, verify_again: bool, tokenizer_json: dict[str, Any] | None
) -> Source:
    data = open_chat(directory, verify_again=verify_again)
    if config.tokenizer:
        at_store = is_location(config.tokenizer)
        path = fetch_file(config.tokenizer, "data.tokenizer") if at_store else Path(config.tokenizer)
        tokenizer, tokenizer_json = read_tokenizer(path, path.parent)
    elif tokenizer_json is not None:
        tokenizer = tokenizer_from_json(tokenizer_json)
    else:
        raise InputError(
            f"data.tokenizer is empty, and no base run gives one for the conversations in {config.dir}; "
            "name a run by --from, or set --data.tokenizer=FILE"
        )
    require_chat_tokens(tokenizer)
    return Source(config, data, tokenizer, tokenizer_json, data.digest, {}, tokenizer.vocab_size, None)


def _on_this_machine(directory: str) -> Path:
    """A directory itself; of a location at an object store, a copy that is up to date."""
    return fetch_directory(directory, "data.dir") if is_location(directory) else Path(directory)


def has_text(directory: str | Path) -> bool:
    """Whether a directory holds text shards."""
    return any(Path(directory).glob("shard_*.parquet"))


def open_directory(
    directory: str, like: DataConfig | None = None, *, verify_again: bool = False,
    tokenizer_json: dict[str, Any] | None = None,
) -> Source:  # fmt: skip
    """Opens a directory that no config names: with the settings of `like` where they apply to its kind of shards.

    Args:
      tokenizer_json: of the model, for conversations.

    Raises:
      InputError: as `open_source`.
    """
    like = like or DataConfig()
    is_text = has_text(_on_this_machine(directory))
    is_chat = (_on_this_machine(directory) / CHAT_MANIFEST).is_file()
    if is_chat:
        like = dataclasses.replace(like, sampling="conversations", tokenizer="" if tokenizer_json else like.tokenizer)
    elif like.is_text != is_text or like.is_chat:
        like = dataclasses.replace(like, sampling="best_fit" if is_text else "sequential", tokenizer="")
    if directory != like.dir:
        like = dataclasses.replace(like, train_files="", val_files="")
    return open_source(
        dataclasses.replace(like, dir=directory), verify_again=verify_again, tokenizer_json=tokenizer_json
    )


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
