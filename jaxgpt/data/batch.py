"""What a model is trained on in one step, from the reader to the loss."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Rows of tokens, and which of them count. Arrays of numpy, JAX or torch.

    Attributes:
      tokens: int32 [..., T + 1]: inputs are all but the last, targets all but the first.
      mask: [..., T], of the targets: 1 counts, 0 adds nothing to loss, gradient and count. None: all count.
        Of RL: what the loss of each weighs in a sum that nobody divides; see `jaxgpt.chat.advantages`.
    """

    tokens: Any
    mask: Any = None
