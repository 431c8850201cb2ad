"""Kills of a training between two requests to an object store: python -m parity_tests.store_kills [N] [SEED]

A tiny run is trained at a local S3 server through a proxy that counts requests and kills the process before or after
one of them, drawn at random. The same command then continues, from an empty cache, as on a new machine. What is at the
store in the end must be what an uninterrupted run leaves: losses bit for bit, the same checkpoints, nothing else.
"""

import contextlib
import itertools
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxgpt.run.checkpoints import choose_checkpoint
from jaxgpt.run.metrics import load
from jaxgpt.run.remote import opened_run
from jaxgpt.stores import Store
from parity_tests.helpers.environment import environment
from parity_tests.helpers.object_store import BUCKET, Proxy, content, environment_of, s3_server
from parity_tests.helpers.train_runs import TEXT, command, write_text

N_STEPS = 6
CONFIG = f"""from jaxgpt.config import *

config = Config(
    model=GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=16, bias=False),
    train=TrainConfig(steps={N_STEPS}, batch_tokens=64, micro_batch_size=4, dtype="float32"),
    data=DataConfig(dir={{data!r}}),
    optim=OptimConfig(algorithm="adamw", lr=1e-2),
    eval=EvalConfig(every=2, tokens=128),
    checkpoint=CheckpointConfig(every=2, keep=1),
    log=LogConfig(every=1),
)
"""


class Trials:
    """Runs of one config at one server.

    Attributes:
      n_requests: of an uninterrupted run.
      losses: of its steps.
      names: its objects that are named alike in every run, of the newest checkpoint alone.
    """

    def __init__(self, directory: Path, server: str, proxy: Proxy):
        self.directory, self.server, self.proxy = directory, server, proxy
        self.config = directory / "tiny.py"
        self.config.write_text(CONFIG.format(data=str(write_text(directory, TEXT[:4000]))))
        assert self.train("whole") == 0
        self.n_requests = len(proxy.requests)
        self.losses, self.names = self.read_losses("whole"), self.list_names("whole")
        assert sorted(self.losses) == list(range(1, N_STEPS + 1))

    def location(self, name: str) -> str:
        return f"s3://{BUCKET}/runs/{name}"

    def train(self, name: str, *more: str, kill_at: int = 0, is_after: bool = False) -> int:
        """One process, from an empty cache; its exit code."""
        self.proxy.requests.clear()
        self.proxy.is_after, self.proxy.kill_at = is_after, kill_at
        with tempfile.TemporaryDirectory(dir=self.directory) as cache, environment_of(self.proxy.address, cache):
            process = subprocess.Popen(
                command(self.config, self.location(name), *more), env=environment(), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self.proxy.victim = process.pid
            self.shown = process.communicate(timeout=120)[0]
        return process.returncode

    @contextlib.contextmanager
    def at_server(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(dir=self.directory) as cache, environment_of(self.server, cache):
            yield

    def read_losses(self, name: str) -> dict[int, tuple[float, float | None]]:
        with self.at_server():
            lines = (Store(self.location(name)).read("metrics.jsonl", 2**20) or b"").splitlines()
        found = [load(line) for line in lines]
        return {record["step"]: (record["train_loss"], record.get("val_loss")) for record in found if record}

    def list_names(self, name: str) -> set[str]:
        with self.at_server():
            found = content(self.location(name))
        steps = {match[1] for match in (re.match(r"checkpoints/(\d+)/", object_name) for object_name in found) if match}
        assert all(f"checkpoints/{step}/manifest.json" in found for step in steps), f"leftovers: {sorted(found)}"
        old = tuple(f"checkpoints/{step}/" for step in steps if int(step) < max(map(int, steps)))
        names = {object_name for object_name in found if not object_name.startswith(old)}
        # data files have random names; a run that is killed at its end draws no curve, on a disk neither
        return {object_name for object_name in names if "/d/" not in object_name} - {"loss.png"}

    def has_checkpoint(self, name: str) -> bool:
        """Whether a run has one at the store; one that counts there must be whole."""
        with self.at_server(), opened_run(self.location(name), "run.dir") as (directory, remote):
            return choose_checkpoint(directory / "checkpoints", remote=remote, warn=fail) is not None

    def kill_and_continue(self, name: str, kills: Iterator[tuple[int, bool]], say: Callable[[str], None]) -> None:
        """Trains until the run is done, in processes of which each is killed at its request, while there are kills.

        Raises:
          AssertionError: what is at the store in the end is not what an uninterrupted run leaves.
        """
        code, is_resumed = -9, False
        while code:
            kill_at, is_after = next(kills, (0, False))
            code = self.train(name, *(["--resume"] if is_resumed else []), kill_at=kill_at, is_after=is_after)
            assert code in ((0, -9) if kill_at else (0,)), self.shown
            is_resumed = self.has_checkpoint(name)
            if code:
                when = "after" if is_after else "before"
                say(f"{name}: killed {when} request {kill_at}: {self.proxy.requests[kill_at - 1]}")
        assert self.read_losses(name) == self.losses
        assert self.list_names(name) == self.names
        say(f"{name}: done, equal")


def fail(message: str) -> None:
    raise AssertionError(message)


@contextlib.contextmanager
def open_trials(directory: Path) -> Iterator[Trials]:
    with s3_server() as server:
        proxy = Proxy(server)
        try:
            yield Trials(directory, server, proxy)
        finally:
            proxy.close()


def draw(n: int, seed: int, n_requests: int) -> Iterator[tuple[int, bool]]:
    """Requests at which to kill, and whether after it."""
    random_ = random.Random(seed)
    return ((random_.randrange(1, n_requests), random_.random() < 0.5) for _ in range(n))


def main() -> None:
    n, seed = (int(text) for text in (sys.argv[1:] + ["20", "0"][len(sys.argv) - 1 :]))
    n_killed = 0

    def say(line: str) -> None:
        nonlocal n_killed
        n_killed += "killed" in line
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as directory, open_trials(Path(directory)) as trials:
        say(f"an uninterrupted run of {N_STEPS} steps sends {trials.n_requests} requests")
        for number in itertools.count():  # a run may end before its first kill, so kills give no name
            if n_killed >= n:
                break
            trials.kill_and_continue(f"run-{number}", draw(n - n_killed, seed + number, trials.n_requests), say)


if __name__ == "__main__":
    main()
