"""Trains a GPT in PyTorch: python -m torch_ref.train --config configs/quickstart.py [--section.field=value] [--resume]

The same run as `python -m jaxgpt.train`, in runs/<config>-torch unless --run.dir names another directory. On one CUDA
device or the CPU; on several devices by `torchrun --nproc_per_node=N -m torch_ref.train --config ...`.
Exit codes as there: 0 done, 2 bad input, 3 diverged, 75 stopped by a signal with its state saved.
"""

import dataclasses
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch._dynamo.exc import TorchDynamoException

from jaxgpt import config as config_lib
from jaxgpt.config import Config, count_microbatches, rows_that_divide, schedule
from jaxgpt.config.command_line import parse_args
from jaxgpt.config.derive import derive
from jaxgpt.data.batches import prefetch
from jaxgpt.data.sources import ShardReader, TextReader, choose_vocab_size, count_token_bytes, open_source
from jaxgpt.errors import EXIT_DIVERGED, EXIT_DONE, EXIT_STOPPED, InputError, run_verb
from jaxgpt.files import lock_run
from jaxgpt.prepare.smoke import shrink
from jaxgpt.run.bar import Progress
from jaxgpt.run.console import console
from jaxgpt.run.directory import close_run, open_logs, refuse_old_run
from jaxgpt.run.header import print_header
from jaxgpt.run.meter import Diverged, Meter
from jaxgpt.run.resume import gather_cursors, resume, save
from jaxgpt.run.stop_signal import StopSignal
from torch_ref.parallel.hosts import process_count, process_index, start_hosts, stop_hosts
from torch_ref.parallel.mesh import Mesh, count_batch_devices, make_mesh
from torch_ref.parallel.sharding import own_rows, to_device
from torch_ref.parallel.texts import gather_texts
from torch_ref.training.checkpoint import Checkpoints
from torch_ref.training.step import Step, TrainState, make_step
from torch_ref.training.validation import evaluate_split

FLAGS = {
    "resume": "go on from the newest checkpoint in run.dir that verifies",
    "smoke": "a few steps of a small copy of this run on embedded text: does it work here?",
    "compile": "compile forward and backward pass with torch.compile; the default on CUDA",
    "no_compile": "do not; the default on a CPU",
}


def main(args: list[str]) -> int:
    # config
    given, flags = parse_args(args, FLAGS, __doc__ or "")
    given = name_run(given, args)
    given = shrink(given) if flags["smoke"] else given
    run_dir = Path(given.run.dir)

    # data
    source = open_source(given.data)
    vocab_size = choose_vocab_size(given.model.vocab_size, source)
    derivation = derive(given, vocab_size)
    config = derivation.config
    val_rows, val_starts = source.val_rows(config.model.seq_len, config.eval.tokens, vocab_size)
    token_bytes = count_token_bytes(source, console.print)

    with ExitStack() as stack:
        # devices
        start_hosts(config.hosts, config.mesh.platform)
        stack.callback(stop_hosts)
        mesh = make_mesh(config.mesh)
        console.quiet = process_index() != 0
        n_devices = count_batch_devices(mesh)
        n_rows = config.train.micro_batch_size * n_devices
        n_micro = {tokens: count_microbatches(config, tokens, n_devices) for tokens in config.stage_batch_tokens()}

        # model and state
        stack.enter_context(one_line_when_full(config, n_devices))
        step = make_step(config, vocab_size, mesh, is_compiled=wants_compile(flags, mesh))
        about = {
            "config": config_lib.to_dict(config),
            "vocab_size": vocab_size,
            "data_sha256": source.digest,
            "tokenizer": source.tokenizer_json,
        }
        if process_index() == 0:
            stack.enter_context(lock_run(run_dir))
        if not flags["resume"]:
            refuse_old_run(run_dir)
        saved = stack.enter_context(
            Checkpoints(run_dir / "checkpoints", keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best)
        )

        # resume
        first_step, cursors = 0, None
        if flags["resume"]:
            first_step, state, cursors = resume(saved, step.state_shapes, about)
            state = step.put_state(state)
        else:
            state = step.init_state(initial_params(config, step))
        shapes = {path: tuple(shape.shape) for path, shape in step.state_shapes.params.items()}
        compute = describe_compute(config, step)
        samples = f"sample.every={config.sample.every} is for jaxgpt; none here" if config.sample.every else ""
        print_header(derivation, source, vocab_size, shapes, n_micro, n_devices, first_step, compute, samples)
        n_steps = config.train.steps
        if first_step >= n_steps:
            console.print(f"the run is at step {first_step} of {n_steps} already; --train.steps=N takes it further")
            return EXIT_DONE
        rows_of_steps = [tokens // config.model.seq_len for tokens in n_micro]
        reader = source.reader(config.model.seq_len, config.run.seed, vocab_size, cursors, rows_of_steps)
        stack.callback(reader.close)
        if step.is_compiled:
            compile_step(step, config.train.micro_batch_size, state)

        # loop
        stop = stack.enter_context(StopSignal(config.log.every, process_count(), gather_texts))
        files = open_logs(given, run_dir, first_step) if process_index() == 0 else []
        feed = prefetch(make_feed(config, reader, mesh, n_rows, first_step))
        progress = stack.enter_context(Progress(n_steps, first_step))
        meter = Meter(config, vocab_size, mesh.device_kind, mesh.size, progress, files, console.print)
        exit_code = EXIT_DONE
        try:
            for n_done in range(first_step + 1, n_steps + 1):
                hyper = step.hyper(schedule.hyper_at(config, n_done - 1))
                batch, cursors = next(feed)
                state, metrics = step.train(state, batch, hyper)
                meter.push(n_done, metrics)

                is_stopped, is_last = stop.is_agreed(n_done), n_done == n_steps
                wants_eval = is_last or schedule.is_due(n_done, config.eval.every)
                wants_save = is_last or is_stopped or schedule.is_due(n_done, config.checkpoint.every)
                if not (wants_eval or wants_save):
                    continue
                meter.settle()
                val_loss = None
                if wants_eval:
                    result = evaluate_split(
                        step, state.params, val_rows, val_starts, n_rows=n_rows, token_bytes=token_bytes
                    )
                    meter.add(**result.metrics())
                    val_loss = result.loss
                if wants_save:
                    about_now = about | gather_cursors(cursors, gather_texts)
                    save(saved, n_done, state, about_now, val_loss, must=is_last or is_stopped)
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
        way_on = f"python -m parity_tests.convert --from {run_dir} --to jax DIR"
        return close_run(run_dir, exit_code, way_on, is_first=process_index() == 0)


def name_run(config: Config, args: list[str]) -> Config:
    """A run directory that nobody named is runs/<config>-torch: jaxgpt's of the same config lies beside it."""
    names = [arg.partition("=")[0] for arg in args]
    at = names.index("--config")
    path = args[at].partition("=")[2] or args[at + 1]
    if "--run.dir" in names or config_lib.load(path).run.dir:
        return config
    return dataclasses.replace(config, run=dataclasses.replace(config.run, dir=f"{config.run.dir}-torch"))


def wants_compile(flags: dict[str, bool], mesh: Mesh) -> bool:
    if flags["compile"] and flags["no_compile"]:
        raise InputError("--compile and --no_compile are both given; keep one")
    return flags["compile"] or (mesh.device.type == "cuda" and not flags["no_compile"])


@contextmanager
def one_line_when_full(config: Config, n_devices: int):
    """Turns CUDA's refusal for lack of memory into one line with the next smaller microbatch that divides the batch.

    Raises:
      InputError: in place of torch.OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        rows = config.train.micro_batch_size
        fewer = [n for n in rows_that_divide(config, n_devices) if n < rows]
        way_out = f"--train.micro_batch_size={fewer[-1]}" if fewer else "--train.remat=block or a smaller model"
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"train.micro_batch_size={rows} with train.remat={config.train.remat} does not fit ({first_line[:200]}); "
            f"try {way_out}"
        ) from error


def initial_params(config: Config, step: Step) -> dict[str, torch.Tensor]:
    if config.train.init_from:
        raise InputError(
            f"train.init_from={config.train.init_from} is for jaxgpt; start the run there (--train.steps=1), then "
            "python -m parity_tests.convert --from RUN --to torch DIR, and go on here with --resume"
        )
    return step.init_params(config.run.seed)


def compile_step(step: Step, n_rows: int, state: TrainState) -> None:
    """Runs both compiled functions once on a microbatch of zeros, so that training never stalls.

    Raises:
      InputError: torch.compile found no compiler it can use.
    """
    batch_BT = torch.zeros((n_rows, step.model.config.seq_len + 1), dtype=torch.int32, device=step.mesh.device)
    begin = time.perf_counter()
    try:
        step.warm_up(state.params, batch_BT)
    except TorchDynamoException as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"torch.compile failed: {first_line}; --no_compile runs without") from error
    console.print(f"compiled the step ({n_rows} rows) in {time.perf_counter() - begin:.1f} s")


def make_feed(config: Config, reader: ShardReader | TextReader, mesh: Mesh, n_rows: int, first_step: int):
    lo, hi = own_rows(mesh, n_rows)
    seq_len = config.model.seq_len
    for step in range(first_step, config.train.steps):
        n_before = schedule.tokens_before(config, step) // seq_len
        n_micro = schedule.batch_tokens_at(config, step) // seq_len // n_rows
        yield to_device(reader.micro_rows(step, n_before, n_micro, n_rows, lo, hi), mesh), reader.cursors()


def describe_compute(config: Config, step: Step) -> str:
    mesh = step.mesh
    return (
        f"torch {torch.__version__}, {config.train.dtype}, {mesh.size} x {mesh.device_kind}, "
        f"attention {step.attention[0]} ({step.attention[1]}), {'torch.compile' if step.is_compiled else 'eager'}"
    )


if __name__ == "__main__":
    run_verb(main)
