"""Files of the Hugging Face hub, by the package huggingface_hub; their bytes come through our own downloader.

huggingface_hub knows the server (HF_ENDPOINT), the token (HF_TOKEN, or `hf auth login`), the commit behind a revision
and the digest of a file, and it shares its cache (HF_HOME) with transformers. With HF_HUB_OFFLINE=1 only the cache is
read. The content comes through `download`, because huggingface_hub 2.4 deletes what an ended process has fetched and
has no limit on size or for a server that drips.

The cache names the content of a file by its digest: SHA-256, or git's SHA-1 for small files. A cached file is
compared with it before it is used, also without network.

References: https://huggingface.co/docs/huggingface_hub/guides/manage-cache (blobs, snapshots, refs, .no_exist).
"""

import difflib
import hashlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from jaxgpt.data.digests import hash_files
from jaxgpt.data.download import download
from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded, write_atomically
from jaxgpt.streams import one_line

ANSWER_S = 30.0
"""Limit for an answer that has no content, however slowly it comes."""
WAITS_S = (1.0, 3.0)
"""Before further tries where the hub cannot be reached or is busy."""
SMALL_BYTES = 16 << 20
"""Git keeps no larger files on the hub; they have a SHA-256."""

T = TypeVar("T")


class Unreachable(InputError):
    """No network, offline mode, or a hub that does not answer."""


class Absent(InputError):
    """The repository exists, but not this file."""


class Origin(NamedTuple):
    """The SHA-256 that the hub knows for a file (empty for a small one), and the commit that it is from."""

    sha256: str
    commit: str


@dataclass(frozen=True)
class Repository:
    """One revision of a repository of the hub: a branch, a tag, or a commit of 40 digits."""

    name: str
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"

    @property
    def is_pinned(self) -> bool:
        return bool(re.fullmatch("[0-9a-f]{40}", self.revision))

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{'hf:' if self.kind == 'model' else 'dataset '}{self.name}{revision}"


class _Answer(NamedTuple):
    etag: str
    commit: str
    size_bytes: int


def parse_name(name: str, setting: str) -> str:
    """OWNER/NAME, checked.

    Args:
      setting: for the message, such as --push.
    """
    part = "[A-Za-z0-9_][A-Za-z0-9._-]*"
    if re.fullmatch(f"{part}/{part}", name) and not re.search(r"--|\.\.|[.-](/|$)|\.git$", name) and len(name) <= 96:
        return name
    raise InputError(f"{setting}={name} is not a name of the hub; write OWNER/NAME in letters, digits, '-', '_', '.'")


def parse_revision(revision: str, setting: str) -> str:
    """A branch, a tag or a commit, checked: it becomes part of an address and of a path in the cache."""
    if re.fullmatch("[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*", revision) and ".." not in revision:
        return revision
    raise InputError(f"{setting}={revision!r} is not a revision; write a branch, a tag or a commit")


def parse_repository(source: str) -> Repository:
    """The model behind hf:OWNER/NAME or hf:OWNER/NAME@REVISION."""
    name, at, revision = source.removeprefix("hf:").removeprefix("//").partition("@")
    return Repository(parse_name(name, "hf"), parse_revision(revision, f"hf:{name}@") if at else "main")


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
    blob = _cache_of(repository) / "blobs" / answer.etag
    place = _cache_of(repository) / "snapshots" / repository.revision / file
    if cached:
        print(f"note: {cached} {fault}; fetching it again", file=sys.stderr)
        cached.unlink()
        blob.unlink(missing_ok=True)
    from huggingface_hub.utils import WeakFileLock

    lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{answer.etag}.lock"  # where huggingface_hub has it
    for path in (blob, place, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists() and _fault(blob, answer.etag, limit_bytes):
            blob.unlink()
        _download(repository, file, answer, blob, sha256, limit_bytes, progress, "set HF_HOME to another disk")
        if not place.exists():
            try:
                place.symlink_to(os.path.relpath(blob, place.parent))
            except OSError:  # a file system without links
                os.replace(blob, place)
    return place


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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def within(limit_s: float, call: Callable[[], T]) -> T:
    """What a call returns. A request that is answered byte by byte, or never, ends in TimeoutError."""
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, call()))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not outcome:
        raise TimeoutError(f"no complete answer in {limit_s:.0f} s")
    is_done, value = outcome[0]
    if not is_done:
        raise value
    return value


def explain(error: Exception, repository: Repository, known: Iterable[str] = (), remedy: str = "") -> InputError:
    """An exception of huggingface_hub in one line, with what to do.

    Args:
      known: names that the user may have meant.
      remedy: where there is no network, instead of the command that fetches the repository elsewhere.
    """
    from huggingface_hub import constants, errors, get_token

    response = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    page = f"{constants.ENDPOINT}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.name}"
    login, remedy = "set HF_TOKEN, or run `hf auth login`", remedy or _by_hand(repository)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Unreachable(
            f"{repository} is not complete in the cache, and HF_HUB_OFFLINE is set; unset it, or {remedy}"
        )
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{repository} is gated; accept its licence at {page}, then {login} with that account")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{repository} does not exist; {page}/tree/main lists its branches and tags")
    if isinstance(error, errors.RepositoryNotFoundError):
        near = difflib.get_close_matches(repository.name, [*known, *_cached_names()], 1, 0.8)
        hint = f"; did you mean {near[0]}?" if near and near[0] != repository.name else "; check the name"
        private = "the account of your token cannot read it" if get_token() else f"if it is private, {login}"
        return InputError(f"{repository} does not exist at {constants.ENDPOINT}, or is private{hint} ({private})")
    if status in (401, 403):
        what = "refuses your token" if get_token() else "asks for a token"
        return InputError(f"{page} {what} ({status}); {login} with a token that may do this")
    if status and not _is_passing(status):
        said = one_line(getattr(error, "server_message", None) or "no reason")
        return InputError(f"{page} returned {status} ({said}); check HF_ENDPOINT and the name")
    reason = f"returned {status}" if status else f"cannot be reached ({one_line(error) or type(error).__name__})"
    return Unreachable(f"{page} {reason}; try again, or {remedy}")


def _by_hand(repository: Repository) -> str:
    kind = " --repo-type dataset" if repository.kind == "dataset" else ""
    return (
        f"run `hf download {repository.name}{kind} --revision {repository.revision}` where there is network, "
        "and copy HF_HOME from there"
    )


def _is_passing(status: int) -> bool:
    return status in (408, 429) or status >= 500


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
        except (HTTPError, OSError) as error:
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
            raise InputError(f"{url} {fault}; it was damaged on its way: try again")

    authorization = build_hf_headers(library_name="jaxgpt").get("authorization", "")
    try:
        download(
            url, path, sha256=etag if len(etag) == 64 else "", size=size, limit_bytes=limit_bytes, check=check,
            authorization=authorization, progress=progress, fix=_by_hand(repository), n_tries=3,
        )  # fmt: skip
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
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(
        repository.name, file, cache_dir=constants.HF_HUB_CACHE, revision=repository.revision,
        repo_type=repository.kind,
    )  # fmt: skip
    return Path(found) if isinstance(found, str) else None


def _cached_names() -> list[str]:
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]
