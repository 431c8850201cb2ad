"""A config as a Python file: executed by `load`, written by `to_source`.

A config file is code that you run, like any script of yours, and ends with one value named `config`. It may import
files beside it. Whatever it raises ends in one line that names the place.
"""

import importlib.abc
import importlib.machinery
import os
import pprint
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jaxgpt.config.settings import Config
from jaxgpt.config.shipped import find_config, suggest
from jaxgpt.errors import InputError
from jaxgpt.files import user_path

MAX_BYTES = 2**20
MODULE = "__config__"
"""Name of the module in which a config file is executed."""
PACKAGE = Path(__file__).parents[1]
OWN_PACKAGES = ("jaxgpt", "torch_ref", "parity_tests")


def load(path: str | Path) -> Config:
    """The value named `config` in a Python file.

    Args:
      path: of a file, or the name of a shipped config; `jaxgpt.config.shipped` says which is which.

    Raises:
      InputError: no such file, it raises something, or it has no Config named `config`.
    """
    path = find_config(user_path(str(path), "--config"))
    source = _read(path)
    module = types.ModuleType(MODULE)
    module.__file__ = str(path)
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
        with _siblings(path.absolute().parent), _registered(module):
            exec(code, module.__dict__)
    except KeyboardInterrupt:
        raise
    except InputError as error:
        raise InputError(f"{_place(error, path)}: {error}") from error
    except BaseException as error:  # SystemExit among them: a config that leaves has not said what to train
        raise InputError(f"--config={path} is not a config: {_place(error, path)}: {_describe(error)}") from error
    config = module.__dict__.get("config")
    if not isinstance(config, Config):
        raise InputError(f"--config={path} has no value named config of type jaxgpt.config.Config; see configs/")
    return config


def to_source(config: Config) -> str:
    """A Python file that `load` reads back to the same value."""
    names = sorted(set(re.findall(r"\b(\w+Config|Config)\(", repr(config))))
    imports = f"from jaxgpt.config import {', '.join(names)}"
    value = pprint.pformat(config, width=100)
    return f'"""Settings of this run, overrides included."""\n\n{imports}\n\nconfig = {value}\n'


def _read(path: Path) -> bytes:
    """What is in the file: no pipe or device is waited for, and no more is read than a config can have."""
    try:
        if not os.path.isfile(path) and os.path.lexists(path):
            inside = f", such as {path / 'config.py'}" if os.path.isfile(path / "config.py") else ""
            raise InputError(f"--config={path} is not a regular file; give a Python file{inside}")
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            source = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"--config={path} does not exist; {suggest(str(path))}") from None
    except OSError as error:
        raise InputError(f"--config={path} cannot be read: {error.strerror}; give another file") from error
    if len(source) > MAX_BYTES:
        raise InputError(f"--config={path} has more than {MAX_BYTES:,} bytes, as no config has; give a Python file")
    return source


class _Siblings(importlib.abc.MetaPathFinder):
    """Finds the modules of one directory, but none that Python or the product has under that name."""

    def __init__(self, directory: Path):
        self.directory = str(directory)
        self.found: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or fullname in sys.stdlib_module_names or fullname in OWN_PACKAGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, [self.directory], target)
        if spec is None or spec.loader is None:  # a directory without __init__.py is no module beside the config
            return None
        self.found.append(fullname)
        return spec


@contextmanager
def _siblings(directory: Path) -> Iterator[None]:
    """Within it, files of the directory can be imported. Afterwards nothing of them is left, in memory or on disk."""
    finder, writes = _Siblings(directory), sys.dont_write_bytecode
    sys.meta_path.insert(0, finder)
    importlib.invalidate_caches()
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in finder.found]:
            del sys.modules[name]


@contextmanager
def _registered(module: types.ModuleType) -> Iterator[None]:
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        sys.modules.pop(module.__name__, None)


def _place(error: BaseException, path: Path) -> str:
    """Where in the user's files it was raised, as file:line; and the config's line that led there."""
    directory = str(path.absolute().parent)
    places = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        is_own = PACKAGE in Path(file).absolute().parents
        if file == str(path) or (os.path.dirname(os.path.abspath(file)) == directory and not is_own):
            places.append(f"{file if file == str(path) else os.path.basename(file)}:{line}")
    if isinstance(error, SyntaxError) and error.filename:
        places.append(f"{error.filename}:{error.lineno or 1}")
    if not places:
        return str(path)
    return places[-1] if places[-1].startswith(f"{path}:") else f"{places[-1]} (imported at {places[0]})"


def _describe(error: BaseException) -> str:
    """The error in one line of bounded length, whatever its __str__ does."""
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:
        text = ""
    text = " ".join(text.split())
    name = type(error).__name__
    return f"{name}: {text if len(text) <= 300 else text[:297] + '...'}" if text else name
