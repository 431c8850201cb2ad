"""What a run tells the shell: one-line errors and exit codes.

A user's mistake is an `InputError`: one line, exit code 2, no traceback unless `--traceback` is given. A machine's
fault is a `Failure`: one line, exit code 1. Anything else that is raised is a bug, and shows where it happened.
"""

import os
import sys
from collections.abc import Callable
from types import TracebackType

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: a signal stopped the run after a checkpoint; `--resume` continues it."""


class InputError(ValueError):
    """Something the user chose cannot work. The message is one line: field or file, values, fix."""


class Failure(RuntimeError):
    """The machine failed, not the user: a disk is full, say. One line, exit code 1."""


def require(is_good: bool, message: str) -> None:
    """Raises InputError unless the condition holds."""
    if not is_good:
        raise InputError(message)


def explain_variables() -> None:
    """Turns what JAX raises at its import, for a variable of the environment that it cannot read, into one line."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = str(error)
        named = [name for name in os.environ if name.startswith("JAX_") and (name in text or name.lower() in text)]
        if kind is not ValueError or not named or "--traceback" in sys.argv:
            sys.__excepthook__(kind, error, trace)
            return
        print(f"error: {named[0]}={os.environ[named[0]]}: {error}; correct or unset the variable", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_BAD_INPUT)

    sys.excepthook = hook


def printable(message: object) -> str:
    """A message as one line that no terminal obeys: names inside a file may be escape sequences."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(message))
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def run_verb(main: Callable[[list[str]], int]) -> None:
    """Runs a command line tool, `main(arguments) -> exit code`, and ends the process with its code."""
    args = sys.argv[1:]
    show_traceback = "--traceback" in args
    try:
        code = main([arg for arg in args if arg != "--traceback"])
    except InputError as error:
        if show_traceback:
            raise
        print(f"error: {printable(error)}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except Failure as error:
        if show_traceback:
            raise
        print(f"failed: {printable(error)}", file=sys.stderr)
        code = EXIT_FAILED
    except BrokenPipeError:
        sys.stderr.close()
        code = EXIT_DONE
    sys.exit(code)
