"""A corpus that is always available: Python's documentation, out of the interpreter's own files.

The language reference of help() and every docstring of the standard library, each under its dotted name. Sources are
parsed and never imported. How much it is depends on the Python version: some 2 MB.
"""

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from jaxgpt.errors import InputError

_NOT_DOCUMENTATION = re.compile(
    r"(test|tests|idle_test|idlelib|lib2to3|site-packages|dist-packages|__pycache__|lib-dynload|ensurepip"
    r"|turtledemo|encodings|config-.*)"
)
_TYPED = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--", "\u2026": "..."}
)
"""Printers' quotes, dashes and dots, as a keyboard has them."""


def python_docs(stdlib: Path, min_chars: int = 40) -> list[str]:
    """The documents, in the order of a hash of their text: shuffled, and the same each time.

    Only printable ASCII and line ends occur (tabs become blanks). What has other characters, fewer than `min_chars`,
    or repeats an earlier one is left out.

    Raises:
      InputError: no sources found, as in an interpreter shipped without them.
    """
    documents: dict[str, str] = {}
    for path in sorted(stdlib.rglob("*.py")):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if any(_NOT_DOCUMENTATION.fullmatch(part) for part in parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # escapes in old sources
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a template, say
        for title, text in _topics(tree) if parts[0] == "pydoc_data" else _docstrings(tree, parts):
            text = text.translate(_TYPED).expandtabs().strip("\n")
            if len(text) >= min_chars and re.fullmatch(r"[\x20-\x7e\n]*", text):
                documents.setdefault(text, f"{title}\n\n{text}" if title else text)
    if not documents:
        raise InputError(f"pydocs: no Python sources in {stdlib}; use another corpus, or a full Python installation")
    return sorted(documents.values(), key=lambda text: hashlib.sha256(text.encode("ascii")).digest())


def _docstrings(tree: ast.Module, parts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    todo: list[tuple[ast.AST, tuple[str, ...]]] = [(tree, parts[:-1] if parts[-1] == "__init__" else parts)]
    while todo:
        node, names = todo.pop()
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield ".".join(names), text
        for child in ast.iter_child_nodes(node):
            is_named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            todo.append((child, (*names, child.name) if is_named else names))


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The strings of pydoc_data.topics, a module that is one dict of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for text in node.values:
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield "", text.value
