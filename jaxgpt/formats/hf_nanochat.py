"""nanochat models of November 2025 as transformers' NanoChatForCausalLM: config.json and model.safetensors.

transformers has the model of that time alone; one of 2026's mechanisms is refused, by the name of its field. Linear
weights are [out, in] there.

Reference: transformers, models/nanochat/modular_nanochat.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxgpt.config.families import NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.formats.hugging_face import list_tensors, read_json
from jaxgpt.formats.stored import Params, read_model

RMS_NORM_EPS = float(np.finfo(np.float32).eps)
"""Of torch's rms_norm without an eps in float32, which nanochat computes with."""
NAMES = {
    "attn.c_q": "self_attn.q_proj", "attn.c_k": "self_attn.k_proj", "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def save_nanochat(directory: Path, config: NanochatConfig, params: Params, special_ids: dict[str, int | None]) -> None:
    """Writes config.json and model.safetensors, weights in float32.

    Args:
      special_ids: bos_token_id and eos_token_id of the tokenizer.

    Raises:
      InputError: the model has a mechanism that transformers' NanoChat lacks.
    """
    refuse_others(config)
    tensors = {"model.embed_tokens.weight": params["wte.weight"], "lm_head.weight": params["lm_head.weight"]}
    for layer in range(config.n_layer):
        for ours, theirs in NAMES.items():
            tensors[f"model.layers.{layer}.{theirs}.weight"] = params[f"h.{layer}.{ours}.weight"].T
    assert len(tensors) == len(params), params.keys()
    values = {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": params["wte.weight"].shape[0],
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.seq_len,
        "hidden_act": "relu2",
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "final_logit_softcapping": config.softcap,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "pad_token_id": None,
        **special_ids,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
        save_file(arrays, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{directory} cannot be written: {error}; choose another directory") from error


def is_hf_nanochat(directory: Path) -> bool:
    """Whether a directory's config.json says that it holds a NanoChat model."""
    config = directory / "config.json"
    return config.is_file() and read_json(config).get("model_type") == "nanochat"


def load_hf_nanochat(directory: Path) -> tuple[NanochatConfig, Params]:
    """A NanoChat model of transformers, as `save_nanochat` or transformers writes it.

    Raises:
      InputError: it is damaged, or has settings that this model of 2025 cannot run.
    """
    path = directory / "config.json"
    values = read_json(path)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size")
    values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
    for name in (*sizes, "num_key_value_heads"):
        if type(values.get(name)) is not int or values[name] < 1:
            raise InputError(f"{path}: {name}={values.get(name)!r} is not a positive int; fetch it again")
    width, n_head = values["hidden_size"], values["num_attention_heads"]
    rope: Any = values.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    softcap: Any = values.get("final_logit_softcapping")
    rope_base: Any = rope.get("rope_theta", values.get("rope_theta"))
    for name, value in (("final_logit_softcapping", softcap), ("rope_theta", rope_base)):
        if type(value) not in (int, float) or not 0 < value < 1e12:
            raise InputError(f"{path}: {name}={value!r} is not a positive number; fetch it again")
    fixed = {
        "hidden_act": "relu2", "attention_bias": False, "tie_word_embeddings": False, "intermediate_size": 4 * width,
        "head_dim": width // n_head,
    }  # fmt: skip
    for name, ours in fixed.items():
        if values.get(name, ours) != ours:
            raise InputError(f"{path}: {name}={values[name]!r}, but this NanoChat has {ours!r}; it cannot run it")
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"{path}: rope_type={rope['rope_type']!r} is not default; it cannot run it")
    config = NanochatConfig(
        era="2025", depth=values["num_hidden_layers"], n_embd=width, head_dim=width // n_head,
        n_kv_head=values["num_key_value_heads"], seq_len=values["max_position_embeddings"],
        vocab_size=values["vocab_size"], rope_base=float(rope_base), softcap=float(softcap),
    ).complete(values["vocab_size"])  # fmt: skip
    ours_of = {theirs: ours for ours, theirs in NAMES.items()}
    stored = {}
    for name, tensor in list_tensors(directory).items():
        path_of = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
        if path_of and path_of[2] in ours_of:
            name = f"h.{path_of[1]}.{ours_of[path_of[2]]}.weight"
        stored["wte.weight" if name == "model.embed_tokens.weight" else name] = tensor
    return config, read_model(config, stored, directory, is_transposed=lambda path: path.startswith("h."))


def refuse_others(config: NanochatConfig) -> None:
    """Raises InputError for what transformers' NanoChat would compute otherwise."""
    flags = [name for name in ("value_embeds", "layer_lambdas", "smear", "backout") if getattr(config, name)]
    found = [f"model.{name}=true" for name in flags]
    if any(config.window(layer) < config.seq_len for layer in range(config.n_layer)):
        found.append(f"model.window_pattern={config.window_pattern}")
    if config.qk_scale != 1.0:
        found.append(f"model.qk_scale={config.qk_scale}")
    if found:
        raise InputError(
            f"transformers' NanoChat is that of 2025: it has no {', '.join(found)}; "
            "convert with --to torch, or train with --model.era=2025"
        )
