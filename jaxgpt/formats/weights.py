"""GPT-2 weights from other programs and for them: Hugging Face directories, nanoGPT's ckpt.pt.

Both name parameters as we do, behind the prefix `transformer.`; Hugging Face stores linear weights [in, out] as
we do, torch's nn.Linear and so nanoGPT [out, in]. Shapes are compared with the model's before a tensor is read,
and weights arrive as float32 numpy arrays whatever the file held. Pickles are only read by torch's restricted
loader; pytorch_model.bin is refused.

References: Radford et al. 2019; https://huggingface.co/openai-community/gpt2; nanoGPT model.py `from_pretrained`.
"""

import dataclasses
import json
import os
import pickle
from collections import ChainMap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import DownloadColumn, Progress
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.config.families import GPT2Config, ModelConfig
from jaxgpt.data.download import download
from jaxgpt.errors import InputError
from jaxgpt.models import param_shapes
from jaxgpt.models.layers import LAYER_NORM_EPS

Params = dict[str, np.ndarray]
HUB = "https://huggingface.co"


PRETRAINED = {
    "gpt2": (
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "gpt2-medium": (
        "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
        "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd",
    ),
    "gpt2-large": (
        "32b71b12589c2f8d625668d2335a01cac3249519",
        "5f47f3e12f91cd33b662ce7e433b6150ad5512b5884a2cee961b50e9c3bbebce",
    ),
    "gpt2-xl": (
        "15ea56dee5df4983c59b2538573817e1667135e2",
        "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
    ),
}
"""OpenAI's models on the hub: name -> commit of openai-community/<name>, SHA-256 of its model.safetensors."""

GELU_OF_HF: dict[str, Literal["erf", "tanh"]] = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf"}
"""Hugging Face's activation_function -> model.gelu."""

FIXED_IN_HF = {
    "model_type": "gpt2",
    "layer_norm_epsilon": LAYER_NORM_EPS,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""Entries of Hugging Face's config.json for which our model has one value."""

FLOAT_DTYPES = ("F32", "F16", "BF16", "torch.float32", "torch.float16", "torch.bfloat16")
"""Dtypes of files, as safetensors and torch spell them, that float32 holds exactly."""

MAX_PADDED_IDS = 1024
"""Ids that `adapt` may add: enough to round a vocabulary up for any mesh, too few for another vocabulary."""


def load_pretrained(source: str) -> tuple[GPT2Config, Params]:
    """Weights by name (gpt2, gpt2-medium, gpt2-large, gpt2-xl), from a Hugging Face directory or a nanoGPT ckpt.pt.

    Raises:
      InputError: nothing there, or it is not a GPT-2 that we can compute.
    """
    path = Path(source)
    if source in PRETRAINED:
        return load_hf(fetch_hf(source))
    if path.is_dir():
        return load_hf(path)
    if path.suffix == ".bin":
        raise _refuse_bin(path)
    if path.suffix in (".safetensors", ".json"):
        raise InputError(f"{path} is one file of a model; give the directory that holds it and config.json")
    if path.is_file():
        return load_nanogpt(path)
    raise InputError(
        f"{source} is not there; give one of {', '.join(PRETRAINED)}, "
        "a directory with config.json and model.safetensors, or a nanoGPT ckpt.pt"
    )


def load_hf(directory: str | Path) -> tuple[GPT2Config, Params]:
    """A Hugging Face GPT-2: config.json with model.safetensors, or with shards and their index.

    The GPT2Config has its context and vocabulary as seq_len and vocab_size, and no dropout.
    """
    directory = Path(directory)
    config = _read_hf_config(directory / "config.json")
    stored = [_open_safetensors(file) for file in _list_safetensors(directory)]
    return config, _read_model(config, dict(ChainMap(*stored)), directory, is_transposed=lambda path: False)


def fetch_hf(name: str) -> Path:
    """The directory with one of OpenAI's models, downloaded once into ~/.cache/jaxgpt (XDG_CACHE_HOME counts).

    Raises:
      InputError: no network; names the directory into which the files can be put by hand.
    """
    revision, sha256 = PRETRAINED[name]
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxgpt" / name
    config, tensors = directory / "config.json", directory / "model.safetensors"
    base = f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/openai-community/{name}"
    if config.is_file() and tensors.is_file():
        return directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with Progress(*Progress.get_default_columns(), DownloadColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(f"{name} into {directory}", total=None)

            def show(n_bytes: int, total: int | None) -> None:
                bar.update(task, completed=n_bytes, total=total)

            download(f"{base}/resolve/{revision}/{config.name}", config, n_tries=3)
            download(f"{base}/resolve/{revision}/{tensors.name}", tensors, sha256=sha256, n_tries=3, progress=show)
    except (InputError, OSError) as error:
        raise InputError(
            f"{name} cannot be downloaded: {_first_line(error)}; by hand: put config.json and model.safetensors "
            f"of {base} into {directory}"
        ) from error
    return directory


def save_hf(directory: str | Path, config: GPT2Config, params: Params) -> None:
    """Writes config.json and model.safetensors, which `transformers.GPT2LMHeadModel.from_pretrained` loads.

    Hugging Face's GPT-2 always has biases: a model without them gets zeros, which computes the same. The
    vocabulary keeps the rows it was padded with. Weights are written as float32.
    """
    directory = Path(directory)
    n_vocab = params["wte.weight"].shape[0]
    shapes = param_shapes(dataclasses.replace(config, bias=True, vocab_size=n_vocab))
    tensors = {
        f"transformer.{path}": np.ascontiguousarray(params[path], np.float32)
        if path in params
        else np.zeros(shape.shape, np.float32)
        for path, shape in shapes.items()
    }
    hf_config = {
        "architectures": ["GPT2LMHeadModel"],
        **FIXED_IN_HF,
        "activation_function": "gelu_new" if config.gelu == "tanh" else "gelu",
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.seq_len,
        "vocab_size": n_vocab,
        **dict.fromkeys(("bos_token_id", "eos_token_id"), 50256 if n_vocab > 50256 else None),
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.dropout),
        "tie_word_embeddings": True,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{directory} cannot be written: {error}; choose another directory") from error


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
    return config, _read_model(config, stored, path, is_transposed=lambda path: ".c_" in path)


def crop(params: Params, seq_len: int) -> Params:
    """The same weights for a shorter context: the first `seq_len` positions."""
    n_positions = params["wpe.weight"].shape[0]
    if seq_len > n_positions:
        raise InputError(
            f"model.seq_len={seq_len} is above the {n_positions} positions of the loaded weights; "
            f"set --model.seq_len={n_positions} or less"
        )
    return params | {"wpe.weight": params["wpe.weight"][:seq_len]}


def adapt(loaded: GPT2Config, params: Params, wanted: ModelConfig) -> Params:
    """Loaded weights for a run that may have a shorter context and a vocabulary rounded up.

    An id that the loaded model does not have gets the mean of all embeddings. The logits of the other ids stay
    as they are; that of a new id is their mean, so (Jensen) its probability is below the mean one: n new ids
    after V old ones raise the loss by less than log(1 + n / V), 0.00093 nats for 50304 after 50257. Rows of zeros would
    have the logit 0, which among GPT-2's, all far below 0, takes nearly all the probability.

    Args:
      loaded: what `load_pretrained` returned, with params.
      wanted: the run's model section; its dropout is free.

    Raises:
      InputError: another architecture, a longer context or another vocabulary; names every field and its flag.
    """
    if not isinstance(wanted, GPT2Config):
        raise InputError(f"train.init_from gives GPT-2 weights, model.family={wanted.family} has others; leave it out")
    names = ("n_layer", "n_head", "n_embd", "bias", "gelu")
    differing = {name: (getattr(wanted, name), getattr(loaded, name)) for name in names}
    differing = {name: pair for name, pair in differing.items() if pair[0] != pair[1]}
    if differing:
        facts = ", ".join(f"model.{name}={ours} but {theirs}" for name, (ours, theirs) in differing.items())
        flags = " ".join(f"--model.{name}={str(theirs).lower()}" for name, (_, theirs) in differing.items())
        raise InputError(f"the loaded weights differ from the run: {facts}; set {flags}")
    n_loaded = params["wte.weight"].shape[0]
    n_new = wanted.vocab_size - n_loaded
    if not 0 <= n_new <= MAX_PADDED_IDS:
        relation = "below" if n_new < 0 else f"more than {MAX_PADDED_IDS} above"
        raise InputError(
            f"model.vocab_size={wanted.vocab_size} is {relation} the {n_loaded} ids of the loaded weights; "
            f"use data with their tokenizer and --model.vocab_size={n_loaded}"
        )
    params = crop(params, wanted.seq_len)
    if n_new:
        mean_1D = params["wte.weight"].mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
        params["wte.weight"] = np.concatenate([params["wte.weight"], np.repeat(mean_1D, n_new, axis=0)])
    return params


class Stored(NamedTuple):
    """A tensor in a file: what it is, and how to read it as numpy."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def _read_model(
    config: GPT2Config, stored: dict[str, Stored], source: Path, *, is_transposed: Callable[[str], bool]
) -> Params:
    """Checks names, shapes and dtypes against the model, then reads. Errors name the tensors as the file does."""
    name_of = {name.removeprefix("transformer."): name for name in stored}
    n_blocks = len({path.split(".")[1] for path in name_of if path.startswith("h.")})
    if n_blocks != config.n_layer:  # before building a model as deep as an unchecked file says
        raise InputError(
            f"{source}: its config says n_layer={config.n_layer}, it holds {n_blocks}; fetch both from one model"
        )
    shapes = param_shapes(config)
    _check_names(set(shapes), name_of, source)
    is_flipped = {}
    for path, shape in shapes.items():
        tensor = stored[name_of[path]]
        flip = is_transposed(path) and len(shape.shape) == 2
        wanted = shape.shape[::-1] if flip else shape.shape
        if tensor.shape != wanted:
            raise InputError(
                f"{source}: {name_of[path]} is {tensor.shape}, its config says {wanted}; fetch both from one model"
            )
        if tensor.dtype not in FLOAT_DTYPES:
            raise InputError(f"{source}: {name_of[path]} is {tensor.dtype}; convert it to float32, float16 or bfloat16")
        is_flipped[path] = flip
    params = {}
    for path, flip in is_flipped.items():
        weight = np.asarray(stored[name_of[path]].read(), np.float32)
        params[path] = np.ascontiguousarray(weight.T) if flip else weight
    if "lm_head.weight" in name_of:
        head_VD = np.asarray(stored[name_of["lm_head.weight"]].read(), np.float32)
        if not np.array_equal(head_VD, params["wte.weight"]):
            raise InputError(f"{source}: lm_head.weight is not wte.weight; this GPT-2 ties them")
    return params


def _check_names(wanted: set[str], name_of: dict[str, str], source: Path) -> None:
    is_buffer = {path for path in name_of if path.endswith((".attn.bias", ".attn.masked_bias"))}  # causal masks
    missing = sorted(wanted - name_of.keys())
    extra = sorted(name_of[path] for path in name_of.keys() - wanted - is_buffer - {"lm_head.weight"})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        hint = f"; it does hold {extra[0]}" if extra else ""
        raise InputError(f"{source} lacks {missing[0]}{more}{hint}; fetch config and weights of one model")
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise InputError(f"{source} holds {extra[0]}{more}, which its config has no place for; it is another model")


def _read_hf_config(path: Path) -> GPT2Config:
    values = _read_json(path)
    for name, ours in FIXED_IN_HF.items():
        theirs = values.get(name, ours)
        if theirs != ours:
            raise InputError(f"{path}: {name}={theirs!r}, but this GPT-2 has {ours!r}; it cannot run these weights")
    for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
        if type(values.get(name)) is not int or values[name] < 1:
            raise InputError(f"{path}: {name}={values.get(name)!r} is no positive integer; give a GPT-2's config.json")
    n_inner, n_embd = values.get("n_inner"), values["n_embd"]
    if n_inner not in (None, 4 * n_embd):
        raise InputError(f"{path}: n_inner={n_inner!r} is not 4 x n_embd={n_embd}; this GPT-2 has no other MLP")
    activation = values.get("activation_function", "gelu_new")
    if activation not in GELU_OF_HF:
        known = ", ".join(GELU_OF_HF)
        raise InputError(f"{path}: activation_function={activation!r} is not one of {known}; it cannot run here")
    return GPT2Config(
        vocab_size=values["vocab_size"], seq_len=values["n_positions"], n_layer=values["n_layer"],
        n_head=values["n_head"], n_embd=n_embd, bias=True, gelu=GELU_OF_HF[activation],
    )  # fmt: skip


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there; give a directory with config.json and model.safetensors") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {_first_line(error)}; fetch it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object; fetch it again")
    return values


def _list_safetensors(directory: Path) -> list[Path]:
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map; fetch it again")
        files = sorted(set(map(str, weight_map.values())))
        for file in files:
            if Path(file).name != file:
                raise InputError(f"{index} names {file}, which is not in its directory; it will not be read")
        return [directory / file for file in files]
    if list(directory.glob("*.bin")):
        raise _refuse_bin(directory / "pytorch_model.bin")
    raise InputError(f"{directory} has no model.safetensors; give a directory that holds it beside config.json")


def _open_safetensors(path: Path) -> dict[str, Stored]:
    try:
        file = safe_open(path, framework="np")
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there, but the index beside it names it; fetch it again") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {_first_line(error)}; fetch it again") from error
    stored = {}
    for name in file.keys():  # noqa: SIM118, it is not a dict
        part = file.get_slice(name)
        stored[name] = Stored(tuple(part.get_shape()), part.get_dtype(), lambda name=name: file.get_tensor(name))
    return stored


def _refuse_bin(path: Path) -> InputError:
    return InputError(
        f"{path} is a pickle, which may run code; load it with transformers and save it anew "
        "with save_pretrained(directory), which writes model.safetensors"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


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
        raise InputError(f"{path} holds more than tensors and plain values, which might run code; refused") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a whole torch checkpoint: {_first_line(error)}; copy it again") from error
