"""A run, opened: its complete config, its data, its tokenizer. Everything that runs a model begins here.

Nothing here touches a device: user errors are reported before any is started.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxgpt.config import Config, to_dict
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.config.derive import Derivation, derive
from jaxgpt.data.sources import Source, count_token_bytes, open_source
from jaxgpt.data.tokenizer import Tokenizer, tokenizer_from_json
from jaxgpt.errors import InputError, require
from jaxgpt.run.base import Base, read_base
from jaxgpt.run.console import console, working


@dataclass(frozen=True)
class Run:
    """A config, complete, and its data.

    Attributes:
      given: as the user wrote it; what a config file of the run holds.
      derivation: the complete config, what was derived, and warnings.
      source: the data.
      base: the run that this one starts from; None: there is none.
    """

    given: Config
    derivation: Derivation
    source: Source
    base: Base | None = None

    @property
    def config(self) -> Config:
        """Complete: nothing in it is open."""
        return self.derivation.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.source.tokenizer

    @cached_property
    def token_bytes(self) -> np.ndarray | None:
        """UTF-8 bytes of each id, [V]; None, and a line on the console, where the vocabulary is not available."""
        return count_token_bytes(self.source, console.say)

    def settled(self, overrides: dict[str, str], why: str) -> "Run":
        """The run with values for what its config left to the devices; the header shows them."""
        config = apply_overrides(self.config, overrides)
        shown = " ".join(f"{name}={value}" for name, value in overrides.items())
        facts = self.derivation.facts | {"fits": f"{shown} ({why})"}
        return dataclasses.replace(self, derivation=dataclasses.replace(self.derivation, config=config, facts=facts))

    def sample_prompt(self) -> list[int]:
        """The ids that samples while training begin with; empty where none are asked for or nothing can read them.

        Raises:
          InputError: the tokenizer has no id for a part of sample.prompt.
        """
        if not self.tokenizer or not self.config.sample.every:
            return []
        prompt = self.config.sample.prompt
        try:
            return self.tokenizer.encode_prompt(prompt)
        except InputError as error:
            raise InputError(
                f"sample.prompt={prompt!r} cannot be read: {error}; or choose another text by --sample.prompt"
            ) from error

    def about(self) -> dict[str, Any]:
        """What a checkpoint says of the run, as JSON."""
        based = {"base": self.base.about()} if self.base else {}
        return based | {
            "config": to_dict(self.config),
            "data_sha256": self.source.digest,
            "data_files": self.source.files,
            "tokenizer": self.source.tokenizer_json,
        }


def open_run(given: Config, *, verify_again: bool = False) -> Run:
    """Opens the data of a config and completes it.

    Args:
      verify_again: see `open_source`.

    Raises:
      InputError: the data are missing, damaged, too few for the run, or of another vocabulary than the model's; or a
        value is open that no rule gives; or the base run is missing, or has another model or vocabulary.
      Failure: an object store cannot be reached.
    """
    base = read_base(given.chat) if given.chat.base else None
    with working(f"opening the data in {given.data.dir}"):
        tokenizer_json = base.tokenizer_json if base else None
        source = open_source(given.data, verify_again=verify_again, tokenizer_json=tokenizer_json)
    config = _with_bos(given, source)
    if base:
        _check_tokenizer(config, source, base)
        config = dataclasses.replace(config, model=base.complete(config.model))
    derivation = derive(config, source.n_ids, _count_epoch_steps(config, source))
    source.check_vocabulary(derivation.config.model.vocab_size)
    source.require_steps(derivation.config)
    return Run(given, derivation, source, base)


def _check_tokenizer(config: Config, source: Source, base: Base) -> None:
    """Raises InputError where data.tokenizer is another vocabulary than the base's."""
    if base.tokenizer_json is None or source.tokenizer is None:
        return
    theirs = tokenizer_from_json(base.tokenizer_json)
    require(
        theirs.digest() == source.tokenizer.digest(),
        f"data.tokenizer={config.data.tokenizer} has {source.tokenizer.vocab_size} ids ({source.tokenizer.name}), "
        f"{base} was trained on {theirs.vocab_size} others ({theirs.name}); leave data.tokenizer out",
    )


def _count_epoch_steps(config: Config, source: Source) -> int:
    """Steps of the epochs that train.steps=0 asks for, where the data are conversations; else 0."""
    if not config.data.is_chat or config.train.steps:
        return 0
    with working(f"packing the conversations in {config.data.dir} once, to count the steps", is_said=True):
        return source.count_steps(config)


def _with_bos(config: Config, source: Source) -> Config:
    """The config whose model, if it looks for the beginnings of documents, knows the id that the data begins them with.

    Raises:
      InputError: it expects another.
    """
    if config.data.sampling != "bos_aligned":
        return config
    bos_id = source.bos_id()
    expected = getattr(config.model, "bos_id", None)
    require(
        expected in (None, -1, bos_id),
        f"model.bos_id={expected} is not the {bos_id} that documents of {config.data.dir} begin with; leave it at -1",
    )
    return (
        config
        if expected is None
        else dataclasses.replace(config, model=dataclasses.replace(config.model, bos_id=bos_id))
    )
