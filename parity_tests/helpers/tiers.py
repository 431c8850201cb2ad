"""What `make test` leaves to `make test-all`, so that it ends in minutes on two cores.

Slow tests are further members of families whose first members stay: a bug is still planted for each gate, a fault still
ends a run, but not each of them in every run of the suite.
"""

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(n: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of a test: the first of each n stays, the others are slow."""
    return [value if i % n == 0 else pytest.param(value, marks=pytest.mark.slow) for i, value in enumerate(values)]
