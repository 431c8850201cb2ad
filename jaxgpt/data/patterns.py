"""Token shards chosen by patterns, as modded-nanogpt's train_files and val_files choose them.

    DATA_PATH=/mnt jaxgpt train --config speedrun --data.dir=data/fineweb10B \\
        --data.train_files='fineweb_train_*.bin' --data.val_files='fineweb_val_*.bin'

reads /mnt/data/fineweb10B/fineweb_train_*.bin, where `DATA_PATH=/mnt torchrun train_gpt.py` reads them. A pattern is
relative to data.dir, and a relative data.dir to DATA_PATH where that is set and non-empty; an absolute one stands for
itself. Files are read in the order of their names. The variable counts only where patterns are given, so that it
moves no other run's data.

Where data.dir has a manifest, the patterns choose among its files, which are checked against it.
"""

import dataclasses
import glob
import os
from pathlib import Path

from jaxgpt.data.manifest import MANIFEST
from jaxgpt.data.shards import Dataset, Split, dataset_of, open_dataset, prepare_command
from jaxgpt.errors import InputError, require

DATA_PATH = "DATA_PATH"
"""Name of the environment variable."""


def place_of(directory: str) -> Path:
    """Where data.dir is: under DATA_PATH, if it is relative and that is set."""
    return Path(os.environ.get(DATA_PATH, ""), directory)


def open_matching(directory: str, train_files: str, val_files: str) -> Dataset:
    """Opens the shards that match two patterns and checks headers, sizes and counts; reads no tokens.

    Args:
      directory: data.dir, as it was set.

    Raises:
      InputError: a pattern matches no file, a file is no shard, or a file is in both splits.
    """
    place = place_of(directory)
    patterns = {"train": train_files, "val": val_files}
    found = {split: _match(place, split, pattern) for split, pattern in patterns.items()}
    if both := sorted(set(found["train"]) & set(found["val"])):
        raise InputError(
            f"data.train_files={train_files} and data.val_files={val_files} both match {both[0]}; a val loss on "
            "training data means nothing: choose patterns that share no file"
        )
    if not (place / MANIFEST).exists():
        return dataset_of(place, found)
    data = open_dataset(place)
    listed = {file.path.resolve(): file for file in data.train.files + data.val.files}
    for split, paths in found.items():
        for path in paths:
            require(
                path.resolve() in listed,
                f"data.{split}_files={patterns[split]} matches {path}, which {place / MANIFEST} does not list; "
                "narrow the pattern, or prepare the data again",
            )
    splits = {
        name: Split(name, place, tuple(listed[path.resolve()] for path in paths)) for name, paths in found.items()
    }
    return dataclasses.replace(data, train=splits["train"], val=splits["val"])


def _match(place: Path, split: str, pattern: str) -> list[Path]:
    """The files of a pattern, in the order of their paths; at least one."""
    paths = [
        Path(path) for path in sorted(glob.glob(str(Path(glob.escape(str(place)), pattern)))) if Path(path).is_file()
    ]
    if not paths:
        data_path = os.environ.get(DATA_PATH, "")
        under = f"{DATA_PATH}={data_path}" if data_path else f"{DATA_PATH} is not set"
        raise InputError(
            f"data.{split}_files={pattern} matches no file in {place.absolute()} ({under}); correct data.dir or "
            f"{DATA_PATH}, or run {prepare_command(place)}"
        )
    return paths
