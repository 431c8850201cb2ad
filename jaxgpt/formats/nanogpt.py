"""nanoGPT's ckpt.pt: its model, and the settings of the run that it says.

Parameters have our names behind `transformer.` and the prefixes of torch.compile and DistributedDataParallel; torch's
nn.Linear stores weights [out, in], ours are [in, out]. Before `bias` was an option (January 2023) all layers had one,
and the GELU was the tanh approximation. References: nanoGPT train.py, model.py.
"""

from pathlib import Path
from typing import Any

from jaxgpt.config.families import GPT2Config
from jaxgpt.errors import InputError
from jaxgpt.formats.stored import Params, linear_weights, read_model
from jaxgpt.formats.torch_file import load_torch, store_all

CHECKPOINT = "ckpt.pt"
"""nanoGPT's name for the file in its out_dir."""


def load_nanogpt(path: str | Path) -> tuple[GPT2Config, Params]:
    """The model of a ckpt.pt. The GELU is nanoGPT's (erf); what the file says of optimizer and data is not read.

    Raises:
      InputError: torch is missing, or the file is not such a checkpoint. Its pickle can run no code.
    """
    return read_nanogpt(Path(path), load_checkpoint(Path(path)))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Everything in a ckpt.pt, unchecked but for its model and model_args, which are dicts.

    Raises:
      InputError: torch is missing, or the file is not such a checkpoint.
    """
    checkpoint = load_torch(path)
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    if not isinstance(checkpoint.get("model"), dict) or not isinstance(checkpoint.get("model_args"), dict):
        raise InputError(f"{path} has no model and model_args; give a ckpt.pt that nanoGPT's train.py wrote")
    return checkpoint


def read_nanogpt(path: Path, checkpoint: dict[str, Any], *, keeps_double: bool = False) -> tuple[GPT2Config, Params]:
    """The model of a loaded checkpoint.

    Args:
      path: of the file, for messages.
      keeps_double: see `read_model`.
    """
    stored, args = store_all(checkpoint["model"], path), checkpoint["model_args"]
    is_old = "bias" not in args
    if is_old:
        args = args | {"bias": True}
    names = {"n_layer": int, "n_head": int, "n_embd": int, "block_size": int, "bias": bool, "vocab_size": int}
    for name, kind in names.items():
        if type(args.get(name)) is not kind:
            raise InputError(f"{path}: model_args has no {kind.__name__} {name}; nanoGPT's train.py writes one")
    config = GPT2Config(
        vocab_size=args["vocab_size"], seq_len=args["block_size"], n_layer=args["n_layer"], n_head=args["n_head"],
        n_embd=args["n_embd"], bias=args["bias"], gelu="tanh" if is_old else "erf",
    )  # fmt: skip
    is_transposed = linear_weights(config)
    return config, read_model(config, stored, path, is_transposed=is_transposed, keeps_double=keeps_double)
