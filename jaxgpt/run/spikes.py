"""Loss spikes: a step whose loss stands far above those before it."""

import math
from collections import deque
from statistics import median

LEAST_STEPS = 32
"""Losses that must be known before one is called a spike."""
NORMAL = 1.4826
"""From the median deviation to the standard deviation, where losses scatter normally."""


class Spikes:
    """Compares each loss with the median of a window. Neither it nor the median deviation follows a spike.

    Args:
      window: steps; 0: no loss is a spike.
      sigmas: a spike is so many (robust) standard deviations above the median.
    """

    def __init__(self, window: int, sigmas: float):
        self._sigmas, self._window = sigmas, window
        self._losses: deque[float] = deque(maxlen=window)
        self._is_high = False

    def to_json(self) -> list[float]:
        """What it remembers, for a checkpoint: a resumed run finds the spikes of an uninterrupted one."""
        return [float(self._is_high), *self._losses]

    def restore(self, remembered: list[float]) -> None:
        self._is_high = bool(remembered[0])
        self._losses.extend(remembered[1:])

    def check(self, loss: float) -> float | None:
        """The median, at the first step of a spike; otherwise None."""
        if not self._window or not math.isfinite(loss):
            return None
        was_high, middle = self._is_high, 0.0
        if len(self._losses) >= min(LEAST_STEPS, self._window):
            middle = median(self._losses)
            spread = NORMAL * median(abs(other - middle) for other in self._losses)
            self._is_high = loss > middle + self._sigmas * max(spread, 0.001 * abs(middle))
        self._losses.append(loss)
        return middle if self._is_high and not was_high else None
