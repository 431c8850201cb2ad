"""Weights from other programs, by name or path, and what makes them fit a run.

Reference: nanoGPT model.py, `from_pretrained` and `crop_block_size`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from jaxgpt.config.families import GPT2Config, ModelConfig, NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.formats.hf_nanochat import is_hf_nanochat, load_hf_nanochat
from jaxgpt.formats.hugging_face import PRETRAINED, fetch_hf, fetch_model, load_hf, refuse_bin
from jaxgpt.formats.nanochat import FREE_FIELDS, find_nanochat, load_nanochat
from jaxgpt.formats.nanogpt import CHECKPOINT, load_nanogpt
from jaxgpt.formats.stored import Params

MAX_PADDED_IDS = 1024
"""Ids that `adapt` may add: enough to round a vocabulary up for any mesh, too few for another vocabulary."""


def load_pretrained(source: str) -> tuple[ModelConfig, Params]:
    """Weights by name (gpt2, gpt2-medium, gpt2-large, gpt2-xl) or path.

    Args:
      source: a name; hf:OWNER/NAME, a model of the Hugging Face hub (without the hf: it is a path: a mistyped runs/NAME
        must not become a download); a Hugging Face directory; nanoGPT's ckpt.pt or the directory with it; a checkpoint
        directory of nanochat's (its newest step), or one model_NNNNNN.pt in it.

    Raises:
      InputError: it does not exist, or is not a model that this code can run.
    """
    if source in PRETRAINED:
        return load_hf(fetch_hf(source))
    if source.startswith("hf:"):
        return load_hf(fetch_model(source))
    path = Path(source)
    if files := find_nanochat(path):
        return load_nanochat(files)
    if (path / CHECKPOINT).is_file() and not (path / "config.json").is_file():
        return load_nanogpt(path / CHECKPOINT)
    if path.is_dir():
        return load_hf_nanochat(path) if is_hf_nanochat(path) else load_hf(path)
    if path.suffix == ".bin":
        raise refuse_bin(path)
    if path.suffix in (".safetensors", ".json"):
        raise InputError(f"{path} is one file of a model; give the directory that holds it and config.json")
    if path.is_file():
        return load_nanogpt(path)
    if path.exists():
        raise InputError(f"{source} is a pipe or a device, not a file; copy it to a file")
    raise InputError(
        f"{source} does not exist; give one of {', '.join(PRETRAINED)}, hf:OWNER/NAME for a model of the Hugging Face "
        "hub, a directory with config.json and model.safetensors, a nanoGPT ckpt.pt, or nanochat's checkpoint directory"
    )


def crop(params: Params, seq_len: int) -> Params:
    """The same weights for a shorter context: the first `seq_len` positions."""
    n_positions = params["wpe.weight"].shape[0]
    if seq_len > n_positions:
        raise InputError(
            f"model.seq_len={seq_len} is above the {n_positions} positions of the loaded weights; "
            f"set --model.seq_len={n_positions} or less"
        )
    return params | {"wpe.weight": params["wpe.weight"][:seq_len]}


def adapt(loaded: ModelConfig, params: Params, wanted: ModelConfig) -> Params:
    """Loaded weights for a run that may have a shorter context and a vocabulary rounded up.

    An id that the loaded model does not have gets the mean of all embeddings. The logits of the other ids stay
    as they are; that of a new id is their mean, so (Jensen) its probability is below the mean one: n new ids
    after V old ones raise the loss by less than log(1 + n / V), 0.00093 nats for 50304 after 50257. Rows of zeros would
    have the logit 0, which among GPT-2's, all far below 0, takes nearly all the probability.

    Args:
      loaded: what `load_pretrained` returned, with params.
      wanted: the run's model section; its dropout and its GELU are free (see `gelu_note`).

    Raises:
      InputError: another architecture, a longer context or another vocabulary; names every field and its flag.
    """
    if loaded.family != wanted.family:
        raise InputError(
            f"train.init_from has weights of model.family={loaded.family}, the run's is {wanted.family}; "
            "choose a config of that family, or leave init_from out"
        )
    if isinstance(loaded, NanochatConfig):
        _refuse_other_nanochat(loaded, wanted)
        return params
    names = ("n_layer", "n_head", "n_embd", "bias")
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


def _refuse_other_nanochat(loaded: NanochatConfig, wanted: ModelConfig) -> None:
    """Rotary positions fit any context length, so the windows may differ too; everything else must be the same."""
    free = ("seq_len", "short_window", "window_pattern", *FREE_FIELDS)
    pairs = {
        field.name: (getattr(wanted, field.name), getattr(loaded, field.name)) for field in dataclasses.fields(loaded)
    }
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name not in free}
    if differing:
        facts = ", ".join(f"model.{name}={ours} but {theirs}" for name, (ours, theirs) in differing.items())
        flags = " ".join(f"--model.{name}={str(theirs).lower()}" for name, (_, theirs) in differing.items())
        raise InputError(f"the loaded weights differ from the run: {facts}; set {flags}")


def gelu_note(source: str, loaded: ModelConfig, wanted: ModelConfig) -> str:
    """One line where a run computes another GELU than its loaded weights were trained with; else nothing.

    No error: nanoGPT always uses erf, on OpenAI's weights too, which were trained with tanh. The two differ by less
    than 5e-4 at any input.
    """
    if not isinstance(loaded, GPT2Config) or not isinstance(wanted, GPT2Config) or loaded.gelu == wanted.gelu:
        return ""
    trained, ours = loaded.gelu, wanted.gelu
    as_nanogpt = " as nanoGPT does" if ours == "erf" else ""
    return (
        f"model.gelu={ours}{as_nanogpt}, but {source} was trained with {trained}; "
        f"set --model.gelu={trained} for the GELU of its training"
    )
