"""SmolTalk: general conversations that larger models wrote (arXiv:2502.02737, the part for small models)."""

from collections.abc import Sequence
from typing import Any

from jaxgpt.tasks.hub_files import HubSplit
from jaxgpt.tasks.task import Conversation, Shuffled, Task, check_messages

SPLITS = {
    "train": HubSplit("HuggingFaceTB/smol-smoltalk", "default", "train", ("messages",), 460_341),
    "test": HubSplit("HuggingFaceTB/smol-smoltalk", "default", "test", ("messages",), 24_229),
}


def smoltalk(rows: Sequence[Any]) -> Task:
    """The rows in nanochat's order."""
    return Task("SmolTalk", Shuffled(rows), converse)


def converse(row: Any) -> Conversation:
    return {"messages": check_messages(row["messages"])}
