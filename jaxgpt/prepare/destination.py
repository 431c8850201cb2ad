"""A directory that prepare writes: what it holds, who works in it, and how new data replace old.

The work happens in its .tmp, under a lock. A directory is complete when it has its manifest, which is removed first
and written last.
"""

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.config.shipped import read_about, shipped_configs
from jaxgpt.data.chat_data import CHAT_FILES, CHAT_MANIFEST, open_chat, read_chat_manifest, write_chat_manifest
from jaxgpt.data.manifest import MANIFEST, read_manifest, write_manifest
from jaxgpt.data.shards import open_dataset, verify
from jaxgpt.data.text_data import TOKENIZER, open_splits, verify_text
from jaxgpt.data.text_manifest import (
    TEXT_MANIFEST,
    TEXT_SHARD,
    read_text_manifest,
    require_sizes,
    write_text_manifest,
)
from jaxgpt.errors import InputError
from jaxgpt.files import take_lock


@dataclass(frozen=True)
class Form:
    """What a directory of data can be."""

    manifest: str
    files: re.Pattern[str]
    """Names of what prepare puts there."""
    read: Callable[[Path], dict[str, Any]]
    """The manifest's values."""
    open: Callable[[Path], object]
    """What training does first; raises InputError where the directory cannot be used, or changed."""


def _read_text(out: Path) -> dict[str, Any]:
    values = read_text_manifest(out)
    require_sizes(out, values)
    return values


FORMS = {
    "tokens": Form(
        MANIFEST,
        re.compile(r"(fineweb_)?(train|val)_\d{6}\.bin|manifest\.json(\.(\d+\.)?tmp)?|\.tmp"),
        lambda out: read_manifest(out).values,
        lambda out: verify(open_dataset(out)),
    ),
    "text": Form(
        TEXT_MANIFEST,
        re.compile(TEXT_SHARD.pattern + r"|text\.json(\.(\d+\.)?tmp)?|tokenizer\.json|\.tmp"),
        _read_text,
        lambda out: verify_text(*open_splits(out)),
    ),
    "chat": Form(
        CHAT_MANIFEST,
        re.compile(r"(train|val)\.jsonl|chat\.json(\.(\d+\.)?tmp)?|\.tmp"),
        read_chat_manifest,
        open_chat,
    ),
}


def is_prepared(out: Path, form: str, name: str, request: dict[str, Any], force: bool) -> bool:
    """Whether the directory already holds the requested data. Other data is replaced only with force.

    Args:
      form: a key of `FORMS`.
      name, request: the corpus, and what decides the result.

    Raises:
      InputError: the directory holds something else, or the same, damaged.
    """
    wanted = FORMS[form]
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"--out {out} is a file; choose a directory")
    names = sorted(path.name for path in out.iterdir())
    for other, about in FORMS.items():
        if other != form and about.manifest in names:
            raise InputError(f"--out {out} holds {other} ({about.manifest}); choose another --out for {form}")
    strangers = [name for name in names if not wanted.files.fullmatch(name)]
    if wanted.manifest not in names:
        if strangers:
            raise InputError(
                f"--out {out} holds {', '.join(strangers[:4])}, which prepare did not write; choose another"
            )
        if set(names) - {".tmp", TOKENIZER} and not force:
            raise InputError(
                f"--out {out} has shards but no {wanted.manifest}; --force replaces them, or choose another"
            )
        return False
    if force:
        return False
    try:
        values = wanted.read(out)
        request_there = values.get("request")
        there = {"corpus": values.get("corpus"), **(request_there if isinstance(request_there, dict) else {})}
        asked = {"corpus": name, **request}
        if there == asked:
            wanted.open(out)
            return True
    except InputError as error:
        raise InputError(f"{error} (--force prepares {out} again)") from error
    differs = ", ".join(f"{k}={there.get(k)}, not {k}={v}" for k, v in asked.items() if there.get(k) != v)
    raise InputError(
        f"--out {out} has other data ({differs or 'made by another version'}); "
        "--force replaces it, or choose another --out"
    )


@contextlib.contextmanager
def claim(out: Path) -> Iterator[Path]:
    """A scratch directory in `out` that no other prepare uses. Only downloads outlive it, and only if it fails."""
    is_new = not out.exists()
    scratch = out / ".tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with open(scratch / "lock", "a+") as lock:
        try:
            take_lock(lock)
        except BlockingIOError:
            raise InputError(f"another prepare is writing {out}; wait for it, or choose another --out") from None
        except (ImportError, OSError):
            pass  # Windows and some network file systems have no locks
        for path in scratch.iterdir():
            if path.name not in ("lock", "downloads"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (scratch / "downloads").mkdir(exist_ok=True)
        (scratch / "shards").mkdir()
        try:
            yield scratch
        except BaseException:
            shutil.rmtree(scratch / "shards")
            if not any((scratch / "downloads").iterdir()):
                shutil.rmtree(scratch)
                if is_new and not any(out.iterdir()):
                    out.rmdir()
            raise
        shutil.rmtree(scratch)


def publish(out: Path, scratch: Path, values: dict[str, Any]) -> None:
    """Moves complete shards into place. The manifest goes first and comes last."""
    old: list[str] = []
    if (out / MANIFEST).exists():
        with contextlib.suppress(InputError):
            entries = [entry for entries in read_manifest(out).splits.values() for entry in entries]
            old = [entry.name for entry in entries if not entry.name.startswith("fineweb_")]  # those may serve again
        (out / MANIFEST).unlink()
    for path in (scratch / "shards").iterdir():
        os.replace(path, out / path.name)
    write_manifest(out, values)
    new = {entry["name"] for split in values["splits"].values() for entry in split["files"]}
    for name in set(old) - new:
        (out / name).unlink(missing_ok=True)


def publish_text(out: Path, scratch: Path, values: dict[str, Any]) -> None:
    """As `publish`; but the validation file, the last, is moved first, because no manifest stops a reader.

    A kill in between leaves fewer files to train on, and none that is for validation in one directory and for
    training in the other.
    """
    (out / TEXT_MANIFEST).unlink(missing_ok=True)
    for path in sorted(out.iterdir()):
        if TEXT_SHARD.fullmatch(path.name):
            path.unlink()
    for path in sorted((scratch / "shards").iterdir(), reverse=True):
        os.replace(path, out / path.name)
    write_text_manifest(out, values)


def publish_chat(out: Path, scratch: Path, values: dict[str, Any]) -> None:
    """As `publish`."""
    (out / CHAT_MANIFEST).unlink(missing_ok=True)
    for name in CHAT_FILES.values():
        os.replace(scratch / "shards" / name, out / name)
    write_chat_manifest(out, values)


def train_command(out: Path, form: str, settings: Sequence[str] = ()) -> str:
    """What trains on the directory, to paste into a shell: a shipped config that names it, else one for its form."""
    verbs = ("sft", "rl") if form == "chat" else ("train",)
    from_run = ["--from", "RUN"] if form == "chat" else []
    for name, path in shipped_configs().items():
        is_for_it = f'"{out.as_posix()}"' in path.read_text(encoding="utf-8")
        verb = next((verb for verb in verbs if read_about(path).run.startswith(f"jaxgpt {verb} ")), "")
        if is_for_it and verb:
            return shlex.join(["jaxgpt", verb, "--config", name, *from_run, *settings])
    name = {"text": "nanochat_cpu", "chat": "sft_cpu"}.get(form, "quickstart")
    return shlex.join(["jaxgpt", verbs[0], "--config", name, *from_run, f"--data.dir={out}", *settings])
