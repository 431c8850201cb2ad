"""Trains a GPT in PyTorch, as a config says.

The same run as `jaxgpt train`, in runs/<config>-torch unless --run.dir names another directory. On one CUDA
device or the CPU; on several devices by `torchrun --nproc_per_node=N -m torch_ref.train --config ...`.
Exit codes as there: 0 done, 2 bad input, 3 diverged, 75 stopped by a signal after saving a checkpoint.
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
from jaxgpt.errors import answer_early
from jaxgpt.run.arguments import flags_of, training_parser

PARSER = training_parser("python -m torch_ref.train", __doc__)
PARSER.add_argument("--compile", action="store_true", help="use torch.compile; the default on CUDA")
PARSER.add_argument("--no-compile", action="store_true", help="do not; the default on a CPU")
if __name__ == "__main__":
    answer_early(PARSER.read_run)

import argparse
import dataclasses
import shlex
import time
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from jaxgpt import signals
from jaxgpt.config import Config, load, rows_that_divide, schedule
from jaxgpt.config.auto import refuse_open
from jaxgpt.config.steps import Plan
from jaxgpt.data.prefetch import prefetch
from jaxgpt.errors import EXIT_DONE, EXIT_STOPPED, InputError, run_verb
from jaxgpt.prepare.smoke import shrink
from jaxgpt.run.agreement import check_agreement, facts
from jaxgpt.run.bar import Progress
from jaxgpt.run.console import console, working
from jaxgpt.run.directory import close_run, open_logs
from jaxgpt.run.ending import ending
from jaxgpt.run.header import print_header
from jaxgpt.run.meter import Meter
from jaxgpt.run.opening import open_run
from jaxgpt.run.pace import Pace, stacks_path
from jaxgpt.run.remote import has_steps, hold_run
from jaxgpt.run.resume import resume
from jaxgpt.run.rollback import RolledBack, read_skips, roll_back
from jaxgpt.run.saving import Saving
from jaxgpt.run.sinks import check_trackers
from jaxgpt.run.stop_signal import BEFORE, StopSignal
from torch_ref.parallel.devices import open_devices
from torch_ref.parallel.hosts import process_count, process_index
from torch_ref.parallel.mesh import Mesh, count_batch_devices
from torch_ref.parallel.peers import exchange_texts, with_peers
from torch_ref.parallel.texts import gather_texts
from torch_ref.training.checkpoint import Checkpoints
from torch_ref.training.feed import make_feed
from torch_ref.training.step import Step, TrainState, make_stage, make_step
from torch_ref.training.validation import evaluate_split


def main(args: list[str]) -> int:
    given, flags = PARSER.read_run(args)
    given = name_run(given, flags)
    if given.chat.tasks:
        raise InputError(f"chat.tasks={given.chat.tasks} is for jaxgpt; leave it out here")
    if flags.smoke:
        is_resumed = flags.resume or flags.auto_resume or flags.resume_from is not None
        given = shrink(given, flags.settings, is_resumed=is_resumed)
    refuse_open(given, "torch_ref, which asks no compiler")
    while True:
        try:
            return train(given, flags)
        except RolledBack as back:
            flags.resume_from = back.step


def train(given: Config, flags: argparse.Namespace) -> int:
    # data
    run = open_run(given, verify_again=flags.verify)
    config, about = run.config, run.about()
    is_resumed = flags.resume or flags.resume_from is not None or (flags.auto_resume and has_steps(config.run.dir))
    val_rows, val_starts = run.source.val_rows(config)

    with ExitStack() as stack:
        # devices
        signals.enter(BEFORE)
        stack.enter_context(with_peers(config.hosts, config.mesh.platform))
        check_agreement(facts(run, flags_of(flags) | {"resume": is_resumed}, ("torch",)), exchange_texts)
        mesh = open_devices(config)
        plan = Plan(config, count_batch_devices(mesh))
        console.quiet = process_index() != 0
        if process_index() == 0:
            check_trackers(config.log)

        # model and state
        stack.enter_context(one_line_when_full(config, plan.n_devices))
        step = make_step(config, mesh, is_compiled=wants_compile(flags, mesh))
        held = hold_run(config.run.dir, process_index(), gather_texts, is_new=not is_resumed, warn=console.warn)
        run_dir, remote = stack.enter_context(held)
        keep, keep_best = config.checkpoint.keep, config.checkpoint.keep_best
        saved = Checkpoints(run_dir / "checkpoints", keep=keep, keep_best=keep_best, remote=remote)
        stack.enter_context(saved)

        # resume
        first_step, then = 0, {}
        if is_resumed:
            first_step, state, then = resume(
                saved, step.state_shapes, about, exchange_texts, flags.resume_from, allow_change=flags.allow_change
            )
            state = step.put_state(state)
        else:
            with working("making the weights"):
                state = step.init_state(initial_params(config, step))
        shapes = {path: tuple(shape.shape) for path, shape in step.state_shapes.params.items()}
        samples = f"sample.every={config.sample.every} is for jaxgpt; none here" if config.sample.every else ""
        print_header(run, plan, shapes, first_step, describe_compute(config, step), samples)
        if first_step >= plan.n_steps:
            console.say(
                f"the run is already at step {first_step} of {plan.n_steps}; to train longer, set --train.steps"
            )
            return EXIT_DONE
        reader = run.source.reader(config, then.get("cursors"))
        stack.callback(reader.close)
        steps, evaluators = make_stages(step, config)
        if step.is_compiled:
            compile_steps(steps, evaluators, plan, state)

        # loop
        stop = StopSignal(config.log.every, process_count(), gather_texts)
        devices = f"{mesh.size} x {mesh.device_kind}"
        files = open_logs(given, run_dir, first_step, devices) if process_index() == 0 else []
        pace = Pace(config.train.watchdog_s, stacks_path(run_dir, process_index()), console.warn)
        skips = read_skips(run_dir, first_step)
        feed = pace.watch(prefetch(make_feed(plan, reader, mesh, first_step, skips)))
        progress = stack.enter_context(Progress(plan.n_steps, first_step))
        meter = Meter(config, mesh.device_kind, mesh.size, progress, files, console.say)
        meter.spikes.restore(then.get("spikes", [0.0]))

        def evaluate(n_done, params, starts):
            evaluator = evaluators[plan.eval_stage(n_done)]
            return evaluate_split(evaluator, params, val_rows, starts, plan.n_eval_rows, run.token_bytes)

        first_rows = val_starts[: plan.n_eval_rows]
        saving = Saving(
            saved, about, meter, gather_texts, lambda n_done, params: evaluate(n_done, params, first_rows).loss
        )
        with ending(feed, files, reader, meter, saved) as end:
            for planned, batch, cursors in feed:
                n_done = planned.step + 1
                state, metrics = steps[planned.stage].train(state, batch, step.hyper(planned.hyper))
                meter.push(n_done, metrics)
                saving.follow()
                if config.train.spike_rollback and meter.take_spike():
                    roll_back(saved, run_dir, skips, meter.spike_step, process_count())

                is_stopped, is_last = stop.is_agreed(n_done), n_done == plan.n_steps
                wants_eval = is_last or schedule.is_due(n_done, config.eval.every)
                wants_save = is_last or is_stopped or schedule.is_due(n_done, config.checkpoint.every)
                if not (wants_eval or wants_save):
                    continue
                meter.settle()
                pace.skip()
                val_loss = None
                if wants_eval:
                    result = evaluate(n_done, state.params, val_starts)
                    meter.add(**result.metrics())
                    val_loss = result.loss
                    is_stopped = is_stopped or stop.is_agreed(n_done)  # an evaluation takes long
                if wants_save or is_stopped:
                    saving.save(n_done, state, cursors, val_loss, must=is_last or is_stopped)
                meter.resume()
                if is_stopped and not is_last:
                    end.exit_code = EXIT_STOPPED
                    break
        next_command = f"jaxgpt convert --from {shlex.quote(config.run.dir)} --to jax DIR"
        return close_run(run_dir, end.exit_code, next_command, is_first=process_index() == 0, remote=remote)


def name_run(config: Config, flags: argparse.Namespace) -> Config:
    """A run directory that nobody named is runs/<config>-torch: jaxgpt's of the same config lies beside it."""
    is_named = any(arg.partition("=")[0] == "--run.dir" for arg in flags.settings)
    if is_named or load(flags.config).run.dir:
        return config
    return dataclasses.replace(config, run=dataclasses.replace(config.run, dir=f"{config.run.dir}-torch"))


def wants_compile(flags: argparse.Namespace, mesh: Mesh) -> bool:
    if flags.compile and flags.no_compile:
        raise InputError("--compile and --no-compile are both given; keep one")
    return flags.compile or (mesh.device.type == "cuda" and not flags.no_compile)


@contextmanager
def one_line_when_full(config: Config, n_devices: int):
    """Turns CUDA's out-of-memory error into one line with the next smaller microbatch that divides the batch.

    Raises:
      InputError: in place of torch.OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        rows = max(config.stage_rows())
        fewer = [n for n in rows_that_divide(config, n_devices) if n < rows]
        advice = f"--train.micro_batch_size={fewer[-1]}" if fewer else "--train.remat=block or a smaller model"
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"train.micro_batch_size={rows} with train.remat={config.train.remat} does not fit ({first_line[:200]}); "
            f"try {advice}"
        ) from error


def initial_params(config: Config, step: Step) -> dict[str, torch.Tensor]:
    given = {"train.init_from": config.train.init_from, "chat.base": config.chat.base}
    for name, source in given.items():
        if not source:
            continue
        raise InputError(
            f"{name}={source} is for jaxgpt; start the run there (--train.steps=1), then "
            "jaxgpt convert --from RUN --to torch DIR, and continue here with --resume"
        )
    return step.init_params(config.run.seed)


def make_stages(step: Step, config: Config) -> tuple[list[Step], list[Step]]:
    """The step by stage, and the one that evaluates by `Plan.eval_stage`. Those of equal models and rows are one."""
    made: dict[tuple[Any, int], Step] = {}

    def kind(one: Config) -> tuple[Any, int]:
        return one.model, one.train.micro_batch_size

    trained = [config.at_stage(stage) for stage in range(len(config.stage_models()))]
    evaluated = [config.at_evaluation(which) for which in range(len(config.eval_models()))]
    for one in trained + evaluated:
        if kind(one) not in made:
            made[kind(one)] = make_stage(step, one)
    return [made[kind(one)] for one in trained], [made[kind(one)] for one in evaluated]


def compile_steps(steps: list[Step], evaluators: list[Step], plan: Plan, state: TrainState) -> None:
    """Compiles what every stage trains and evaluates with."""
    firsts = {plan.first_alike(i): None for i in range(len(steps))}
    for stage in firsts:
        hyper = steps[stage].hyper(schedule.hyper_at(plan.config, plan.first_step(stage)))
        compile_step(steps[stage], steps[stage].n_rows, state, hyper.get("target_weights"))
    trained = [id(step) for step in steps]
    for evaluator in {id(one): one for one in evaluators if id(one) not in trained}.values():
        compile_step(evaluator, evaluator.n_rows, state)


def compile_step(step: Step, n_rows: int, state: TrainState, weights: torch.Tensor | None = None) -> None:
    """Runs both compiled functions once on a microbatch of zeros, so that training never stalls.

    Args:
      weights: of the targets of the stage; None: the next token alone.

    Raises:
      InputError: torch.compile found no compiler it can use.
    """
    batch_BT = torch.zeros((n_rows, step.model.config.seq_len + 1), dtype=torch.int32, device=step.mesh.device)
    begin = time.perf_counter()
    try:
        with working(f"compiling the step ({n_rows} rows)", is_said=True):
            step.warm_up(state.params, batch_BT, weights)
    except TorchDynamoException as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"torch.compile failed: {first_line}; --no-compile runs without") from error
    console.say(f"compiled the step ({n_rows} rows) in {time.perf_counter() - begin:.1f} s")


def describe_compute(config: Config, step: Step) -> str:
    mesh = step.mesh
    return (
        f"torch {torch.__version__}, {config.train.dtype}, {mesh.size} x {mesh.device_kind}, "
        f"attention {step.attention[0]} ({step.attention[1]}), {'torch.compile' if step.is_compiled else 'eager'}"
    )


if __name__ == "__main__":
    run_verb(main)
