"""Lists the configs that come with jaxgpt, prints one, or copies it.

  jaxgpt configs                              # what each trains, on which machine, how long
  jaxgpt configs quickstart                   # prints the file
  jaxgpt configs quickstart --write my.py     # copies it, to edit; then jaxgpt train --config my.py

Parameters and tokens are computed from the config; machine and time are those that its docstring gives.
"""

import argparse
import difflib
from pathlib import Path

from jaxgpt.config import load
from jaxgpt.config.derive import derive
from jaxgpt.config.parser import Parser
from jaxgpt.config.shipped import read_about, shipped_configs
from jaxgpt.errors import EXIT_DONE, InputError, run_verb
from jaxgpt.files import user_path
from jaxgpt.run.console import console

PARSER = Parser("jaxgpt configs", __doc__, "[NAME [--write [FILE]]]", "quickstart --write my.py")
PARSER.add_argument("name", nargs="?", metavar="NAME", help="print this config")
PARSER.add_argument("--write", nargs="?", const="", type=user_path, metavar="FILE", help="copy it to FILE (NAME.py)")

ROW = "{:20} {:>6} {:>6}  {:14}  {}"


def main(args: list[str]) -> int:
    settings = read_arguments(args)
    if not settings.name:
        print_table()
        return EXIT_DONE
    source = shipped_configs()[settings.name].read_text(encoding="utf-8")
    if settings.write is None:
        print(source, end="")
    else:
        write_copy(source, Path(settings.write or f"{settings.name}.py"))
    return EXIT_DONE


def read_arguments(args: list[str]) -> argparse.Namespace:
    settings = PARSER.read(args)
    names = list(shipped_configs())
    if settings.name and settings.name not in names:
        near = difflib.get_close_matches(settings.name, names, n=1)
        guess = f"did you mean {near[0]}?" if near else f"names: {', '.join(names)}"
        raise InputError(f"no shipped config {settings.name}; {guess}")
    if settings.write is not None and not settings.name:
        raise InputError("--write is given without a NAME; write jaxgpt configs NAME --write FILE")
    return settings


def write_copy(source: str, path: Path) -> None:
    """Writes a new file, and replaces none."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(source)
    except FileExistsError:
        raise InputError(f"--write={path} exists; give another FILE") from None
    except OSError as error:
        raise InputError(f"--write={path} cannot be written: {error.strerror}; give another FILE") from error
    config = path if path.suffix == ".py" else f"./{path}"
    console.say(f"{path} written; edit it, then: jaxgpt train --config {config}")


def print_table() -> None:
    """Two lines for each config, the smallest model first; 80 columns wide, on a terminal and in a pipe."""
    rows = []
    for name, path in shipped_configs().items():
        about = read_about(path)
        config = derive(load(path), about.vocabulary).config
        n_tokens = 0 if "evaluate" in about.run.split() else config.train.steps * config.train.batch_tokens
        rows.append((config.model.count_params().total, name, n_tokens, about))
    console.say(ROW.format("config", "params", "tokens", "machine", "time"), "bold")
    for n_params, name, n_tokens, about in sorted(rows, key=lambda row: row[:2]):
        console.say(ROW.format(name, short(n_params), short(n_tokens), about.machine, about.time).rstrip())
        console.say(f"  {about.what}", "dim")
    console.say("Train one: jaxgpt train --config NAME. Print it: jaxgpt configs NAME")


def short(n: int) -> str:
    """A count in three digits: 816K, 1.54M, 295B; empty for 0."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if n >= size:
            return f"{float(f'{n / size:.3g}'):g}{unit}"
    return str(n) if n else ""


if __name__ == "__main__":
    run_verb(main, prints="result")
