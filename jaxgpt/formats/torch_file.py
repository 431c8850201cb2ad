"""Files that torch.save wrote: read by torch's restricted loader, which runs no code, and written.

Names of tensors lose the prefixes `_orig_mod.` (of torch.compile) and `module.` (of DistributedDataParallel).
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.errors import InputError
from jaxgpt.extras import pip_install
from jaxgpt.files import open_regular
from jaxgpt.formats.stored import Stored, first_line

_PREFIXES = re.compile(r"^(?:_orig_mod\.|module\.)+")
"""Of torch.compile and DistributedDataParallel, in any order."""
_LOAD_ERRORS = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError)
"""What torch.load raises for files that are damaged."""


def import_torch(purpose: str) -> Any:
    """The torch module.

    Args:
      purpose: what needs it, for the message.

    Raises:
      InputError: it is not installed, or so old that its restricted loader can be made to run code.
    """
    try:
        import torch  # here, because it is an extra
    except ImportError as error:
        raise InputError(f"{purpose} needs torch: {pip_install('torch')}") from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):  # CVE-2025-32434, CVE-2026-24747
        raise InputError(f"{purpose}: torch {torch.__version__} reads pickles unsafely; {pip_install('torch')}")
    return torch


def load_torch(path: Path) -> Any:
    """What torch.save wrote, of tensors and plain values only, on the CPU. Zip archives and the older format.

    Raises:
      InputError: torch is missing, the file cannot be read, is damaged, or holds anything else.
    """
    torch = import_torch(f"reading {path}")
    try:
        open_regular(path).close()
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _refuse_compressed(path)
        with warnings.catch_warnings():  # of pickles that it may not know; what it does not know it refuses
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)  # before 1.6 it was no zip
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds more than tensors and plain values, which might run code; rejected") from error
    except InputError:
        raise
    except (zipfile.BadZipFile, *_LOAD_ERRORS) as error:
        raise InputError(f"{path} is not a complete torch checkpoint: {first_line(error)}; copy it again") from error


def _refuse_compressed(path: Path) -> None:
    """torch stores its archives as they are; one that grows when it is read was not written by torch."""
    with zipfile.ZipFile(path) as archive:
        n_bytes = sum(info.file_size for info in archive.infolist())
    n_there = path.stat().st_size
    if n_bytes > n_there:
        raise InputError(f"{path} has {n_there} bytes and says that it holds {n_bytes}; torch did not write it")


def store_all(state: Mapping[Any, Any], path: Path) -> dict[str, Stored]:
    """The tensors of a state_dict by their names without prefixes; other values are left out.

    Raises:
      InputError: a name occurs twice, or a tensor does not hold all the values that its shape says.
    """
    stored: dict[str, Stored] = {}
    for full_name, tensor in state.items():
        name = _PREFIXES.sub("", str(full_name))
        if name in stored:
            raise InputError(f"{path} holds {name} twice, as {full_name} too; save it again")
        if hasattr(tensor, "numpy"):
            stored[name] = store(tensor, f"{path}: {full_name}")
    return stored


def store(tensor: Any, place: str) -> Stored:
    """A torch tensor that holds all the values that its shape says; others are refused before anything is allocated.

    Args:
      place: of the tensor, for messages.
    """
    problem = ""
    if tensor.is_nested or str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        problem = "is sparse, nested or quantized"
    elif tensor.device.type != "cpu":
        problem = f"has no values (device {tensor.device})"
    elif tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        problem = f"has fewer values than its shape {tuple(tensor.shape)} says"
    if problem:
        raise InputError(f"{place} {problem}; save the checkpoint again from a model with plain tensors")
    is_double = str(tensor.dtype) == "torch.float64"

    def read() -> np.ndarray:
        values = tensor.detach()
        return (values if is_double else values.float()).numpy().copy()

    return Stored(tuple(tensor.shape), str(tensor.dtype), read)


def to_number(value: Any) -> Any:
    """A tensor of one value as a Python number; anything else as it is."""
    return value.item() if hasattr(value, "numel") and value.numel() == 1 else value


def save_torch(value: Any, path: Path) -> None:
    """torch.save into a directory that is made if it is missing.

    Raises:
      InputError: torch is missing, or the file cannot be written.
    """
    torch = import_torch(f"writing {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(value, path)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch's
        raise InputError(f"{path} cannot be written: {first_line(error)}; choose another directory") from error
