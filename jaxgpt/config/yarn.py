"""Rotary frequencies and the attention's scale after the windows have grown, by modded-nanogpt's form of YaRN.

Half of a head's channels rotate. When the long window grows, channels that turn less than once in the old window are
slowed by the ratio of the windows, those that turn 32 times and more stay, and the rest lies between; attention
becomes a little sharper. Changes add up, so a model needs the list of all that came before.

References: YaRN, arXiv:2309.00071; https://github.com/KellerJordan/modded-nanogpt train_gpt.py (93f0e6b).
"""

import math

import numpy as np

BASE = 1024.0
"""The slowest channel pair turns by 1 / BASE per position, the fastest by 1."""
FIRST_TURNS, LAST_TURNS = 1, 32
"""Turns in the old window at which a frequency begins to be kept, and is kept whole."""
SCALE_GROWTH = 0.2

Changes = tuple[tuple[int, int], ...]
"""(from, to) of each change of the long window, in blocks."""


def rotary_frequencies(head_dim: int, changes: Changes, block_tokens: int, dtype) -> np.ndarray:
    """Radians per position of each channel pair, [head_dim / 2]; the second half is 0, it does not rotate.

    Args:
      changes: those made so far, in order.
      block_tokens: tokens of a block.
      dtype: float32, in which the original computes, or float64.
    """
    f = np.asarray(1 / BASE, dtype) ** np.linspace(0, 1, head_dim // 4, dtype=dtype)
    for old, new in changes:
        n_turns = block_tokens * old * f / (2 * math.pi)
        kept = np.clip((n_turns - FIRST_TURNS) / (LAST_TURNS - FIRST_TURNS), 0, 1)
        f = f * (old / new + kept * (1 - old / new))
    return np.concatenate([f, np.zeros(head_dim // 2 - len(f), f.dtype)])


def attention_scale(scale: float, changes: Changes) -> float:
    """What scores are multiplied with, from its value before any change."""
    for old, new in changes:
        scale = scale * (SCALE_GROWTH * math.log(new / old) + 1)
    return scale
