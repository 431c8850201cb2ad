"""Rows of tokens, as a function of the step.

A batch depends on the data, the seed and the step, and on nothing else: not on what was read before, nor on how
many hosts share it or which of its rows one of them reads. So a resumed run continues where it stopped, and another
number of devices, or another framework, reads the same tokens.

A row has seq_len + 1 tokens: inputs are all but the last, targets all but the first.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from jaxgpt.data.shards import Split, raise_bad_id
from jaxgpt.errors import InputError


class Batches:
    """Cuts one split into rows."""

    def __init__(
        self,
        split: Split,
        seq_len: int,
        seed: int,
        sampling: Literal["random", "sequential"],
        id_limit: int | None = None,
    ):
        """
        Args:
          split: where the tokens are.
          seq_len: tokens of context per row, of the longest where they differ; a row reads one more.
          seed: in [0, 2**64); decides the random rows, together with the step.
          sampling: random: rows start anywhere. sequential: a row starts at the token after those of all rows
            before it, and after the last whole row of seq_len tokens the first follows again.
          id_limit: ids at or above it are rejected; None accepts all.

        Raises:
          InputError: the split is shorter than one row.
        """
        assert sampling in ("random", "sequential"), sampling
        _require_a_row(split, seq_len)
        self.split, self.seq_len, self._seed, self._sampling = split, seq_len, seed, sampling
        self._id_limit = id_limit or 1 << 31

    def rows(
        self, step: int, tokens_before: int, n_rows: int, lo: int, hi: int, seq_len: int | None = None
    ) -> np.ndarray:
        """Rows lo..hi of the `n_rows` that a step takes, int32 [hi - lo, seq_len + 1].

        Args:
          step: index of the optimizer step, from 0.
          tokens_before: tokens of all earlier steps together (read where sampling is sequential).
          n_rows: rows of this step, over all devices and microbatches.
          lo, hi: which of them to read, 0 <= lo <= hi <= n_rows.
          seq_len: of this step's rows, at most that of the longest; None: that.

        Raises:
          InputError: an id outside the vocabulary, or a file that cannot be read.
        """
        assert 0 <= lo <= hi <= n_rows, (lo, hi, n_rows)
        seq_len = seq_len or self.seq_len
        assert seq_len <= self.seq_len, (seq_len, self.seq_len)
        n_tokens = self.split.n_tokens
        if self._sampling == "random":
            # Raw bits of a counter-based generator: numpy keeps these stable, its distributions it may change.
            # Modulo favours early positions by less than n_tokens / 2**64.
            key = np.array([self._seed, step], np.uint64)
            bits = np.random.Philox(key=key).random_raw(n_rows)[lo:hi]
            starts = (bits % np.uint64(n_tokens - seq_len)).astype(np.int64)
        else:
            # The epoch is the same for rows of any length, so that a change of length continues where it was. A row
            # of a length that does not divide the epoch may begin too late to end in it; it is the last whole one.
            tokens_per_epoch = (n_tokens - 1) // self.seq_len * self.seq_len
            last = n_tokens - 1 - seq_len
            starts = [min((tokens_before + row * seq_len) % tokens_per_epoch, last) for row in range(lo, hi)]
        return self.at(starts, seq_len)

    def at(self, starts: Iterable[int], seq_len: int | None = None) -> np.ndarray:
        """The rows that begin at these positions of the split, int32 [n, seq_len + 1]. Raises as `rows` does."""
        starts = [int(start) for start in starts]
        width = (seq_len or self.seq_len) + 1
        rows = np.empty((len(starts), width), np.uint32)
        for row, start in zip(rows, starts, strict=True):
            row[:] = self.split.read(start, width)
        if rows.size and int(rows.max()) >= self._id_limit:
            row, column = np.argwhere(rows >= self._id_limit)[0]
            raise_bad_id(self.split, starts[row] + int(column), self._id_limit)
        return rows.view(np.int32)


def _require_a_row(split: Split, seq_len: int) -> None:
    if split.n_tokens < seq_len + 1:
        fits = f"choose model.seq_len <= {split.n_tokens - 1} or more text" if split.n_tokens > 1 else "give more text"
        raise InputError(
            f"{split.directory} {split.name} has {split.n_tokens} tokens, model.seq_len={seq_len} needs {seq_len + 1}; "
            f"{fits}"
        )


def eval_rows(split: Split, seq_len: int, n_tokens: int, *, spread: bool = True) -> np.ndarray:
    """Where the rows of an evaluation start, int64 [n]: no two overlap, the same ones each time.

    Args:
      n_tokens: targets to evaluate, cut to whole rows (one at least). 0, or more than the split has: every whole row.
      spread: evenly over the split; False: one after the other from its start.

    Raises:
      InputError: the split is shorter than one row.
    """
    _require_a_row(split, seq_len)
    n_there = (split.n_tokens - 1) // seq_len
    n_wanted = max(1, n_tokens // seq_len) if n_tokens else n_there
    n = min(n_wanted, n_there)
    rows = np.arange(n, dtype=np.int64)
    return (rows * n_there // n if spread else rows) * seq_len
