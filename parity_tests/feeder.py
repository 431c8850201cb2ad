"""Host time of a step while text is tokenized, beside the same step on shards.

    python -m parity_tests.feeder --text data/pydocs_text --shards data/pydocs

The state is GPT-2 124M's, 12 layers and all its arrays, but narrow, and the program adds 1 to each of them, so that the
device is quick; its computing is a sleep of --device-ms, during which the tokenizers work. Ways to feed take turns in
one process. `batch` is the wait for the next batch, `dispatch` the schedules and the call; host time is both. `ready`
is the share of steps whose batch did not have to be waited for. `text, 5 ms` has Python's own switch interval.

A busy machine makes all of them longer. `blocked` is what of dispatch its thread neither ran nor waited for a core, by
Linux' schedstat: it waited for Python's lock, or for XLA's threads, as it does on shards too.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any, Literal

import jax

from jaxgpt.config import Config, DataConfig, GPT2Config, MeshConfig, TrainConfig
from jaxgpt.config.derive import derive
from jaxgpt.config.steps import Plan
from jaxgpt.data.prefetch import SWITCH_S, prefetch
from jaxgpt.data.sources import open_source
from jaxgpt.parallel.devices import open_devices
from jaxgpt.training.feed import make_feed
from jaxgpt.training.step import Step, make_step

SEQ_LEN, N_ROWS = 1024, 8
READY_S = 1e-3
USUAL_S = 5e-3
"""Python's own switch interval, in place of `prefetch`'s."""
SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Linux: nanoseconds that a thread ran, and that it waited for a core."""


def narrow_config(directory: Path, n_ids: int, threads: int, sampling: Literal["random", "best_fit"]) -> Config:
    """GPT-2 124M with 24 channels, on the data of a directory."""
    config = Config(
        data=DataConfig(dir=str(directory), sampling=sampling, tokenizer_threads=threads),
        model=GPT2Config(vocab_size=n_ids, seq_len=SEQ_LEN, n_layer=12, n_head=12, n_embd=24),
        train=TrainConfig(steps=10**6, batch_tokens=N_ROWS * SEQ_LEN, micro_batch_size=N_ROWS, dtype="float32"),
        mesh=MeshConfig(data=1, platform="cpu"),
    )
    return derive(config).config


def read_scheduled_s() -> float:
    """Seconds that this thread ran or waited for a core."""
    return sum(map(int, SCHEDSTAT.read_text(encoding="ascii").split()[:2])) / 1e9


class Fed:
    """One way to feed the step: times of each step, and the batches made ahead."""

    def __init__(self, config: Config, step: Step, program: Any, state: Any):
        self.step, self.program, self.state = step, program, state
        self.reader = open_source(config.data).reader(config)
        feed = make_feed(Plan(config, 1), self.reader, step.mesh, is_endless=True)
        self.feed: Generator[Any, None, None] = prefetch(feed)
        self.batch_s: list[float] = []
        self.dispatch_s: list[float] = []
        self.blocked_s: list[float] = []

    def run(self, n_steps: int, device_s: float) -> None:
        """Steps as in training: batch, schedules, dispatch, then the wait for the device."""
        for _ in range(n_steps):
            begin = time.perf_counter()
            planned, batch, _ = next(self.feed)
            middle, scheduled_s = time.perf_counter(), read_scheduled_s()
            self.state = self.program(self.state, batch.tokens, self.step.hyper(planned.hyper))
            self.dispatch_s.append(time.perf_counter() - middle)
            self.batch_s.append(middle - begin)
            self.blocked_s.append(self.dispatch_s[-1] - (read_scheduled_s() - scheduled_s))
            time.sleep(device_s)

    def close(self) -> None:
        self.feed.close()
        self.reader.close()

    def figures(self) -> dict[str, float]:
        """Milliseconds, and the share of steps whose batch was ready."""
        host_s = [a + b for a, b in zip(self.batch_s, self.dispatch_s, strict=True)]
        found = {"ready": sum(s < READY_S for s in self.batch_s) / len(self.batch_s)}
        for name, seconds in (
            ("batch", self.batch_s),
            ("dispatch", self.dispatch_s),
            ("blocked", self.blocked_s),
            ("host", host_s),
        ):
            found[f"{name}_ms"], found[f"{name}_mean_ms"] = 1e3 * median(seconds), 1e3 * mean(seconds)
            found[f"{name}_p10_ms"], *_, found[f"{name}_p90_ms"] = (1e3 * s for s in quantiles(seconds, n=10))
        return found


@contextlib.contextmanager
def switch_interval(seconds: float) -> Iterator[None]:
    """How long a thread may hold Python's lock while another waits for it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="text shards, with their tokenizer")
    parser.add_argument("--shards", type=Path, required=True, help="token shards")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--device-ms", type=float, default=20.0, help="that the device would compute")
    parser.add_argument("--threads", type=int, default=4, help="that tokenize")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    text = DataConfig(dir=str(given.text), sampling="best_fit")
    n_ids = max(open_source(data).n_ids for data in (text, DataConfig(dir=str(given.shards))))
    on_shards = narrow_config(given.shards, n_ids, given.threads, "random")
    on_text = narrow_config(given.text, n_ids, given.threads, "best_fit")
    step = make_step(on_shards, open_devices(on_shards))
    n_arrays = len(jax.tree.leaves(step.state_shapes))
    program = jax.jit(lambda state, tokens, hyper: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)

    def fresh() -> Any:
        return jax.tree.map(lambda leaf: jax.device_put(jax.numpy.zeros(leaf.shape, leaf.dtype)), step.state_shapes)

    ways = {}
    for name, config in (("shards", on_shards), ("text", on_text), ("text, 5 ms", on_text)):
        ways[name] = Fed(config, step, program, fresh())
        ways[name].run(5, 0.0)
        for seconds in (ways[name].batch_s, ways[name].dispatch_s, ways[name].blocked_s):
            seconds.clear()
    for _ in range(given.rounds):
        for name, fed in ways.items():
            with switch_interval(USUAL_S if "5 ms" in name else SWITCH_S):
                fed.run(given.steps, given.device_ms / 1e3)
    figures = {name: fed.figures() for name, fed in ways.items()}
    for fed in ways.values():
        fed.close()
    print(f"{n_arrays} arrays, {N_ROWS} x {SEQ_LEN} tokens, load {os.getloadavg()[0]:.1f}")
    columns = (
        "host_ms",
        "host_p10_ms",
        "dispatch_ms",
        "dispatch_p10_ms",
        "blocked_ms",
        "blocked_p90_ms",
        "blocked_mean_ms",
        "ready",
    )
    print(f"{'':14}" + "".join(f"{name:>17}" for name in columns))
    for name, found in figures.items():
        print(f"{name:14}" + "".join(f"{found[column]:17.2f}" for column in columns))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
