"""The run that another one starts from, read off its checkpoint: its model, its tokenizer, and what identifies it.

No array is read here, and nothing of the run is executed.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from jaxgpt.config import Config
from jaxgpt.config.chat import ChatConfig
from jaxgpt.config.families import ModelConfig
from jaxgpt.config.section import show
from jaxgpt.errors import InputError
from jaxgpt.run.checkpoints import choose_checkpoint, list_steps
from jaxgpt.run.console import console
from jaxgpt.run.remote import opened_run
from jaxgpt.run.saved_config import read_config

FREE_FIELDS = ("seq_len", "dropout")
"""Fields of a model that may differ from the base's: parameters do not depend on them where the family says so."""


@dataclass(frozen=True)
class Base:
    """A checkpoint to start from.

    Attributes:
      directory: of its run, as the user wrote it.
      config: of its run, complete.
      tokenizer_json: None where its data named none.
      seal: SHA-256 (hex) of its manifest, which has those of all files.
    """

    directory: str
    step: int
    config: Config
    tokenizer_json: dict[str, Any] | None
    seal: str

    def about(self) -> dict[str, Any]:
        """What checkpoints of the run that starts from it say of it, as JSON."""
        return {"run": self.directory, "step": self.step, "sha256": self.seal}

    def complete(self, model: ModelConfig) -> ModelConfig:
        """The model of a config, open fields as the base has them.

        Raises:
          InputError: it is another model than the base's; names the fields.
        """
        ours, theirs = model, self.config.model
        if type(ours) is not type(theirs):
            raise InputError(
                f"model.family={ours.family} is not the {theirs.family} of {self}; set --model.family={theirs.family}"
            )
        usual = type(ours)()
        names = [field.name for field in dataclasses.fields(ours)]
        is_open = {name: getattr(ours, name) == getattr(usual, name) and not getattr(ours, name) for name in names}
        ours = dataclasses.replace(ours, **{name: getattr(theirs, name) for name in names if is_open[name]})
        ours = ours.complete(theirs.vocab_size)
        has_learned_positions = ours.longest_row() is not None
        different = [
            name for name in names
            if getattr(ours, name) != getattr(theirs, name)
            and (name not in FREE_FIELDS or (name == "seq_len" and has_learned_positions))
        ]  # fmt: skip
        if different:
            listed = ", ".join(f"model.{name}={show(getattr(ours, name))}" for name in different)
            settings = " ".join(f"--model.{name}={getattr(theirs, name)}" for name in different)
            raise InputError(f"{listed} differs from the model of {self}; set {settings}")
        return ours

    def __str__(self) -> str:
        return f"chat.base={self.directory} step {self.step}"


def read_base(chat: ChatConfig) -> Base:
    """The checkpoint that `chat.base` and `chat.base_step` name; its digests are verified where it is loaded.

    Raises:
      InputError: there is none, it is damaged, or it is not of this program.
      Failure: its store cannot be reached.
    """
    with opened_run(chat.base, "chat.base") as (run_dir, remote):
        checkpoints = run_dir / "checkpoints"
        steps = list_steps(checkpoints)
        wanted = chat.base_step if chat.base_step >= 0 else None
        if not steps:
            there = "has no checkpoint" if run_dir.is_dir() else "does not exist"
            raise InputError(f"chat.base={chat.base} {there}; name the directory of a run: --from RUN")
        if wanted is not None and wanted not in steps:
            there = ", ".join(map(str, steps))
            raise InputError(f"chat.base_step={wanted} is not among the checkpoints of chat.base={chat.base}: {there}")
        chosen = choose_checkpoint(checkpoints, wanted, verify=False, warn=console.warn, remote=remote)
    assert chosen is not None
    config = read_config(chosen.about, str(chosen.path))
    return Base(chat.base, chosen.step, config, chosen.about.get("tokenizer"), str(chosen.manifest.get("seal", "")))
