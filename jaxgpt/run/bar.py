"""The progress bar of a training loop."""

from rich import progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxgpt.run.console import console


class Progress:
    """A bar with the last step's numbers and the ETA; no bar where output goes to a file, which gets lines."""

    def __init__(self, n_steps: int, first_step: int):
        self.is_shown = console.is_terminal and not console.quiet
        columns = (
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
        )
        self._bar = progress.Progress(*columns, console=console, disable=not self.is_shown)
        self._task = self._bar.add_task("train", total=n_steps, completed=first_step, status="")

    def advance(self, n_done: int, status: str) -> None:
        self._bar.update(self._task, completed=n_done, status=status.split("  ", 1)[1])

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()
