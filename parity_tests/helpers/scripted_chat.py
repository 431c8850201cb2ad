"""A terminal chat whose model is a script: what it answers, and how fast, is in the question. Computes nothing.

    say TEXT      TEXT
    slow N        N numbers, STEP_S each
    red TEXT      TEXT behind an escape sequence
    sum A*B       a call of the calculator, and its result
As a program it makes the terminal that is its stdin its own, so that Ctrl-C reaches it, and talks.
"""

import collections
import fcntl
import termios
import time

from jaxgpt.chat.talk import Sampling, Talk
from jaxgpt.chat.terminal import Terminal
from jaxgpt.errors import EXIT_DONE, run_verb
from jaxgpt.inference.request import Request
from jaxgpt.inference.row import Token
from parity_tests.helpers.chat_data import BYTES

STEP_S = 0.02
N_POSITIONS = 120


class ScriptedRow:
    """One row, called like `Rows`.

    Attributes:
      requests: all that were started.
    """

    def __init__(self):
        self.requests: list[Request] = []
        self._left: collections.deque[int] = collections.deque()
        self._n_left = 0

    def start(self, row: int, request: Request) -> None:
        assert row == 0 and len(request.prompt_ids) <= N_POSITIONS
        self.requests.append(request)
        self._tool = request.tool() if request.tool else None
        self._n_left = min(request.max_tokens, N_POSITIONS - len(request.prompt_ids) + 1)
        asked = BYTES.decode(request.prompt_ids).rpartition("<|user_start|>")[2].partition("<|user_end|>")[0]
        verb, _, rest = asked.rpartition("\n\n")[2].partition(" ")  # behind a system text
        self._is_slow = verb == "slow"
        ids = BYTES.encode("".join(f"{i} " for i in range(int(rest))) if self._is_slow else rest)
        if verb == "red":
            ids = [*b"\x1b[31m", *ids]
        if verb == "sum":
            marks = [BYTES.special_id(f"<|python_{end}|>") for end in ("start", "end")]
            ids = [marks[0], *ids, marks[1]]
        self._left = collections.deque([*ids, BYTES.special_id("<|assistant_end|>")])

    def step(self) -> list[Token | None]:
        time.sleep(STEP_S * self._is_slow)
        token_id = self._left.popleft()
        self._n_left -= 1
        has_stopped = token_id in self.requests[-1].stop_ids
        if self._tool:
            self._left.extendleft(reversed(self._tool.feed(token_id)))
        return [Token(token_id, end="stop" if has_stopped else "" if self._n_left else "length")]

    def stop(self, row: int) -> None:
        self._left.clear()

    def settle(self) -> bool:
        return False


def make_talk() -> tuple[Talk, ScriptedRow]:
    row = ScriptedRow()
    sampling = Sampling(max_tokens=60, temperature=0, top_k=0, top_p=1.0, seed=0)
    return Talk(row, BYTES, sampling, n_positions=N_POSITIONS, converses=True), row


def main(args: list[str]) -> int:
    if args == ["tty"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    Terminal(make_talk()[0]).run()
    return EXIT_DONE


if __name__ == "__main__":
    run_verb(main, prints="stream")
