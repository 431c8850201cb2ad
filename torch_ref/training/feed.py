"""jaxgpt/training/feed.py in PyTorch."""

import itertools
from collections.abc import Iterator
from typing import Any

from jaxgpt.config.steps import Plan, PlannedStep
from jaxgpt.data.batch import Batch
from jaxgpt.data.readers import Reader
from jaxgpt.run.rollback import Skips
from torch_ref.parallel.mesh import Mesh
from torch_ref.parallel.sharding import own_rows, put_rows


def make_feed(
    plan: Plan, reader: Reader, mesh: Mesh, first_step: int = 0, skips: Skips | None = None, *, is_endless: bool = False
) -> Iterator[tuple[PlannedStep, Batch, dict[str, Any]]]:
    skips = skips or Skips()
    if reader.cursors():
        for step in range(first_step, first_step + skips.n_at(first_step)):
            reader.read(plan.at(step), *own_rows(mesh, plan.at(step).n_rows))
    for step in itertools.count(first_step) if is_endless else range(first_step, plan.n_steps):
        planned = plan.at(step)
        rows = reader.read(skips.move(plan, planned), *own_rows(mesh, planned.n_rows))
        yield planned, put_rows(rows, mesh), reader.cursors()
