"""Arithmetic and counting for a model that asks: an expression is parsed to a tree, and only known nodes have a value.

Nothing is evaluated by Python. Length bounds the depth of the tree and the digits of a number, and there are no powers,
so every expression takes well under a millisecond's worth of arithmetic, in any thread.

Accepted is what nanochat's calculator accepts, with two differences: a comma inside quotes is kept, and a comma between
numbers is removed only where digits stand on both sides.

Reference: nanochat c6abcdf, nanochat/engine.py use_calculator.
"""

import ast
import math
import re

LIMIT_CHARS = 400
FORBIDDEN = (
    "__", "import", "exec", "eval", "compile", "open", "file", "input", "raw_input", "globals", "locals", "vars",
    "dir", "getattr", "setattr", "delattr", "hasattr",
)  # fmt: skip
"""nanochat refuses words that contain one of these, so its models have not seen a result after them."""

_LITERAL = re.compile(r"'[A-Za-z0-9().,_ ]*'|\"[A-Za-z0-9().,_ ]*\"")
_BETWEEN_LITERALS = re.compile(r"(?:''|\.count\b|\bor\b|[0-9]+\b|[() ])*")
_NUMBERS = re.compile(r"[0-9*+\-/.() ]+")
Value = int | float | str


class _NoValue(Exception):
    """The tree holds something that has no value here."""


def calculate(expression: str) -> str | None:
    """The value of an expression as Python writes it, or None where it has none. Never raises.

    Args:
      expression: numbers with + - * / // and parentheses, such as 1,000*2; or 'word'.count('letter'), also several
        joined by `or`.
    """
    if len(expression) > LIMIT_CHARS:
        return None
    text = re.sub(r"(?<=[0-9]),(?=[0-9])", "", expression)
    if not _NUMBERS.fullmatch(text):
        if not _asks_to_count(expression):
            return None
        text = expression
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body)
    except (_NoValue, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else str(value)


def _asks_to_count(text: str) -> bool:
    """Whether a text is made of quoted words, `.count`, `or`, whole numbers and parentheses."""
    lower = text.lower()
    if ".count(" not in text or any(word in lower for word in FORBIDDEN):
        return False
    return bool(_BETWEEN_LITERALS.fullmatch(_LITERAL.sub("''", text)))


def _value(node: ast.expr) -> Value:
    match node:
        case ast.Constant(value=int() | float() | str() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=operand):
            number = _number(operand)
            return -number if isinstance(sign, ast.USub) else number
        case ast.BinOp(left=left, op=op, right=right):
            return _apply(op, _number(left), _number(right))
        case ast.BoolOp(op=ast.Or(), values=[*parts]):
            values = [_value(part) for part in parts]
            return next((value for value in values if value), values[-1])
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as word), attr="count"),
            args=[ast.Constant(value=str() as letters)],
            keywords=[],
        ):
            return word.count(letters)
    raise _NoValue


def _number(node: ast.expr) -> int | float:
    value = _value(node)
    if isinstance(value, str):
        raise _NoValue
    return value


def _apply(op: ast.operator, a: int | float, b: int | float) -> int | float:
    match op:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div():
            return a / b
        case ast.FloorDiv():
            return a // b
    raise _NoValue
