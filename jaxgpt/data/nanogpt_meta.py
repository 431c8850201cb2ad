"""nanoGPT's meta.pkl, the character vocabulary beside its train.bin and val.bin, read without running any of it.

The file is a pickle of {"vocab_size": int, "stoi": {character: id}, "itos": {id: character}}. A pickle is a program;
this one is rejected before it starts unless all its instructions build dicts, integers and strings. What it builds is
then checked field by field. Reference: nanoGPT data/shakespeare_char/prepare.py.
"""

import io
import pickle
import pickletools
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded

META = "meta.pkl"
LIMIT_BYTES = 4 << 20
"""More than 65,536 characters need in any protocol."""
MAX_VOCAB_SIZE = 1 << 16
"""Ids are uint16."""
PLAIN_OPCODES = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
        *("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
    }
)
"""What protocols 0 to 5 need for dicts, integers and strings. None of them imports, calls or copies anything."""


def read_meta(path: Path) -> CharTokenizer:
    """The tokenizer of a meta.pkl.

    Raises:
      InputError: the file cannot be read, is no such pickle, or its fields are not a vocabulary of characters.
    """
    try:
        data = read_bounded(path, LIMIT_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; move it away, or check its permissions") from error
    refuse_programs(path, data, PLAIN_OPCODES)
    try:
        value = _PlainUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError) as error:
        raise _damaged(path, error) from error
    return CharTokenizer(_characters(path, value))


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain values only. `refuse_programs` lets nothing else through; this holds without it too."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def refuse_programs(path: Path, data: bytes, allowed: Set[str]) -> None:
    """Raises InputError unless all instructions of a pickle are allowed and the file ends with the last."""
    position = -1
    for name, argument, position in _instructions(path, data):
        if name not in allowed:
            raise InputError(
                f"{path}: pickle instruction {name} at byte {position} does more than build dicts, integers and "
                "strings; rejected without running it: move it away, or write a plain one"
            )
        if "PUT" in name and argument > len(data):  # the unpickler would allocate a table of that size
            raise InputError(f"{path}: memo index {argument} in {len(data)} bytes; it is damaged, copy it again")
    if position != len(data) - 1:
        raise InputError(f"{path} has data after the end of its pickle; it is damaged, copy it again")


def _instructions(path: Path, data: bytes) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and position of each instruction; reads them and runs none."""
    try:
        for opcode, argument, position in pickletools.genops(data):
            yield opcode.name, argument, position or 0
    except (ValueError, EOFError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    detail = next(iter(str(error).splitlines()), type(error).__name__)[:80]
    return InputError(f"{path} is not a complete pickle ({detail}); copy it again, or move it away")


def _characters(path: Path, value: Any) -> str:
    """The characters in the order of their ids."""
    names = {"vocab_size", "stoi", "itos"}
    if type(value) is not dict or set(value) != names:
        found = ", ".join(sorted(str(name)[:20] for name in value)[:5]) if type(value) is dict else "no dict"
        raise InputError(f"{path} should have exactly the fields vocab_size, stoi and itos; found: {found}")
    vocab_size, stoi, itos = value["vocab_size"], value["stoi"], value["itos"]
    if type(vocab_size) is not int or not 1 <= vocab_size <= MAX_VOCAB_SIZE:
        raise InputError(f"{path}: vocab_size is not an integer in [1, {MAX_VOCAB_SIZE}]; copy it again")
    for name, table in (("stoi", stoi), ("itos", itos)):
        if type(table) is not dict or len(table) != vocab_size:
            raise InputError(f"{path}: {name} is not a dict of vocab_size={vocab_size} entries; copy it again")
    for i in range(vocab_size):
        character = itos.get(i)
        if type(character) is not str or len(character) != 1:
            raise InputError(f"{path}: itos gives no single character for id {i}; copy it again")
        if type(stoi.get(character)) is not int or stoi[character] != i:
            raise InputError(f"{path}: itos[{i}] is {character!r}, but stoi of it is not {i}; copy it again")
    return "".join(itos[i] for i in range(vocab_size))
