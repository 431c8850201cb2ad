"""Draws the picture of docs/chat.md: a real `jaxgpt chat` in a terminal, answering questions.

python -m parity_tests.chat_picture RUN docs/images/chat.svg QUESTION ...
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from parity_tests.helpers.tty import CTRL_D, Tty

COLUMNS = 88


def main(args: list[str]) -> int:
    run, picture, *questions = args
    tty = Tty("-m", "jaxgpt", "chat", "--run", run, "--temperature", "0", "--seed", "1")
    tty.wait_for("> ")
    for question in questions:
        tty.type(f"{question}\n")
        tty.wait_for("\n> ")
    tty.type(CTRL_D)
    code = tty.close()
    shown = re.sub(r"\x1b\[\?[0-9;]*[a-z]", "", tty.colored)  # switches of the line editor
    shown = shown.replace(run, f"runs/{Path(run).name}")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ jaxgpt chat --run runs/{Path(run).name}"))
    console.print(Text.from_ansi(shown.rstrip()))
    drawn = console.export_svg(title="jaxgpt chat")
    Path(picture).write_text(re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
