"""Fetching files over HTTP: with retry and resume, under their name only when complete and checked."""

import errno
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from jaxgpt.data.digests import sha256_of
from jaxgpt.errors import InputError
from jaxgpt.files import flush_to_disk


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    size: int = 0,
    progress: Callable[[int, int | None], None] = lambda n_bytes, total: None,
    fix: str = "give a copy by --input",
    n_tries: int = 5,
    wait_s: float = 1.0,
) -> None:
    """Fetches a file. It has its name when it is complete and checked; until then it is <name>.part.

    Args:
      sha256, size: what the file must be; empty and 0: unknown.
      progress: called with the bytes on disk, and the total if the server sends it. Its exceptions end the download.
      fix: what the error suggests where the server lacks the file.
      n_tries: attempts in a row without a new byte before it fails.
      wait_s: wait before the second of them; doubled before each further one.

    Raises:
      InputError: the server refuses, the network fails, or the content is not what it must be.
    """
    if path.exists() and not _mismatch(path, sha256, size):
        return
    part = path.with_name(path.name + ".part")
    n_failed = 0
    while True:
        n_before = part.stat().st_size if part.exists() else 0
        try:
            is_whole = _fetch(url, part, progress)
        except (OSError, http.client.HTTPException) as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
                raise
            if 400 <= status < 500 and status not in (408, 429):
                raise InputError(f"{url} returned {status}; check whether it moved, or {fix}") from error
            n_there = part.stat().st_size if part.exists() else 0
            n_failed = 1 if n_there > n_before else n_failed + 1
            if n_failed >= n_tries:
                kept = f"{n_there} bytes are kept in {part}; try again to resume" if n_there else "try again"
                raise InputError(f"{url} cannot be fetched ({error}), {n_failed} tries; {kept}") from error
            time.sleep(wait_s * 2 ** (n_failed - 1))
            continue
        problem = _mismatch(part, sha256, size)
        if not problem:
            os.replace(part, path)
            return
        part.unlink()
        if is_whole:
            raise InputError(f"{url} {problem}; it was damaged or changed: try again, or {fix}")
        # Else the old part may not belong to the new one: fetch it all once more.


def _mismatch(path: Path, sha256: str, size: int) -> str:
    if size and path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes, not {size}"
    if sha256 and (found := sha256_of(path)) != sha256:
        return f"has SHA-256 {found[:16]}..., not {sha256[:16]}..."
    return ""


def _fetch(url: str, part: Path, progress: Callable[[int, int | None], None]) -> bool:
    """Appends to `part` what is missing. Returns whether all of it was fetched now, from byte 0."""
    begin = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "jaxgpt", **({"Range": f"bytes={begin}-"} if begin else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not begin:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{begin}":
            return False  # nothing is missing
        part.unlink()
        return _fetch(url, part, progress)
    with response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
            part.unlink()
            raise ConnectionError("the server sent a different range than requested")
        if response.status != 206:
            begin = 0
        length = response.headers.get("Content-Length")
        total = begin + int(length) if length else None
        n_there = begin
        with open(part, "ab" if begin else "wb") as file:
            while block := response.read(1 << 18):
                file.write(block)
                n_there += len(block)
                progress(n_there, total)
            flush_to_disk(file)
    if total is not None and n_there < total:
        raise ConnectionError(f"the connection was cut at byte {n_there} of {total}")
    return begin == 0
