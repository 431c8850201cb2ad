"""A repository of the Hugging Face hub: its name, its revision, and what goes wrong with it, in one line.

References: https://huggingface.co/docs/huggingface_hub/guides/manage-cache; error codes of the hub in
huggingface_hub.utils.hf_raise_for_status.
"""

import difflib
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from jaxgpt.errors import InputError
from jaxgpt.streams import one_line

T = TypeVar("T")


class Unreachable(InputError):
    """No network, offline mode, or a hub that does not answer."""


class Absent(InputError):
    """The repository exists, but not this file."""


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


def require_hub() -> None:
    """Imports huggingface_hub, which reads its variables then.

    Raises:
      InputError: it cannot read one of them.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        has_scheme = urlsplit(endpoint).scheme in ("http", "https")
        import huggingface_hub.constants  # noqa: F401
    except ValueError as error:
        raise InputError(f"huggingface_hub cannot read its variables: {error}; check HF_ENDPOINT, HF_*") from error
    if not has_scheme:
        raise InputError(f"HF_ENDPOINT={endpoint} is not the address of a server; write https:// before it")


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


def explain(error: BaseException, repository: Repository, known: Iterable[str] = (), remedy: str = "") -> InputError:
    """An exception of huggingface_hub in one line, with what to do.

    Args:
      known: names that the user may have meant.
      remedy: where there is no network, instead of the command that fetches the repository elsewhere.
    """
    from huggingface_hub import constants, errors, get_token

    response = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    page = f"{constants.ENDPOINT}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.name}"
    login, remedy = "set HF_TOKEN, or run `hf auth login`", remedy or fetch_elsewhere(repository)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Unreachable(
            f"{repository} is not complete in the cache, and HF_HUB_OFFLINE is set; unset it, or {remedy}"
        )
    if isinstance(error, UnicodeEncodeError):
        return InputError(f"the token for {constants.ENDPOINT} has a character that no token has; {login} with a copy")
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


def fetch_elsewhere(repository: Repository) -> str:
    """What to do where there is no network."""
    kind = " --repo-type dataset" if repository.kind == "dataset" else ""
    return (
        f"run `hf download {repository.name}{kind} --revision {repository.revision}` where there is network, "
        "and copy HF_HOME from there"
    )


def _is_passing(status: int) -> bool:
    return status in (408, 429) or status >= 500


def _cached_names() -> list[str]:
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]
