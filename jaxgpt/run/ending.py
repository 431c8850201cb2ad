"""How a run ends, in both training loops: what is closed, and which code the process exits with."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxgpt import signals
from jaxgpt.data.readers import Reader
from jaxgpt.errors import EXIT_DIVERGED, EXIT_DONE
from jaxgpt.run.checkpoints import CheckpointDirectory
from jaxgpt.run.console import console
from jaxgpt.run.history import History
from jaxgpt.run.meter import Diverged, Meter
from jaxgpt.run.metrics import MetricsFile
from jaxgpt.run.sinks import Sinks
from jaxgpt.run.stop_signal import SAVING, STEPPING


@dataclass
class Ending:
    """The exit code of a run; a loop that stops early sets it."""

    exit_code: int = EXIT_DONE


@contextmanager
def ending(
    feed: Generator[Any, None, None],
    files: Iterable[MetricsFile | Sinks | History],
    reader: Reader,
    meter: Meter,
    saved: CheckpointDirectory,
) -> Generator[Ending, None, None]:
    """Around a training loop: closes the feed and the files however it ends, and prints the reader's summary.

    A run that diverged ends here, with one line and its exit code. Inside, a signal finishes the step and saves; after
    it, it waits for the save under way.
    """
    found = Ending()
    signals.enter(STEPPING)
    try:
        yield found
    except Diverged as error:
        good = saved.reject_from(error.n_done)
        advice = "lower optim.lr" if good is None else f"lower optim.lr and continue with --resume-from {good}"
        console.say(f"stopped: {error}; {advice}", "red")
        found.exit_code = EXIT_DIVERGED
    finally:
        signals.enter(SAVING)
        feed.close()
        for file in files:
            file.close()
    if meter.n_skipped and found.exit_code != EXIT_DIVERGED:
        n = meter.n_skipped
        console.warn(
            f"{n} step{'s were' if n > 1 else ' was'} skipped: loss or gradient was not finite; lower optim.lr if the "
            "loss did not fall"
        )
    if summary := reader.summary():
        console.say(summary)
