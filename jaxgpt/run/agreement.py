"""Hosts agree before step 0: one configuration, one set of data, one code, or nothing is trained.

Each process builds its config, opens its data and imports its code by itself. A learning rate that differs on one of
them trains one broken model without a word, since each applies its own to its part of the parameters.
"""

import functools
import hashlib
import importlib.metadata
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jaxgpt
from jaxgpt.config import flatten, to_dict
from jaxgpt.config.section import show
from jaxgpt.errors import InputError
from jaxgpt.run.opening import Run

LOCAL = (
    "run.dir", "data.dir", "data.tokenizer", "data.tokenizer_threads", "hosts.",
    "chat.base", "log.wandb_project", "log.trackio_project", "log.tensorboard",
)  # fmt: skip
"""Settings that may differ: places on a host's disk, of which the contents are compared, and what one process reads."""


def facts(run: Run, flags: Mapping[str, Any], packages: tuple[str, ...]) -> dict[str, Any]:
    """What must be the same on all hosts, by name.

    Args:
      flags: of the command line.
      packages: whose versions count.
    """
    settings = {name: value for name, value in flatten(to_dict(run.config)).items() if not name.startswith(LOCAL)}
    tokenizer = json.dumps(run.source.tokenizer_json, sort_keys=True)
    return {
        **settings,
        **{f"--{name}": is_given for name, is_given in flags.items()},
        "the data in data.dir": run.source.digest,
        **{f"the data in data.dir, {name}": digest for name, digest in run.source.files.items()},
        "the base run": run.base.about() | {"run": ""} if run.base else {},
        "the tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "jaxgpt's version": jaxgpt.__version__,
        "jaxgpt's sources": hash_code(),
        **{f"{name}'s version": importlib.metadata.version(name) for name in packages},
    }


@functools.cache
def hash_code() -> str:
    """SHA-256 of the sources of jaxgpt and, where it lies beside it, torch_ref."""
    digest = hashlib.sha256()
    root = Path(jaxgpt.__file__).parent
    for path in sorted([*root.rglob("*.py"), *(root.parent / "torch_ref").rglob("*.py")]):
        digest.update(str(path.relative_to(root.parent)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def check_agreement(own: dict[str, Any], exchange_texts: Callable[[str], list[str]]) -> None:
    """Compares the facts of all processes. All must call it.

    Raises:
      InputError: they differ, on all processes; names the first difference, the two processes and their hosts.
    """
    texts = exchange_texts(json.dumps({"host": socket.gethostname(), "facts": own}))
    first, *others = [json.loads(text) for text in texts]
    for index, other in enumerate(others, start=1):
        for name in [*first["facts"], *other["facts"]]:
            ours, theirs = (side["facts"].get(name) for side in (first, other))
            if ours != theirs:
                raise InputError(
                    f"hosts differ: {name} is {show(ours)} on process 0 ({first['host']}) and {show(theirs)} on "
                    f"process {index} ({other['host']}); start all with the same"
                )
