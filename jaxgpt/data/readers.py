"""Rows step by step and rows by place: what the training loops ask of data, and each kind of shard behind it.

Conversations have theirs in `chat_batches`.
"""

from typing import Any, Protocol

import numpy as np

from jaxgpt.config.steps import PlannedStep
from jaxgpt.data.batch import Batch
from jaxgpt.data.batches import Batches
from jaxgpt.data.bos_batches import BosBatches
from jaxgpt.data.chat_batches import ChatRows
from jaxgpt.data.text_batches import TextBatches


class Rows(Protocol):
    """Rows that are read again and again: `Batches` by position, `PackedRows` and `ChatRows` by index."""

    def at(self, starts: Any, /) -> np.ndarray:
        """Rows int32 [n, seq_len + 1]."""
        ...


def masks_of(rows: Rows, starts: Any) -> np.ndarray | None:
    """Which targets of the rows at these places count, [n, seq_len]; None: all."""
    return rows.masks_at(starts) if isinstance(rows, ChatRows) else None


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
