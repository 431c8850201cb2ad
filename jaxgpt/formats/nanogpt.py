"""nanoGPT's ckpt.pt, read by torch's restricted loader, which runs no code.

Parameters have our names behind the prefixes `_orig_mod.` (of torch.compile) and `transformer.`; torch's nn.Linear
stores weights [out, in], ours are [in, out]. References: nanoGPT train.py, model.py.
"""

import pickle
from pathlib import Path
from typing import Any

from jaxgpt.config.families import GPT2Config
from jaxgpt.errors import InputError
from jaxgpt.formats.stored import Params, Stored, first_line, read_model


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
    stored = {
        str(name).removeprefix("_orig_mod."): Stored(
            tuple(tensor.shape), str(tensor.dtype), lambda tensor=tensor: tensor.float().numpy().copy()
        )
        for name, tensor in state.items()
        if hasattr(tensor, "numpy")
    }
    return config, read_model(config, stored, path, is_transposed=lambda path: ".c_" in path)


def _load_torch(path: Path) -> Any:
    try:
        import torch  # here, because it is an extra
    except ImportError as error:
        raise InputError(f"{path} needs torch to be read: pip install 'jaxgpt[torch]'") from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):  # CVE-2025-32434, CVE-2026-24747
        raise InputError(f"{path}: torch {torch.__version__} reads pickles unsafely; pip install 'jaxgpt[torch]'")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds more than tensors and plain values, which might run code; rejected") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a complete torch checkpoint: {first_line(error)}; copy it again") from error
