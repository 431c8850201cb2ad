"""Batches of conversations: rows for training with their masks, and for validation, with an exact place to resume from.

    reader = ChatReader(conversations, digest, tokenizer, ChatSettings(seq_len=2048))
    batch = reader.read(planned, lo, hi)     Batch [M, hi - lo, T + 1], mask [M, hi - lo, T]
    reader.progress()                        conversations placed / their number, over all hosts

What a step reads depends on the conversations and the settings, not on how many hosts share it: each host packs all
rows, keeps its own, and so knows the global progress without asking the others. (nanochat's ranks have their own
learning rates, because each counts alone.) `n_lanes` packers stand for the originals' ranks where rows must be theirs.

A conversation is cut to what a row holds. (nanochat cuts at 2048 whatever the context: in a shorter one its buffer
fills with conversations that never fit, and the rest of the run is padding.)
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from jaxgpt.config.steps import PlannedStep
from jaxgpt.data.batch import Batch
from jaxgpt.data.chat_cursors import FORMAT, ChatStart, check_chat_cursors
from jaxgpt.data.chat_packing import BestFit, ChatPacking, Counts, Feed, OnePerRow, Packer, Stream, all_rows
from jaxgpt.data.conversations import Conversation, Rendered, render, require_chat_tokens
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError


class Conversations(Protocol):
    """A task, a mixture, a file, or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Conversation | Mapping[str, Any]: ...


@dataclass(frozen=True)
class ChatSettings:
    """How conversations become rows.

    Attributes:
      seq_len: tokens of context per row; a row has one more.
      packing: see `chat_packing`.
      trained: assistant: the assistant's tokens. all: every token, as nanochat's midtraining does.
      max_tokens: that are kept of a conversation. None: what a row holds, and all of it in a stream.
      n_lanes: packers; lane i reads the conversations i, i + n_lanes, ... and fills an equal part of each microbatch.
      is_shared: of a stream: see `Stream`. False is nanochat's way.
      spans_epochs: of best_fit: see `BestFit`. True is nanochat's way.
    """

    seq_len: int
    packing: ChatPacking = "best_fit"
    trained: Literal["assistant", "all"] = "assistant"
    max_tokens: int | None = None
    n_lanes: int = 1
    is_shared: bool = True
    spans_epochs: bool = False

    def __post_init__(self):
        for name, kinds in (("packing", get_args(ChatPacking)), ("trained", ("assistant", "all"))):
            if getattr(self, name) not in kinds:
                raise InputError(f"{name}={getattr(self, name)} is not one of {', '.join(kinds)}; choose one of them")
        for name, value in (("seq_len", self.seq_len), ("n_lanes", self.n_lanes), ("max_tokens", self.max_tokens)):
            if value is not None and value < 1:
                raise InputError(f"{name}={value} is not positive; choose a larger one")

    @property
    def limit(self) -> int | None:
        """Tokens that are kept of a conversation; None: all."""
        if self.packing == "stream":
            return self.max_tokens
        if self.packing == "rows":
            return min(self.max_tokens or self.seq_len + 1, self.seq_len + 1)
        return self.max_tokens or self.seq_len + 1


class ChatReader:
    """Training rows: row r of microbatch m of a step. One thread at a time may use it."""

    def __init__(
        self,
        conversations: Conversations,
        digest: str,
        tokenizer: Tokenizer,
        settings: ChatSettings,
        *,
        cursors: Any = None,
    ):
        """
        Args:
          digest: of the conversations and their order: another one refuses the cursors.
          cursors: as `cursors` returned them, untrusted JSON; None starts at the beginning.

        Raises:
          InputError: there are too few conversations, the tokenizer lacks control tokens, or the cursors are damaged
            or of another run. Later, from `read`: a conversation is malformed, and none of a hundred fits a row.
        """
        require_chat_tokens(tokenizer)
        if len(conversations) < settings.n_lanes:
            raise InputError(
                f"there are {len(conversations)} conversations, n_lanes={settings.n_lanes} needs one each; "
                "give more conversations"
            )
        self.settings, self._n = settings, len(conversations)
        data = hashlib.sha256(f"{digest} {tokenizer.digest()} {self._n}".encode()).hexdigest()
        self._head = {"format": FORMAT, "kind": "conversations", "data": data, **dataclasses.asdict(settings)}
        starts = [ChatStart()] * settings.n_lanes
        if cursors is not None:
            starts = check_chat_cursors(cursors, self._head, self._n)
        self._feeds = [
            _make_feed(conversations, tokenizer, settings, lane=lane, n_taken=start.n_taken)
            for lane, start in enumerate(starts)
        ]
        self._packers: list[Packer] = []
        for feed, start in zip(self._feeds, starts, strict=True):
            feed.counts = dataclasses.replace(start.counts)
            self._packers.append(_make_packer(feed, tokenizer, settings, start))

    def read(self, planned: PlannedStep, lo: int, hi: int) -> Batch:
        """Rows lo..hi of each of the step's microbatches, with masks; once a step, in order.

        Raises:
          InputError: the lanes do not divide a microbatch, or as `__init__` says.
        """
        n_rows, n_lanes, width = planned.n_rows, self.settings.n_lanes, self.settings.seq_len + 1
        assert 0 <= lo <= hi <= n_rows and planned.seq_len == width - 1, (lo, hi, planned)
        if n_rows % n_lanes:
            raise InputError(f"n_lanes={n_lanes} does not divide the {n_rows} rows of a microbatch; choose a divisor")
        ids = np.empty((planned.n_micro, n_rows, width), np.int32)
        mask = np.empty(ids.shape, np.uint8)
        n_each = n_rows // n_lanes
        for m in range(planned.n_micro):
            for lane, packer in enumerate(self._packers):
                own = slice(lane * n_each, (lane + 1) * n_each)
                packer.fill(ids[m, own], mask[m, own])
        return Batch(np.ascontiguousarray(ids[:, lo:hi]), np.ascontiguousarray(mask[:, lo:hi, 1:]))

    def cursors(self) -> dict[str, Any]:
        """Where the lanes stand after the last step, as JSON by lane; equal on all hosts."""
        return {str(lane): self._cursor(lane) for lane in range(len(self._feeds))}

    def _cursor(self, lane: int) -> dict[str, Any]:
        feed = self._feeds[lane]
        held, token = self._packers[lane].held()
        counts = dataclasses.asdict(feed.counts)
        own = {"lane": lane, "n_conversations": self._n, "n_taken": feed.n_taken, "held": held, "token": token}
        return {**self._head, **own, "counts": counts}

    @property
    def counts(self) -> Counts:
        """Of all lanes, from the start of the run."""
        return sum((feed.counts for feed in self._feeds), Counts())

    def progress(self) -> float:
        """Epochs that were placed in rows, of all hosts together: conversations placed / their number."""
        return self.counts.n_placed / self._n

    def summary(self) -> str:
        """What rendering and packing cost, for the end of a run."""
        return summarize(self.counts, self.settings)

    def close(self) -> None:
        """Nothing is open: conversations are rendered when they are read, in the thread that reads."""


def progress_at(cursors: dict[str, Any]) -> float:
    """`ChatReader.progress` at the step that these cursors belong to, where the reader itself is ahead of it."""
    n = sum(cursor["counts"]["n_placed"] for cursor in cursors.values())
    return n / next(iter(cursors.values()))["n_conversations"]


def summarize(counts: Counts, settings: ChatSettings) -> str:
    """In words: what was placed, and a warning of what could not be trained on."""
    n_tokens = counts.n_rows * (settings.seq_len + 1)
    words = [
        f"{counts.n_placed:,} conversations in {counts.n_rows:,} rows, {counts.n_trained:,} trained tokens, "
        f"{counts.n_padding / max(n_tokens, 1):.1%} padding"
    ]
    if counts.n_truncated:
        words.append(f"{counts.n_truncated:,} cut to max_tokens={settings.limit}")
    if counts.n_untrained:
        words.append(f"warning: {counts.n_untrained:,} conversations have no trained token")
    if counts.n_untrained_rows:
        words.append(f"{counts.n_untrained_rows:,} rows have none")
    return "; ".join(words)


# Validation


@dataclass(frozen=True)
class ChatRows:
    """Rows that are read again and again.

    Attributes:
      tokens: int32 [n, seq_len + 1].
      mask: uint8 [n, seq_len], of the targets.
      counts: of the pass that made them.
    """

    tokens: np.ndarray
    mask: np.ndarray
    counts: Counts

    @property
    def indices(self) -> np.ndarray:
        """Indices of all rows, int64 [n]."""
        return np.arange(len(self.tokens))

    def at(self, indices: Iterable[int]) -> np.ndarray:
        """The rows with these indices, int32 [n, seq_len + 1]."""
        return self.tokens[np.asarray(list(indices), np.int64)]

    def masks_at(self, indices: Iterable[int]) -> np.ndarray:
        """Their masks, uint8 [n, seq_len]."""
        return self.mask[np.asarray(list(indices), np.int64)]


def chat_val_rows(
    conversations: Conversations, tokenizer: Tokenizer, settings: ChatSettings, n_tokens: int = 0
) -> ChatRows:
    """The first rows of one pass over conversations, packed like training rows but in one lane.

    Args:
      n_tokens: targets, counted or not, cut to whole rows (one at least). 0, or more than there are: the whole pass.

    Raises:
      InputError: as `ChatReader`; or no target of these rows is trained.
    """
    n_most = max(1, n_tokens // settings.seq_len) if n_tokens else None
    feed, rows = _one_pass(conversations, tokenizer, settings)
    tokens, masks = [], []
    for ids, mask in rows:
        tokens.append(ids)
        masks.append(mask[1:])
        if len(tokens) == n_most:
            break
    _require_trained(feed.counts, settings)
    return ChatRows(np.stack(tokens), np.stack(masks), feed.counts)


def count_epoch(conversations: Conversations, tokenizer: Tokenizer, settings: ChatSettings) -> Counts:
    """What one epoch comes to, rows among it, by packing it once in one lane; for planning steps, and to see before a
    run what it cannot train on.

    Raises:
      InputError: as `chat_val_rows`.
    """
    feed, rows = _one_pass(conversations, tokenizer, settings)
    for _ in rows:
        pass
    _require_trained(feed.counts, settings)
    return feed.counts


def _require_trained(counts: Counts, settings: ChatSettings) -> None:
    if not counts.n_trained:
        how = f", cut to max_tokens={settings.limit}," if counts.n_truncated else ""
        raise InputError(
            f"{counts.n_placed} conversations{how} have no trained token; "
            f"{'set a larger model.seq_len, or ' if counts.n_truncated else ''}give conversations with answers"
        )


def _one_pass(
    conversations: Conversations, tokenizer: Tokenizer, settings: ChatSettings
) -> tuple[Feed, Iterator[tuple[np.ndarray, np.ndarray]]]:
    require_chat_tokens(tokenizer)
    settings = dataclasses.replace(settings, n_lanes=1)
    feed = _make_feed(conversations, tokenizer, settings, n_epochs=1)
    packer = _make_packer(feed, tokenizer, settings, ChatStart())
    return feed, all_rows(packer, settings.seq_len)


def _make_feed(conversations: Conversations, tokenizer: Tokenizer, settings: ChatSettings, **options: Any) -> Feed:
    def render_one(i: int) -> Rendered:
        try:
            ids, mask = render(conversations[i], tokenizer, None)
        except InputError as error:
            raise InputError(f"conversation {i}: {error}") from error
        return Rendered(ids, np.ones_like(mask) if settings.trained == "all" else mask)

    return Feed(render_one, len(conversations), settings.limit, n_lanes=settings.n_lanes, **options)


def _make_packer(feed: Feed, tokenizer: Tokenizer, settings: ChatSettings, start: ChatStart) -> Packer:
    bos = tokenizer.special_id("<|bos|>")
    held = list(start.held)
    if settings.packing == "stream":
        has_begun = start.counts.n_rows > 0
        return Stream(feed, bos, (held, start.token), is_shared=settings.is_shared, has_begun=has_begun)
    if settings.packing == "rows":
        return OnePerRow(feed, tokenizer.special_id("<|assistant_end|>"))
    return BestFit(feed, bos, held, spans_epochs=settings.spans_epochs)
