"""The dialogue in a terminal: a prompt with a history of lines, commands, Ctrl-C and Ctrl-D; also lines from a pipe.

What the model writes is only ever shown: control characters in it are spelled out, as a terminal would obey them.
"""

import difflib
import os
import sys
from collections.abc import Callable

from jaxgpt import signals
from jaxgpt.chat.talk import Talk
from jaxgpt.errors import InputError
from jaxgpt.files import user_path
from jaxgpt.streams import one_line, visible

HELP = """\
/clear          forget what was said
/system TEXT    instructions before the first message; without TEXT: none
/temp X         temperature; 0: the likeliest token
/top_k N        among the N likeliest tokens; 0: all
/save FILE      write the conversation as JSON
/load FILE      go on with a conversation
/help           this
/quit           end, as Ctrl-D does
Ctrl-C stops an answer. A message may begin with // for /."""
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Terminal:
    """Reads lines from stdin until it ends, and answers them on stdout."""

    def __init__(self, talk: Talk):
        self._talk = talk
        self._is_tty = sys.stdin.isatty() and sys.stdout.isatty()
        self._is_colored = self._is_tty and not os.environ.get("NO_COLOR")
        self._is_at_prompt = self._has_ended = False
        self._commands: dict[str, Callable[[str], str]] = {
            "/clear": self._clear, "/system": self._set_system, "/temp": self._set_temperature,
            "/top_k": self._set_top_k, "/save": self._save, "/load": self._load,
            "/help": lambda _: HELP, "/quit": self._quit,
        }  # fmt: skip

    def run(self) -> None:
        """Until the input ends. In a terminal a mistake is answered and the next line read.

        Raises:
          InputError: a line of a pipe that cannot be answered.
        """
        if self._is_tty:
            import readline  # noqa: F401 - input() edits lines and remembers them; elsewhere it would print escapes

            signals.lend_interrupt(self._interrupt)
        while not self._has_ended:
            line = self._read()
            if line is None:
                return
            try:
                self._do(line)
            except InputError as error:
                if not self._is_tty:
                    raise
                self._note(f"error: {one_line(error)}")

    def say(self, text: str) -> None:
        """Answers one text."""
        last = "\n"
        for piece in self._talk.answer(text):
            last = piece
            show(piece)
        show("" if last.endswith("\n") else "\n")
        for note in self._talk.notes:
            self._note(f"({note})")

    def _do(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/") or line.startswith("//"):
            self.say(line[1:] if line.startswith("//") else line)
            return
        name, _, rest = line.strip().partition(" ")
        if name not in self._commands:
            near = difflib.get_close_matches(name, self._commands, n=1)
            raise InputError(f"{name} is no command; " + (f"did you mean {near[0]}?" if near else "/help lists them"))
        if answer := self._commands[name](rest.strip()):
            self._note(answer)

    def _read(self) -> str | None:
        """The next line without its end; None: there is none."""
        if not self._is_tty:
            return read_line()
        try:
            self._is_at_prompt = True
            return input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            self._note("\n(Ctrl-D ends)")
            return ""
        except UnicodeDecodeError as error:
            self._note(f"error: the line is not {error.encoding}; type it again")
            return ""
        finally:
            self._is_at_prompt = False

    def _interrupt(self, _number: int, _frame: object) -> None:
        """Ctrl-C. While the model computes nothing is raised: the answer ends before its next token."""
        if self._is_at_prompt:
            raise KeyboardInterrupt
        self._talk.stop()

    def _note(self, text: str) -> None:
        """Facts, apart from what the model says: dim in a terminal, else on stderr."""
        if self._is_tty:
            print(f"{DIM}{text}{PLAIN}" if self._is_colored else text, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    # Commands: the rest of the line -> what is answered

    def _clear(self, _rest: str) -> str:
        self._talk.clear()
        return "forgotten"

    def _set_system(self, rest: str) -> str:
        self._talk.need_dialogue("/system").system = rest
        return "set, from the first message on" if rest else "no instructions"

    def _set_temperature(self, rest: str) -> str:
        self._talk.set(temperature=_number(rest, "/temp", "0.8"))
        return f"temperature {self._talk.sampling.temperature:g}"

    def _set_top_k(self, rest: str) -> str:
        if not rest.removeprefix("-").isdecimal():
            raise InputError(f"/top_k={rest} is not a whole number; write one, such as /top_k 50")
        self._talk.set(top_k=int(rest))
        return f"top_k {self._talk.sampling.top_k}"

    def _save(self, rest: str) -> str:
        dialogue, path = self._talk.need_dialogue("/save"), _path(rest, "/save")
        _on_disk(dialogue.save, path)
        return f"{len(dialogue.turns)} turns in {one_line(path)}"

    def _load(self, rest: str) -> str:
        dialogue, path = self._talk.need_dialogue("/load"), _path(rest, "/load")
        _on_disk(dialogue.load, path)
        return f"{len(dialogue.turns)} turns from {one_line(path)}"

    def _quit(self, _rest: str) -> str:
        self._has_ended = True
        return ""


def read_line() -> str | None:
    """The next line of stdin without its end; None: there is none.

    Raises:
      InputError: it is not UTF-8.
    """
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not {error.encoding} at byte {error.start}; convert it") from error
    return line.removesuffix("\n") if line else None


def show(text: str) -> None:
    """Writes what the model says to stdout at once."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _number(text: str, command: str, example: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{command}={text} is not a number; write one, such as {command} {example}") from None


def _path(text: str, command: str) -> str:
    if not text:
        raise InputError(f"{command} needs a file, such as {command} talk.json")
    return user_path(text, command)


def _on_disk(act: Callable[[str], None], path: str) -> None:
    try:
        act(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name another file") from error
