"""GPT-2 models as one GGUF file, which llama.cpp and what is built on it run.

The file has weights, settings and vocabulary. Tensors and settings are those of llama.cpp's architecture "gpt2", which
computes the tanh GELU; weights are [out, in], as there. Written by the `gguf` package.

Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import dataclasses
from pathlib import Path

import numpy as np

from jaxgpt.config.families import GPT2Config
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.extras import pip_install
from jaxgpt.formats.stored import Params
from jaxgpt.formats.tokenizer_json import to_tokenizer_json
from jaxgpt.models import param_shapes
from jaxgpt.models.layers import LAYER_NORM_EPS

SPLIT_OF_LLAMA = {"gpt2": "gpt-2"}
"""Our tokenizers -> llama.cpp's name for where they cut text. Another cut cannot be written."""


def save_gguf(path: Path, config: GPT2Config, params: Params, tokenizer: Tokenizer | None, name: str) -> None:
    """Writes a GPT-2 and its tokenizer as a GGUF file, weights in float32.

    Args:
      params: path -> array, matrices [in, out].
      name: of the model, as programs show it.

    Raises:
      InputError: the package is missing, or llama.cpp's GPT-2 computes something else.
    """
    refuse_others(config, tokenizer)
    assert tokenizer is not None
    try:
        import gguf
    except ImportError as error:
        raise InputError(f"--to=gguf needs the gguf package: {pip_install('gguf')}") from error

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    n_vocab = params["wte.weight"].shape[0]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(name)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.seq_len)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(LAYER_NORM_EPS)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, tokenizer, n_vocab, gguf.TokenType)
    for parameter, shape in param_shapes(dataclasses.replace(config, bias=True, vocab_size=n_vocab)).items():
        weight = np.asarray(params.get(parameter, np.zeros(shape.shape)), np.float32)  # a bias that the model lacks
        if weight.ndim == 2 and parameter not in ("wte.weight", "wpe.weight"):
            weight = np.ascontiguousarray(weight.T)
        stem, _, suffix = parameter.rpartition(".")
        writer.add_tensor(f"{names.get_name(f'transformer.{stem}')}.{suffix}", weight)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}; choose another path") from error
    finally:
        writer.close()


def refuse_others(config: GPT2Config, tokenizer: Tokenizer | None) -> None:
    """Raises InputError for what llama.cpp's GPT-2 would compute otherwise."""
    if config.gelu != "tanh":
        raise InputError(
            f"model.gelu={config.gelu} cannot be written as GGUF: llama.cpp's GPT-2 has the tanh GELU; "
            "train with --model.gelu=tanh, or export with --to hf"
        )
    if tokenizer is None:
        raise InputError("this model has no tokenizer, and a GGUF file must hold one; export with --to hf")
    if tokenizer.name not in SPLIT_OF_LLAMA:
        raise InputError(
            f"the {tokenizer.name} tokenizer cannot be written as GGUF: llama.cpp would cut text in other places; "
            f"prepare data with --tokenizer {' or '.join(SPLIT_OF_LLAMA)}, or export with --to hf"
        )


def _add_tokenizer(writer, tokenizer: Tokenizer, n_vocab: int, kinds) -> None:
    """The vocabulary of `to_tokenizer_json`, filled up to the rows of the embedding."""
    content = to_tokenizer_json(tokenizer)
    spelled = {i: token for token, i in content["model"]["vocab"].items()}
    special = set(tokenizer.specials.values())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(SPLIT_OF_LLAMA[tokenizer.name])
    writer.add_token_list([spelled.get(i, f"[PAD{i}]") for i in range(n_vocab)])
    kind_of = {True: kinds.CONTROL, False: kinds.NORMAL}
    writer.add_token_types([kind_of[i in special] if i in spelled else kinds.UNUSED for i in range(n_vocab)])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    if tokenizer.end_of_text is not None:
        writer.add_bos_token_id(tokenizer.end_of_text)
        writer.add_eos_token_id(tokenizer.end_of_text)
