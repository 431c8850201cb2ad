"""What a run says of its own course: loss spikes, slow steps, late data, and steps that hang."""

import itertools
import threading
import time
from types import ModuleType

import numpy as np

from jaxgpt.run import pace as paces
from jaxgpt.run.pace import Pace
from jaxgpt.run.spikes import Spikes
from parity_tests.helpers.clock import Clock


def test_spikes_are_found_once_and_noise_is_none():
    """Faults: C79."""
    rng = np.random.default_rng(0)
    losses = 3 * np.exp(-np.arange(3000) / 1000) + 1 + 0.05 * rng.standard_normal(3000)
    assert not any(spikes_in(losses))
    losses[1000:1010] += 2
    losses[2000:] += 1  # stays
    assert list(itertools.compress(range(3000), spikes_in(losses))) == [1000, 2000]
    assert not any(spikes_in(losses, window=0))


def spikes_in(losses, window=128):
    spikes = Spikes(window, 8.0)
    return [spikes.check(loss) is not None for loss in losses]


def test_a_loss_that_is_not_finite_is_no_spike_and_spoils_no_median():
    assert spikes_in([1.0] * 40 + [float("nan"), float("inf")] * 20 + [1.0] * 40 + [9.0])[-2:] == [False, True]


def walk(pace, times_s, waits_s=None, clock: ModuleType | Clock = time):
    """Steps of these times, after waits for data."""

    def feed():
        for wait_s in waits_s or [0.0] * len(times_s):
            clock.sleep(wait_s)
            yield wait_s

    for _, step_s in zip(pace.watch(feed()), times_s, strict=True):
        clock.sleep(step_s)


def test_a_slow_step_is_told_and_one_with_an_evaluation_is_not(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(paces, "time", clock)
    said = []
    pace = Pace(0, tmp_path / "stacks.txt", said.append)
    walk(pace, [0.02] * 15 + [2] + [0.02] * 3, clock=clock)
    assert said == ["step 16 took 2.0 s; the median is 0.02 s"]
    said.clear()
    pace = Pace(0, tmp_path / "stacks.txt", said.append)
    for i, _ in enumerate(pace.watch(iter_of(20))):
        if i == 15:
            pace.skip()
            clock.sleep(2)
    assert said == [] and list(tmp_path.iterdir()) == []


def iter_of(n):
    yield from range(1, n + 1)


def test_waiting_for_data_is_told(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(paces, "time", clock)
    monkeypatch.setattr(paces, "WINDOW", 20)
    said = []
    walk(Pace(0, tmp_path / "stacks.txt", said.append), [0.1] * 45, [0.2] * 45, clock)
    assert len(said) == 1 and said[0].startswith("67% of the last 20 steps' time was spent waiting for data")


def test_a_step_that_hangs_leaves_the_stacks_of_all_threads(tmp_path):
    """Faults: C85."""
    said = []
    path = tmp_path / "stacks.txt"
    walk(Pace(0.3, path, said.append), [0.0, 0.0, 0.9, 0.0])
    assert said == [f"step 3 takes longer than train.watchdog_s=0.3; what each thread is doing is in {path}"]
    assert "in walk\n" in path.read_text()
    walk(Pace(0.3, path, said.append), [0.1] * 6)
    assert len(said) == 1 and not path.exists()


def test_a_directory_in_place_of_the_stacks_costs_the_watchdog_alone(tmp_path, monkeypatch):
    """Faults: C88."""
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    (tmp_path / "stacks.txt").mkdir()
    walk(Pace(60.0, tmp_path / "stacks.txt", raised.append), [0.0] * 3)
    assert raised == [] and (tmp_path / "stacks.txt").is_dir()
