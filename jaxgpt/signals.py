"""Signals that end a command: SIGINT, SIGTERM and SIGHUP give one line and the right exit code, never a traceback.

Python runs a signal handler between two bytecodes of the main thread, so while XLA computes nothing happens. Here the
interpreter's C handler also writes the signal's number into a pipe, and a thread that reads it acts at once: it prints
the line, and ends the process where the main thread does not do so in time. What a signal means is the phase that the
command is in (`enter`): most are left at once, a training loop first finishes its step and saves.

The command `jaxgpt`, and `python -m` of a package of this repository, start this before anything else is imported
(`guard_command`); importing the packages as a library changes no handler. Imports nothing that takes time: all before
it is not guarded.
"""

import _thread
import atexit
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType

GRACE_S = 1.0
"""For the main thread to clean up and leave, before the process is ended under it."""
SAME_S = 0.02
"""Two signals of one number this close are one: `timeout` sends to the process, then to its group."""
HANGUP = signal.SIGHUP
NUMBERS = (signal.SIGINT, signal.SIGTERM, HANGUP)


class Interrupted(SystemExit):
    """Raised in the main thread, so that `finally` clauses run. The line was printed; the process ends with `code`."""


class Phase:
    """What a signal means now.

    Args:
      says: follows the signal's name in the line, with {again} for how to send a second one; empty: no line.
      code: the exit code; None: 128 + the signal's number.
      is_deferred: the first signal is only noted (`received`), and the command ends when it sees fit. The second one
        ends it, whatever it does.
      is_abrupt: the process ends at once, without `finally` clauses.
    """

    def __init__(self, says: str, code: int | None = None, *, is_deferred: bool = False, is_abrupt: bool = False):
        self.says, self.code, self.is_deferred, self.is_abrupt = says, code, is_deferred, is_abrupt


STARTING = Phase("interrupted", is_abrupt=True)
"""While modules are imported: there is nothing to clean up, and C code that is being loaded crashes at an exception."""
RUNNING = Phase("interrupted")


class _Watch:
    """The state of the process: all signals, one phase."""

    def __init__(self) -> None:
        self.phase = STARTING
        self.depth = 0
        self.writer = -1
        self.before: dict[int, object] = {}
        self.first: dict[str, tuple[int, Phase]] = {}  # "first" -> number, phase
        self.is_said = _thread.allocate_lock()  # held until the line is printed
        self.lent: frozenset[int] = frozenset()

    def decide(self, number: int) -> tuple[int, Phase]:
        """The first signal and the phase it came in. Main thread and reader both ask, and get one answer."""
        return self.first.setdefault("first", (number, self.phase))

    def wait_for_line(self) -> None:
        if self.is_said.acquire(timeout=GRACE_S / 2):
            self.is_said.release()


_watch = _Watch()


def enter(phase: Phase) -> Phase:
    """From now on signals mean this; gives what they meant before."""
    before, _watch.phase = _watch.phase, phase
    return before


def received() -> int:
    """The number of the first signal; 0: none came."""
    return _watch.first["first"][0] if _watch.first else 0


def lend_interrupt(handler: Callable[[int, object], None]) -> None:
    """From now on Ctrl-C only calls this, in the main thread. SIGTERM and SIGHUP mean what they meant.

    For a dialogue, in which Ctrl-C ends an answer and not the program.
    """
    _watch.lent = frozenset({signal.SIGINT})
    signal.signal(signal.SIGINT, handler)


def guard_command(package: str) -> None:
    """Starts the watch where this process is a command of the package. The package's first statement.

    That is `python -m <package>.<verb>`, or a script with the package's name, which pip made.
    """
    script = "".join(sys.argv[:1]).rpartition("/")[2]
    names = [script]
    if script == "-m":  # so it stands while the interpreter looks for the module to run
        names = [arg.removeprefix("-m").split(".")[0] for arg in sys.orig_argv[1:]]
    if package in names:
        start()
    if script in ("-m", "jaxgpt"):  # where jaxgpt/__init__.py blocked them
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)


def start() -> None:
    """Takes the signals over, once. A SIGHUP that the parent has switched off (nohup) stays so."""
    if _watch.before:
        return
    reader, _watch.writer = os.pipe()
    os.set_blocking(_watch.writer, False)
    _watch.is_said.acquire()
    for number in NUMBERS:
        handler = signal.getsignal(number)
        if number == HANGUP and handler == signal.SIG_IGN:
            continue
        _watch.before[number] = handler
        signal.signal(number, _receive)
    signal.set_wakeup_fd(_watch.writer, warn_on_full_buffer=False)
    sys.excepthook = _show_exception
    atexit.register(_ignore_all)
    _thread.start_new_thread(_read_pipe, (_watch, reader))


def stop() -> None:
    """Undoes `start`, as if no signal had come."""
    global _watch
    if not _watch.before:
        return
    signal.set_wakeup_fd(-1)
    for number, handler in _watch.before.items():
        signal.signal(number, handler)  # pyright: ignore[reportArgumentType] - as getsignal gave it
    sys.excepthook = sys.__excepthook__
    atexit.unregister(_ignore_all)
    os.close(_watch.writer)  # the reader leaves
    _watch = _Watch()


def _ignore_all() -> None:
    """The last of what runs at exit: after it the interpreter would give signals back to the system, which kills."""
    for number in _watch.before:
        signal.signal(number, signal.SIG_IGN)


def finish(code: int) -> int:
    """The exit code of a command that is over. Where a signal has ended it, the process ends here."""
    enter(Phase("", code))
    if _watch.first:
        number, phase = _watch.first["first"]
        if not phase.is_deferred:
            _watch.wait_for_line()
            _flush()
            os._exit(_exit_code(number, phase))
    return code


def _show_exception(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """An exception that nobody caught; after a signal it is what libraries made of `Interrupted`."""
    finish(1)
    sys.__excepthook__(kind, error, traceback)


def _exit_code(number: int, phase: Phase) -> int:
    return 128 + number if phase.code is None else phase.code


def _receive(number: int, _frame: object) -> None:
    """In the main thread, as soon as it runs Python."""
    first, phase = _watch.decide(number)
    if first == number and phase.says and not (phase.is_deferred or phase.is_abrupt):
        _watch.wait_for_line()
        _flush()
        raise Interrupted(_exit_code(number, phase))


def _read_pipe(watch: _Watch, reader: int) -> None:
    """The thread."""
    deadline, first, first_at = None, 0, 0.0
    while True:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], timeout)[0]:
            os._exit(_exit_code(*watch.first["first"]))
        got = os.read(reader, 1)
        if not got:
            os.close(reader)
            return
        number = got[0]
        if number not in NUMBERS or number in watch.lent:  # for another handler of this process
            continue
        if not first:
            first, first_at = number, time.monotonic()
            _, phase = watch.decide(number)
            if phase.says:
                again = "press again" if number == signal.SIGINT else "send it again"
                _print(number, phase.says.replace("{again}", again), is_last=not phase.is_deferred)
            if phase.is_abrupt:
                os._exit(_exit_code(number, phase))
            watch.is_said.release()
            if not phase.is_deferred:
                deadline = time.monotonic() + GRACE_S
        elif number == HANGUP or (number == first and time.monotonic() < first_at + SAME_S):
            continue  # a closed terminal sends it more than once
        else:
            _print(number, "quit at once", is_last=True)
            os._exit(_exit_code(number, watch.phase))


def _forget_in_child() -> None:
    """A forked child has no reader, and must not write into the parent's pipe."""
    if _watch.before:
        signal.set_wakeup_fd(-1)
        for number, handler in _watch.before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType] - as getsignal gave it


os.register_at_fork(after_in_child=_forget_in_child)


def _print(number: int, text: str, *, is_last: bool) -> None:
    """To stderr, without Python's locks, which the main thread may hold. After the last line stderr is closed to all.

    A reader that does not read (a full pipe) gets no line: nothing may keep the process from leaving.
    """
    try:
        start, end = ("\r\x1b[K", "\x1b[?25h" if is_last else "") if os.isatty(2) else ("", "")  # the bar, the cursor
        if select.select([], [2], [], 0.1)[1]:
            os.write(2, f"{start}{signal.Signals(number).name}: {text}\n{end}".encode(errors="replace"))
        if is_last:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 2)
    except (OSError, ValueError):
        pass  # stderr is closed or gone with its terminal


def _flush() -> None:
    try:  # noqa: SIM105 - contextlib takes milliseconds to import
        sys.stdout.flush()
    except (OSError, ValueError, RuntimeError, AttributeError):
        pass  # closed; or the signal came in the middle of a write
