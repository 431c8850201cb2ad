"""nanochat's checkpoints: where they lie, and the model in them, of both eras.

A directory holds model_NNNNNN.pt (a state_dict), meta_NNNNNN.json and, where the run can continue, one
optim_NNNNNN_rankR.pt for each process (`nanochat_optim`). Parameters have our names behind `transformer.`; linear
weights are [out, in] there. Embeddings are bfloat16 there: here float32, and bfloat16 again where that is exact.

References: nanochat checkpoint_manager.py (01f5f10), gpt.py (025c432), scripts/base_train.py (00255c1); the eras are
those of November 2025 (c6abcdf) and July 2026 (92d63d4).
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.config.families import NanochatConfig
from jaxgpt.config.families.nanochat import VOCAB_ROUNDING
from jaxgpt.data.tiktoken_pickle import TOKENIZER, read_tiktoken, write_tiktoken
from jaxgpt.data.tokenizer import BPETokenizer
from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded
from jaxgpt.formats.stored import Params, Stored, linear_weights, read_model
from jaxgpt.formats.torch_file import import_torch, load_torch, save_torch, store_all

_MODEL_FILE = re.compile(r"model_(\d{1,12})\.pt")
_META_LIMIT_BYTES = 16 << 20
_MARKS_OF_2026 = ("resid_lambdas", "x0_lambdas", "smear_gate.weight", "smear_lambda", "backout_lambda")
"""Parameters that each model of 2026 has, and none of 2025."""
_EMBEDDINGS = re.compile(r"wte\.weight|value_embeds\.\d+\.weight")
"""What nanochat keeps in bfloat16."""
FREE_FIELDS = ("aspect_ratio", "init")
"""Of a complete model: they decide nothing after its first step."""


@dataclass(frozen=True)
class NanochatFiles:
    """One step in a checkpoint directory of nanochat's."""

    directory: Path
    step: int

    @property
    def model(self) -> Path:
        return self.directory / f"model_{self.step:06d}.pt"

    @property
    def meta(self) -> Path:
        return self.directory / f"meta_{self.step:06d}.json"

    def optim(self, rank: int) -> Path:
        return self.directory / f"optim_{self.step:06d}_rank{rank}.pt"


def find_nanochat(path: Path) -> NanochatFiles | None:
    """The newest step of a directory, or the step of a model_NNNNNN.pt; None for anything else."""
    if found := _MODEL_FILE.fullmatch(path.name):
        return NanochatFiles(path.parent, int(found[1])) if path.is_file() else None
    if not path.is_dir():
        return None
    steps = [int(found[1]) for file in path.iterdir() if (found := _MODEL_FILE.fullmatch(file.name))]
    return NanochatFiles(path, max(steps)) if steps else None


def find_tokenizer(files: NanochatFiles, n_rows: int) -> BPETokenizer | None:
    """nanochat's tokenizer.pkl beside the checkpoint, or where nanochat keeps it: ../../tokenizer.

    Args:
      n_rows: of the model's embedding.

    Raises:
      InputError: the file is damaged, or the tokenizer of another model.
    """
    places = (files.directory, files.directory.resolve().parent.parent / "tokenizer")
    path = next((place / TOKENIZER for place in places if (place / TOKENIZER).is_file()), None)
    if path is None:
        return None
    tokenizer = read_tiktoken(path)
    if not n_rows - VOCAB_ROUNDING < tokenizer.vocab_size <= n_rows:
        raise InputError(
            f"{path} has {tokenizer.vocab_size} ids, the embedding in {files.model.name} {n_rows} rows; "
            f"copy the model's own {TOKENIZER} beside it"
        )
    return tokenizer


def load_nanochat(files: NanochatFiles) -> tuple[NanochatConfig, Params]:
    """The model of a step: complete config, float32 parameters. Optimizer and settings are not read.

    Raises:
      InputError: torch is missing, a file is missing or damaged, or it is a nanochat of neither era.
    """
    return read_nanochat(files, read_meta(files))


def read_meta(files: NanochatFiles) -> dict[str, Any]:
    """meta_NNNNNN.json, unchecked but for model_config, which is a dict.

    Raises:
      InputError: it is missing, damaged, or no such file.
    """
    try:
        meta = json.loads(read_bounded(files.meta, _META_LIMIT_BYTES))
    except OSError as error:
        raise InputError(f"{files.meta} cannot be read: {error.strerror}; copy it beside {files.model.name}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{files.meta} is not complete JSON; copy it again") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("model_config"), dict):
        raise InputError(f"{files.meta} has no model_config; give a checkpoint that nanochat wrote")
    return meta


def read_nanochat(
    files: NanochatFiles, meta: Mapping[str, Any], *, keeps_double: bool = False
) -> tuple[NanochatConfig, Params]:
    """The model of a step whose meta is read.

    Args:
      keeps_double: see `read_model`.
    """
    state = load_torch(files.model)
    if not isinstance(state, dict):
        raise InputError(f"{files.model} holds no state_dict; give a checkpoint that nanochat wrote")
    stored = store_all(state, files.model)
    config = _read_config(files, meta["model_config"], stored)
    is_transposed = linear_weights(config)
    return config, read_model(config, stored, files.model, is_transposed=is_transposed, keeps_double=keeps_double)


def _read_config(files: NanochatFiles, values: Mapping[str, Any], stored: Mapping[str, Stored]) -> NanochatConfig:
    names = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    for name in names:
        if type(values.get(name)) is not int or values[name] < 1:
            raise InputError(f"{files.meta}: model_config has no positive integer {name}; nanochat writes one")
    found = [name for name in _MARKS_OF_2026 if name in stored]
    if found and len(found) < len(_MARKS_OF_2026):
        missing = next(name for name in _MARKS_OF_2026 if name not in stored)
        raise InputError(
            f"{files.model} has {found[0]} but no {missing}: a nanochat between November 2025 and July 2026; "
            "only those two are read"
        )
    if values["n_embd"] % values["n_head"]:
        raise InputError(f"{files.meta}: n_embd={values['n_embd']} is not a multiple of n_head={values['n_head']}")
    table = stored.get("transformer.wte.weight")
    n_rows = table.shape[0] if table and table.shape else values["vocab_size"]
    if not values["vocab_size"] <= n_rows < values["vocab_size"] + VOCAB_ROUNDING:
        raise InputError(
            f"{files.model}: its embedding has {n_rows} rows, {files.meta.name} says vocab_size="
            f"{values['vocab_size']}; copy both from one checkpoint"
        )
    pattern = values.get("window_pattern", "L")
    return NanochatConfig(
        era="2026" if found else "2025", depth=values["n_layer"], vocab_size=n_rows, seq_len=values["sequence_len"],
        n_embd=values["n_embd"], head_dim=values["n_embd"] // values["n_head"], n_kv_head=values["n_kv_head"],
        window_pattern=pattern if isinstance(pattern, str) else "",
    ).complete(0)  # fmt: skip


# Out


def model_settings(config: NanochatConfig, n_ids: int) -> dict[str, Any]:
    """model_config of a meta file.

    Args:
      n_ids: ids of the tokenizer; 0: unknown.

    Raises:
      InputError: nanochat of that era has no such model; names each field.
    """
    values: dict[str, Any] = {
        "sequence_len": config.seq_len,
        "vocab_size": config.vocab_size,
        "n_layer": config.depth,
        "n_head": config.n_head,
        "n_kv_head": config.n_kv_head,
        "n_embd": config.n_embd,
    }
    if config.era == "2026":
        values["window_pattern"] = config.window_pattern
        if config.vocab_size % VOCAB_ROUNDING:
            raise InputError(
                f"model.vocab_size={config.vocab_size} is not a multiple of {VOCAB_ROUNDING}, which nanochat rounds "
                "its tables up to; it cannot hold this model"
            )
        if config.vocab_size - VOCAB_ROUNDING < n_ids <= config.vocab_size:
            values["vocab_size"] = n_ids
    theirs = NanochatConfig(
        era=config.era, depth=config.depth, vocab_size=config.vocab_size, seq_len=config.seq_len,
        n_embd=config.n_embd, head_dim=config.head_dim, n_kv_head=config.n_kv_head,
        window_pattern=values.get("window_pattern", ""),
    ).complete(0)  # fmt: skip
    differing = [
        f"model.{field.name}={getattr(config, field.name)} (it has {getattr(theirs, field.name)})"
        for field in dataclasses.fields(config)
        if field.name not in FREE_FIELDS and getattr(config, field.name) != getattr(theirs, field.name)
    ]
    if differing:
        raise InputError(
            f"nanochat of {config.era} has no {', no '.join(differing)}; convert with --to torch, "
            "or train with the era's own values"
        )
    return values


def state_dict(config: NanochatConfig, params: Params, narrow: frozenset[str]) -> dict[str, Any]:
    """The tensors of model_NNNNNN.pt.

    Args:
      narrow: paths that are written in bfloat16.
    """
    torch = import_torch("a checkpoint of nanochat's")
    is_transposed = linear_weights(config)
    tensors = {}
    for path, array in params.items():
        prefix = "transformer." if path.startswith(("wte.", "h.")) else ""
        tensor = torch.from_numpy(np.array(array.T if is_transposed(path) else array, order="C"))
        tensors[prefix + path] = tensor.bfloat16() if path in narrow else tensor
    return tensors


def narrow_paths(params: Params, *moments: Mapping[str, np.ndarray]) -> frozenset[str]:
    """Embeddings whose values and moments are bfloat16 numbers, as after nanochat wrote them."""
    return frozenset(
        path
        for path, array in params.items()
        if _EMBEDDINGS.fullmatch(path) and all(_is_bfloat16(a) for a in (array, *(m[path] for m in moments)))
    )


def _is_bfloat16(array: np.ndarray) -> bool:
    """Whether the lower 16 bits of each float32 are 0."""
    return array.dtype == np.float32 and not (np.ascontiguousarray(array).view(np.uint32) & 0xFFFF).any()


def save_tokenizer(directory: Path, tokenizer: BPETokenizer) -> None:
    """Writes tokenizer.pkl and token_bytes.pt, which belong into the directory `tokenizer` of nanochat's base."""
    torch = import_torch("a checkpoint of nanochat's")
    save_torch(torch.from_numpy(tokenizer.token_bytes()), directory / "token_bytes.pt")
    write_tiktoken(tokenizer, directory / TOKENIZER)


def save_nanochat_model(files: NanochatFiles, meta: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Writes model_NNNNNN.pt and meta_NNNNNN.json.

    Raises:
      InputError: torch is missing, or the directory cannot be written.
    """
    try:
        files.directory.mkdir(parents=True, exist_ok=True)
        files.meta.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{files.meta} cannot be written: {error}; choose another directory") from error
    save_torch(dict(tensors), files.model)  # last: a step exists once its model is there
