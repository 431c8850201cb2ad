"""jaxgpt/parallel/peers.py in PyTorch: gloo and NCCL raise where a peer is gone, and torchrun names it."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxgpt.config import HostsConfig
from jaxgpt.errors import Failure
from torch_ref.parallel.hosts import COLLECTIVE_TIMEOUT_S, process_count, process_index, start_hosts, stop_hosts
from torch_ref.parallel.texts import gather_texts

RESUME = "the last checkpoint is intact; start all processes again with --resume"


def exchange_texts(text: str) -> list[str]:
    return gather_texts(text)


@contextmanager
def with_peers(config: HostsConfig, platform: str) -> Iterator[None]:
    start_hosts(config, platform)
    try:
        yield
    except RuntimeError as error:
        if process_count() == 1 or isinstance(error, Failure) or not is_of_peers(error):
            raise
        raise Failure(
            f"process {process_index()} lost another one, or waited {COLLECTIVE_TIMEOUT_S} s for it "
            f"({str(error).splitlines()[0][:200]}); {RESUME}"
        ) from error
    finally:
        stop_hosts()


def is_of_peers(error: RuntimeError) -> bool:
    """Whether a collective raised it."""
    text = str(error).lower()
    return any(word in text for word in ("gloo", "nccl", "connection", "timed out"))
