"""Files of the Hugging Face hub, by the package huggingface_hub; their bytes come through our own downloader.

huggingface_hub knows the server (HF_ENDPOINT), the token (HF_TOKEN, or `hf auth login`), the commit behind a revision
and the digest of a file, and it shares its cache (HF_HOME) with transformers. With HF_HUB_OFFLINE=1 only the cache is
read. The content comes through `download`, because huggingface_hub 2.4 deletes what an ended process has fetched and
has no limit on size or for a server that drips.

The cache names the content of a file by its digest: SHA-256, or git's SHA-1 for small files. A cached file is
compared with it before it is used, also without network.

References: https://huggingface.co/docs/huggingface_hub/guides/manage-cache (blobs, snapshots, refs, .no_exist).
"""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxgpt.data.digests import hash_files
from jaxgpt.data.download import Damaged, download
from jaxgpt.data.hub_repository import (
    Absent,
    Repository,
    Unreachable,
    explain,
    fetch_elsewhere,
    is_offline,
    require_hub,
    within,
)
from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded, write_atomically

ANSWER_S = 30.0
"""Limit for an answer that has no content, however slowly it comes."""
WAITS_S = (1.0, 3.0)
"""Before further tries where the hub cannot be reached or is busy."""
SMALL_BYTES = 16 << 20
"""Git keeps no larger files on the hub; they have a SHA-256."""


class Origin(NamedTuple):
    """The SHA-256 that the hub knows for a file (empty for a small one), and the commit that it is from."""

    sha256: str
    commit: str


class _Answer(NamedTuple):
    etag: str
    commit: str
    size_bytes: int


def pin(repository: Repository, file: str, known: Iterable[str] = ()) -> Repository:
    """The repository at the commit that its revision means now; without network, at the one that is cached.

    Args:
      file: one that every such repository has, to ask for.
      known: names that the user may have meant.
    """
    if repository.is_pinned:
        return repository
    cached = _find_cached(repository, file)
    try:
        answer = _ask(repository, file, known, n_tries=1 if cached else len(WAITS_S) + 1)
    except Unreachable as error:
        if cached is None:
            raise
        if not is_offline():
            print(f"note: {error}; using the cached copy {cached.parent.name}", file=sys.stderr)
        return replace(repository, revision=cached.parent.name)
    reference = _cache_of(repository) / "refs" / repository.revision
    with contextlib.suppress(OSError):  # a cache that is read-only may still be complete
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(reference, answer.commit)
    return replace(repository, revision=answer.commit)


def fetch(
    repository: Repository,
    file: str,
    *,
    limit_bytes: int,
    sha256: str = "",
    progress: Callable[[int, int | None], None] = lambda n_bytes, total: None,
    known: Iterable[str] = (),
) -> Path:
    """A file of a pinned repository, in huggingface_hub's cache. One that is cached and whole causes no request.

    Args:
      file: its name; the repository's folders are not looked into.
      sha256: what it must be; empty: what the hub says.
      progress: called with the bytes on disk, and the total.

    Raises:
      Absent: there is no such file.
      InputError: the hub cannot be reached or refuses, or the content is not what it must be.
    """
    assert repository.is_pinned and Path(file).name == file, (repository, file)
    cached = _find_cached(repository, file)
    fault = _fault(cached, sha256 or cached.resolve().name, limit_bytes) if cached else ""
    if cached and not fault:
        return cached
    try:
        answer = _ask(repository, file, known)
    except Unreachable as error:
        if fault:
            raise InputError(f"{cached} {fault}, and it cannot be fetched again: {error}") from error
        raise
    except Absent:
        _note_absent(repository, file)
        raise
    if fault:
        print(f"note: {cached} {fault}; fetching it again", file=sys.stderr)
    try:
        return _fetch_into_cache(repository, file, answer, sha256, limit_bytes, progress)
    except OSError as error:
        raise InputError(f"{_cache_of(repository)} cannot be written: {error}; set HF_HOME to another place") from error


def fetch_to(
    repository: Repository,
    file: str,
    path: Path,
    *,
    limit_bytes: int,
    progress: Callable[[int, int | None], None] = lambda n_bytes, total: None,
) -> Origin:
    """Fetches a file to a place outside the cache; one that is cached is copied. A partial one is resumed.

    Raises:
      InputError: see `fetch`.
    """
    cached = _find_cached(repository, file)
    if cached and not _fault(cached, cached.resolve().name, limit_bytes):
        shutil.copyfile(cached, path)
        return Origin(hash_files([cached])[cached], cached.parent.name)
    answer = _ask(repository, file)
    _download(repository, file, answer, path, "", limit_bytes, progress, "choose another --out")
    return Origin(answer.etag if len(answer.etag) == 64 else "", answer.commit)


def is_absent(repository: Repository, file: str) -> bool:
    """Whether the hub said before that the pinned repository lacks this file."""
    return (_cache_of(repository) / ".no_exist" / repository.revision / file).is_file()


def has(repository: Repository, file: str) -> bool:
    """Whether the pinned repository has a file, without fetching it."""
    if is_absent(repository, file):
        return False
    try:
        _ask(repository, file)
    except Absent:
        _note_absent(repository, file)
        return False
    return True


def _note_absent(repository: Repository, file: str) -> None:
    path = _cache_of(repository) / ".no_exist" / repository.revision / file
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _ask(repository: Repository, file: str, known: Iterable[str] = (), n_tries: int = len(WAITS_S) + 1) -> _Answer:
    """What the hub says about a file."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HTTPError

    url = hf_hub_url(repository.name, file, repo_type=repository.kind, revision=repository.revision)
    for i in range(n_tries):
        if i:
            time.sleep(WAITS_S[i - 1])
        try:
            found = within(ANSWER_S, lambda: get_hf_file_metadata(url, library_name="jaxgpt"))
            break
        except errors.RemoteEntryNotFoundError as error:
            raise Absent(f"{repository} has no {file}; check the name and the revision") from error
        except (HTTPError, OSError, UnicodeEncodeError) as error:
            problem = explain(error, repository, known)
            is_final = not isinstance(problem, Unreachable) or isinstance(error, errors.OfflineModeIsEnabled)
            if is_final or i == n_tries - 1:
                raise problem from error
    etag, commit, size = found.etag or "", found.commit_hash or "", found.size
    is_hub = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag) and re.fullmatch("[0-9a-f]{40}", commit)
    if not is_hub or size is None or size < 0:
        raise InputError(
            f"{url} was not answered as the hub does; check HF_ENDPOINT, and whether a proxy wants a login"
        )
    if repository.is_pinned and commit != repository.revision:
        raise InputError(f"{url} was answered with commit {commit}, which was not requested; check HF_ENDPOINT")
    return _Answer(etag, commit, size)


def _fetch_into_cache(
    repository: Repository, file: str, answer: _Answer, sha256: str, limit_bytes: int,
    progress: Callable[[int, int | None], None],
) -> Path:  # fmt: skip
    from huggingface_hub.utils import WeakFileLock

    blob = _cache_of(repository) / "blobs" / answer.etag
    place = _cache_of(repository) / "snapshots" / repository.revision / file
    lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{answer.etag}.lock"  # where huggingface_hub has it
    for path in (blob, place, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        for path in (blob, place):  # place: a link to the blob, or a copy where there are no links
            if not path.exists() or _fault(path, answer.etag, limit_bytes):
                path.unlink(missing_ok=True)
        _download(repository, file, answer, blob, sha256, limit_bytes, progress, "set HF_HOME to another disk")
        if not place.exists():
            try:
                place.symlink_to(os.path.relpath(blob, place.parent))
            except OSError:  # a file system without links
                os.replace(blob, place)
    return place


def _download(
    repository: Repository, file: str, answer: _Answer, path: Path, sha256: str, limit_bytes: int,
    progress: Callable[[int, int | None], None], elsewhere: str,
) -> None:  # fmt: skip
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repository.name, file, repo_type=repository.kind, revision=answer.commit)
    etag, size = answer.etag, answer.size_bytes
    if sha256 and etag != sha256:
        raise InputError(f"{url} has digest {etag[:16]}..., not {sha256[:16]}... as the original; check HF_ENDPOINT")
    limit_bytes = limit_bytes if len(etag) == 64 else min(limit_bytes, SMALL_BYTES)
    if size > limit_bytes:
        raise InputError(f"{url} has {size} bytes, of which at most {limit_bytes} are expected; check the name")
    if size > (free := shutil.disk_usage(path.parent).free):
        raise InputError(
            f"{file} of {repository} has {size / 1e9:.2f} GB, {path.parent} has {free / 1e9:.2f} GB free; free space, "
            f"or {elsewhere}"
        )

    def check(part: Path) -> None:
        if fault := _fault(part, etag, limit_bytes):
            raise Damaged(f"{url} {fault}; it was damaged on its way: try again")

    authorization = build_hf_headers(library_name="jaxgpt").get("authorization", "")

    def fetch_once() -> None:
        download(
            url, path, sha256=etag if len(etag) == 64 else "", size=size, limit_bytes=limit_bytes, check=check,
            authorization=authorization, progress=progress, fix=fetch_elsewhere(repository), n_tries=3,
        )  # fmt: skip

    try:
        try:
            fetch_once()
        except Damaged as error:
            print(f"note: {error}; fetching it again", file=sys.stderr)
            fetch_once()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; free space, or {elsewhere}") from error


def _fault(path: Path, digest: str, limit_bytes: int) -> str:
    """How a file differs from its digest; empty where it does not, or where its name in the cache says no digest."""
    size = path.stat().st_size
    if size > limit_bytes:
        return f"has {size} bytes, of which at most {limit_bytes} are expected"
    if re.fullmatch("[0-9a-f]{64}", digest):
        found = hash_files([path])[path]
    elif re.fullmatch("[0-9a-f]{40}", digest):
        content = read_bounded(path, SMALL_BYTES)
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        return ""
    return "" if found == digest else f"has digest {found[:16]}..., not {digest[:16]}..."


def _cache_of(repository: Repository) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository.name, repo_type=repository.kind)


def _find_cached(repository: Repository, file: str) -> Path | None:
    require_hub()
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(
        repository.name, file, cache_dir=constants.HF_HUB_CACHE, revision=repository.revision,
        repo_type=repository.kind,
    )  # fmt: skip
    return Path(found) if isinstance(found, str) else None
