"""What optax.GradientTransformationExtraArgs is in jaxgpt, but `update` works in place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Transformation(NamedTuple):
    """An optimizer of a flat dict of parameters.

    Attributes:
      init: (params) -> state: field -> {path -> tensor}. Whoever joins transformations keeps the count of steps.
      update: (grads, state, params, *, hyper, is_finite) writes params and state; it reads state["count"], the steps
        taken so far.
    """

    init: Callable[[dict[str, torch.Tensor]], dict[str, Any]]
    update: Callable[..., None]


def write(old: torch.Tensor, new: torch.Tensor, is_finite: torch.Tensor) -> None:
    """Only where the step is finite: `torch.where` instead of a branch, for which the host would have to wait."""
    old.copy_(torch.where(is_finite, new, old))
