"""`jaxgpt bench scaling`: planted exponents are found, one axis at a time is changed, the step is the real one."""

import json
import subprocess
import sys

import pytest

from jaxgpt.bench import __main__ as bench
from jaxgpt.bench import axes as axes_lib
from jaxgpt.bench import scaling
from jaxgpt.bench.axes import AXES, BASE, point_config
from jaxgpt.bench.exponents import draw_axes, exponent_rows, fit_exponent, point_rows
from jaxgpt.bench.record import write_page
from jaxgpt.config.steps import Plan
from jaxgpt.config.storage import flatten, to_dict
from jaxgpt.errors import InputError
from parity_tests.helpers.clock import Clock
from parity_tests.helpers.environment import REPO, environment

PLANTED = {"T": 1.7, "depth": 0.5}
OVERHEAD_S = 0.05


class CpuClock(Clock):
    """A clock whose CPU time passes half as fast. In a slow round a step takes `slowdown` times as long."""

    def __init__(self):
        super().__init__()
        self.slowdown = 1.0

    def process_time(self):
        return self.now_s / 2


class Planted:
    """A step whose time is known; below the upper half of its axis it is all overhead."""

    def __init__(self, clock, axis, value):
        self.about, self.clock, self.n_done = {}, clock, 0
        values = AXES[axis]
        is_small = value < values[(len(values) - 1) // 2]
        self.step_s = OVERHEAD_S if is_small else 1e-3 * value ** PLANTED[axis]

    def dispatch(self):
        self.n_done += 1
        self.clock.sleep(self.step_s * self.clock.slowdown)

    def settle(self, pending):
        pass

    def peak_bytes(self):
        return 0

    def trace(self, directory, n_steps):
        return []


def time_planted(monkeypatch, n_rounds=3):
    clock, prepared = CpuClock(), []
    for module in ("interleave", "scaling"):
        monkeypatch.setattr(f"jaxgpt.bench.{module}.time", clock)

    def prepare(axis, value):
        prepared.append((axis, value))
        known = {"flops": value**1.5, "temporary_bytes": 7 * value**2, "counted_bytes": value, "compile_cpu_s": 3.0}
        return Planted(clock, axis, value), known

    def slow_down(text):
        clock.slowdown = 10.0 if text.startswith("round 2") else 1.0

    points = [(axis, value) for axis in PLANTED for value in AXES[axis]]
    return scaling.time_axes(points, n_rounds, prepare, slow_down), prepared


def test_planted_exponents_are_found(monkeypatch):
    """A round in which the machine is ten times slower changes no exponent, and the lower half is not fitted."""
    axes, prepared = time_planted(monkeypatch)
    for axis, planted in PLANTED.items():
        fit = axes[axis]["exponents"]
        assert fit["step_s"] == pytest.approx(planted) and fit["step_s_range"] == pytest.approx([planted, planted])
        assert fit["flops"] == pytest.approx(1.5) and fit["temporary_bytes"] == pytest.approx(2)
        assert fit["counted_bytes"] == pytest.approx(1) and fit["compile_cpu_s"] == pytest.approx(0)
        assert (fit["from"], fit["to"]) == (AXES[axis][2], AXES[axis][-1])
        figures = axes[axis]["points"][-1]
        assert figures["step_s"] == pytest.approx(1e-3 * AXES[axis][-1] ** planted)
        assert figures["cpu_s"] == pytest.approx(figures["step_s"] / 2)
    assert ("T", BASE["T"]) in prepared and ("depth", BASE["depth"]) not in prepared, "the base point is timed once"


def test_an_exponent_of_nothing_is_left_out(monkeypatch, tmp_path):
    assert fit_exponent([1, 2, 4], [3.0, 3.0, 3.0]) == pytest.approx(0)
    axes, _ = time_planted(monkeypatch, 1)
    for axis in axes.values():
        axis["exponents"]["temporary_bytes"] = None
    rows = exponent_rows(axes)
    assert rows[0] == ["T", "256 to 1024", "1.70 (1.70 to 1.70)", "1.70", "1.50", "", "1.00", "0.00"]
    assert point_rows(axes)[-1][:3] == ["depth", "16", "4.00 ms"]
    draw_axes(axes, tmp_path / "axes.png")
    assert (tmp_path / "axes.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_changes_one_thing(axis):
    """Each point differs from the base in its own settings only, and its batch is what the axis says."""
    own = {
        "T": {"model.seq_len", "train.batch_tokens"},
        "width": {"model.n_embd", "model.n_head", "model.n_kv_head"},
        "depth": {"model.n_layer"},
        "vocabulary": {"model.vocab_size"},
        "microbatches": {"train.batch_tokens"},
        "devices": {"mesh.data", "train.micro_batch_size"},
    }[axis]
    base = flatten(to_dict(point_config("T", BASE["T"])))
    for value in AXES[axis]:
        config = point_config(axis, value)
        found = flatten(to_dict(config))
        assert {name for name in found if found[name] != base[name]} <= own
        at, plan = BASE | {axis: value}, Plan(config, config.mesh.data)
        assert plan.n_micro == (at["microbatches"],) and plan.n_rows == (axes_lib.N_ROWS,)
        assert config.train.batch_tokens == axes_lib.N_ROWS * at["T"] * at["microbatches"]
        assert config.model.head_dim == axes_lib.HEAD_DIM and config.mesh.data == at["devices"]


def test_real_steps_accumulate_in_place(monkeypatch):
    """Four microbatches need four times the FLOPs of one, and hardly more memory."""
    monkeypatch.setattr(axes_lib, "BASE", BASE | {"T": 16, "width": 32, "depth": 1, "vocabulary": 64})
    points = [("microbatches", 1), ("microbatches", 4)]
    axes = scaling.time_axes(points, 1, lambda axis, value: scaling.prepare_point(point_config(axis, value)))
    fit, (one, four) = axes["microbatches"]["exponents"], axes["microbatches"]["points"]
    assert fit["flops"] == pytest.approx(1) and fit["counted_bytes"] == pytest.approx(0)
    assert 0 < one["temporary_bytes"] <= four["temporary_bytes"] < 1.2 * one["temporary_bytes"]
    assert one["step_s"] > 0 and four["cpu_s"] > 0 and one["compile_cpu_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--axes=T,heads"], "--axes=heads is no axis; choose from T,width,depth,vocabulary,microbatches,devices"),
        (["--axes=T,T"], "--axes=T,T has T twice; name each axis once"),
        (["--rounds=0"], "--rounds=0 is below 1; 5 is usual"),
        (["--axis=T"], "--axis is no flag of scaling; did you mean --axes?"),
        (["--config=quickstart"], "--config is no flag of scaling"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_refusals(arguments, message):
    with pytest.raises(InputError) as caught:
        bench.main(["scaling", *arguments])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_page_has_tables_picture_and_remark(tmp_path):
    page, picture = tmp_path / "page.md", tmp_path / "any.png"
    picture.write_bytes(b"a picture")
    record = {
        "config": "gpt2", "part": "scaling", "command": "jaxgpt bench scaling", "date": "2026-01-01", "versions": {},
        "machine": {"processor": "p", "cores": "2", "memory": "m", "system": "s", "load before": "0.1"},
        "tables": [["exponents", ["axis", "time"], [["T", "1.70"]]]],
    }  # fmt: skip
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "gpt2-scaling.md").write_text("T grows for a reason.\n")
    write_page(page, record, picture)
    text = page.read_text()
    assert "## gpt2, how a step scales" in text and "| T | 1.70 |" in text and "T grows for a reason." in text
    assert "![gpt2, how a step scales](page/gpt2-scaling.png)" in text
    assert (tmp_path / "page" / "gpt2-scaling.png").read_bytes() == b"a picture"


@pytest.mark.slow
def test_devices_are_simulated_from_the_command_line(tmp_path):
    path = tmp_path / "s.json"
    env = {name: value for name, value in environment().items() if name != "XLA_FLAGS"}
    command = [
        sys.executable,
        "-m",
        "jaxgpt.bench",
        "scaling",
        "--axes",
        "devices",
        "--rounds",
        "1",
        "--json",
        str(path),
    ]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    axis = json.loads(path.read_text())["axes"]["devices"]
    assert [point["value"] for point in axis["points"]] == [1, 2, 4, 8]
    assert axis["exponents"]["temporary_bytes"] < -0.5, "each device has a part of the rows"
