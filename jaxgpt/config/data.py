"""The data section of a config: where tokens, text or conversations lie, and in which order they are read."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxgpt.config.section import Section, UserLocation, show
from jaxgpt.errors import require


@dataclass(frozen=True)
class DataConfig(Section):
    """The tokens: a directory that `jaxgpt prepare` wrote, or one in nanoGPT's or llm.c's format."""

    PATH: ClassVar = "data."

    dir: UserLocation = "data/openwebtext"
    """Directory with the train and val shards."""
    train_files: str = ""
    """Token shards: pattern of the training files under dir, such as fineweb_train_*.bin; empty: all of dir. With
    patterns a relative dir is one under the environment variable DATA_PATH."""
    val_files: str = ""
    """Token shards: pattern of the validation files, wherever train_files is set."""
    sampling: Literal["random", "sequential", "bos_aligned", "stream", "best_fit", "conversations"] = "random"
    """Token shards: random (rows start anywhere, nanoGPT), sequential (front to back) or bos_aligned (each row begins
    with a document, modded-nanogpt). Text shards, tokenized while training: stream (one run of documents, nanochat
    2025) or best_fit (each row begins with a document, 2026). conversations: as the chat section says."""
    bos_id: int = -1
    """bos_aligned: the id that begins a document; -1: the tokenizer's (50256 for GPT-2)."""
    max_document_tokens: int = 2048
    """bos_aligned: a document is cut to so many tokens."""
    epochs: int = 1
    """bos_aligned: how often the training shards are read; 0: without end. conversations: how often train.steps=0
    reads them."""
    tokenizer: UserLocation = ""
    """Text shards: the JSON file that train_tokenizer wrote; empty: tokenizer.json beside the shards. conversations:
    empty takes that of chat.base."""
    tokenizer_threads: int = 4
    """Text shards: threads that tokenize, per process."""
    lanes: int = 1
    """Text shards: readers that share the row groups. With as many as hosts, the hosts share the tokenizing.
    conversations: nanochat's ranks, which each pack their own."""

    def __post_init__(self):
        super().__post_init__()
        require(self.dir != "", "data.dir is empty; name a directory that jaxgpt prepare wrote")
        for name in ("tokenizer_threads", "lanes", "max_document_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"data.{name}={value} is below 1; choose a positive number")
        require(self.bos_id >= -1, f"data.bos_id={self.bos_id} is below -1, which takes the tokenizer's; choose an id")
        require(self.epochs >= 0, f"data.epochs={self.epochs} is negative; 0 reads the shards again and again")
        require(
            bool(self.train_files) == bool(self.val_files),
            f"data.train_files={show(self.train_files)} and data.val_files={show(self.val_files)} belong together; "
            "give both, or none",
        )

    @property
    def is_text(self) -> bool:
        return self.sampling in ("stream", "best_fit")

    @property
    def is_chat(self) -> bool:
        return self.sampling == "conversations"
