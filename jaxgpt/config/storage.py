"""A config as JSON, as checkpoints hold it. Reading it runs no code."""

import dataclasses
import json
import types
import typing
from typing import Any

from jaxgpt.config.section import MAX_ENTRIES, field_types, is_section, show
from jaxgpt.config.settings import Config
from jaxgpt.errors import InputError


def to_dict(value: Any) -> Any:
    """A config as JSON values: dicts, lists and scalars."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """The dicts of `to_dict` as dotted name -> value."""
    if not isinstance(values, dict):
        return {prefix[:-1]: values}
    return {k: v for name, value in values.items() for k, v in flatten(value, f"{prefix}{name}.").items()}


def from_dict(values: Any) -> Config:
    """The inverse of `to_dict`. Runs no code.

    Raises:
      InputError: a section or a field is unknown or missing, or a value is not of its field's type.
    """
    try:
        return _section(values, Config, "")
    except InputError as error:
        raise InputError(f"saved config: {error}") from error


def _section(values: Any, kind: Any, path: str) -> Any:
    """The dataclass of this type; the values themselves are checked by its constructor."""
    if not isinstance(values, dict):
        raise InputError(f"{path.rstrip('.') or 'top level'}={show(values)} is not a section")
    hints = field_types(kind)
    for name in values:
        if name not in hints:
            raise InputError(f"no field {path}{show(name)[1:-1]}; it was written by another version")
    for field in dataclasses.fields(kind):
        is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if is_needed and field.name not in values:
            raise InputError(f"{path}{field.name} is missing")
    return kind(**{name: _value(value, hints[name], f"{path}{name}.") for name, value in values.items()})


def _value(values: Any, kind: Any, path: str) -> Any:
    """Dicts as the sections that the type asks for; everything else as it is."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if is_section(kind):
        return _section(values, kind, path)
    if origin is tuple and is_section(options[0]) and isinstance(values, list) and len(values) <= MAX_ENTRIES:
        return tuple(_section(value, options[0], f"{path}{i}.") for i, value in enumerate(values))
    if origin in (typing.Union, types.UnionType) and all(is_section(option) for option in options):
        families = {option.family: option for option in options}
        family = values.get("family") if isinstance(values, dict) else None
        if not isinstance(family, str) or family not in families:
            raise InputError(f"model.family={show(family)} is not one of {', '.join(families)}")
        return _section(values, families[family], path)
    return values
