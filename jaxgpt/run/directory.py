"""The directory of a run, for both training loops: who may enter it, what is written at the start and at the end.

runs/x/config.py, metrics.jsonl, history.jsonl, loss.png, checkpoints/, evaluations/
"""

from pathlib import Path

from jaxgpt import signals
from jaxgpt.config import Config, to_dict, to_source
from jaxgpt.errors import EXIT_DONE, EXIT_STOPPED
from jaxgpt.files import write_atomically
from jaxgpt.run.console import console
from jaxgpt.run.curve import draw_losses
from jaxgpt.run.history import FILE, History
from jaxgpt.run.metrics import MetricsFile, read_metrics
from jaxgpt.run.remote import RemoteRun
from jaxgpt.run.sinks import Sinks


def open_logs(config: Config, run_dir: Path, first_step: int, devices: str) -> list[MetricsFile | Sinks | History]:
    """Writes config.py, and opens metrics.jsonl, history.jsonl and the sinks.

    Args:
      devices: number and kind, for history.jsonl.
    """
    try:
        write_atomically(run_dir / "config.py", to_source(config))
    except OSError as error:
        console.warn(f"{run_dir}/config.py cannot be written ({error.strerror}); training continues")
    metrics = MetricsFile(run_dir / "metrics.jsonl", first_step, console.warn)
    history = History(run_dir / FILE, first_step, config.stage, devices, console.warn)
    return [metrics, history, Sinks(run_dir, to_dict(config), config.log, first_step)]


def close_run(run_dir: Path, exit_code: int, way_on: str, *, is_first: bool, remote: RemoteRun | None = None) -> int:
    """Writes loss.png, once there is something to draw, and says what to do next.

    After a signal nothing is drawn.

    Args:
      way_on: the command that uses a run that is done.
      is_first: of several processes, only the first draws.
      remote: the run's store, which gets what was drawn.
    """
    if not is_first:
        return exit_code
    signals.enter(signals.Phase(f"the run is over; {run_dir}/loss.png is not drawn", exit_code))
    fault = "a signal came" if signals.received() else ""
    try:
        fault = fault or draw_losses(read_metrics(run_dir / "metrics.jsonl"), run_dir / "loss.png")
    except OSError as error:
        fault = f"{run_dir}/loss.png was not drawn: {run_dir}/metrics.jsonl: {error.strerror}"
    if fault:
        console.warn(fault)
    if remote:
        remote.push_or_warn(console.warn)
    if exit_code == EXIT_STOPPED:
        console.say("stopped; checkpoint saved. Run the same command with --resume to continue")
    elif exit_code == EXIT_DONE:
        console.say(f"done: {run_dir if fault else run_dir / 'loss.png'}; next: {way_on}")
    return exit_code
