"""The console that both training loops print to."""

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)


def print_facts(title: str, facts: dict[str, str]) -> None:
    """A two-column table of what a run is; facts without a value are left out."""
    table = Table(title=title, show_header=False, box=None, title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in facts.items():
        if value:
            table.add_row(name, value)
    console.print(table)
