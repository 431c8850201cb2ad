"""Help on the settings of a config, from the walk that reads them: names, types, values and the fields' docstrings."""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import shutil
import textwrap
import types
import typing
from typing import Annotated, Any, Literal

from jaxgpt.config.section import field_types, is_section
from jaxgpt.config.settings import Config
from jaxgpt.errors import InputError

WIDTH = 80
"""Columns of the short help."""
COLUMN = 24
"""Where explanations begin."""


def terminal_width() -> int:
    return max(60, min(120, shutil.get_terminal_size((WIDTH, 24)).columns))


def entry(name: str, text: str, width: int, column: int = COLUMN, indent: int = 2) -> list[str]:
    """Lines with a name on the left and its explanation beside it, or below where the name is too long."""
    if not name:
        return textwrap.wrap(text, width, break_on_hyphens=False)
    left = " " * indent + name
    if len(left) + 2 > column:
        below = textwrap.wrap(
            text, width, initial_indent=" " * column, subsequent_indent=" " * column, break_on_hyphens=False
        )
        joined = f"{left}  {text}"
        return [joined] if len(joined) <= width else [left, *below]
    return textwrap.wrap(
        text or " ", width, initial_indent=left.ljust(column), subsequent_indent=" " * column, break_on_hyphens=False
    ) or [left]


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """Name -> the docstring below each field of a dataclass, those of its bases included; empty where it has none."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = ""
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    found[node.target.id] = " ".join(str(after.value.value).split())
    return found


def type_name(kind: Any) -> str:
    """A field's type as it is typed: INT, FLOAT, TEXT, PATH, true|false, or its choices."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return "PATH"
    if origin is Literal:
        return "|".join(map(str, options))
    if origin in (typing.Union, types.UnionType):
        return "|".join(type_name(option) for option in options)
    if origin is tuple:
        return f"{options[0].__name__} ..."
    return {bool: "true|false", int: "INT", float: "FLOAT", str: "TEXT", type(None): "None"}[kind]


def sections(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> section, of everything below a config, entries of tuples included."""
    found: dict[str, Any] = {path: value} if path else {}
    for field in dataclasses.fields(value):
        part, name = getattr(value, field.name), f"{path}.{field.name}".lstrip(".")
        if is_section(type(part)):
            found |= sections(part, name)
        elif isinstance(part, tuple):
            for i, each in enumerate(part):
                if is_section(type(each)):
                    found |= sections(each, f"{name}.{getattr(each, 'name', '') or i}")
    return found


def section_lines(width: int) -> list[str]:
    """The sections of a config with a few words on each, in two columns."""
    docs = field_docs(Config)
    longest, half = max(map(len, docs)), -(-len(docs) // 2)
    cells = [f"  {name:<{longest}}  {words}".ljust(width // 2) for name, words in docs.items()]
    pairs = itertools.zip_longest(cells[:half], cells[half:], fillvalue="")
    return [(left + right).rstrip() for left, right in pairs]


def describe(topic: str, config: Config, width: int) -> str:
    """Help on a section, such as optim or optim.muon, or on one field, such as optim.lr.

    Raises:
      InputError: no section or field has that name; suggests one.
    """
    found = sections(config)
    if topic in found:
        return "\n".join(_section(topic, found[topic], width))
    owner, _, leaf = topic.rpartition(".")
    if owner in found and leaf in field_types(type(found[owner])):
        return "\n".join(_field(owner, found[owner], leaf, width))
    for family in typing.get_args(field_types(Config)["model"]):
        if owner == "model" and leaf in field_types(family):
            names = f"{config.model.family}; give --config of a {family.family} model"
            raise InputError(f"--help {topic}: no setting of {names}")
    fields = [f"{path}.{name}" for path, section in found.items() for name in field_types(type(section))]
    known = [*found, *(path for path in fields if path not in found)]
    same = [path for path in known if path.rpartition(".")[2] == topic.rpartition(".")[2]]
    near = difflib.get_close_matches(topic, known, n=1)
    leaves = {path.rpartition(".")[2]: path for path in reversed(known)}
    near = same[:1] or near or [leaves[leaf] for leaf in difflib.get_close_matches(topic, leaves, n=1)]
    hint = f"did you mean --help {near[0]}?" if near else f"sections: {', '.join(field_docs(Config))}"
    raise InputError(f"--help {topic}: no such section or setting; {hint}")


def describe_all(config: Config, width: int) -> str:
    """Help on every section."""
    return "\n\n".join("\n".join(_section(path, part, width)) for path, part in sections(config).items())


def _section(path: str, section: Any, width: int) -> list[str]:
    doc = " ".join((inspect.getdoc(type(section)) or "").split())
    if path == "model":
        families = [family.family for family in typing.get_args(field_types(Config)["model"])]
        doc += f" Families: {', '.join(families)}; the settings are those of the family in --config."
    lines = [*textwrap.wrap(f"{path}: {doc}", width), ""]
    for name in field_types(type(section)):
        lines += _field(path, section, name, width)
    return lines


def _field(path: str, section: Any, name: str, width: int) -> list[str]:
    """A field's flag, type and value, and below them what it means."""
    value, full = getattr(section, name), f"{path}.{name}"
    text = field_docs(type(section)).get(name, "")
    if is_section(type(value)):
        about = (inspect.getdoc(type(value)) or "").split("\n\n")[0]
        return [f"  {full}", *_below(f"{' '.join(about.split())} --help {full} shows it.", width)]
    kind = field_types(type(section))[name]
    if isinstance(value, tuple) and value and not is_section(type(value[0])):
        head = f"  --{full} {type_name(kind).replace(' ...', ',...').upper()}"
        shown = f"({','.join(map(str, value))})"
    elif isinstance(value, tuple):
        entries = [getattr(each, "name", "") or str(i) for i, each in enumerate(value)]
        head = f"  {full} {type_name(kind)}, in a config file"
        shown = f"({', '.join(entries)}: --{full}.{entries[0]}.<field>=...)" if entries else "(empty)"
        shown = shown if all(map(dataclasses.is_dataclass, value)) else repr(value)
    else:
        head = f"  --{full} {type_name(kind)}"
        shown = f"({str(value).lower() if isinstance(value, bool) else repr(value)})"
    lines = [f"{head}  {shown}"] if len(head) + len(shown) + 2 <= width else [head, f"      {shown}"]
    return [*lines, *_below(text, width)]


def _below(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False)
