"""The batches of a run on the devices, in order, and where the reader then stands."""

import itertools
from collections.abc import Generator
from typing import Any

from jax.sharding import Mesh

from jaxgpt.config.steps import Plan, PlannedStep
from jaxgpt.data.batch import Batch
from jaxgpt.data.readers import Reader
from jaxgpt.parallel.sharding import own_rows, put_rows
from jaxgpt.run.rollback import Skips


def make_feed(
    plan: Plan, reader: Reader, mesh: Mesh, first_step: int = 0, skips: Skips | None = None, *, is_endless: bool = False
) -> Generator[tuple[PlannedStep, Batch, dict[str, Any]], None, None]:
    """From `first_step` to the end: the step, its batch [M, B, T + 1], and the reader's cursors after it.

    A process reads its own rows only.

    Args:
      skips: data to leave out; a reader that has cursors is read past them.
      is_endless: continue after the last step, for timing.
    """
    skips = skips or Skips()
    if reader.cursors():
        for step in range(first_step, first_step + skips.n_at(first_step)):
            reader.read(plan.at(step), *own_rows(mesh, plan.at(step).n_rows))
    for step in itertools.count(first_step) if is_endless else range(first_step, plan.n_steps):
        planned = plan.at(step)
        rows = reader.read(skips.move(plan, planned), *own_rows(mesh, planned.n_rows))
        batch = put_rows(rows, planned.n_rows, mesh, axis=1)
        yield planned, batch, reader.cursors()
