"""A trained model for other programs: a directory for transformers that works whole, or a GGUF file.

The directory has weights, config.json, tokenizer.json, generation_config.json and a model card, so that
`transformers.pipeline("text-generation", directory)` writes text. Greedy text is what `jaxgpt.sample` gives.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jaxgpt
from jaxgpt.config import Config
from jaxgpt.config.families import GPT2Config, NanochatConfig
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.formats.gguf_file import save_gguf
from jaxgpt.formats.hf_nanochat import save_nanochat
from jaxgpt.formats.hugging_face import save_hf
from jaxgpt.formats.stored import Params
from jaxgpt.formats.tokenizer_json import to_tokenizer_json

FORMS = {"hf": "a directory for transformers", "gguf": "one file for llama.cpp"}


def export(
    form: str, directory: Path, config: Config, params: Params, tokenizer: Tokenizer | None, facts: Mapping[str, str]
) -> str:
    """Writes a model. Returns, in words, how to use it.

    Args:
      form: a key of `FORMS`.
      directory: empty, or made here.
      config: of the run: its model, and its settings for samples.
      tokenizer: None where nobody knows it; the directory then lacks tokenizer.json.
      facts: about the run, for the model card, such as {"step": "2000"}.

    Raises:
      InputError: the format has no such model, with the reason; or the directory cannot be written.
    """
    model = config.model
    if form == "gguf":
        if not isinstance(model, GPT2Config):
            raise InputError(f"--to=gguf writes GPT-2 models, this one is of {model.family}; llama.cpp has no other")
        path = directory / "model.gguf"
        save_gguf(path, model, params, tokenizer, directory.name)
        return f"llama-cli -m {path} runs it"
    specials = special_ids(tokenizer)
    match model:
        case GPT2Config():
            save_hf(directory, model, params, specials)
        case NanochatConfig():
            save_nanochat(directory, model, params, specials)
    n_rows = params["wte.weight"].shape[0]
    write_json(directory / "generation_config.json", generation_settings(config, tokenizer, specials, n_rows))
    if tokenizer is not None:
        write_json(directory / "tokenizer.json", to_tokenizer_json(tokenizer))
        names: dict[int | None, str] = {i: name for name, i in tokenizer.specials.items()}
        ends = {f"{kind}_token": names.get(specials[f"{kind}_token_id"]) for kind in ("bos", "eos")}
        tokens = {kind: name for kind, name in ends.items() if name is not None}
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_json(directory / "tokenizer_config.json", about | tokens | {"model_max_length": model.seq_len})
    card = model_card(directory.name, config, tokenizer, facts)
    (directory / "README.md").write_text(card, encoding="utf-8")
    return f'transformers.pipeline("text-generation", {str(directory)!r}) loads it'


def special_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """What transformers calls the ids that begin and end a text; None where there are none."""
    begin, end = (tokenizer.begin_of_text, tokenizer.end_of_text) if tokenizer else (None, None)
    either = begin if begin is not None else end  # one token serves as both in GPT-2 and nanochat
    return {"bos_token_id": either, "eos_token_id": end if end is not None else either}


def generation_settings(
    config: Config, tokenizer: Tokenizer | None, specials: dict[str, int | None], n_rows: int
) -> dict[str, Any]:
    """generation_config.json: the run's own settings for samples; rows of the vocabulary without a token never come."""
    sample = config.sample
    n_ids = tokenizer.vocab_size if tokenizer else n_rows
    limit = {"top_k": min(sample.top_k, n_ids)} if sample.top_k else {}
    padding = {"suppress_tokens": list(range(n_ids, n_rows))} if n_ids < n_rows else {}
    return {"do_sample": True, "temperature": sample.temperature, **limit, **specials, **padding}


def model_card(name: str, config: Config, tokenizer: Tokenizer | None, facts: Mapping[str, str]) -> str:
    """README.md: what the model is, and the run that made it."""
    model = config.model
    rows = {
        "family": model.family,
        "parameters": f"{model.count_params().total:,}",
        "context": f"{model.seq_len:,} tokens",
        "vocabulary": f"{model.vocab_size:,} ids of the {tokenizer.name if tokenizer else 'unknown'} tokenizer",
        **facts,
    }
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {name}\n\n"
        f"Trained with jaxgpt {jaxgpt.__version__}.\n\n| | |\n|---|---|\n{table}\n"
    )


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
