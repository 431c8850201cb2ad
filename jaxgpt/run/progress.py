"""Progress of long work: bars on a terminal, with the time that is left.

Where there is no terminal, a line every 10 s. All of it goes to stderr.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import Literal

from jaxgpt.run.console import PlainConsole
from jaxgpt.streams import one_line, visible

Show = Callable[[float, float | None, str], None]
"""Called with the amount done, the total if known, and both in words."""


class Progress:
    """Any number of bars, for any number of threads."""

    LINE_EVERY_S = 10.0
    DRAW_EVERY_S = 0.5

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = PlainConsole(stderr=True)
        self._is_terminal, self._draw_at_s = console.is_terminal, 0.0
        self._last, self._began_s, self._said_at_s = "working", time.monotonic(), time.monotonic()
        self._lock, self._is_over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._write_lines, daemon=True)
        self._bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> "Progress":
        self._bars.start()
        self._began_s = self._said_at_s = time.monotonic()
        if not self._is_terminal:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if not self._is_terminal:
            self._thread.join()
        self._bars.stop()

    def _write_lines(self) -> None:
        while not self._is_over.wait(max(self.LINE_EVERY_S / 10, 0.01)):
            self._write_line_if_due()

    def _write_line_if_due(self) -> None:
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._said_at_s < self.LINE_EVERY_S:
                return
            self._said_at_s = now_s
            print(f"{one_line(self._last)} ({now_s - self._began_s:.0f} s)", file=sys.stderr, flush=True)

    def bar(self, what: str, *, hides_when_done: bool = False) -> Show:
        """A new bar."""
        task = self._bars.add_task(visible(what), total=None, amount="")

        def show(done: float, total: float | None, amount: str) -> None:
            is_over = hides_when_done and total is not None and done >= total
            self._bars.update(task, completed=done, total=total, amount=amount, visible=not is_over)
            self._last = f"{what}: {amount}"
            now_s = time.monotonic()
            if self._is_terminal and now_s > self._draw_at_s:  # rich's thread waits where C code holds the interpreter
                self._draw_at_s = now_s + self.DRAW_EVERY_S
                self._bars.refresh()
            if not self._is_terminal:  # as the thread of our own
                self._write_line_if_due()

        return show

    def download(self, name: str) -> Callable[[int, int | None], None]:
        """A bar for `corpora.download`."""
        bar = None

        def show(n_bytes: int, total: int | None) -> None:
            nonlocal bar
            bar = bar or self.bar(f"fetching {name}", hides_when_done=True)
            bar(n_bytes, total, f"{n_bytes / 1e6:,.1f}{f' of {total / 1e6:,.1f}' if total else ''} MB")

        return show

    def count(self, total: float, unit: Literal["bytes", "documents"]) -> Callable[[str], Callable[[float], None]]:
        """A bar for each pass over a source of this size, called with how much more was read."""

        def begin(what: str) -> Callable[[float], None]:
            bar, n_done = self.bar(what), 0.0

            def advance(n: float) -> None:
                nonlocal n_done
                n_done += n
                if unit == "bytes":
                    bar(n_done, total, f"{n_done / 1e6:,.1f} of {total / 1e6:,.1f} MB")
                else:
                    bar(n_done, total, f"{n_done:,.0f} of {total:,.0f} documents")

            return advance

        return begin
