"""Fetching files over HTTP: with retry and resume, under their name only when complete and checked."""

import errno
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxgpt.data.digests import sha256_of
from jaxgpt.errors import InputError
from jaxgpt.files import flush_to_disk

TIMEOUT_S = 60.0
"""Longest silence of a server."""
MIN_BYTES_PER_S = 1024
WINDOW_S = 60.0
"""A server that is slower than MIN_BYTES_PER_S for so long has failed, even if it never falls silent."""


class Damaged(InputError):
    """All of it came, but not what it must be."""


class _TooSlow(ConnectionError):
    pass


class _Refused(Exception):
    """Not worth a second try."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    size: int = 0,
    limit_bytes: int = 0,
    check: Callable[[Path], None] = lambda part: None,
    authorization: str = "",
    progress: Callable[[int, int | None], None] = lambda n_bytes, total: None,
    fix: str = "give a copy by --input",
    n_tries: int = 5,
    wait_s: float = 1.0,
) -> None:
    """Fetches a file. It has its name when it is complete and checked; until then it is <name>.part.

    Args:
      sha256, size: what the file must be; empty and 0: not known.
      limit_bytes: a larger answer is refused; 0: `size`, or no limit.
      check: called with the complete file before it gets its name; raises InputError where it is not the expected one.
      authorization: a header for the server of this address; a redirect to another server does not get it.
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
    n_failed, limit_bytes = 0, limit_bytes or size
    while True:
        n_before = part.stat().st_size if part.exists() else 0
        try:
            is_whole = _fetch(url, part, limit_bytes, authorization, progress)
        except _Refused as error:
            part.unlink(missing_ok=True)
            raise InputError(f"{url} {error}; check the address, or {fix}") from error
        except (OSError, http.client.HTTPException) as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
                raise
            if 400 <= status < 500 and status not in (408, 429):
                raise InputError(f"{url} returned {status}; check whether it moved, or {fix}") from error
            n_there = part.stat().st_size if part.exists() else 0
            has_moved = n_there > n_before and not isinstance(error, _TooSlow)
            n_failed = 1 if has_moved else n_failed + 1
            if n_failed >= n_tries:
                kept = f"{n_there} bytes are kept in {part}; try again to resume" if n_there else "try again"
                raise InputError(f"{url} cannot be fetched ({error}), {n_failed} tries; {kept}") from error
            time.sleep(wait_s * 2 ** (n_failed - 1))
            continue
        problem = _mismatch(part, sha256, size)
        if not problem:
            try:
                check(part)
            except InputError:
                part.unlink()
                raise
            os.replace(part, path)
            return
        part.unlink()
        if is_whole:
            raise Damaged(f"{url} {problem}; it was damaged or changed: try again, or {fix}")
        # Else the old part may not belong to the new one: fetch it all once more.


def _mismatch(path: Path, sha256: str, size: int) -> str:
    if size and path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes, not {size}"
    if sha256 and (found := sha256_of(path)) != sha256:
        return f"has SHA-256 {found[:16]}..., not {sha256[:16]}..."
    return ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; only those that stay on the server get the authorization."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        if followed is not None and _server_of(newurl) == _server_of(req.full_url):
            followed.unredirected_hdrs |= req.unredirected_hdrs
        return followed


def _server_of(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _fetch(
    url: str, part: Path, limit_bytes: int, authorization: str, progress: Callable[[int, int | None], None]
) -> bool:
    """Appends to `part` what is missing. Returns whether all of it was fetched now, from byte 0."""
    begin = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "jaxgpt"})
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    try:
        response = urllib.request.build_opener(_Redirects()).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not begin:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{begin}":
            return False  # nothing is missing
        part.unlink()
        return _fetch(url, part, limit_bytes, authorization, progress)
    with response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
            part.unlink()
            raise ConnectionError("the server sent a different range than requested")
        if response.status != 206:
            begin = 0
        length = response.headers.get("Content-Length", "")
        if length and not re.fullmatch("[0-9]{1,18}", length):
            raise ConnectionError(f"the server sent Content-Length {length[:20]!r}")
        total = begin + int(length) if length else None
        _refuse_size(total or 0, limit_bytes)
        n_there = begin
        began, n_began = time.monotonic(), n_there
        with open(part, "ab" if begin else "wb") as file:
            while block := response.read1(1 << 18):  # what is there, for a slow server would fill a block in days
                file.write(block)
                n_there += len(block)
                _refuse_size(n_there, limit_bytes)
                progress(n_there, total)
                if (passed := time.monotonic() - began) > WINDOW_S:
                    if n_there - n_began < MIN_BYTES_PER_S * passed:
                        raise _TooSlow(f"fewer than {MIN_BYTES_PER_S} bytes/s for {WINDOW_S:.0f} s")
                    began, n_began = time.monotonic(), n_there
            flush_to_disk(file)
    if total is not None and n_there < total:
        raise ConnectionError(f"the connection was cut at byte {n_there} of {total}")
    return begin == 0


def _refuse_size(n_bytes: int, limit_bytes: int) -> None:
    if limit_bytes and n_bytes > limit_bytes:
        raise _Refused(f"sends {n_bytes} bytes or more, of which at most {limit_bytes} are expected")
