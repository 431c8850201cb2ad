"""An exported model to the Hugging Face hub: the directory becomes a commit of a repository, by huggingface_hub.

What can be known before the model is written is checked before: name, login, rights of the account, visibility.
Nothing asks on the terminal.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxgpt.data.hub import ANSWER_S
from jaxgpt.data.hub_repository import Repository, explain, is_offline, parse_name, parse_revision, require_hub, within
from jaxgpt.errors import InputError
from jaxgpt.streams import one_line

UPLOAD_S = 600.0
UPLOAD_BYTES_PER_S = 1 << 16
"""An upload may take UPLOAD_S, and its bytes no longer than at this speed."""


def check_push(repository: Repository, *, is_private: bool) -> None:
    """Whether this account may write to a model's repository, as far as the hub says so in advance.

    Raises:
      InputError: a bad name, no login or one that is refused, a foreign owner, no network, or a public repository where
        a private one is wanted.
    """
    require_hub()
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    name = parse_name(repository.name, "--push")
    parse_revision(repository.revision, "--revision")
    if is_offline():
        raise InputError(f"--push={name} needs the network, and HF_HUB_OFFLINE is set; unset it")
    if not get_token():
        raise InputError(f"--push={name} needs a login; set HF_TOKEN to a token that may write, or run `hf auth login`")
    api = HfApi(library_name="jaxgpt")
    try:
        account = within(ANSWER_S, api.whoami)
        owners = [account.get("name"), *(org.get("name") for org in account.get("orgs", []))]
        if (owner := name.partition("/")[0]) not in owners:
            raise InputError(f"--push={name}: your token is for {', '.join(map(str, owners))}, not for {owner}")
        try:
            info = within(ANSWER_S, lambda: api.model_info(name, timeout=ANSWER_S))
        except RepositoryNotFoundError:
            return
    except (HTTPError, OSError, UnicodeEncodeError) as error:
        raise _in_one_line(error, repository, "--push again later") from error
    if is_private and not info.private:
        raise InputError(f"--push={name} exists and is public, which --private does not change; choose another name")


def push(directory: Path, repository: Repository, *, is_private: bool, message: str) -> str:
    """Uploads all files of a directory as one commit. The repository and the branch are made where they are missing.

    Args:
      message: of the commit.

    Returns:
      The address of the model.

    Raises:
      InputError: the hub refuses, cannot be reached, or is too slow. The directory stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api, name, revision = HfApi(library_name="jaxgpt"), repository.name, repository.revision
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

    def upload() -> str:
        url = api.create_repo(name, private=is_private or None, exist_ok=True)
        if revision != "main":
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory, revision=revision, commit_message=message)
        return f"{url}" if revision == "main" else f"{url}/tree/{revision}"

    try:
        with _quiet_unless_terminal():
            return within(UPLOAD_S + size / UPLOAD_BYTES_PER_S, upload)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        later = f"`hf upload {name} {directory} --revision {revision}` later; {directory} is written"
        raise _in_one_line(error, repository, later) from error


@contextlib.contextmanager
def _quiet_unless_terminal() -> Iterator[None]:
    """Without huggingface_hub's bars where nobody sees them move."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _in_one_line(error: BaseException, repository: Repository, remedy: str) -> InputError:
    from huggingface_hub.errors import HTTPError

    known = HTTPError | OSError | UnicodeEncodeError
    if isinstance(error, InputError):
        return error
    while error.__cause__ and not isinstance(error, known):
        error = error.__cause__
    if not isinstance(error, known):
        return InputError(f"{repository} cannot be uploaded: {one_line(error)}; run {remedy}")
    return explain(error, repository, remedy=f"run {remedy}")
