"""The console that both training loops print to."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxgpt.streams import one_line, visible


class PlainConsole(Console):
    """Text is printed as it is: no markup, no emoji codes, control characters spelled out. Styles are arguments."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, **options)
        self.said_at_s = time.monotonic()
        self.has_bar = False

    @property
    def is_silent(self) -> bool:
        """Whether nobody waits for a sign of life: another process speaks, or a bar moves."""
        return self.quiet or self.has_bar

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        self.said_at_s = time.monotonic()
        super().print(*objects, **options)

    def say(self, message: object, style: str | None = None) -> None:
        """Prints one line, however long it is."""
        self.print(one_line(message), style=style, soft_wrap=True)

    def warn(self, message: object) -> None:
        self.say(f"warning: {message}", "yellow")


console = PlainConsole()

PULSE_S = 10.0
"""Work that prints nothing for so long says that it is still going on."""


def print_facts(title: str, facts: dict[str, str], styles: dict[str, str] | None = None) -> None:
    """A two-column table of what a run is; facts without a value are left out.

    Args:
      styles: of the values of some facts.
    """
    console.say(title, "bold italic")
    table = Table(show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in facts.items():
        if value:
            table.add_row(name, Text(visible(value), style=(styles or {}).get(name, "")))
    console.print(table)


@dataclass
class Work:
    """What is going on, since when."""

    what: str
    began_s: float

    def now(self, what: str) -> None:
        self.what, self.began_s = what, time.monotonic()


_under_way: list[Work] = []
"""The innermost last; it alone is reported."""


@contextmanager
def working(what: str, *, is_said: bool = False) -> Iterator[Work]:
    """Around work that may take long: a line on stderr for every 10 s in which nothing was printed.

    Args:
      is_said: print what it is before it begins, too.
    """
    work, is_over = Work(what, time.monotonic()), threading.Event()
    if is_said:
        console.say(f"{what} ...")

    def pulse() -> None:
        while not is_over.wait(max(PULSE_S - (time.monotonic() - console.said_at_s), PULSE_S / 10)):
            now_s = time.monotonic()
            is_due = now_s - max(console.said_at_s, work.began_s) >= PULSE_S
            if is_due and _under_way[-1] is work and not console.is_silent:
                console.said_at_s = now_s
                print(f"{one_line(work.what)}: {now_s - work.began_s:.0f} s", file=sys.stderr, flush=True)

    _under_way.append(work)
    thread = threading.Thread(target=pulse, daemon=True)
    thread.start()
    try:
        yield work
    finally:
        is_over.set()
        thread.join()
        _under_way.remove(work)
