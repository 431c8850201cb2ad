"""nanochat's tokenizer.pkl, a pickled tiktoken.Encoding, read without running any of it, and written.

A pickle is a program; this one is rejected before it starts unless all its instructions build dicts, integers, strings,
bytes and one object of the class tiktoken.core.Encoding, in whose place a plain holder of its fields is built. Its
pattern must be this version's: a regular expression from a file could be one that never ends.

References: nanochat tokenizer.py (RustBPETokenizer.save); tiktoken core.py (Encoding.__getstate__).
"""

import io
import pickle
from pathlib import Path
from typing import Any

from jaxgpt.data.nanogpt_meta import PLAIN_OPCODES, refuse_programs
from jaxgpt.data.tokenizer import SPLIT_PATTERN, BPETokenizer
from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded

TOKENIZER = "tokenizer.pkl"
LIMIT_BYTES = 128 << 20
_OPCODES = PLAIN_OPCODES | {
    *("BINBYTES", "SHORT_BINBYTES", "GLOBAL", "STACK_GLOBAL", "EMPTY_TUPLE", "NEWOBJ", "BUILD"),
}
_CLASS = ("tiktoken.core", "Encoding")


class _Fields:
    """Stands for the class of the pickle: keeps what its state is."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _FieldsUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != _CLASS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Fields


def read_tiktoken(path: Path) -> BPETokenizer:
    """The tokenizer of a tokenizer.pkl.

    Raises:
      InputError: the file cannot be read, is no such pickle, or is a tokenizer that this version does not have.
    """
    try:
        data = read_bounded(path, LIMIT_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; move it away, or check its permissions") from error
    refuse_programs(path, data, _OPCODES)
    try:
        value = _FieldsUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        detail = next(iter(str(error).splitlines()), type(error).__name__)[:80]
        raise InputError(f"{path} is not a pickled tiktoken.Encoding ({detail}); copy it again") from error
    state = value.state if isinstance(value, _Fields) else None
    names = {"name", "pat_str", "mergeable_ranks", "special_tokens"}
    if type(state) is not dict or set(state) != names:
        raise InputError(f"{path} is not a pickled tiktoken.Encoding with a vocabulary of its own; copy it again")
    if state["pat_str"] != SPLIT_PATTERN:
        raise InputError(f"{path} cuts text by another pattern than nanochat's of 2025 and 2026; it cannot be read")
    tokens = _by_id(path, state["mergeable_ranks"], bytes, 0)
    specials = _by_id(path, state["special_tokens"], str, len(tokens))
    try:
        return BPETokenizer(tokens, specials)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_tiktoken(tokenizer: BPETokenizer, path: Path) -> None:
    """Writes the tokenizer.pkl that nanochat's tok_train would write."""
    import tiktoken

    values = tokenizer.to_json()
    ranks = {token.encode("latin-1"): i for i, token in enumerate(values["tokens"])}
    encoding = tiktoken.Encoding(
        "rustbpe", pat_str=values["split"], mergeable_ranks=ranks, special_tokens=dict(tokenizer.specials)
    )
    path.write_bytes(pickle.dumps(encoding, protocol=4))


def _by_id(path: Path, table: Any, kind: type, first: int) -> list[Any]:
    """Keys of a dict in the order of their ids, which are `first` and those that follow."""
    is_table = type(table) is dict and all(type(k) is kind and type(i) is int for k, i in table.items())
    if not is_table or sorted(table.values()) != list(range(first, first + len(table))):
        raise InputError(f"{path}: its ids are not those from {first} on, one for each token; copy it again")
    return sorted(table, key=lambda token: table[token])
