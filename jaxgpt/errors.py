"""What a run tells the shell: one-line errors and exit codes.

A user's mistake is an `InputError`: one line, exit code 2, no traceback unless `--traceback` is given. A machine's
fault is a `Failure`: one line, exit code 1. Anything else that is raised is a bug, and shows where it happened.
"""

import gc
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from jaxgpt import signals
from jaxgpt.streams import Unwritten, finish_streams, one_line, protect_streams

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: a signal stopped the run after a checkpoint; `--resume` continues it."""

GARBAGE_THRESHOLD = 50_000
"""Objects made between two searches for garbage cycles. With Python's 700 the searches take a tenth of a start."""


class InputError(ValueError):
    """Something the user chose cannot work. The message is one line: field or file, values, fix."""


class Failure(RuntimeError):
    """The machine failed, not the user: a disk is full, say. One line, exit code 1."""


def require(is_good: bool, message: str) -> None:
    """Raises InputError unless the condition holds."""
    if not is_good:
        raise InputError(message)


def explain_variables() -> None:
    """Turns what JAX raises at its import, for a variable of the environment that it cannot read, into one line.

    Everything else goes to the hook that was there, by which `signals` knows what a signal has ended.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = str(error)
        named = [name for name in os.environ if name.startswith("JAX_") and (name in text or name.lower() in text)]
        if kind is not ValueError or not named or "--traceback" in sys.argv:
            before(kind, error, trace)
            return
        print(f"error: {named[0]}={os.environ[named[0]]}: {error}; correct or unset the variable", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_BAD_INPUT)

    sys.excepthook = hook


def answer_early(read: Callable[[list[str]], object]) -> None:
    """Reads a verb's command line ahead of its imports, which take seconds: --help and a mistake end the process here.

    Garbage is collected less often from here on: what is imported and traced next stays.

    Args:
      read: as the verb will call it again.
    """
    signals.start()
    protect_streams()
    gc.set_threshold(GARBAGE_THRESHOLD)

    def read_only(args: list[str]) -> None:
        read(args)

    code = _attempt(read_only)
    if code is not None:
        sys.exit(_close(code, "result"))


def run_verb(main: Callable[[list[str]], int], prints: Literal["log", "result", "stream"] = "log") -> None:
    """Runs a command line tool, `main(arguments) -> exit code`, and ends the process with its code.

    Args:
      prints: what a stdout that cannot be written means. log: nothing, the work continues. result: the work continues,
        but the exit code says that its result was lost. stream: the work ends. A reader that left is no failure.
    """
    signals.start()
    signals.enter(signals.RUNNING)
    protect_streams(is_stdout_needed=prints == "stream")
    sys.exit(_close(_attempt(main) or EXIT_DONE, prints))


def _attempt(call: Callable[[list[str]], int | None]) -> int | None:
    """Calls it with the arguments of this process. What it raises becomes a line and an exit code."""
    show_traceback = "--traceback" in sys.argv[1:]
    try:
        return call([arg for arg in sys.argv[1:] if arg != "--traceback"])
    except InputError as error:
        if show_traceback:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Failure as error:
        if show_traceback:
            raise
        print(f"failed: {one_line(error)}", file=sys.stderr)
        return EXIT_FAILED
    except (BrokenPipeError, Unwritten):
        return EXIT_DONE
    except SystemExit as end:  # --help, or a signal
        return end.code if isinstance(end.code, int) else EXIT_DONE


def _close(code: int, prints: Literal["log", "result", "stream"]) -> int:
    """Flushes what was printed; the exit code of the process."""
    lost = finish_streams()
    if lost and prints != "log" and code == EXIT_DONE:
        print(f"failed: stdout cannot be written ({lost.strerror}); free space, or write elsewhere", file=sys.stderr)
        code = EXIT_FAILED
    return signals.finish(code)
