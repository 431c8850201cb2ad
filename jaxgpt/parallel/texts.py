"""Texts sent between the processes of a run."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, in their order. All must call it; it runs on the devices."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    n_bytes = int(np.max(multihost_utils.process_allgather(np.int32(data.size))))
    if n_bytes == 0:
        return [""] * jax.process_count()
    rows = multihost_utils.process_allgather(np.pad(data, (0, n_bytes - data.size)))
    return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(rows)]
