"""nanoGPT's ckpt.pt, read by torch's restricted loader, which runs no code.

Parameters have our names behind the prefixes `_orig_mod.` (of torch.compile), `module.` (of DDP) and `transformer.`;
torch's nn.Linear stores weights [out, in], ours are [in, out]. References: nanoGPT train.py, model.py.
"""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

from jaxgpt.config.families import GPT2Config
from jaxgpt.errors import InputError
from jaxgpt.extras import pip_install
from jaxgpt.files import open_regular
from jaxgpt.formats.stored import Params, Stored, first_line, read_model

_PREFIXES = re.compile(r"^(?:_orig_mod\.|module\.)+")
"""Of torch.compile and DistributedDataParallel, in any order."""
_LOAD_ERRORS = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError)
"""What torch.load raises for files that are damaged."""


def load_nanogpt(path: str | Path) -> tuple[GPT2Config, Params]:
    """nanoGPT's ckpt.pt. The GELU is nanoGPT's (erf); what the file says of optimizer and data is not read.

    Raises:
      InputError: torch is missing, or the file is not such a checkpoint. Its pickle can run no code.
    """
    path = Path(path)
    checkpoint = _load_torch(path)
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    state, args = checkpoint.get("model"), checkpoint.get("model_args")
    if not isinstance(state, dict) or not isinstance(args, dict):
        raise InputError(f"{path} has no model and model_args; give a ckpt.pt that nanoGPT's train.py wrote")
    names = {"n_layer": int, "n_head": int, "n_embd": int, "block_size": int, "bias": bool, "vocab_size": int}
    for name, kind in names.items():
        if type(args.get(name)) is not kind:
            raise InputError(f"{path}: model_args has no {kind.__name__} {name}; nanoGPT's train.py writes one")
    config = GPT2Config(
        vocab_size=args["vocab_size"], seq_len=args["block_size"], n_layer=args["n_layer"], n_head=args["n_head"],
        n_embd=args["n_embd"], bias=args["bias"], gelu="erf",
    )  # fmt: skip
    stored: dict[str, Stored] = {}
    for full_name, tensor in state.items():
        name = _PREFIXES.sub("", str(full_name))
        if name in stored:
            raise InputError(f"{path} holds {name} twice, as {full_name} too; save it again")
        if hasattr(tensor, "numpy"):
            stored[name] = _store(tensor, f"{path}: {full_name}")
    return config, read_model(config, stored, path, is_transposed=lambda path: ".c_" in path)


def _store(tensor: Any, place: str) -> Stored:
    """A torch tensor that holds all the values that its shape says; others are refused before anything is allocated."""
    problem = ""
    if tensor.is_nested or str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        problem = "is sparse, nested or quantized"
    elif tensor.device.type != "cpu":
        problem = f"has no values (device {tensor.device})"
    elif tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        problem = f"has fewer values than its shape {tuple(tensor.shape)} says"
    if problem:
        raise InputError(f"{place} {problem}; save the checkpoint again from a model with plain tensors")
    return Stored(tuple(tensor.shape), str(tensor.dtype), lambda: tensor.detach().float().numpy().copy())


def _load_torch(path: Path) -> Any:
    try:
        import torch  # here, because it is an extra
    except ImportError as error:
        raise InputError(f"{path} needs torch to be read: {pip_install('torch')}") from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):  # CVE-2025-32434, CVE-2026-24747
        raise InputError(f"{path}: torch {torch.__version__} reads pickles unsafely; {pip_install('torch')}")
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
