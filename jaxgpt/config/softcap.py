"""The function that keeps logits within bounds, as a value: which one, and its constants."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Softcap:
    """A bounded, rising function of a logit z; `models.layers` computes it, its slope and its log-sum-exp.

    Attributes:
      kind: tanh is scale x tanh(z / scale), as in Gemma 2 (arXiv:2408.00118) and nanochat; rsqrt is
        scale x z / sqrt(z^2 + scale^2); sigmoid is scale x sigmoid((z + shift) / width), both of modded-nanogpt.
      scale: the bound, above 0.
      shift: added to the logit, in sigmoid alone.
      width: what the logit is divided by, in sigmoid alone.
    """

    kind: Literal["tanh", "rsqrt", "sigmoid"]
    scale: float
    shift: float = 0.0
    width: float = 1.0
