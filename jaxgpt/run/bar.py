"""The progress bar of a training loop."""

import time
from contextlib import ExitStack

from rich import progress
from rich.progress import ProgressColumn, Task
from rich.text import Text

from jaxgpt.run.console import Work, console, working

MAX_BAR, MIN_BAR = 20, 5
DROPPED_FIRST = ("lr", "speed", "val", "loss", "mfu", "skipped")
"""What a narrow terminal does without, in this order. Step, elapsed time and ETA always stay."""


class Progress:
    """A bar with the last step's numbers and the ETA. No bar where output goes to a file, which gets lines.

    There a step that takes long says every 10 s that it is still going on.
    """

    def __init__(self, n_steps: int, first_step: int):
        self.is_shown = console.is_terminal and not console.quiet
        self._n_steps, self._first_step, self._n_done = n_steps, first_step, first_step
        self._parts: dict[str, str] = {}
        self._began_s = time.monotonic()
        self._bar = progress.Progress(_Line(self), console=console, disable=not self.is_shown)
        self._bar.add_task("train", total=n_steps, completed=first_step)
        self._work: Work | None = None
        self._stack = ExitStack()

    def advance(self, n_done: int, parts: dict[str, str]) -> None:
        """A step is done.

        Args:
          parts: its figures in words, by name: see `metrics.describe_parts`.
        """
        self._n_done, self._parts = n_done, parts
        if self._work:
            self._work.now(f"step {n_done + 1} of {self._n_steps}")

    def line(self, width: int) -> str:
        """The bar as text, at most as wide as the terminal."""
        elapsed_s = time.monotonic() - self._began_s
        n_here = self._n_done - self._first_step
        left_s = elapsed_s / n_here * (self._n_steps - self._n_done) if n_here else None
        head = f"{self._n_done}/{self._n_steps}  {clock(elapsed_s)}  ETA {clock(left_s)}"
        parts = dict(self._parts)
        for name in DROPPED_FIRST:
            if len("  ".join([head, *parts.values()])) <= width:
                break
            parts.pop(name, None)
        text = "  ".join([head, *parts.values()])
        n_bar = min(width - len(text) - 1, MAX_BAR)
        if n_bar < MIN_BAR:
            return text
        n_full = round(n_bar * self._n_done / max(self._n_steps, 1))
        full, empty = ("\u2501", "\u2500") if console.encoding.startswith("utf") else ("=", "-")
        return f"{full * n_full}{empty * (n_bar - n_full)} {text}"

    def __enter__(self) -> "Progress":
        self._began_s = time.monotonic()
        self._bar.start()
        console.has_bar = self.is_shown
        self._work = self._stack.enter_context(working(f"step {self._n_done + 1} of {self._n_steps}"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        console.has_bar = False
        self._bar.stop()


class _Line(ProgressColumn):
    def __init__(self, owner: Progress):
        super().__init__()
        self._owner = owner

    def render(self, task: Task) -> Text:
        return Text(self._owner.line(console.width - 1), no_wrap=True)


def clock(seconds: float | None) -> str:
    """1:02:03, or 3d 04:05; -:--:-- where it is not known."""
    if seconds is None:
        return "-:--:--"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest_s:02d}" if hours < 48 else f"{hours // 24}d {hours % 24:02d}:{minutes:02d}"
