"""A process in a terminal of its own, as a person sees it and types into it."""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time

from parity_tests.helpers.environment import REPO, environment

LIMIT_S = 30.0
UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"


class Tty:
    """The process and its terminal.

    Attributes:
      screen: what it printed so far, without colours.
    """

    def __init__(self, *command: str):
        self._main, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=terminal, stdout=terminal, stderr=terminal, cwd=REPO,
            env=environment() | {"TERM": "xterm", "LC_ALL": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip
        os.close(terminal)
        self._bytes, self._n_seen = b"", 0

    @property
    def screen(self) -> str:
        return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", self.colored)

    @property
    def colored(self) -> str:
        """As `screen`, with escape sequences."""
        return self._bytes.decode(errors="replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def wait_for(self, text: str) -> str:
        """What came since the last wait, up to a text."""
        until = time.monotonic() + LIMIT_S
        while (at := self.screen.find(text, self._n_seen)) < 0:
            assert self._read(until), f"{text!r} is not in {self.screen!r}"
        found = self.screen[self._n_seen : at + len(text)]
        self._n_seen = at + len(text)
        return found

    def press_until(self, key: str, text: str) -> None:
        """Presses a key each second until a text comes.

        A Ctrl-C between the moment input() shows its prompt and the moment it waits for keys is seen with the next key.
        """
        until = time.monotonic() + LIMIT_S
        while self.screen.find(text, self._n_seen) < 0:
            self.type(key)
            while select.select([self._main], [], [], 1.0)[0] and self._read(until):
                pass
            assert time.monotonic() < until, f"{text!r} is not in {self.screen!r}"
        self.wait_for(text)

    def close(self) -> int:
        """Its exit code, once it has ended."""
        until = time.monotonic() + LIMIT_S
        while self._read(until):
            pass
        os.close(self._main)
        return self.process.wait(LIMIT_S)

    def _read(self, until: float) -> bool:
        assert select.select([self._main], [], [], max(until - time.monotonic(), 0))[0], self.screen
        with contextlib.suppress(OSError):  # Linux: the other side is closed
            got = os.read(self._main, 65536)
            self._bytes += got
            return bool(got)
        return False
