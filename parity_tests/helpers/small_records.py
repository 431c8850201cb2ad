"""Records 62 and 46 in 18 + 3 small steps, on the data of the originals' digests, and either framework's steps of them.

A program is compiled once for all stages that share it, and states can be kept, so that one run serves many checks.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest

from jaxgpt.compare.trajectories import Arrays, enter_jax, settle, to_arrays
from jaxgpt.config import (
    MODDED_46,
    MODDED_62,
    Config,
    DataConfig,
    EvalConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    schedule,
    speedrun_stages,
)
from jaxgpt.config.steps import Plan
from jaxgpt.data.batch import Batch
from jaxgpt.data.sources import open_source
from jaxgpt.training import step as jax_step
from jaxgpt.training import validation as jax_validation
from jaxgpt.training.programs import lower_stage
from parity_tests.helpers.modded_cases import BOS, fill_record, record
from parity_tests.helpers.modded_layout import from_original
from torch_ref.models import weights
from torch_ref.parallel.mesh import make_mesh as make_torch_mesh
from torch_ref.parallel.sharding import put_rows
from torch_ref.training import step as torch_step
from torch_ref.training import validation as torch_validation

BLOCK, CAP, SCHEDULED, EXTENSION = 2, 24, 18, 3
TOKENS = (256, 512, 768)
WINDOWS = ((3, 7), (5, 11), (6, 13))
MODULES = {"jax": (jax_step, jax_validation), "torch": (torch_step, torch_validation)}
N_STEPS = {"62": SCHEDULED + EXTENSION, "46": 20}
"""Of which there are figures."""
TIED_STEPS = 14
"""Record 62's embedding is its head in steps 0 .. 13."""


# Data and config


def write_shard(path, seed, n_tokens):
    """A shard of random documents, in the originals' form."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, BOS, size=n_tokens)
    is_first = rng.random(n_tokens) < 1 / 18
    is_first[0] = True
    tokens[is_first] = BOS
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, n_tokens
    path.write_bytes(header.tobytes() + tokens.astype(np.uint16).tobytes())


def write_data(directory, name):
    seed = int(name) + 1
    for k, n_tokens in enumerate((4000, 9000, 30_000)):
        write_shard(directory / f"x_train_{k}.bin", [seed, 100 + k], n_tokens)
    write_shard(directory / "x_val_0.bin", [seed, 200], 3000)
    return directory


def in_small(optim: OptimConfig, tied_steps: int) -> OptimConfig:
    """For 18 steps; the momentum only rises, over 300 steps, as in the figures."""
    muon = dataclasses.replace(optim.muon, momentum_cooldown_steps=0, momentum_end=-1.0)
    schedule = dataclasses.replace(optim.schedule, decay_steps=SCHEDULED)
    return dataclasses.replace(optim, muon=muon, schedule=schedule, tie_until=tied_steps)


def make_config(name, directory, *, dtype: Any = "float64", mesh: MeshConfig | None = None) -> Config:
    """A record in steps of 8 rows, as `settle` leaves it. The mesh is by default of one device."""
    model = dataclasses.replace(
        record(name), seq_len=TOKENS[0] // 8, block_tokens=BLOCK, short_window=BLOCK + 1, long_window=3 * BLOCK + 1
    )
    table: dict[str, Any] = {
        "lr_from": (1 / 3, 2 / 3),
        "lr_scales": (1.52, 1.73),
        "target_weights": ((1.0, 0.5), (1.0,)),
    }
    if name == "46":
        table = {"lr_from": (0.33, 0.66), "lr_scales": (1.51, 1.93)}
    stages = speedrun_stages(
        scheduled_steps=SCHEDULED, batch_tokens=TOKENS, windows=WINDOWS, block_tokens=BLOCK, **table
    )
    optim = in_small(MODDED_62, TIED_STEPS) if name == "62" else in_small(MODDED_46, 0)
    config = Config(
        model=model, optim=optim,
        data=DataConfig(dir=directory, sampling="bos_aligned", bos_id=BOS, max_document_tokens=CAP),
        train=TrainConfig(
            steps=SCHEDULED + EXTENSION, batch_tokens=TOKENS[0], micro_batch_size=1, dtype=dtype,
            loss_chunk_tokens=10**6, stages=stages,
            target_weights=(1.0, 0.5, 0.25) if name == "62" else (1.0,),
        ),
        eval=EvalConfig(seq_len=64, tokens=8 * 64, spread=False, long_window=20 * BLOCK + 1),
    )  # fmt: skip
    config = settle(config, N_STEPS[name], dtype)
    return dataclasses.replace(config, mesh=mesh) if mesh else config


def start(name, config: Config) -> Arrays:
    """The figures' weights; record 62's embedding begins as its head."""
    tensors = fill_record(name, int(name) + 1)
    if name == "62":
        tensors["embed.weight"] = tensors["lm_head.weight"].T.copy()
    dtype = "float64" if config.train.dtype == "float64" else "float32"
    return {path: leaf.astype(dtype) for path, leaf in from_original(config.model, tensors).items()}  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def unrounded():
    """The original rounds no length of a descent; at full size it is whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "round", float, raising=False)
        yield


# The steps


class Reading(NamedTuple):
    """A step's batch, and where the reader stands after it."""

    batch: Batch
    cursors: Any


def read_steps(config: Config, steps: range, cursors: Any = None, n_devices: int = 1) -> dict[int, Reading]:
    """The batches of these steps, from the first or from where a reader stood before them."""
    plan, reader = Plan(config, n_devices), open_source(config.data).reader(config, cursors)
    found = {
        step: Reading(reader.read(plan.at(step), 0, plan.n_rows[plan.at(step).stage]), reader.cursors())
        for step in steps
    }
    reader.close()  # and not by open_run: ids are not GPT-2's
    return found


class Runner:
    """One framework's steps of a run, compiled. `open_runner` makes it, in the surroundings that it needs."""

    def __init__(self, framework: str, config: Config, step: Any):
        self.framework, self.config, self.step = framework, config, step
        self.plan = Plan(config, config.mesh.data * config.mesh.fsdp)
        self._module, self._validation = MODULES[framework]
        stages = range(1 + len(config.train.stages))
        self._trains = compile_stages(step, self.plan) if framework == "jax" else [self.stage(i).train for i in stages]

    def stage(self, number: int) -> Any:
        return self._module.make_stage(self.step, self.config.at_stage(number))

    def train(self, state: Any, number: int, batch: Batch) -> tuple[Any, float]:
        """The state after the step of this number, and its loss in nats per token. Donates the state."""
        hyper = self.step.hyper(schedule.hyper_at(self.config, number))
        batch = put_rows(batch, self.step.mesh) if self.framework == "torch" else batch
        state, metrics = self._trains[schedule.stage_index(self.config, number)](state, batch, hyper)
        return state, float(metrics["loss"])

    def evaluate(self, state: Any, n_done: int) -> float:
        """The validation's mean loss after so many steps, in one pass."""
        made = self._module.make_stage(self.step, self.config.at_evaluation(self.plan.eval_stage(n_done)))
        rows, starts = open_source(self.config.data).val_rows(self.config)
        return self._validation.evaluate_split(made, state.params, rows, starts, len(starts)).loss

    def arrays(self, state: Any) -> tuple[Arrays, Arrays]:
        """Copies of the parameters and of the optimizer's state, in jaxgpt's layout."""
        if self.framework == "jax":
            return to_arrays(state.params), to_arrays(state.opt_state)
        opt_state = weights.to_numpy(weights.by_path(state.opt_state, "opt_state"))
        opt_state = {path.removeprefix("opt_state."): leaf for path, leaf in opt_state.items()}
        return weights.to_numpy(state.params), opt_state


def compile_stages(step: Any, plan: Plan) -> list[Any]:
    """The compiled training step by stage, as `compile_programs` has them."""
    firsts = [plan.first_alike(stage) for stage in range(len(plan.n_micro))]
    lowered = {stage: lower_stage(step, plan, stage)[1] for stage in dict.fromkeys(firsts)}
    with ThreadPoolExecutor(len(lowered)) as pool:
        compiled = dict(zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True))
    return [compiled[stage] for stage in firsts]


@contextlib.contextmanager
def open_runner(framework: str, config: Config, params: Arrays) -> Iterator[tuple[Runner, Any]]:
    """The steps of a run, with the originals' lengths of descent, and its state before the first of them."""
    with unrounded():
        if framework == "torch":
            step = torch_step.make_step(config, make_torch_mesh(config.mesh))
            yield Runner(framework, config, step), step.init_state(weights.to_torch(params))
            return
        with enter_jax(config, params) as (step, placed):
            yield Runner(framework, config, step), step.init_state(placed)
