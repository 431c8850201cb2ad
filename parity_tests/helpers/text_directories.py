"""Small directories of text, and reading them: what the tests of documents, packing and cursors share."""

import functools
import json
import threading
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from jaxgpt.data import documents, text_data
from jaxgpt.data.packing import BestFit, Packing
from jaxgpt.data.text_batches import TextBatches
from jaxgpt.data.text_data import TextData, open_text
from jaxgpt.data.tokenizer import ByteTokenizer

DELIMITER = 256


class MarkedBytes(ByteTokenizer):
    """Bytes, and a delimiter."""

    name = "marked"
    vocab_size = 257
    begin_of_text = DELIMITER

    def to_json(self):
        return {"kind": "marked"}


PACKINGS: tuple[Packing, ...] = ("stream", "best_fit")


def read_marked(monkeypatch) -> None:
    """A tokenizer.json of {"kind": "marked"} is read as MarkedBytes."""
    read = text_data.tokenizer_from_json

    def tokenizer_from_json(value):
        return MarkedBytes() if value == {"kind": "marked"} else read(value)

    monkeypatch.setattr(text_data, "tokenizer_from_json", tokenizer_from_json)


def write_file(path: Path, texts: list, group_rows: int = 5, kind=None, **options) -> None:
    """Writes one parquet file; `texts` may hold None, and bytes, which need not be UTF-8."""
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    column = pyarrow.array(raw, pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"text": column if kind is None else column.cast(kind)})
    pyarrow.parquet.write_table(table, path, row_group_size=group_rows, **options)


def write_data(directory: Path, *files: list, group_rows: int = 5, first: int = 0) -> Path:
    """A directory with a file per list of texts, and a tokenizer."""
    directory.mkdir(exist_ok=True)
    for number, texts in enumerate(files):
        write_file(directory / f"shard_{first + number:05d}.parquet", texts, group_rows)
    (directory / "tokenizer.json").write_text('{"kind": "marked"}')
    return directory


def random_texts(seed: int, n: int, mean: int = 20) -> list[str]:
    """Texts of very different lengths, each with its own letters."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(1 + rng.pareto(1.2, n) * mean / 4, 40 * mean).astype(int)
    return ["".join(map(chr, rng.integers(33, 127, length))) for length in lengths]


def tokens_of(text: str) -> list[int]:
    return [DELIMITER, *text.encode()]


def tokenize_threads() -> int:
    return sum(thread.name.startswith("tokenize") for thread in threading.enumerate())


def open_small(tmp_path: Path, monkeypatch) -> TextData:
    """Small enough that an epoch is a few steps: 7 row groups, nulls, a document of several rows, a buffer of 20."""
    monkeypatch.setattr(BestFit, "N_BUFFER", 20)
    monkeypatch.setattr(documents, "_CHUNK_ROWS", 4)
    texts = random_texts(6, 60, 16)
    texts[17] = "long " * 60
    return open_text(
        write_data(tmp_path / "data", [None, *texts[:33]], [], texts[33:], ["val", "x" * 90], group_rows=9)
    )


SEQ_LEN, N_ROWS, N_STEPS = 24, 4, 40


def read(data: TextData, kind: Packing, n_lanes: int, hosts, cursors=None, n_steps=N_STEPS, n_rows=N_ROWS, **options):
    """Steps as rows of all hosts, and the cursors after each as a checkpoint has them."""
    parts = [TextBatches(data, SEQ_LEN, kind, n_lanes=n_lanes, cursors=cursors, **options) for _ in hosts]
    try:
        for _ in range(n_steps):
            rows = np.concatenate([b.rows(n_rows, *span) for b, span in zip(parts, hosts, strict=True)])
            yield rows, json.dumps(functools.reduce(dict.__or__, [part.cursors() for part in parts]), sort_keys=True)
    finally:
        for part in parts:
            part.close()


ONE, TWO = [(0, 4)], [(0, 2), (2, 4)]
