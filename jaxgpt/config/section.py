"""The base of every section of a config: values are checked when it is made, wherever they come from.

A config file, the command line, the saved JSON of a run and a line of Python all end in the constructor of a frozen
dataclass. So one check there, of each value against the field's annotation, covers all of them. Checks of ranges follow
in the sections' own `__post_init__`.
"""

import dataclasses
import functools
import math
import numbers
import types
import typing
from typing import Annotated, Any, ClassVar, Literal

from jaxgpt.errors import InputError, require
from jaxgpt.files import user_location, user_path

UserPath = Annotated[str, user_path]
"""A path as the user wrote it; `~` is replaced by the home directory."""
UserLocation = Annotated[str, user_location]
"""A `UserPath`, or a location at an object store, such as s3://bucket/x."""
LARGEST_INT = 2**63
LARGEST_FLOAT = 3.4e38
"""float32 ends here: on a device a larger number is infinite."""
SMALLEST_ROUND = 1000
"""From here on a float is taken for the int that it equals: people write 1e6. 12.0 is refused: somebody divided."""
MAX_ENTRIES = 1000
INSTEAD_OF_INFINITY = {"optim.grad_clip": "0 turns clipping off", "train.target_flops": "set train.steps"}
"""What to write where infinity would have a meaning."""
WORDS = {"train.micro_batch_size": {"auto": 0}}
"""Words that stand for a number of a setting."""


class Section:
    """A part of a config. Subclasses are frozen dataclasses.

    Raises:
      InputError: a value is not of its field's type; names the field and the value.
    """

    PATH: ClassVar[str] = ""
    """Where the section stands in a config, with what separates it from a field's name."""

    def __post_init__(self):
        for name, kind in field_types(type(self)).items():
            value = getattr(self, name)
            checked = check(f"{self.PATH}{name}", value, kind)
            if checked is not value:
                object.__setattr__(self, name, checked)


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """Name -> type of the fields of a dataclass; annotations that it only inherits are left out."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def show(value: Any) -> str:
    """A value in one short line. Never raises, whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # a number of more digits than Python prints, an object whose __repr__ is broken
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def check(name: str, value: Any, kind: Any) -> Any:
    """The value as a field of this type holds it: a list becomes a tuple, an int a float where floats are wanted.

    Raises:
      InputError: it is not of that type.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return options[1](check(name, value, options[0]), name)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        kinds = tuple(option for option in options if option is not type(None))
        return check(name, value, kinds[0]) if len(kinds) == 1 else _check_section(name, value, kinds)
    if origin is Literal:
        is_good = isinstance(value, str) and str(value) in options
        shown = value if isinstance(value, str) and value.isidentifier() else show(value)
        require(is_good, f"{name}={shown} is not one of {', '.join(map(repr, options))}")
        return str(value)
    if origin is tuple:
        is_good = isinstance(value, list | tuple)
        entries = f"{options[0].__name__}{'(...)' * is_section(options[0])}"
        require(is_good, f"{name}={show(value)} is not a tuple of {entries}")
        require(len(value) <= MAX_ENTRIES, f"{name} has {len(value)} entries; at most {MAX_ENTRIES} are supported")
        return tuple(check(f"{name}.{i}", entry, options[0]) for i, entry in enumerate(value))
    if isinstance(value, str) and value in WORDS.get(name, {}):
        return WORDS[name][value]
    if is_section(kind):
        return _check_section(name, value, (kind,))
    return {bool: _check_bool, int: _check_int, float: _check_float, str: _check_str}[kind](name, value)


def _check_section(name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    known = " or ".join(f"{kind.__name__}(...)" for kind in kinds)
    require(isinstance(value, kinds), f"{name}={show(value)} is not a section of a config; write {known}")
    return value


def _check_bool(name: str, value: Any) -> bool:
    require(type(value) is bool, f"{name}={show(value)} is not a bool; write True or False")
    return value


def _check_int(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        require(abs(value) >= SMALLEST_ROUND, f"{name}={show(value)} is not an int; write {int(value)}")
        value = int(value)
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise InputError(f"{name}={show(value)} is not an int")
    number = int(value)
    is_inside = -LARGEST_INT <= number < LARGEST_INT
    require(is_inside, f"{name}={show(value)} is outside [-2**63, 2**63); choose one inside")
    return number


def _check_float(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise InputError(f"{name}={show(value)} is not a float")
    try:
        number = float(value)
    except OverflowError:  # an int of more digits than a float has
        number = math.inf
    require(not math.isnan(number), f"{name}={show(value)} is not a number")
    instead = INSTEAD_OF_INFINITY.get(name, "choose a finite number")
    is_finite = abs(number) <= LARGEST_FLOAT
    require(is_finite, f"{name}={show(value)} is beyond float32's {LARGEST_FLOAT:g}; {instead}")
    return number


def _check_str(name: str, value: Any) -> str:
    require(isinstance(value, str), f"{name}={show(value)} is not a text; put it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}={show(value)} is not valid Unicode at character {error.start}; retype it") from error
    return value if type(value) is str else str(value)
