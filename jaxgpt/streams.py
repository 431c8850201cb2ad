"""What a verb prints: names from outside shown as they are, and output that cannot be written never ends the work.

A reader that leaves (`| head`), a full disk under a log file, a lost terminal and an encoding without the character
are reported once on the other stream; the work continues.
"""

import contextlib
import errno
import os
import sys
from typing import Any, TextIO

CONTROLS = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x061C, *range(0x200E, 0x2010), *range(0x2028, 0x202F),
                 *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}  # fmt: skip
"""Characters that a terminal might obey instead of showing: escape sequences, and marks that reverse the text."""
_IN_A_LINE = CONTROLS | {ord("\n"): "\\n", ord("\t"): "\\t"}
_shown_as: dict[str, str] = {}
"""Directory -> what messages call it."""


def show_as(directory: str, shown: str) -> None:
    """From now on messages write `shown` for a directory: a copy that this machine keeps of an object store."""
    _shown_as[directory] = shown


def _rename(text: str) -> str:
    for directory, shown in _shown_as.items():
        text = text.replace(directory, shown)
    return text


def visible(text: str) -> str:
    """The text with its control characters spelled out, such as \\x1b; newlines and tabs stay."""
    return _rename(text).translate(CONTROLS)


def one_line(text: object) -> str:
    """As `visible`, in one line: for names and messages that contain names."""
    return _rename(str(text)).translate(_IN_A_LINE)


class Unwritten(OSError):
    """stdout cannot be written, and the work is of no use without it."""


class SafeStream:
    """stdout or stderr, whose failures are reported once and not raised.

    Attributes:
      is_needed: raise Unwritten where something cannot be written.
      failure: why something could not be written; None: all was. A pipe that its reader closed counts as well.
    """

    def __init__(self, stream: TextIO, name: str, *, is_needed: bool = False):
        self._stream, self._name, self.is_needed = stream, name, is_needed
        self.failure: OSError | None = None
        with contextlib.suppress(AttributeError, ValueError):  # not a text file of its own, as under a test
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def finish(self) -> None:
        """Flushes. The work is over, so nothing is raised any more."""
        self.is_needed = False
        self.flush()

    def _failed(self, error: OSError) -> None:
        is_first, self.failure = self.failure is None, error
        if error.errno == errno.EPIPE:
            self._drop()  # nobody will read on; a full disk may have room later
        if self.is_needed:
            self._drop()
            raise Unwritten(error.errno, error.strerror)
        if is_first and self._name == "stdout" and sys.stderr is not None:
            print(f"warning: stdout cannot be written ({error.strerror}); continuing without it", file=sys.stderr)

    def _drop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream.flush()


def protect_streams(*, is_stdout_needed: bool = False) -> None:
    """From now on nothing that is printed can fail. Streams that are closed are opened on /dev/null.

    Args:
      is_stdout_needed: raise Unwritten where stdout fails: a sample that nobody reads need not be written.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number; else a checkpoint could become stdout
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
        if not isinstance(stream, SafeStream):
            stream = SafeStream(stream, name)
            setattr(sys, name, stream)
        stream.is_needed = is_stdout_needed and name == "stdout"


def finish_streams() -> OSError | None:
    """Flushes both streams. Returns why stdout lost something, unless its reader closed it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, SafeStream):
            stream.finish()
    failure = sys.stdout.failure if isinstance(sys.stdout, SafeStream) else None
    return failure if failure and failure.errno != errno.EPIPE else None
