"""Step time and memory along one axis at a time: the real compiled steps of small models, in interleaved rounds.

All points are compiled first and stay in memory, then each round runs each of them once, so that what else the machine
does meets all points alike. Memory is the temporaries of the compiled program on one device, and beside it stands what
`plan.estimate` counts from the config; beside time stand the FLOPs, with attention over the whole square.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxgpt.bench.axes import AXES, BASE, MIN_POINTS, N_SIMULATED, point_config
from jaxgpt.bench.exponents import fit_axis, summarise_point
from jaxgpt.bench.interleave import N_SETTLING_STEPS, Workload, time_steps
from jaxgpt.bench.record import Record
from jaxgpt.bench.workload import Repeated, describe
from jaxgpt.config import Config
from jaxgpt.config.flops import flops_per_token
from jaxgpt.config.steps import Plan
from jaxgpt.data.batch import Batch
from jaxgpt.errors import InputError
from jaxgpt.parallel.devices import open_devices
from jaxgpt.parallel.mesh import count_batch_devices
from jaxgpt.parallel.sharding import own_rows, put_rows
from jaxgpt.plan.estimate import estimate_run
from jaxgpt.training.programs import lower_stage
from jaxgpt.training.step import make_step

TURN_S = 0.1
"""Length of a turn at least, but for the settling steps; one step where that takes longer."""
MAX_STEPS = 20
Point = tuple[str, int]
"""An axis and a value on it."""


def open_points(axes: Sequence[str], platform: str) -> list[Point]:
    """The points of the axes on the devices that are here; a CPU is divided for the axis `devices`.

    Raises:
      InputError: the platform is not available, or has too few devices for the axis `devices`.
    """
    if "devices" in axes and platform in ("", "cpu"):
        jax.config.update("jax_num_cpu_devices", N_SIMULATED)
    mesh = open_devices(point_config(axes[0], AXES[axes[0]][0], platform))
    jax.config.update("jax_enable_compilation_cache", False)  # what compiling takes is a figure here
    n_devices = len(jax.devices(mesh.devices.flat[0].platform))
    points = [(axis, value) for axis in axes for value in AXES[axis] if axis != "devices" or value <= n_devices]
    if "devices" in axes and sum(axis == "devices" for axis, _ in points) < MIN_POINTS:
        rest = ",".join(axis for axis in AXES if axis != "devices")
        raise InputError(f"--axes=devices needs {MIN_POINTS} devices, there is 1; choose --axes {rest}")
    return points


def prepare_point(config: Config) -> tuple[Workload, Record]:
    """The training step of a config on random tokens, compiled and warm, and what is known of it without running."""
    mesh = open_devices(config)
    with jax.set_mesh(mesh):
        step = make_step(config, mesh)
        plan = Plan(config, count_batch_devices(mesh))
        begin, begin_cpu = time.perf_counter(), time.process_time()
        compiled = lower_stage(step, plan, 0)[1].compile()
        compile_s, compile_cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
        state = step.init_state(step.init_params(config.run.seed))
    planned = plan.at(0)
    lo, hi = own_rows(mesh, planned.n_rows)
    shape = (planned.n_micro, hi - lo, planned.seq_len + 1)
    tokens = np.random.default_rng(0).integers(config.model.vocab_size, size=shape, dtype=np.int32)
    batch, hyper = put_rows(Batch(tokens), planned.n_rows, mesh, axis=1), step.hyper(planned.hyper)

    def dispatch() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch, hyper)
        return metrics

    work = Repeated(dispatch, describe(config, step, compile_s, compiled), compiled)
    counted = estimate_run(config, mesh.devices.flat[0].platform)
    known = {
        "flops": flops_per_token(config.model) * config.train.batch_tokens,
        "temporary_bytes": work.about["temporary_bytes"],
        "counted_bytes": counted.gradients_bytes + counted.activations_bytes,
        "compile_cpu_s": compile_cpu_s,
    }
    return work, known


def time_turn(work: Workload, n_steps: int) -> Record:
    """Step times of a turn, and the CPU time of a step over all threads of the process."""
    begin_s = time.process_time()
    step_s = time_steps(work, n_steps)["step_s"]
    return {"step_s": step_s, "cpu_s": (time.process_time() - begin_s) / (n_steps + N_SETTLING_STEPS + 1)}


def time_axes(
    points: Sequence[Point],
    n_rounds: int,
    prepare: Callable[[str, int], tuple[Workload, Record]],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Record]:
    """Axis -> its points, by `exponents.summarise_point`, and its exponents.

    Args:
      prepare: gives the workload of a point, and what `summarise_point` wants to know of it.
      say: receives what is going on.
    """
    works: dict[tuple[int, ...], tuple[Workload, Record, int]] = {}
    places = {(axis, value): tuple((BASE | {axis: value}).values()) for axis, value in points}
    for i, ((axis, value), place) in enumerate(places.items()):
        if place not in works:  # the base point lies on every axis
            say(f"compiling {axis} {value} ({i + 1} of {len(points)})")
            work, known = prepare(axis, value)
            first_s = min(time_steps(work, 1)["step_s"])
            works[place] = work, known, max(1, min(MAX_STEPS, int(TURN_S / max(first_s, 1e-6))))
    turns: dict[tuple[int, ...], list[Record]] = {place: [] for place in works}
    for i in range(n_rounds):
        say(f"round {i + 1} of {n_rounds}")
        for place, (work, _, n_steps) in works.items():
            turns[place].append(time_turn(work, n_steps))
    by_axis: dict[str, list[Record]] = {axis: [] for axis, _ in points}
    for (axis, value), place in places.items():
        by_axis[axis].append(summarise_point(axis, value, works[place][1], turns[place]))
    return {axis: {"points": found, "exponents": fit_axis(found)} for axis, found in by_axis.items()}
