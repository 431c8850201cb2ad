"""The settings on a command line: `--config FILE --section.field=value ...`.

A command line is collected whole and applied once, so `--model.n_head=3 --model.n_embd=96` is checked as a pair.
"""

import dataclasses
import difflib
import re
import types
import typing
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from jaxgpt.config.python_file import load
from jaxgpt.config.section import WORDS, field_types, is_section
from jaxgpt.config.settings import Config
from jaxgpt.config.shipped import shipped_configs
from jaxgpt.errors import InputError


def field_paths(kind: Any = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings, such as model.n_layer."""
    paths = []
    for name, field_type in field_types(kind).items():
        options = typing.get_args(field_type) if isinstance(field_type, types.UnionType) else (field_type,)
        sections = [option for option in options if is_section(option)]
        for section in sections:
            paths += field_paths(section, f"{prefix}{name}.")
        if not sections:
            paths.append(prefix + name)
    return list(dict.fromkeys(paths))


def unknown_field(path: str) -> InputError:
    """The error for a name that no setting has, with the nearest one."""
    known = field_paths()
    by_leaf = [name for name in known if name.split(".")[-1] == path.split(".")[-1]]
    near = by_leaf or difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    leaf = [name for name in known if difflib.get_close_matches(path.split(".")[-1], [name.split(".")[-1]])]
    guess = (near or leaf or [""])[0]
    hint = f"did you mean {guess}?" if guess else "--help lists them"
    return InputError(f"no config field {path}; {hint}")


TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
ROUND = re.compile(r"[+-]?\d+(\.\d*)?[eE]\+?\d{1,3}")
"""An int as people write large ones: 1e6, 2.5e5."""


def _parse(path: str, text: str, kind: Any) -> Any:
    """One value from the command line, for the section's constructor to check.

    Raises:
      InputError: the text is no value of the type; names the field, the text and the type.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _parse(path, text, options[0])
    if origin in (typing.Union, types.UnionType):
        inner = [option for option in options if option is not type(None)]
        return None if text == "None" else _parse(path, text, inner[0])
    if kind is bool:
        if text.lower() not in TRUTH:
            raise InputError(f"{path}={text} is not a bool; write true or false")
        return TRUTH[text.lower()]
    if kind is int and ROUND.fullmatch(text) and (number := Decimal(text)) == int(number):
        return int(number)
    if text in WORDS.get(path, {}):
        return text
    if kind in (int, float):
        for number_type in (kind, float):
            try:
                return number_type(text)
            except ValueError:
                continue
        raise InputError(f"{path}={text} is not {'an int' if kind is int else 'a float'}")
    if origin is tuple and not is_section(options[0]):
        return tuple(_parse(path, part, options[0]) for part in text.split(","))
    if origin is tuple:
        raise InputError(f"{path} holds several values; set it in a config file, or one of them as {path}.0.<field>")
    return text


def _replace(value: Any, path: list[str], overrides: dict[str, str]) -> Any:
    """A copy of a config section with every override below it applied at once."""
    prefix = ".".join(path)
    below = {name for name in overrides if name.startswith(f"{prefix}." if prefix else "")}
    if isinstance(value, tuple):
        parts = list(value)
        if parts and not dataclasses.is_dataclass(parts[0]):
            raise InputError(f"{prefix} is given whole; write --{prefix}={','.join(map(str, parts))}")
        for name in sorted({name.split(".")[len(path)] for name in below}):
            names = [getattr(part, "name", "") for part in parts]
            index = names.index(name) if name in names else int(name) if name.isdigit() else len(parts)
            if index >= len(parts):
                known = f": {', '.join(filter(None, names))}" if any(names) else ""
                raise InputError(f"no config field {prefix}.{name}; {prefix} has {len(parts)} entries{known}")
            parts[index] = _replace(parts[index], [*path, name], overrides)
        return tuple(parts)
    if not is_section(type(value)):
        raise InputError(f"{'.'.join(path[:-1])} holds plain values; set all of them in a config file")
    hints = field_types(type(value))
    changes = {}
    for name in sorted({name.split(".")[len(path)] for name in below}):
        full = ".".join([*path, name])
        if name not in hints:
            raise unknown_field(next(n for n in sorted(below) if n.split(".")[len(path)] == name))
        current = getattr(value, name)
        if full in overrides:
            if dataclasses.is_dataclass(current):
                raise InputError(
                    f"{full} is a section; set one of its fields, such as {full}.{dataclasses.fields(current)[0].name}"
                )
            changes[name] = _parse(full, overrides[full], hints[name])
        elif dataclasses.is_dataclass(current) or isinstance(current, tuple):
            changes[name] = _replace(current, [*path, name], overrides)
        else:
            raise unknown_field(next(n for n in sorted(below) if n.startswith(full + ".")))
    return dataclasses.replace(value, **changes)


def apply_overrides(config: Config, overrides: dict[str, str]) -> Config:
    """A copy of the config with dotted overrides, such as {"optim.lr": "3e-4"}, applied together."""
    return _replace(config, [], overrides) if overrides else config


def parse_args(args: list[str], config: Config | None = None) -> Config:
    """Reads `--config FILE --section.field=value ...`; a value may also follow after a space.

    Args:
      args: the settings of a command line. A verb's own flags are its `Parser`'s.
      config: what the overrides change, where --config is not given.

    Returns:
      The config with its overrides and run.dir set.
    """
    overrides: dict[str, str] = {}
    path, rest = "", list(args)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            raise InputError(f"unexpected argument {arg}; settings are written --section.field=value")
        name, has_value, text = arg[2:].partition("=")
        name = name.replace("-", "_")
        if not has_value:
            has_next = bool(rest) and not rest[0].startswith("--")
            text = rest.pop(0) if has_next else "true"
        if name in overrides or (name == "config" and path):
            raise InputError(f"--{name} is given twice; keep one")
        if name == "config":
            path = text
        else:
            overrides[name] = text
    if not path and config is None:
        known = field_paths()
        for name in overrides:
            if not any(name == field or name.startswith(f"{field}.") for field in known):
                raise unknown_field(name)
        raise InputError(f"--config is missing; give a Python file, or one of: {', '.join(shipped_configs())}")
    config = load(path) if path or config is None else config
    config = apply_overrides(config, overrides)
    warmup_steps, steps = config.optim.schedule.warmup_steps, config.train.steps
    if "optim.schedule.warmup_steps" in overrides and warmup_steps > steps > 0:
        raise InputError(f"optim.schedule.warmup_steps={warmup_steps} is above train.steps={steps}; lower the warm-up")
    if not config.run.dir and path:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=f"runs/{Path(path).stem}"))
    return config
