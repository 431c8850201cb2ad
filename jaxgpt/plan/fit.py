"""The largest setting that fits a device: bisection, where each probe is a compilation."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from jaxgpt.config import Config, rows_that_divide
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.config.derive import derive
from jaxgpt.config.steps import Plan
from jaxgpt.errors import InputError
from jaxgpt.plan.forecast import Forecast, place
from jaxgpt.plan.topology import Topology
from jaxgpt.training.memory import REMATS

MAX_DEPTH = 64


@dataclass(frozen=True)
class Fit:
    """What a search found.

    Attributes:
      forecast: of the largest setting that fits; of several stages, the one that leaves the least.
      overrides: dotted names and values to paste.
      n_micro: microbatches per step that keep the batch, per stage.
    """

    forecast: Forecast
    overrides: dict[str, str]
    n_micro: list[int]


Look = Callable[[Config], Forecast]
"""Asks the compiler about a config on the device of the search."""


def largest_true(candidates: list[int], is_good: Callable[[int], bool], guess: int | None = None) -> int | None:
    """The last candidate for which a condition holds that holds up to some point; None: for none.

    Args:
      candidates: rising.
      guess: where the point may be: probed first, then its neighbours, then by halves.
    """
    low, high = -1, len(candidates)  # is_good holds at low, not at high
    probe = min(range(len(candidates)), key=lambda i: abs(candidates[i] - guess)) if guess and candidates else None
    stride = 1
    while high - low > 1:
        middle = (low + high) // 2 if probe is None else probe
        if is_good(candidates[middle]):
            low = middle
        else:
            high = middle
        if probe is not None:  # walk away from the guess in growing strides until the point is between
            probe = low + stride if low == middle else high - stride
            probe = probe if low < probe < high else None
            stride *= 2
    return candidates[low] if low >= 0 else None


def row_choices(config: Config, topology: Topology) -> list[int]:
    """Values of micro_batch_size that divide every stage's batch.

    Raises:
      InputError: not even one row per device divides it.
    """
    placed = place(apply_overrides(config, {"train.micro_batch_size": "1"}), topology)
    unit = placed.model.seq_len * placed.mesh.data * placed.mesh.fsdp
    rows = rows_that_divide(placed, placed.mesh.data * placed.mesh.fsdp)
    if not rows:
        raise InputError(
            f"train.batch_tokens={placed.train.batch_tokens} is not a multiple of model.seq_len={placed.model.seq_len} "
            f"x {unit // placed.model.seq_len} devices = {unit}; the next is "
            f"{-(-placed.train.batch_tokens // unit) * unit}"
        )
    return rows


def fit_micro_batch(config: Config, topology: Topology, look: Look, count: Look) -> Fit:
    """The cheapest remat policy under which a row fits, and under it the largest micro_batch_size of each stage.

    Stages of one batch and row length have one micro_batch_size: the last of them, whose windows are the widest, is
    asked about.

    Args:
      look: asks the compiler.
      count: estimates; where to start.

    Raises:
      InputError: nothing fits.
    """
    row_choices(config, topology)  # refuses what no number of rows divides
    config = apply_overrides(config, {"train.micro_batch_size": "1"})
    stages = tuple(dataclasses.replace(stage, micro_batch_size=0) for stage in config.train.stages)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, stages=stages))
    kinds = list(zip(config.stage_batch_tokens(), config.stage_seq_lens(), strict=True))
    last_of = {kind: stage for stage, kind in enumerate(kinds)}
    for remat in REMATS:
        found: dict[tuple[int, int], tuple[int, Forecast]] = {}
        for kind in sorted(last_of, reverse=True):
            one = config.at_stage(last_of[kind])

            def setting(rows: int, one=one, remat=remat) -> Config:
                return apply_overrides(one, {"train.micro_batch_size": str(rows), "train.remat": remat})

            choices = row_choices(one, topology)
            guess = largest_true(choices, lambda rows, setting=setting: count(setting(rows)).fits)
            best = largest_true(choices, lambda rows, setting=setting: look(setting(rows)).fits, guess)
            if not best:
                break
            found[kind] = best, look(setting(best))
        else:
            rows = [found[kind][0] for kind in kinds]
            overrides = {"train.micro_batch_size": str(rows[0]), "train.remat": remat}
            for stage in range(1, len(rows)):
                if rows[stage] != rows[stage - 1]:
                    overrides[f"train.stages.{stage - 1}.micro_batch_size"] = str(rows[stage])
            placed = place(apply_overrides(config, overrides), topology)
            plan = Plan(placed, placed.mesh.data * placed.mesh.fsdp)
            tightest = min((forecast for _, forecast in found.values()), key=lambda forecast: forecast.margin_bytes)
            return Fit(tightest, overrides, list(plan.n_micro))
    raise InputError(
        f"{config.model.family} does not fit {topology.name} even with train.micro_batch_size=1 and train.remat=block; "
        "shard it over more devices (mesh.fsdp), or choose a smaller model"
    )


def fit_depth(config: Config, topology: Topology, look: Look, count: Look) -> Fit:
    """The largest depth of nanochat's dial with the config's other settings; depths at odds with those are skipped.

    Raises:
      InputError: the family has no depth, or not even the smallest fits.
    """
    dial = config.model.DIAL
    if not dial:
        raise InputError(f"--max-depth turns nanochat's depth; model.family={config.model.family} has none")

    def setting(depth: int) -> Config:
        return apply_overrides(config, {f"model.{dial}": str(depth)})

    depths = []
    for depth in range(2, MAX_DEPTH + 1, 2):
        try:
            derive(setting(depth))
            place(setting(depth), topology)
        except InputError:
            continue
        depths.append(depth)
    guess = largest_true(depths, lambda depth: count(setting(depth)).fits)
    best = largest_true(depths, lambda depth: look(setting(depth)).fits, guess)
    if not best:
        raise InputError(f"no depth of {config.model.family} fits {topology.name}; lower train.micro_batch_size")
    forecast = look(setting(best))
    return Fit(forecast, {f"model.{dial}": str(best)}, [forecast.footprint.n_micro])
