"""GPT-2 in Hugging Face's format: config.json and safetensors, read, written, and fetched from the hub.

Parameters have our names behind the prefix `transformer.`, and linear weights are stored [in, out] as ours are.
pytorch_model.bin is a pickle and is refused.

References: Radford et al. 2019; https://huggingface.co/openai-community/gpt2.
"""

import dataclasses
import json
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.config.families import GPT2Config
from jaxgpt.data import hub
from jaxgpt.data.hub_repository import Absent, Repository, parse_repository
from jaxgpt.errors import InputError
from jaxgpt.files import open_regular, read_bounded
from jaxgpt.formats.stored import Params, Stored, first_line, read_model
from jaxgpt.formats.vocabulary import LIMIT_BYTES as VOCABULARY_LIMIT_BYTES
from jaxgpt.formats.vocabulary import STRANGERS
from jaxgpt.models import param_shapes
from jaxgpt.models.layers import LAYER_NORM_EPS
from jaxgpt.run.progress import Progress

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

HUB_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip
"""Beside config.json and the weights, what is fetched of a model of the hub where it exists; never *.bin or *.py."""

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
    """The directory with one of OpenAI's models, in huggingface_hub's cache; see `hub.fetch`."""
    revision, sha256 = PRETRAINED[name]
    repository = Repository(f"openai-community/{name}", revision)
    config = hub.fetch(repository, "config.json", limit_bytes=JSON_LIMIT_BYTES)
    _fetch_weights(repository, "model.safetensors", sha256)
    return config.parent


def fetch_model(source: str) -> Path:
    """The directory with a model of the hub, in huggingface_hub's cache: only its JSON, text and safetensors.

    Args:
      source: hf:OWNER/NAME or hf:OWNER/NAME@REVISION, a branch, a tag or a commit. One that is not a commit is asked
        for at the hub each time; without network the cached one is used, with a note.

    Raises:
      InputError: no such model, no access, no network, a file that is too large or damaged.
    """
    known = [f"openai-community/{name}" for name in PRETRAINED]
    repository = hub.pin(parse_repository(source), "config.json", known)
    config = hub.fetch(repository, "config.json", limit_bytes=JSON_LIMIT_BYTES)
    _check_config(config)  # before gigabytes of weights
    found = [name for name in HUB_FILES if _fetch_if_present(repository, name, VOCABULARY_LIMIT_BYTES)]
    if not {"tokenizer.json", "vocab.json", "merges.txt"} & set(found):
        for name in STRANGERS:
            if hub.has(repository, name):
                raise InputError(
                    f"{repository} has its tokenizer in {name}, which is not read here; convert it with transformers "
                    "to a directory with tokenizer.json, and give that"
                )
    if index := _fetch_if_present(repository, "model.safetensors.index.json", JSON_LIMIT_BYTES):
        for name in _list_shards(index):
            _fetch_weights(repository, name)
    else:
        _fetch_weights(repository, "model.safetensors")
    return config.parent


def _fetch_if_present(repository: Repository, name: str, limit_bytes: int) -> Path | None:
    try:
        return None if hub.is_absent(repository, name) else hub.fetch(repository, name, limit_bytes=limit_bytes)
    except Absent:
        return None


def _fetch_weights(repository: Repository, name: str, sha256: str = "") -> None:
    with Progress() as bars:
        hub.fetch(
            repository, name, sha256=sha256, limit_bytes=WEIGHTS_LIMIT_BYTES,
            progress=bars.download(f"{name} of {repository}"),
        )  # fmt: skip


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
        return [directory / file for file in _list_shards(index)]
    if list(directory.glob("*.bin")):
        raise refuse_bin(directory / "pytorch_model.bin")
    raise InputError(f"{directory} has no model.safetensors; give a directory that holds it beside config.json")


def _list_shards(index: Path) -> list[str]:
    """The names of the files that model.safetensors.index.json distributes the weights to."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map; fetch it again")
    files = sorted(set(map(str, weight_map.values())))
    for file in files:
        if Path(file).name != file:
            raise InputError(f"{index} names {file}, which is not in its directory; it will not be read")
        if not file.endswith(".safetensors"):
            raise InputError(f"{index} names {file}, which is not a safetensors file; it will not be read")
    return files


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
