"""Object stores: s3://, gs:// and memory:// locations, read and written by fsspec.

A store has objects with names, no directories, no renames and no locks; to write an object is atomic. fsspec and the
package of a protocol (s3fs, gcsfs) are imported when the first location is opened. Where a request fails, they try it
again; what then remains is one line: an InputError for what the user can correct (a bucket, credentials), else a
Failure. Credentials and endpoints are the packages' own: AWS_PROFILE, AWS_ENDPOINT_URL, gcloud's login and so on.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jaxgpt.errors import Failure, InputError
from jaxgpt.extras import pip_install
from jaxgpt.files import flush_to_disk

PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "memory": ("fsspec", "")}
"""Protocol -> the package that reads it, and the extra of jaxgpt that installs it. memory:// ends with the process."""
CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS",
}
BLOCK_BYTES = 32 << 20
"""Of a download; one that was cut continues after the last block."""
CONNECT_S, READ_S = 10, 60
"""How long one request waits for a connection, and for the next bytes."""
RETRIES = 4
"""How often s3fs tries a request; a read as often again, so that the waits of a write add up to seconds, of a read to
less than a minute. gcsfs has its own count."""
_THREADS = 8
_LOCATION = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)


def join(location: str, name: str) -> str:
    return f"{location.rstrip('/')}/{name}"


@dataclass(frozen=True)
class Entry:
    """An object, as a list of its store describes it."""

    size_bytes: int
    version: str
    """Another one when the content is: an ETag, or the time of the change."""


class Store:
    """The objects below a location, by their names relative to it.

    Args:
      location: such as s3://bucket/runs/x.
      setting: what named it, for messages: run.dir, say.

    Raises:
      InputError: it is no location, or its package is not installed.
    """

    def __init__(self, location: str, setting: str = "location"):
        match = _LOCATION.match(location)
        protocol = match[1].replace("gcs", "gs") if match else ""
        if protocol not in PACKAGES or not match:
            known = ", ".join(f"{name}://" for name in PACKAGES if name != "memory")
            raise InputError(f"{setting}={location} is not at {known} or file://; choose one of them, or a directory")
        if not match[2].strip("/"):
            raise InputError(f"{setting}={location} names no bucket; write {protocol}://BUCKET/path")
        self.location, self._setting, self._protocol = location.rstrip("/"), setting, protocol
        self._bucket = match[2].strip("/").partition("/")[0]
        package, extra = PACKAGES[protocol]
        try:
            import fsspec

            self._files: Any = fsspec.filesystem(protocol, **_options(protocol))
            self._files.retries = RETRIES
        except ImportError as error:
            advice = pip_install(extra) if extra else f"pip install {package}"
            raise InputError(f"{setting}={location} needs {package} ({error}); {advice}") from error
        except Exception as error:  # gcsfs looks for credentials here
            raise self._explain(error) from error
        self._root = self._files._strip_protocol(self.location).rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (InputError, Failure):
            raise
        except Exception as error:  # of botocore, aiohttp, google.auth and others
            raise self._explain(error) from error

    def _explain(self, error: BaseException) -> InputError | Failure:
        """A package's error in one line."""
        kinds, texts, cause = set(), [], error
        while cause is not None and len(kinds) < 10:
            kinds.add(type(cause).__name__)
            texts.append(str(cause))
            cause = cause.__cause__
        text = " ".join(next((text for text in texts if text), type(error).__name__).split())[:300]
        advice = f"check {CREDENTIALS.get(self._protocol, 'the permissions')}"
        shown = f"{self._setting}={self.location}"
        if kinds & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound"}:
            return InputError(f"{shown}: no credentials were found ({text}); {advice}")
        if isinstance(error, PermissionError) or re.search(r"\b(40[13]|Forbidden|Unauthorized|AccessDenied)\b", text):
            return InputError(f"{shown}: access is denied ({text}); {advice}, and what they may do in {self._bucket}")
        if isinstance(error, FileNotFoundError):
            return InputError(
                f"{shown} cannot be opened ({text}); create the bucket {self._bucket}, or correct the name"
            )
        advice = "check the network and the endpoint, and run the same command again"
        return Failure(f"{shown} cannot be reached ({type(error).__name__}: {text}); {advice}")

    def list(self, below: str = "") -> dict[str, Entry]:
        """All objects, or those whose names begin with `below` and a slash. A location without any is empty."""
        root = self._path(below).rstrip("/")
        with self._asking():
            self._files.invalidate_cache()
            found = self._files.find(root, detail=True)
        entries = {}
        for path, about in found.items():
            name = path[len(self._root) + 1 :]
            parts = PurePosixPath(name).parts
            is_plain = path.startswith(f"{root}/") and "/".join(parts) == name and ".." not in parts
            if is_plain and name.isprintable() and "\\" not in name:
                entries[name] = Entry(int(about["size"]), _version(about))
        return entries

    def entry(self, name: str) -> Entry | None:
        """One object; None where there is none of that name."""
        with self._asking():
            try:
                about = self._files.info(self._path(name))
            except FileNotFoundError:
                return None
        return Entry(int(about["size"]), _version(about)) if about["type"] == "file" else None

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A whole object of at most so many bytes; None where there is none of that name."""
        with self._asking():
            try:
                content = self._files.cat_file(self._path(name), start=0, end=limit_bytes + 1)
            except FileNotFoundError:
                return None
        if len(content) > limit_bytes:
            raise InputError(f"{join(self.location, name)} has more than {limit_bytes} bytes; it is none of ours")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Writes an object: completely or not at all."""
        with self._asking():
            self._files.pipe_file(self._path(name), content)

    def upload(self, files: Mapping[str, Path]) -> None:
        """Writes objects from files, several at a time."""
        self._each(list(files.items()), lambda item: self._files.put_file(str(item[1]), self._path(item[0])))

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects, several at a time; those that do not exist are none."""

        def delete(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

        self._each(names, delete)

    def copy(self, names: Mapping[str, str]) -> None:
        """Copies objects to other names, several at a time, inside the store."""
        self._each(list(names.items()), lambda item: self._files.cp_file(self._path(item[0]), self._path(item[1])))

    def _each(self, items: Sequence[Any], act: Callable[[Any], None]) -> None:
        with self._asking(), ThreadPoolExecutor(_THREADS) as pool:
            futures = [pool.submit(act, item) for item in items]
            try:
                for future in futures:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def download(self, entries: Mapping[str, Entry], directory: Path) -> None:
        """Writes objects to files below a directory, several at a time. What a cut connection left is continued.

        Raises:
          InputError, Failure: as for every request; or an object changed meanwhile, or the disk is full.
        """

        def fetch(item: tuple[str, Entry]) -> None:
            name, entry = item
            self._download(name, entry, directory / name)

        self._each(list(entries.items()), fetch)

    def _download(self, name: str, entry: Entry, path: Path) -> None:
        partial = path.with_name(partial_name(path.name, entry))
        with _on_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
            done = partial.stat().st_size
            if done > entry.size_bytes:
                os.truncate(partial, done := 0)
        while done < entry.size_bytes:
            end = min(done + BLOCK_BYTES, entry.size_bytes)
            block = self._files.cat_file(self._path(name), start=done, end=end)
            if len(block) != end - done:
                raise self._changed(name)
            with _on_disk(path), open(partial, "ab") as file:
                file.write(block)
                flush_to_disk(file)
            done = end
        is_long = entry.size_bytes > BLOCK_BYTES
        if is_long and _version(self._files.info(self._path(name))) != entry.version:
            partial.unlink()
            raise self._changed(name)
        with _on_disk(path):
            os.replace(partial, path)

    def _changed(self, name: str) -> InputError:
        return InputError(f"{join(self.location, name)} changed while it was read; run the same command again")


@contextlib.contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    """Around what concerns this machine's disk, not the store."""
    try:
        yield
    except OSError as error:
        advice = "free space, or set XDG_CACHE_HOME to another disk"
        raise Failure(f"{path} cannot be written ({error.strerror}); {advice}") from error


def partial_name(name: str, entry: Entry) -> str:
    """Of what a download that was cut leaves beside the file; of this version alone."""
    return f"{name}.{re.sub(r'[^0-9A-Za-z]', '', entry.version)[-32:]}.part"


def _version(about: Mapping[str, Any]) -> str:
    """What a listing says of an object's content."""
    for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created"):
        if about.get(key):
            return str(about[key]).strip('"')
    return ""


def _options(protocol: str) -> dict[str, Any]:
    """Of fsspec's file systems: no cache of lists, and bounded waits."""
    for package in ("s3fs", "gcsfs"):
        logging.getLogger(package).setLevel(logging.ERROR)  # what they try in vain is no news
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol == "s3":
        once_more = {"total_max_attempts": 2, "mode": "standard"}
        options["config_kwargs"] = {"connect_timeout": CONNECT_S, "read_timeout": READ_S, "retries": once_more}
    if protocol == "gs":
        import aiohttp

        options["requests_timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
    return options
