"""The weights that a run starts from."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxgpt.config import Config
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.formats.hugging_face import PRETRAINED
from jaxgpt.formats.pretrained import adapt, gelu_note, load_pretrained
from jaxgpt.formats.vocabulary import read_tokenizer
from jaxgpt.run.console import console


def initial_params(
    config: Config,
    shapes: Mapping[str, Any],
    draw: Callable[[int], dict[str, jax.Array]],
    tokenizer: Tokenizer | None = None,
) -> dict[str, jax.Array]:
    """Fresh weights, or those of `train.init_from`, on the mesh. Prints a line if those were trained with another GELU.

    Args:
      shapes: the parameters with their shardings.
      draw: seed -> fresh parameters.
      tokenizer: of the data; None: it is not compared with that of the weights.

    Raises:
      InputError: the weights cannot be loaded, or belong to another tokenizer than the data.
    """
    if not config.train.init_from:
        return draw(config.run.seed)
    if tokenizer is not None:
        _check_tokenizer(config, tokenizer)
    loaded, weights = load_pretrained(config.train.init_from)
    params = adapt(loaded, weights, config.model)
    if note := gelu_note(config.train.init_from, loaded, config.model):
        console.say(note)
    return {path: jax.device_put(params[path].astype(leaf.dtype), leaf.sharding) for path, leaf in shapes.items()}


def _check_tokenizer(config: Config, tokenizer: Tokenizer) -> None:
    """Compares the data's tokenizer with that of a Hugging Face directory; other weights have none."""
    source = config.train.init_from
    if source in PRETRAINED or not Path(source).is_dir():
        return
    theirs = read_tokenizer(Path(source))
    if theirs is not None and theirs.digest() != tokenizer.digest():
        raise InputError(
            f"train.init_from={source} has a tokenizer of {theirs.vocab_size} ids ({theirs.name}), "
            f"data.dir={config.data.dir} another of {tokenizer.vocab_size} ({tokenizer.name}); "
            f"prepare the data with --tokenizer {shlex.quote(source)}"
        )
