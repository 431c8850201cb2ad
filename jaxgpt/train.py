"""Trains a GPT: python -m jaxgpt.train --config configs/quickstart.py [--section.field=value ...] [--resume]

The run directory gets config.py, metrics.jsonl, checkpoints/ and loss.png. Exit codes: 0 done, 2 bad input,
3 diverged, 75 stopped by a signal with its state saved: the same command with --resume goes on, bit for bit.
"""

import json
from contextlib import ExitStack
from pathlib import Path

import jax

from jaxgpt import config as config_lib
from jaxgpt.config import Config, count_microbatches, schedule
from jaxgpt.config.command_line import parse_args
from jaxgpt.config.derive import derive
from jaxgpt.data.batches import prefetch
from jaxgpt.data.sources import ShardReader, TextReader, choose_vocab_size, count_token_bytes, open_source
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import EXIT_DIVERGED, EXIT_DONE, EXIT_STOPPED, InputError, run_verb
from jaxgpt.files import lock_run
from jaxgpt.formats.pretrained import adapt, gelu_note, load_pretrained
from jaxgpt.inference.engine import Engine
from jaxgpt.parallel.compile_cache import remember_programs
from jaxgpt.parallel.hosts import start_hosts
from jaxgpt.parallel.mesh import count_batch_devices, make_mesh
from jaxgpt.parallel.sharding import batch_sharding, put_rows
from jaxgpt.parallel.texts import gather_texts
from jaxgpt.prepare.smoke import shrink
from jaxgpt.run.bar import Progress
from jaxgpt.run.console import console
from jaxgpt.run.directory import draw_curve, list_changes, open_logs, refuse_old_run
from jaxgpt.run.header import print_header
from jaxgpt.run.meter import Diverged, Meter
from jaxgpt.run.stop_signal import StopSignal
from jaxgpt.training.checkpoint import CheckpointError, Checkpoints
from jaxgpt.training.memory import advice_on_memory, describe_memory
from jaxgpt.training.programs import compile_programs
from jaxgpt.training.step import Step, TrainState, make_step
from jaxgpt.training.validation import evaluate_split

FLAGS = {
    "resume": "go on from the newest checkpoint in run.dir that verifies",
    "smoke": "a few steps of a small copy of this run on embedded text: does it work here?",
}


def main(args: list[str]) -> int:
    # config
    given, flags = parse_args(args, FLAGS, __doc__ or "")
    given = shrink(given) if flags["smoke"] else given
    run_dir = Path(given.run.dir)

    # data
    source = open_source(given.data)
    vocab_size = choose_vocab_size(given.model.vocab_size, source)
    derivation = derive(given, vocab_size)
    config = derivation.config
    val_rows, val_starts = source.val_rows(config.model.seq_len, config.eval.tokens, vocab_size)
    tokenizer = source.tokenizer
    token_bytes = count_token_bytes(source, console.print)
    prompt = tokenizer.encode_prompt(config.sample.prompt) if tokenizer and config.sample.every else []

    # devices
    start_hosts(config.hosts, config.mesh.platform)
    jax.config.update("jax_enable_x64", config.train.dtype == "float64")
    mesh = make_mesh(config.mesh)
    remember_programs()
    console.quiet = jax.process_index() != 0
    n_devices = count_batch_devices(mesh)
    n_rows = config.train.micro_batch_size * n_devices
    n_micro = {tokens: count_microbatches(config, tokens, n_devices) for tokens in config.stage_batch_tokens()}

    # model and state
    step = make_step(config, vocab_size, mesh)
    about = {
        "config": config_lib.to_dict(config),
        "vocab_size": vocab_size,
        "data_sha256": source.digest,
        "tokenizer": source.tokenizer_json,
    }
    with ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(advice_on_memory(config, vocab_size, step))
        if jax.process_index() == 0:
            stack.enter_context(lock_run(run_dir))
        if not flags["resume"]:
            refuse_old_run(run_dir)
        saved = stack.enter_context(
            Checkpoints(run_dir / "checkpoints", keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best)
        )

        # resume
        first_step, cursors = 0, None
        if flags["resume"]:
            first_step, state, cursors = resume(saved, step, about)
        else:
            state = step.init_state(initial_params(config, step, vocab_size))
        shapes = {path: shape.shape for path, shape in step.state_shapes.params.items()}
        compute = describe_compute(config, step)
        print_header(derivation, source, vocab_size, shapes, n_micro, n_devices, first_step, compute)
        n_steps = config.train.steps
        if first_step >= n_steps:
            console.print(f"the run is at step {first_step} of {n_steps} already; --train.steps=N takes it further")
            return EXIT_DONE
        rows_of_steps = [tokens // config.model.seq_len for tokens in n_micro]
        reader = source.reader(config.model.seq_len, config.run.seed, vocab_size, cursors, rows_of_steps)
        stack.callback(reader.close)
        train_step, step = compile_programs(step, n_micro, n_rows, console.print)
        for tokens, compiled in train_step.items():
            memory = describe_memory(compiled, mesh)
            console.print(f"memory for {tokens:,} tokens a step: {memory}, by the compiler", soft_wrap=True)

        # loop
        stop = stack.enter_context(StopSignal(config.log.every, jax.process_count(), gather_texts))
        files = open_logs(given, run_dir, first_step) if jax.process_index() == 0 else []
        feed = prefetch(make_feed(config, reader, mesh, n_rows, first_step))
        progress = stack.enter_context(Progress(n_steps, first_step))
        kind = mesh.devices.flat[0].device_kind
        meter = Meter(config, vocab_size, kind, mesh.size, progress, files, console.print)
        engine = Engine(step.model, {}, dtype=config.train.dtype, n_valid=source.n_ids or None)
        exit_code = EXIT_DONE
        try:
            for n_done in range(first_step + 1, n_steps + 1):
                tokens = schedule.batch_tokens_at(config, n_done - 1)
                hyper = step.hyper(schedule.hyper_at(config, n_done - 1))
                batch, cursors = next(feed)
                state, metrics = train_step[tokens](state, batch, hyper)
                meter.push(n_done, metrics)
                warn_of_failed_save(saved)

                is_stopped, is_last = stop.is_agreed(n_done), n_done == n_steps
                wants_eval = is_last or schedule.is_due(n_done, config.eval.every)
                wants_sample = schedule.is_due(n_done, config.sample.every)
                wants_save = is_last or is_stopped or schedule.is_due(n_done, config.checkpoint.every)
                if not (wants_eval or wants_sample or wants_save):
                    continue
                meter.settle()
                val_loss = None
                if wants_eval:
                    result = evaluate_split(
                        step, state.params, val_rows, val_starts, n_rows=n_rows, token_bytes=token_bytes
                    )
                    meter.add(**result.metrics())
                    val_loss = result.loss
                if wants_sample and tokenizer:
                    print_sample(config, engine, state.params, tokenizer, prompt)
                if wants_save:
                    save(saved, n_done, state, about | gather_cursors(cursors), val_loss, must=is_last or is_stopped)
                meter.resume()
                if is_stopped and not is_last:
                    exit_code = EXIT_STOPPED
                    break
        except Diverged as error:
            console.print(f"[red]stopped: {error}")
            exit_code = EXIT_DIVERGED
        finally:
            feed.close()
            for file in files:
                file.close()
        if summary := reader.summary():
            console.print(summary)
    return close_run(run_dir, exit_code)


def initial_params(config: Config, step: Step, vocab_size: int) -> dict[str, jax.Array]:
    """Fresh weights, or those of `train.init_from`, on the mesh."""
    if not config.train.init_from:
        return step.init_params(config.run.seed)
    loaded, weights = load_pretrained(config.train.init_from)
    params = adapt(loaded, weights, config.model, vocab_size)
    if note := gelu_note(config.train.init_from, loaded, config.model):
        console.print(note, soft_wrap=True, markup=False)
    return {
        path: jax.device_put(params[path].astype(shape.dtype), shape.sharding)
        for path, shape in step.state_shapes.params.items()
    }


def resume(saved: Checkpoints, step: Step, about: dict) -> tuple[int, TrainState, dict | None]:
    """Step, state and data cursors of the newest checkpoint that verifies, if it is of this run.

    Raises:
      InputError: no checkpoint; or the architecture, the data or the tokenizer is another one.
    """
    n_done = saved.latest()
    if n_done is None:
        raise InputError(f"{saved.directory} has no checkpoint to resume from; start without --resume")
    then = saved.about(n_done)
    changes = list_changes(then, about, n_done, saved.directory)
    n_done, state, _ = saved.restore(step.state_shapes, step=n_done, verify=False)  # latest() just did
    console.print(f"resuming from step {n_done}" + (f"; changed: {changes}" if changes else ""))
    return n_done, state, then.get("cursors")


def gather_cursors(cursors: dict) -> dict:
    """What a checkpoint says of the data: where the lanes of all processes stand; nothing where batches need none."""
    parts = [json.loads(text) for text in gather_texts(json.dumps(cursors))]
    merged = {lane: cursor for part in parts for lane, cursor in part.items()}
    return {"cursors": merged} if merged else {}


def make_feed(config: Config, reader: ShardReader | TextReader, mesh, n_rows: int, first_step: int):
    """From `first_step` to the end: batches [M, B, T + 1] on the device, of which a process reads only its own rows,
    and where the reader then stands."""
    sharding = batch_sharding(mesh, 1)
    seq_len = config.model.seq_len
    for step in range(first_step, config.train.steps):
        n_before = schedule.tokens_before(config, step) // seq_len
        n_micro = schedule.batch_tokens_at(config, step) // seq_len // n_rows

        def read(lo, hi, step=step, n_before=n_before, n_micro=n_micro):
            return reader.micro_rows(step, n_before, n_micro, n_rows, lo, hi)

        yield put_rows(read, (n_micro, n_rows, seq_len + 1), sharding, axis=1), reader.cursors()


def save(
    saved: Checkpoints, n_done: int, state: TrainState, about: dict, val_loss: float | None, *, must: bool
) -> None:
    """Saves in the background. A failure ends the run only when this is the run's last chance."""
    try:
        saved.save(n_done, state, about, val_loss=val_loss)
    except CheckpointError as error:
        if must:
            raise
        console.print(f"[red]{error}")


def warn_of_failed_save(saved: Checkpoints) -> None:
    try:
        saved.raise_if_failed()
    except CheckpointError as error:
        console.print(f"[red]{error}")


def print_sample(config: Config, engine: Engine, params, tokenizer: Tokenizer, prompt: list[int]) -> None:
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
    console.print(settings.prompt + tokenizer.decode(ids), markup=False)


def describe_compute(config: Config, step: Step) -> str:
    """Dtype, devices and attention, for the header."""
    mesh = step.mesh
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    return (
        f"{config.train.dtype}, {mesh.size} x {mesh.devices.flat[0].device_kind} ({axes}), "
        f"attention {step.attention[0]} ({step.attention[1]})"
    )


def close_run(run_dir: Path, exit_code: int) -> int:
    """Draws the curve and says what to do next."""
    if jax.process_index() != 0:
        return exit_code
    draw_curve(run_dir)
    if exit_code == EXIT_STOPPED:
        console.print("stopped with its state saved; the same command with --resume goes on")
    elif exit_code == EXIT_DONE:
        console.print(f"done: {run_dir}/loss.png; next: python -m jaxgpt.sample --run {run_dir}", soft_wrap=True)
    return exit_code


if __name__ == "__main__":
    run_verb(main)
