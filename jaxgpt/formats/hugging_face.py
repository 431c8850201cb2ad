"""GPT-2 in Hugging Face's format: config.json and safetensors, read, written, and fetched from the hub.

Parameters have our names behind the prefix `transformer.`, and linear weights are stored [in, out] as ours are.
pytorch_model.bin is a pickle and is refused.

References: Radford et al. 2019; https://huggingface.co/openai-community/gpt2.
"""

import dataclasses
import json
import os
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.config.families import GPT2Config
from jaxgpt.data.digests import hash_files
from jaxgpt.data.download import download
from jaxgpt.errors import InputError
from jaxgpt.files import open_regular, read_bounded
from jaxgpt.formats.stored import Params, Stored, first_line, read_model
from jaxgpt.models import param_shapes
from jaxgpt.models.layers import LAYER_NORM_EPS
from jaxgpt.run.progress import Progress

HUB = "https://huggingface.co"
JSON_LIMIT_BYTES = 16 << 20
WEIGHTS_LIMIT_BYTES = 8 << 30
"""GPT-2 XL has 6.4 GB."""
HEADER_LIMIT_BYTES = 1 << 20
"""Of a safetensors file. GPT-2 XL's has 60 kB; checking one takes a time that grows with its square."""

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


def load_hf(directory: str | Path) -> tuple[GPT2Config, Params]:
    """A Hugging Face GPT-2: config.json with model.safetensors, or with shards and their index.

    The GPT2Config has its context and vocabulary as seq_len and vocab_size, and no dropout.
    """
    directory = Path(directory)
    config = _read_hf_config(directory / "config.json")
    return config, read_model(config, list_tensors(directory), directory, is_transposed=lambda path: False)


def list_tensors(directory: Path) -> dict[str, Stored]:
    """The tensors of a directory's safetensors, by name; none is read yet."""
    return dict(ChainMap(*[_open_safetensors(file) for file in _list_safetensors(directory)]))


def fetch_hf(name: str) -> Path:
    """The directory with one of OpenAI's models, downloaded once into ~/.cache/jaxgpt (XDG_CACHE_HOME counts).

    Raises:
      InputError: no network; names the directory into which the files can be put by hand.
    """
    revision, sha256 = PRETRAINED[name]
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxgpt" / name
    config, tensors = directory / "config.json", directory / "model.safetensors"
    if config.is_file() and not _is_config(config):
        config.unlink()  # a login page, say; fetched again below
    base = f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/openai-community/{name}"
    if config.is_file() and tensors.is_file():
        found = hash_files([tensors])[tensors]
        if found != sha256:
            raise InputError(
                f"{tensors} has SHA-256 {found[:16]}..., {name}'s weights have {sha256[:16]}...; remove it to fetch it "
                "again, or give the directory by path to use it as it is"
            )
        return directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with Progress() as bars:
            download(
                f"{base}/resolve/{revision}/{config.name}", config, n_tries=3, limit_bytes=JSON_LIMIT_BYTES,
                check=_check_config,
            )  # fmt: skip
            download(
                f"{base}/resolve/{revision}/{tensors.name}", tensors, sha256=sha256, n_tries=3,
                progress=bars.download(f"{name} into {directory}"), limit_bytes=WEIGHTS_LIMIT_BYTES,
            )  # fmt: skip
    except (InputError, OSError) as error:
        raise InputError(
            f"{name} cannot be downloaded: {first_line(error)}; by hand: put config.json and model.safetensors "
            f"of {base} into {directory}"
        ) from error
    return directory


def save_hf(
    directory: str | Path, config: GPT2Config, params: Params, special_ids: Mapping[str, int | None] | None = None
) -> None:
    """Writes config.json and model.safetensors, which `transformers.GPT2LMHeadModel.from_pretrained` loads.

    Hugging Face's GPT-2 always has biases: a model without them gets zeros, which computes the same. The
    vocabulary keeps the rows it was padded with. Weights are written as float32.

    Args:
      special_ids: bos_token_id and eos_token_id of the tokenizer; None: there are none.
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
        **(special_ids or dict.fromkeys(("bos_token_id", "eos_token_id"))),
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.dropout),
        "tie_word_embeddings": True,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{directory} cannot be written: {error}; choose another directory") from error


def _read_hf_config(path: Path) -> GPT2Config:
    values = read_json(path)
    for name, ours in FIXED_IN_HF.items():
        theirs = values.get(name, ours)
        if theirs != ours:
            raise InputError(f"{path}: {name}={theirs!r}, but this GPT-2 has {ours!r}; it cannot run these weights")
    for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
        if type(values.get(name)) is not int or values[name] < 1:
            raise InputError(f"{path}: {name}={values.get(name)!r} is not a positive int; give a GPT-2's config.json")
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


def _is_config(path: Path) -> bool:
    try:
        _check_config(path)
    except InputError:
        return False
    return True


def _check_config(path: Path) -> None:
    """Raises InputError unless the file is a GPT-2's config.json: a login page is not."""
    _read_hf_config(path)


def read_json(path: Path) -> dict[str, Any]:
    """A file of one JSON object; raises InputError for anything else."""
    try:
        values = json.loads(read_bounded(path, JSON_LIMIT_BYTES))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give a directory with config.json and model.safetensors") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {first_line(error)}; fetch it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object; fetch it again")
    return values


def _list_safetensors(directory: Path) -> list[Path]:
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map; fetch it again")
        files = sorted(set(map(str, weight_map.values())))
        for file in files:
            if Path(file).name != file:
                raise InputError(f"{index} names {file}, which is not in its directory; it will not be read")
        return [directory / file for file in files]
    if list(directory.glob("*.bin")):
        raise refuse_bin(directory / "pytorch_model.bin")
    raise InputError(f"{directory} has no model.safetensors; give a directory that holds it beside config.json")


def _open_safetensors(path: Path) -> dict[str, Stored]:
    try:
        with open_regular(path) as opened:
            n_header_bytes = int.from_bytes(opened.read(8), "little")
        if n_header_bytes > HEADER_LIMIT_BYTES:
            raise InputError(
                f"{path} says that its header has {n_header_bytes} bytes, a GPT-2's has fewer than "
                f"{HEADER_LIMIT_BYTES}; fetch it again"
            )
        file = safe_open(path, framework="np")
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing, but its index names it; fetch it again") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a complete safetensors file: {first_line(error)}; fetch it again") from error
    stored = {}
    for name in file.keys():  # noqa: SIM118, it is not a dict
        part = file.get_slice(name)
        stored[name] = Stored(tuple(part.get_shape()), part.get_dtype(), lambda name=name: file.get_tensor(name))
    return stored


def refuse_bin(path: Path) -> InputError:
    return InputError(
        f"{path} is a pickle, which may run code; load it with transformers and save it again "
        "with save_pretrained(directory), which writes model.safetensors"
    )
