"""What a run tells the shell: one-line errors and exit codes.

A user's mistake is an `InputError`: one line, exit code 2, no traceback unless `--traceback` is given. A machine's
fault is a `Failure`: one line, exit code 1. Anything else that is raised is a bug, and shows where it happened.
"""

import sys
from collections.abc import Callable

from jaxgpt import signals

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


def run_verb(main: Callable[[list[str]], int]) -> None:
    """Runs a command line tool, `main(arguments) -> exit code`, and ends the process with its code."""
    signals.start()
    args = sys.argv[1:]
    show_traceback = "--traceback" in args
    try:
        code = main([arg for arg in args if arg != "--traceback"])
    except InputError as error:
        if show_traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except Failure as error:
        if show_traceback:
            raise
        print(f"failed: {error}", file=sys.stderr)
        code = EXIT_FAILED
    except BrokenPipeError:
        sys.stderr.close()
        code = EXIT_DONE
    except SystemExit as end:  # --help, or a signal
        code = end.code if isinstance(end.code, int) else EXIT_DONE
    sys.exit(signals.finish(code))
