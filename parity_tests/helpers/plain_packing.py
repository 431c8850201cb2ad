"""Packing as it is said in words, without a thought of speed: the second route to every row."""

import itertools

import numpy as np

from parity_tests.helpers.text_directories import tokens_of


def plain_stream(texts: list[str], width: int, n_rows: int) -> np.ndarray:
    flat: list[int] = []
    while len(flat) < n_rows * (width - 1) + 1:
        for text in texts:
            flat += tokens_of(text)
    return np.array([flat[i * (width - 1) : i * (width - 1) + width] for i in range(n_rows)])


def refills(texts: list[str], group_rows: int, n_epochs: int | None = None):
    """Lists of documents: row groups in parts of 128."""
    for _ in itertools.count() if n_epochs is None else range(n_epochs):
        for g in range(0, len(texts), group_rows):
            group = texts[g : g + group_rows]
            for i in range(0, len(group), 128):
                yield [tokens_of(text) for text in group[i : i + 128]]


def plain_best_fit(batches, width: int, n_rows: int, n_buffer: int = 1000) -> tuple[np.ndarray, int]:
    """The algorithm in words: a list, searched from its front. Rows, and how many tokens were cut off."""
    buffer: list[list[int]] = []
    rows, n_discarded = [], 0
    while len(rows) < n_rows:
        row: list[int] = []
        while len(row) < width:
            while len(buffer) < n_buffer:
                batch = next(batches, None)
                if batch is None:
                    break
                buffer += batch
            if not buffer:
                return np.array(rows), n_discarded
            room = width - len(row)
            best = None
            for i, document in enumerate(buffer):
                if len(document) <= room and (best is None or len(document) > len(buffer[best])):
                    best = i
            if best is None:
                best = min(range(len(buffer)), key=lambda i: len(buffer[i]))
            document = buffer.pop(best)
            n_discarded += max(0, len(document) - room)
            row += document[:room]
        rows.append(row)
    return np.array(rows), n_discarded
