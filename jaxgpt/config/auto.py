"""Settings that the memory of the devices decides: train.micro_batch_size=auto and train.remat=auto.

They are open until the devices are known. `jaxgpt train` and `jaxgpt plan` settle them by one search (`plan/fit.py`).
Neither changes what a run computes: rows are summed over the same batch, and a block that is computed again gives the
same activations. Only rounding differs, and which numbers dropout draws.
"""

import dataclasses

from jaxgpt.config.settings import Config
from jaxgpt.errors import InputError

SETTINGS = ("train.micro_batch_size", "train.remat")
REMATS = ("none", "dots", "block")
"""Policies of train.remat from the cheapest in time to the cheapest in memory."""


def open_settings(config: Config) -> list[str]:
    """Those of the two settings that are open, as typed."""
    is_open = (not config.train.micro_batch_size, config.train.remat == "auto")
    return [f"{name}=auto" for name, value in zip(SETTINGS, is_open, strict=True) if value]


def refuse_open(config: Config, where: str) -> None:
    """Raises InputError where a setting is open.

    Args:
      where: what cannot settle it, in words.
    """
    names = open_settings(config)
    if names:
        raise InputError(
            f"{' and '.join(names)} cannot be settled by {where}; give the values that jaxgpt plan --fit prints"
        )


def open_all(config: Config) -> Config:
    """The config with both settings open, whatever it had."""
    train = dataclasses.replace(config.train, micro_batch_size=0, remat="auto")
    return dataclasses.replace(config, train=train)


def chosen_overrides(settled: Config, given: Config) -> dict[str, str]:
    """Overrides by which a config has the rows and the policy of a settled one, where it leaves them open.

    Args:
      settled: with as many stages.
    """
    rows = {} if given.train.micro_batch_size else rows_overrides(given, settled.stage_rows())
    return rows | ({"train.remat": settled.train.remat} if given.train.remat == "auto" else {})


def rows_overrides(config: Config, rows: list[int]) -> dict[str, str]:
    """Overrides by which the stages of a config have these micro_batch_sizes. Stages as the one before need none."""
    found = {"train.micro_batch_size": str(rows[0])}
    for stage in range(1, len(rows)):
        now = rows[stage] if rows[stage] != rows[stage - 1] else 0
        if now != config.train.stages[stage - 1].micro_batch_size:
            found[f"train.stages.{stage - 1}.micro_batch_size"] = str(now)
    return found
