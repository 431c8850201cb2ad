"""Data sets of the Hugging Face hub as rows: fetched once, checked, then read without network; or local files.

    DIRECTORY/openai--gsm8k/main/train/00000.parquet
                                       manifest.json    written last: without it the split is not complete

The hub keeps every data set as parquet files on the branch refs/convert/parquet, CONFIG/SPLIT/0000.parquet and so on.
They come through `data.hub` (token, retry, resume, digest); the commit stays in the manifest.

Reference: nanochat 92d63d4, which keeps the same folders.
"""

import contextlib
import gzip
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxgpt.data import hub
from jaxgpt.data.digests import hash_files
from jaxgpt.data.hub_repository import Absent, Repository, Unreachable, explain, require_hub, within
from jaxgpt.errors import InputError
from jaxgpt.files import open_in_place, read_bounded, refuse_link, wait_for_lock, write_atomically
from jaxgpt.streams import one_line

DIRECTORY = Path("data/tasks")
BRANCH = "refs/convert/parquet"
LIMIT_BYTES = 4 << 30
"""Of one file."""
_JSON_LIMIT_BYTES = 1 << 30
_MANIFEST_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class HubSplit:
    """A split of a data set, the columns that are read, and its rows, on which nanochat's order depends."""

    name: str
    config: str
    split: str
    columns: tuple[str, ...]
    n_rows: int

    def __str__(self) -> str:
        return f"{self.name} {self.config}/{self.split}"

    def directory(self, under: Path) -> Path:
        return under / self.name.replace("/", "--") / self.config / self.split


class TableRows(Sequence[Any]):
    """Rows of a table in memory, made into dicts one by one."""

    def __init__(self, table: Any):
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._table.slice(index, 1).to_pylist()[0]


def hub_rows(wanted: HubSplit, directory: Path = DIRECTORY, inputs: Sequence[Path] = ()) -> Sequence[Any]:
    """The rows of a split, in the hub's order.

    Args:
      directory: where splits are kept; one that is complete causes no request.
      inputs: local copies to read instead: .parquet, .jsonl or .jsonl.gz, in order.

    Raises:
      InputError: the split cannot be fetched, or a file is damaged or lacks a column.
    """
    if inputs:
        parts = [read_rows(path, wanted.columns) for path in inputs]
        rows = parts[0] if len(parts) == 1 else [row for part in parts for row in part]
    else:
        rows = read_tables(fetch_split(wanted, directory), wanted.columns)
    if len(rows) != wanted.n_rows:
        print(
            f"note: {wanted} has {len(rows):,} rows here, {wanted.n_rows:,} in nanochat's runs; the order differs",
            file=sys.stderr,
        )
    return rows


def read_rows(path: Path, columns: Sequence[str]) -> Sequence[Any]:
    """The rows of a local file.

    Raises:
      InputError: it cannot be read, has no rows, or lacks a column.
    """
    if path.suffix == ".parquet":
        return read_tables([path], columns)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"--input {path} is not a .parquet, .jsonl or .jsonl.gz file; convert it")
    try:
        content = read_bounded(path, _JSON_LIMIT_BYTES)
        if path.suffix == ".gz":
            content = _unpack(path)
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}); give another copy") from error
    rows = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is not JSON; correct it") from error
        if not isinstance(row, dict) or not set(columns) <= set(row):
            raise InputError(f"{path}, line {number} lacks one of {', '.join(columns)}; give the hub's columns")
        rows.append({name: row[name] for name in columns})
    if not rows:
        raise InputError(f"{path} has no rows; give another copy")
    return rows


def _unpack(path: Path) -> bytes:
    with gzip.open(path) as file:
        content = file.read(_JSON_LIMIT_BYTES + 1)
    if len(content) > _JSON_LIMIT_BYTES:
        raise OSError(f"it has more than {_JSON_LIMIT_BYTES} bytes unpacked")
    return content


def read_tables(paths: Sequence[Path], columns: Sequence[str]) -> TableRows:
    """The rows of parquet files, one after the other. All are held in memory, SmolTalk's as about 2 GB.

    Raises:
      InputError: a file is damaged, or lacks a column.
    """
    import pyarrow  # here, because importing it is slow
    import pyarrow.parquet

    tables = []
    for path in paths:
        try:
            with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
                names = file.schema_arrow.names
                wanted = ["train"] if names == ["train"] else list(columns)  # MMLU's older layout
                if missing := set(wanted) - set(names):
                    raise InputError(f"{path} has no column {', '.join(sorted(missing))}; give the hub's file")
                tables.append(file.read(columns=wanted))
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as parquet ({one_line(error)}); fetch it again") from error
    try:
        return TableRows(pyarrow.concat_tables(tables))
    except pyarrow.ArrowException as error:
        raise InputError(f"{paths[0].parent}: files differ in their columns ({one_line(error)})") from error


def fetch_split(wanted: HubSplit, directory: Path = DIRECTORY) -> list[Path]:
    """The parquet files of a split, in order, fetched where they are not complete.

    Raises:
      InputError: the hub cannot be reached or has no such split, or a file changed since it was fetched.
    """
    folder = wanted.directory(directory)
    if found := _read_manifest(folder):
        return found
    refuse_link(folder, "choose another directory")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            return _read_manifest(folder) or _fetch(wanted, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({one_line(error)}); choose another directory") from error


def _fetch(wanted: HubSplit, folder: Path) -> list[Path]:
    repository, files = list_files(wanted)
    paths = [folder / f"{i:05d}.parquet" for i in range(len(files))]
    for i, (file, path) in enumerate(zip(files, paths, strict=True), 1):
        print(f"{wanted}: file {i} of {len(files)}", file=sys.stderr)
        hub.fetch_to(repository, file, path, limit_bytes=LIMIT_BYTES)
    digests = hash_files(paths)
    manifest = {
        "repository": wanted.name, "commit": repository.revision, "config": wanted.config, "split": wanted.split,
        "files": {path.name: digests[path] for path in paths},
    }  # fmt: skip
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return paths


def list_files(wanted: HubSplit) -> tuple[Repository, list[str]]:
    """The data set at the commit that its parquet branch means now, and the split's files there, in order."""
    require_hub()
    from huggingface_hub import HfApi, errors
    from huggingface_hub.errors import HTTPError

    repository = Repository(wanted.name, BRANCH, "dataset")
    remedy = "give local copies by --input (evaluate: --task-input)"
    for wait_s in (*hub.WAITS_S, None):
        try:
            info = within(
                hub.ANSWER_S, lambda: HfApi().dataset_info(wanted.name, revision=BRANCH, timeout=hub.ANSWER_S)
            )
            break
        except (HTTPError, OSError, UnicodeEncodeError) as error:
            problem = explain(error, repository, remedy=remedy)
            is_final = not isinstance(problem, Unreachable) or isinstance(error, errors.OfflineModeIsEnabled)
            if is_final or wait_s is None:
                raise problem from error
            time.sleep(wait_s)
    if not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
        raise InputError(f"{repository} was not answered as the hub does; check HF_ENDPOINT, or {remedy}")
    names = [sibling.rfilename for sibling in info.siblings or ()]
    pattern = re.compile(rf"{re.escape(wanted.config)}/{re.escape(wanted.split)}/[0-9]{{4,6}}\.parquet")
    files = sorted(filter(pattern.fullmatch, names))
    if not files:
        raise Absent(f"{repository} has no files of {wanted.config}/{wanted.split}; {remedy}")
    return replace(repository, revision=str(info.sha)), files


def _read_manifest(folder: Path) -> list[Path]:
    """The files that a manifest lists, compared with it; empty where there is no manifest."""
    path = folder / "manifest.json"
    advice = f"remove {folder} to fetch it again"
    try:
        files = json.loads(read_bounded(path, _MANIFEST_LIMIT_BYTES))["files"]
        is_good = isinstance(files, dict) and files and all(re.fullmatch(r"[0-9]{5}\.parquet", name) for name in files)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a manifest of files ({one_line(error)}); {advice}") from error
    if not is_good:
        raise InputError(f"{path} is not a manifest of files; {advice}")
    paths = [folder / name for name in sorted(files)]
    for missing in (file for file in paths if not file.is_file()):
        raise InputError(f"{missing} is missing; {advice}")
    for file, digest in hash_files(paths).items():
        if digest != files[file.name]:
            raise InputError(f"{file} changed since it was fetched; {advice}")
    return paths


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Locks a split for this process, after another one that fetches it."""
    with open_in_place(folder / "lock") as file:
        wait_for_lock(file, f"fetches {folder}")
        yield
