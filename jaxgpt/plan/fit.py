"""The largest setting that fits a device: bisection, where each probe is a compilation."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from jaxgpt.config import Config, rows_that_divide
from jaxgpt.config.auto import REMATS, SETTINGS, open_all, open_settings, rows_overrides
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.config.derive import derive
from jaxgpt.config.steps import Plan
from jaxgpt.errors import InputError
from jaxgpt.plan.estimate import ESTIMATE_SHARE
from jaxgpt.plan.forecast import Forecast, place
from jaxgpt.plan.topology import Topology

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
    return _row_choices(place(_at_rows(config, 1), topology))


def _row_choices(placed: Config) -> list[int]:
    n_devices, seq_len = placed.mesh.data * placed.mesh.fsdp, placed.model.seq_len
    rows, unit = rows_that_divide(placed, n_devices), seq_len * n_devices
    if not rows:
        raise InputError(
            f"train.batch_tokens={placed.train.batch_tokens} is not a multiple of model.seq_len={seq_len} "
            f"x {n_devices} devices = {unit}; the next is {-(-placed.train.batch_tokens // unit) * unit}"
        )
    n_lanes = placed.data.lanes if placed.data.is_chat else 1
    shared = [n for n in rows if n * n_devices % n_lanes == 0]
    if not shared:
        raise InputError(
            f"data.lanes={n_lanes} divides no microbatch of train.batch_tokens={placed.train.batch_tokens} over "
            f"{n_devices} devices; choose a divisor of {rows[-1] * n_devices} rows"
        )
    return shared


def _at_rows(config: Config, rows: int) -> Config:
    """The config with so many rows in all stages."""
    stages = tuple(dataclasses.replace(stage, micro_batch_size=0) for stage in config.train.stages)
    train = dataclasses.replace(config.train, micro_batch_size=rows, stages=stages)
    return dataclasses.replace(config, train=train)


def fit_settings(
    config: Config, place: Callable[[Config], Config], fits: Callable[[Config], bool], guess: Callable[[Config], bool]
) -> dict[str, str] | None:
    """Values for open settings: the cheapest remat policy under which a row fits, and the most rows of each stage.

    Stages of one batch and row length have one micro_batch_size: the last of them, whose windows are the widest, is
    asked about.

    Args:
      config: a setting that is not open keeps its value.
      place: fills in the mesh, and what follows from it.
      fits: whether a run of one stage does.
      guess: the same, roughly and fast; where to start.

    Returns:
      Overrides of the config; None: nothing fits.

    Raises:
      InputError: no number of rows divides the batch.
    """
    has_rows, remat = config.train.micro_batch_size > 0, config.train.remat
    rows_before = config.stage_rows()
    bare = config if has_rows else _at_rows(config, 1)
    _row_choices(place(bare))  # refuses what no number of rows divides
    kinds = list(zip(bare.stage_batch_tokens(), bare.stage_seq_lens(), rows_before, strict=True))
    last_of = {kind: stage for stage, kind in enumerate(kinds)}
    for policy in REMATS if remat == "auto" else (remat,):
        found: dict[tuple[int, int, int], int] = {}
        for kind in sorted(last_of, reverse=True):
            one = bare.at_stage(last_of[kind])

            def setting(rows: int, one=one, policy=policy) -> Config:
                return apply_overrides(one, {"train.micro_batch_size": str(rows), "train.remat": policy})

            choices = [kind[2]] if has_rows else _row_choices(place(one))
            start = largest_true(choices, lambda rows, setting=setting: guess(setting(rows)))
            best = largest_true(choices, lambda rows, setting=setting: fits(setting(rows)), start)
            if not best:
                break
            found[kind] = best
        else:
            rows = {} if has_rows else rows_overrides(config, [found[kind] for kind in kinds])
            return rows | {"train.remat": policy}
    return None


def surely_fits(forecast: Forecast) -> bool:
    """Whether it fits; an estimate, which may be too low, has to leave a margin."""
    share = ESTIMATE_SHARE[forecast.topology.platform] if forecast.is_estimate else 1.0
    return forecast.fits and forecast.footprint.total_bytes <= share * forecast.usable_bytes


def fit_micro_batch(config: Config, topology: Topology, look: Look, count: Look) -> Fit:
    """The settings of `fit_settings` on a topology; both are searched where none is open.

    Args:
      look: asks the compiler.
      count: estimates; where to start.

    Raises:
      InputError: nothing fits.
    """
    config = config if open_settings(config) else open_all(config)
    seen: dict[Config, Forecast] = {}

    def fits(one: Config) -> bool:
        seen[one] = look(one)
        return surely_fits(seen[one])

    found = fit_settings(config, lambda one: place(one, topology), fits, lambda one: surely_fits(count(one)))
    if found is None:
        raise InputError(explain_misfit(config, topology.name))
    settled = apply_overrides(config, found)
    placed = place(settled, topology)
    stages = {settled.at_stage(stage) for stage in range(len(settled.stage_rows()))}
    tightest = min((seen[one] for one in stages if one in seen), key=lambda forecast: forecast.margin_bytes)
    return Fit(tightest, found, list(Plan(placed, placed.mesh.data * placed.mesh.fsdp).n_micro))


def explain_misfit(config: Config, device: str) -> str:
    """In one line, that no value of the open settings fits, and what else may be changed."""
    rows, remat = config.train.micro_batch_size or 1, config.train.remat
    closed = [f"{name}=auto" for name in SETTINGS if f"{name}=auto" not in open_settings(config)]
    first = f"set --{closed[0]}, " if closed else ""
    return (
        f"{config.model.family} does not fit {device} even with train.micro_batch_size={rows} and train.remat="
        f"{'block' if remat == 'auto' else remat}; {first}shard it over more devices "
        "(mesh.fsdp), or choose a smaller model"
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
