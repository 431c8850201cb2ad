"""A config in files: loaded from Python, saved as Python and as JSON.

A config file is Python and ends with one value named `config`. It is code that you run, like any script of yours. What
is read back from checkpoints is JSON (`to_dict`, `from_dict`) and runs nothing.
"""

import dataclasses
import json
import pprint
import re
import runpy
import types
import typing
from pathlib import Path
from typing import Any, Literal

from jaxgpt.config.families import ModelConfig
from jaxgpt.config.settings import Config
from jaxgpt.errors import InputError


def load(path: str | Path) -> Config:
    """The value named `config` in a Python file.

    Raises:
      InputError: no such file, not Python, or no Config named `config` in it.
    """
    path = Path(path)
    if not path.is_file():
        shipped = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py"))) or "none here"
        raise InputError(f"--config={path} does not exist; configs in this directory: {shipped}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (SyntaxError, UnicodeDecodeError, NameError, ImportError, TypeError, ValueError) as error:
        raise InputError(f"--config={path} is not a config: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise InputError(f"--config={path} has no value named config of type jaxgpt.config.Config; see configs/")
    return config


def field_types(kind: Any) -> dict[str, Any]:
    """Name -> type of the fields of a dataclass; annotations that it only inherits are left out."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def to_dict(value: Any) -> Any:
    """A config as JSON values: dicts, lists and scalars."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """The dicts of `to_dict` as dotted name -> value."""
    if not isinstance(values, dict):
        return {prefix[:-1]: values}
    return {k: v for name, value in values.items() for k, v in flatten(value, f"{prefix}{name}.").items()}


def from_dict(values: Any, kind: Any = Config, path: str = "") -> Any:
    """The inverse of `to_dict`. Runs no code; unknown names and wrong types raise InputError."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = field_types(kind)
        if not isinstance(values, dict):
            raise InputError(f"saved config: {path or 'top level'} is not a section")
        for name in values:
            if name not in hints:
                raise InputError(f"saved config: no field {path}{name}; it was written by another version")
        return kind(**{name: from_dict(v, hints[name], f"{path}{name}.") for name, v in values.items()})
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(from_dict(v, options[0], path) for v in values)
    if kind == ModelConfig:
        family = values.get("family") if isinstance(values, dict) else None
        of_family = {option.family: option for option in options}
        if family not in of_family:
            raise InputError(f"saved config: model.family={family!r} is not one of {', '.join(of_family)}")
        return from_dict(values, of_family[family], path)
    if origin in (typing.Union, types.UnionType):
        return None if values is None else from_dict(values, options[0], path)
    if origin is Literal:
        is_good = values in options
    elif kind is float:
        is_good = isinstance(values, int | float) and not isinstance(values, bool)
        values = float(values) if is_good else values
    else:
        is_good = type(values) is kind
    if not is_good:
        raise InputError(f"saved config: {path.rstrip('.')}={values!r} is not of type {kind}")
    return values


def to_source(config: Config) -> str:
    """A Python file that `load` reads back to the same value."""
    names = sorted(set(re.findall(r"\b(\w+Config|Config)\(", repr(config))))
    imports = f"from jaxgpt.config import {', '.join(names)}"
    value = pprint.pformat(config, width=100)
    return f'"""Settings of this run, overrides included."""\n\n{imports}\n\nconfig = {value}\n'
