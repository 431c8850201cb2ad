"""Trains a GPT, as a config says.

The run directory gets config.py, metrics.jsonl, checkpoints/ and loss.png. Exit codes: 0 done, 2 bad input,
3 diverged, 75 stopped by a signal after saving a checkpoint: the same command with --resume continues bit for bit.
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
from jaxgpt.errors import answer_early
from jaxgpt.run.arguments import RETRY_HELP, flags_of, training_parser

PARSER = training_parser("jaxgpt train", __doc__)
PARSER.add_argument("--retry-oom", action="store_true", help=RETRY_HELP)
if __name__ == "__main__":
    answer_early(PARSER.read_run)

import argparse
import functools
import gc
import shlex
from contextlib import ExitStack

import jax
from jax.sharding import Mesh

from jaxgpt import signals
from jaxgpt.chat.in_training import TasksInTraining
from jaxgpt.chat.policy import Policy, Questions
from jaxgpt.config import Config, schedule
from jaxgpt.config.auto import open_settings
from jaxgpt.config.command_line import apply_overrides
from jaxgpt.config.steps import Plan
from jaxgpt.data.prefetch import prefetch
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import EXIT_DONE, EXIT_STOPPED, require, run_verb
from jaxgpt.formats.initial import initial_params
from jaxgpt.inference.engine import Engine
from jaxgpt.parallel.devices import open_devices
from jaxgpt.parallel.mesh import count_batch_devices
from jaxgpt.parallel.peers import exchange_texts, with_peers
from jaxgpt.parallel.texts import gather_texts
from jaxgpt.plan.auto import COMPILE_S, checkpoint_config, describe_devices, settle
from jaxgpt.plan.compiler import CompileCache
from jaxgpt.plan.topology import CACHE
from jaxgpt.prepare.smoke import shrink
from jaxgpt.run.agreement import check_agreement, facts
from jaxgpt.run.bar import Progress
from jaxgpt.run.console import console, working
from jaxgpt.run.directory import close_run, open_logs
from jaxgpt.run.ending import ending
from jaxgpt.run.header import print_header
from jaxgpt.run.meter import Meter
from jaxgpt.run.opening import Run, open_run
from jaxgpt.run.pace import Pace, stacks_path
from jaxgpt.run.remote import has_steps, hold_run
from jaxgpt.run.resume import resume
from jaxgpt.run.rollback import RolledBack, read_skips, roll_back
from jaxgpt.run.saving import Saving
from jaxgpt.run.sinks import check_trackers
from jaxgpt.run.stop_signal import BEFORE, StopSignal
from jaxgpt.training.base_state import base_state
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.feed import make_feed
from jaxgpt.training.memory import OutOfMemory, advice_on_memory
from jaxgpt.training.programs import compile_programs
from jaxgpt.training.step import Step, TrainState, make_step
from jaxgpt.training.validation import evaluate_split


def main(args: list[str]) -> int:
    given, flags = PARSER.read_run(args)
    if flags.smoke:
        is_resumed = flags.resume or flags.auto_resume or flags.resume_from is not None
        given = shrink(given, flags.settings, is_resumed=is_resumed)
    while True:
        try:
            return train(given, flags)
        except RolledBack as back:
            flags.resume_from = back.step
        except OutOfMemory as full:
            if not flags.retry_oom or not full.smaller:
                raise
            console.warn(f"{full}; --retry-oom tries that once")
            given = apply_overrides(given, full.smaller)
            flags.retry_oom, flags.auto_resume = False, True
        gc.collect()  # the frames of the run that ended hold its arrays


def train(given: Config, flags: argparse.Namespace) -> int:
    # data
    run = open_run(given, verify_again=flags.verify)
    config, tokenizer, about = run.config, run.tokenizer, run.about()
    is_resumed = flags.resume or flags.resume_from is not None or (flags.auto_resume and has_steps(config.run.dir))
    val_rows, val_starts = run.source.val_rows(config)
    prompt = run.sample_prompt()
    questions = Questions(run, console.warn) if config.is_rl else None
    ask_tasks = TasksInTraining(config, tokenizer) if config.chat.tasks else None

    with ExitStack() as stack:
        # devices
        signals.enter(BEFORE)
        stack.enter_context(with_peers(config.hosts, config.mesh.platform))
        check_agreement(facts(run, flags_of(flags) | {"resume": is_resumed}, ("jax", "jaxlib")), exchange_texts)
        mesh = open_devices(config)
        require(
            not flags.retry_oom or jax.process_count() == 1,
            f"--retry-oom is for one process, not {jax.process_count()}, which may not all fail; leave it out",
        )
        if open_settings(config):
            run = settle_run(run, mesh, flags, is_resumed=is_resumed)
            config, about = run.config, run.about()
        about |= {"devices": describe_devices(mesh)}
        plan = Plan(config, count_batch_devices(mesh))
        console.quiet = jax.process_index() != 0
        if jax.process_index() == 0:
            check_trackers(config.log)

        # model and state
        step = make_step(config, mesh)
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(advice_on_memory(config, step))
        held = hold_run(config.run.dir, jax.process_index(), gather_texts, is_new=not is_resumed, warn=console.warn)
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
            about |= {"base": then["base"]} if "base" in then else {}
        else:
            with working("making the weights"):
                state = first_state(run, step)
        shapes = {path: shape.shape for path, shape in step.state_shapes.params.items()}
        print_header(run, plan, shapes, first_step, describe_compute(config, step))
        if first_step >= plan.n_steps:
            console.say(
                f"the run is already at step {first_step} of {plan.n_steps}; to train longer, set --train.steps"
            )
            return EXIT_DONE
        policy = Policy(config, questions, run, plan.n_devices) if questions else None
        reader = policy or run.source.reader(config, then.get("cursors"))
        stack.callback(reader.close)
        train_step, evaluators = compile_programs(
            step, plan, console.say, functools.partial(saved.prepare, step.state_shapes)
        )

        # loop
        stop = StopSignal(config.log.every, jax.process_count(), gather_texts)
        device_kind = mesh.devices.flat[0].device_kind
        files = open_logs(given, run_dir, first_step, about["devices"]) if jax.process_index() == 0 else []
        pace = Pace(config.train.watchdog_s, stacks_path(run_dir, jax.process_index()), console.warn)
        skips = read_skips(run_dir, first_step)
        feed = make_feed(plan, reader, mesh, first_step, skips)
        feed = pace.watch(feed if policy else prefetch(feed), is_ahead=not policy)
        progress = stack.enter_context(Progress(plan.n_steps, first_step))
        meter = Meter(config, device_kind, mesh.size, progress, files, console.say)
        engines = [
            Engine(model, {}, dtype=config.train.dtype, n_valid=run.source.n_ids or None)
            for model in config.stage_models()
        ]
        meter.spikes.restore(then.get("spikes", [0.0]))

        def evaluate(n_done, params, starts):
            evaluator = evaluators[plan.eval_stage(n_done)]
            return evaluate_split(evaluator, params, val_rows, starts, plan.n_eval_rows, run.token_bytes)

        first_rows = val_starts[: plan.n_eval_rows]
        saving = Saving(
            saved, about, meter, gather_texts, lambda n_done, params: evaluate(n_done, params, first_rows).loss
        )
        if policy:
            policy.params = state.params
            if not first_step:
                first = policy.evaluate()
                console.say("step 0  " + "  ".join(f"{name} {share:.4f}" for name, share in first.items()))
                for file in files:
                    file.write({"step": 0, **first})
        with ending(feed, files, reader, meter, saved) as end:
            for planned, batch, cursors in feed:
                n_done = planned.step + 1
                state, metrics = train_step[planned.stage](state, batch, step.hyper(planned.hyper))
                if policy:
                    policy.params = state.params
                    metrics |= policy.metrics()
                meter.push(n_done, metrics)
                saving.follow()
                if config.train.spike_rollback and meter.take_spike():
                    roll_back(saved, run_dir, skips, meter.spike_step, jax.process_count())

                is_stopped, is_last = stop.is_agreed(n_done), n_done == plan.n_steps
                wants_eval = is_last or schedule.is_due(n_done, config.eval.every)
                wants_sample = schedule.is_due(n_done, config.sample.every)
                wants_save = is_last or is_stopped or schedule.is_due(n_done, config.checkpoint.every)
                if not (wants_eval or wants_sample or wants_save):
                    continue
                meter.settle()
                pace.skip()
                val_loss = None
                if wants_eval:
                    result = evaluate(n_done, state.params, val_starts)
                    meter.add(**result.metrics())
                    val_loss = result.loss
                    if policy:
                        meter.add(**policy.evaluate())
                    if ask_tasks:
                        meter.add(**ask_tasks(state.params, mesh))
                    is_stopped = is_stopped or stop.is_agreed(n_done)  # an evaluation takes long
                if wants_sample and tokenizer:
                    engine = engines[schedule.stage_index(config, n_done)]
                    print_sample(n_done, config, engine, state.params, tokenizer, prompt)
                if wants_save or is_stopped:
                    saving.save(n_done, state, cursors, val_loss, must=is_last or is_stopped)
                meter.resume()
                if is_stopped and not is_last:
                    end.exit_code = EXIT_STOPPED
                    break
    next_command = f"jaxgpt sample --run {shlex.quote(config.run.dir)}"
    return close_run(run_dir, end.exit_code, next_command, is_first=jax.process_index() == 0, remote=remote)


def settle_run(run: Run, mesh: Mesh, flags: argparse.Namespace, *, is_resumed: bool) -> Run:
    """The run with what fits these devices, where train.micro_batch_size or train.remat is auto."""
    cache = CompileCache(CACHE if CACHE.is_absolute() else None, COMPILE_S)

    def read_before() -> Config | None:
        where = run.config.run.dir, flags.resume_from, describe_devices(mesh)
        return checkpoint_config(*where) if is_resumed else None

    found, why = settle(run.config, mesh, cache, exchange_texts, console.say, read_before)
    return run.settled(found, why)


def first_state(run: Run, step: Step) -> TrainState:
    """The state at step 0: the base run's, the weights of train.init_from, or fresh ones."""
    if run.base:
        return base_state(run.base, run.config.chat, step)
    return step.init_state(initial_params(run.config, step.state_shapes.params, step.init_params, run.tokenizer))


@working("writing a sample")
def print_sample(n_done: int, config: Config, engine: Engine, params, tokenizer: Tokenizer, prompt: list[int]) -> None:
    settings = config.sample
    engine.params = params
    tokens = engine.generate(
        prompt,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_k=min(settings.top_k, tokenizer.vocab_size),
        seed=config.run.seed,
        stop_ids=tokenizer.stop_ids(),
    )
    ids = [token_id for (token_id,) in tokens if token_id is not None and token_id not in tokenizer.stop_ids()]
    console.say(f"sample at step {n_done}, prompt {settings.prompt!r}:", "dim")
    console.print(settings.prompt + tokenizer.decode(ids), soft_wrap=True)


def describe_compute(config: Config, step: Step) -> str:
    """Dtype, devices and attention, for the header."""
    mesh = step.mesh
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    return (
        f"{config.train.dtype}, {mesh.size} x {mesh.devices.flat[0].device_kind} ({axes}), "
        f"attention {step.attention[0]} ({step.attention[1]})"
    )


if __name__ == "__main__":
    run_verb(main)
