"""TensorBoard, Weights & Biases and trackio, where asked for.

What is missing (a package, a login) is reported before any work. A tracker that fails later is reported once and
dropped: training continues. A resumed run continues in the trackers' same run, whose id is in trackers.json.
"""

import json
import math
import os
import secrets
import string
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxgpt.config.settings import LogConfig
from jaxgpt.errors import InputError
from jaxgpt.extras import pip_install
from jaxgpt.files import write_atomically
from jaxgpt.run.console import console, working

Record = dict[str, Any]
Writer = tuple[Callable[[Record], object], Callable[[], object]]
"""What takes a record, and what ends the run there."""
OFFLINE = ("offline", "dryrun", "disabled")
"""Values of WANDB_MODE that need no login."""


def packages_of(log: LogConfig) -> dict[str, str]:
    """Setting -> package, of the trackers that are asked for."""
    wanted = {
        "log.tensorboard=true": "tensorboardX" if log.tensorboard else "",
        f"log.wandb_project={log.wandb_project}": "wandb" if log.wandb_project else "",
        f"log.trackio_project={log.trackio_project}": "trackio" if log.trackio_project else "",
    }
    return {setting: package for setting, package in wanted.items() if package}


def check_trackers(log: LogConfig) -> None:
    """Raises InputError where a tracker's package or login is missing. Never asks on the terminal."""
    for setting, package in packages_of(log).items():
        try:
            module = import_module(package)
        except ImportError as error:
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == package
            why = "" if is_missing else f" (it is installed, but: {error})"
            raise InputError(f"{setting} needs {package}{why}; {pip_install('tracking', package)}") from error
        except Exception as error:  # whatever a broken installation raises
            raise InputError(
                f"{setting}: {package} cannot be imported ({type(error).__name__}: {error}); reinstall it"
            ) from error
        if package == "wandb":
            _check_login(module, setting)


def _check_login(wandb: Any, setting: str) -> None:
    if os.environ.get("WANDB_MODE", "") in OFFLINE or not hasattr(wandb, "login"):
        return
    advice = "run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"
    try:
        has_login = wandb.login(prompt=False, verify=False)
        mode = wandb.setup().settings.mode if not has_login else ""
    except TypeError:  # an older version, which might ask
        has_login, mode = bool(wandb.api.api_key), ""
    except Exception as error:  # such as a key of the wrong form
        raise InputError(f"{setting}: {error}; {advice}") from error
    if not has_login and mode not in OFFLINE:
        raise InputError(f"{setting} needs a login to Weights & Biases; {advice}")


class Sinks:
    """The trackers of a run.

    Args:
      config: of the run, as JSON.
      first_step: 0 begins a new run in each tracker; above, the run directory's own one is continued.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any], log: LogConfig, first_step: int):
        self._writers: dict[str, Writer] = {}
        if not packages_of(log):
            return
        run_id = choose_id(run_dir / "trackers.json", first_step)
        name = run_dir.name or "run"
        if log.tensorboard:
            self._open("TensorBoard", lambda: open_tensorboard(run_dir / "tensorboard", first_step))
        if log.wandb_project:
            self._open("Weights & Biases", lambda: open_wandb(log.wandb_project, run_dir, run_id, config, first_step))
        if log.trackio_project:
            self._open("trackio", lambda: open_trackio(log.trackio_project, f"{name}-{run_id}", config))

    def _open(self, name: str, begin: Callable[[], Writer]) -> None:
        try:
            with working(f"opening the run in {name}"):
                self._writers[name] = begin()
        except Exception as error:  # whatever a tracker raises, it must not end the training
            self._report(name, error)

    def write(self, record: Record) -> None:
        for name, (write, _) in list(self._writers.items()):
            try:
                write(record)
            except Exception as error:
                self._report(name, error)
                del self._writers[name]

    def close(self) -> None:
        for name, (_, close) in self._writers.items():
            try:
                with working(f"sending the last records to {name}"):
                    close()
            except Exception as error:
                self._report(name, error)
        self._writers = {}

    def _report(self, name: str, error: Exception) -> None:
        console.warn(f"{name} failed and is switched off: {type(error).__name__}: {str(error)[:500]}")


def choose_id(path: Path, first_step: int) -> str:
    """The id of this run in the trackers: the one in trackers.json when it resumes, else a new one, written there."""
    if first_step:
        try:
            found = json.loads(path.read_bytes()[:10_000])
            if isinstance(found["id"], str) and found["id"].isalnum() and len(found["id"]) <= 64:
                return found["id"]
            raise ValueError("no id in it")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            console.warn(f"{path} cannot be read ({error}); the trackers get a new run")
    made = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
    try:
        write_atomically(path, json.dumps({"id": made}) + "\n")
    except OSError as error:
        console.warn(f"{path} cannot be written ({error.strerror}); a resumed run will be a new one in the trackers")
    return made


def open_tensorboard(directory: Path, first_step: int) -> Writer:
    """Events are written here, not in tensorboardX's thread, whose failure would block the next record for good."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.summary import scalar

    proto: Any = import_module("tensorboardX.proto.event_pb2")
    directory.mkdir(parents=True, exist_ok=True)
    events = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
    # TensorBoard drops what an earlier process logged from this step on
    start = proto.SessionLog(status=proto.SessionLog.START)
    events.write_event(proto.Event(step=first_step + 1, session_log=start))

    def write(record: Record) -> None:
        for name, value in record.items():
            if name != "step" and value is not None:
                events.write_event(proto.Event(step=record["step"], wall_time=time.time(), summary=scalar(name, value)))
        events.flush()

    return write, events.close


def open_wandb(project: str, run_dir: Path, run_id: str, config: dict[str, Any], first_step: int) -> Writer:
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(
        project=project, name=run_dir.name, id=run_id, resume="allow", config=config, dir=str(run_dir)
    )  # fmt: skip
    n_there = getattr(run, "step", 0)
    if isinstance(n_there, int) and first_step and n_there > first_step + 1:
        console.warn(f"Weights & Biases has records up to step {n_there - 1}; it ignores new ones up to there")
    return lambda record: run.log(record, step=record["step"]), run.finish


def open_trackio(project: str, name: str, config: dict[str, Any]) -> Writer:
    import trackio  # pyright: ignore[reportMissingImports]

    trackio.init(project=project, name=name, config=config, resume="allow")

    def write(record: Record) -> None:
        values = {
            key: value for key, value in record.items()
            if key != "step" and value is not None and math.isfinite(value)
        }  # fmt: skip
        trackio.log(values, step=record["step"])

    return write, trackio.finish
