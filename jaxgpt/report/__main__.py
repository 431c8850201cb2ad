"""One page about one run or several: results by stage, curves, time, cost, and what differs.

  jaxgpt report runs/base runs/mid runs/sft runs/rl --price 24
  jaxgpt report runs/a runs/b --out reports/a_and_b

Reads the records that training and `jaxgpt evaluate` leave in a run's directory: the newest checkpoint's manifest,
metrics.jsonl, history.jsonl, evaluations/*.json. What is missing or damaged is named on the page. OUT gets report.md
with curves.png, and report.html, one file that needs no other. A run says which stage it was; STAGE=RUN overrides it.
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take time
import argparse
import math
from pathlib import Path

from jaxgpt.config.parser import Parser
from jaxgpt.errors import EXIT_DONE, InputError, answer_early
from jaxgpt.files import user_file, user_location
from jaxgpt.run.history import STAGES

MAX_RUNS = 32
PARSER = Parser("jaxgpt report", __doc__, "RUN ... [--out DIR] [--price USD_PER_HOUR]", "runs/base runs/sft --price 24")
PARSER.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory; mid=DIR, sft=DIR ... name its stage")
PARSER.add_argument("--out", type=user_file, metavar="DIR", default=Path("report"), help="where to write (report)")
PARSER.add_argument("--price", type=float, metavar="USD_PER_HOUR", help="of the whole machine, for the costs")


def read_arguments(args: list[str]) -> argparse.Namespace:
    given = PARSER.read(args)
    given.runs = [read_name(text) for text in given.runs]
    if len(given.runs) > MAX_RUNS:
        raise InputError(f"{len(given.runs)} runs are more than {MAX_RUNS}; make several pages")
    names = [name for _, name in given.runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{twice} is given twice; keep one")
    if given.price is not None and not (math.isfinite(given.price) and 0 <= given.price < 1e9):
        raise InputError(f"--price={given.price} is not a price; give dollars per hour, such as 24")
    return given


def read_name(text: str) -> tuple[str, str]:
    """Stage and location of STAGE=RUN; the stage is empty where none is named."""
    stage, separator, rest = text.partition("=")
    stage, location = (stage, rest) if separator and stage in STAGES else ("", text)
    return stage, user_location(location.rstrip("/") or location, "RUN")


if __name__ == "__main__":
    answer_early(read_arguments)

import datetime
from contextlib import ExitStack

from rich.table import Table as Grid

import jaxgpt
from jaxgpt.errors import run_verb
from jaxgpt.files import refuse_link, write_atomically
from jaxgpt.report.blocks import Page, Picture, Table
from jaxgpt.report.html import to_html
from jaxgpt.report.markdown import to_markdown
from jaxgpt.report.page import make_page
from jaxgpt.report.records import read_run
from jaxgpt.run.console import console
from jaxgpt.run.remote import opened_run


def main(args: list[str]) -> int:
    given = read_arguments(args)
    make_directory(given.out)
    with ExitStack() as stack:
        opened = [(stage, name, stack.enter_context(opened_run(name, "RUN"))[0]) for stage, name in given.runs]
        runs = [read_run(directory, name, stage) for stage, name, directory in opened]
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "minutes")
    title = f"Report on {', '.join(name for _, name in given.runs)}"
    page = make_page(runs, given.price, title, f"Made {now} by jaxgpt {jaxgpt.__version__}.")
    write_page(page, given.out)
    for fault in (fault for run in runs for fault in run.faults):
        console.warn(f"left out: {fault}")
    print_first_table(page)
    console.say(f"written: {given.out}/report.html and {given.out}/report.md")
    return EXIT_DONE


def make_directory(out: Path) -> None:
    """Raises InputError where the directory is a link, or cannot be made."""
    refuse_link(out, "choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out={out} cannot be made ({error.strerror}); choose another directory") from error


def write_page(page: Page, out: Path) -> None:
    """report.html, report.md and its picture. Raises InputError where they cannot be written."""
    try:
        for picture in (block for block in page.blocks if isinstance(block, Picture)):
            write_atomically(out / picture.file, picture.png)
        write_atomically(out / "report.md", to_markdown(page))
        write_atomically(out / "report.html", to_html(page))
    except OSError as error:
        raise InputError(f"--out={out} cannot be written ({error.strerror}); choose another directory") from error


def print_first_table(page: Page) -> None:
    table = next(block for block in page.blocks if isinstance(block, Table))
    grid = Grid(*table.head)
    for row in table.rows:
        grid.add_row(*row)
    console.print(grid)


if __name__ == "__main__":
    run_verb(main, prints="result")
