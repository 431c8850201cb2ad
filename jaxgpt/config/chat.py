"""The settings of midtraining and SFT: what a run on conversations starts from, and how they become rows.

Midtraining is an SFT that trains on every token. Both are read where `data.sampling` is conversations.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxgpt.config.section import Section, UserLocation
from jaxgpt.errors import require


@dataclass(frozen=True)
class ChatConfig(Section):
    """Training on conversations, from the weights of another run."""

    PATH: ClassVar = "chat."

    base: UserLocation = ""
    """Run whose weights and tokenizer this one starts from: jaxgpt sft --from."""
    base_step: int = -1
    """Its checkpoint; -1: the newest."""
    optimizer: Literal["fresh", "base"] = "fresh"
    """State of the optimizer: fresh (nanochat 2025), or the base run's moments (2026)."""
    init_lr_frac: float = 1.0
    """Factor on every learning rate, on top of the schedule."""
    packing: Literal["best_fit", "rows", "stream"] = "best_fit"
    """How they fill rows: best_fit (nanochat 2026), rows (one in each, SFT of 2025), stream (midtraining of 2025)."""
    trained: Literal["assistant", "all"] = "assistant"
    """Tokens that count: the assistant's, or all (midtraining 2025)."""
    max_tokens: int = 0
    """Tokens that are kept of a conversation; 0: as many as a row holds, and all in a stream."""
    tasks: str = ""
    """Tasks to ask at each evaluation: 2026 (ChatCORE), or names as in jaxgpt evaluate --tasks; empty: none."""
    task_problems: int = 24
    """Problems of each task whose answers are written; of those with letters all are asked."""

    @property
    def stage(self) -> Literal["base", "mid", "sft"]:
        """What a run with these settings is of a chat model."""
        if not self.base:
            return "base"
        return "mid" if self.trained == "all" else "sft"

    def __post_init__(self):
        super().__post_init__()
        require(self.base_step >= -1, f"chat.base_step={self.base_step} is below -1, which is the newest; name a step")
        require(self.init_lr_frac > 0, f"chat.init_lr_frac={self.init_lr_frac} is not above 0; 1 keeps optim's rates")
        require(self.max_tokens >= 0, f"chat.max_tokens={self.max_tokens} is negative; 0 keeps what a row holds")
        require(self.task_problems >= 1, f"chat.task_problems={self.task_problems} is below 1; ask at least one")
        require(self.max_tokens != 1, "chat.max_tokens=1 leaves nothing to predict; choose 2 or more, or 0")
