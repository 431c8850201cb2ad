"""The config that a checkpoint holds, of this version or of one before it."""

import dataclasses
from typing import Any

from jaxgpt.config import Config, from_dict
from jaxgpt.errors import InputError


def read_config(about: dict[str, Any], source: str) -> Config:
    """The complete config of a checkpoint, of this version or of one before it.

    Args:
      about: what the checkpoint says of its run.
      source: of it, for messages.

    Raises:
      InputError: it does not say what its model is, or another version wrote it.
    """
    values = about.get("config")
    if not isinstance(values, dict):
        raise InputError(f"{source} does not say what its model is (config); it is no checkpoint of a run")
    try:
        config = from_dict(values)
        vocab_size = about.get("vocab_size", config.model.vocab_size)  # beside the config in older checkpoints
        if type(vocab_size) is not int or vocab_size < 1:
            raise InputError(f"vocab_size={vocab_size!r} is no positive integer")
        model = dataclasses.replace(config.model, vocab_size=vocab_size).complete(vocab_size)
        return dataclasses.replace(config, model=model)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
