"""Record keeping never ends a run: metrics.jsonl, the curve, the trackers, the progress bar, what is printed."""

import io
import json
import math
import os
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from jaxgpt.config import LogConfig
from jaxgpt.errors import InputError
from jaxgpt.run import console as consoles
from jaxgpt.run import curve, metrics, sinks
from jaxgpt.run.bar import Progress, clock
from jaxgpt.run.console import PlainConsole, working
from jaxgpt.run.metrics import MetricsFile, read_metrics
from jaxgpt.run.progress import Progress as Bars
from jaxgpt.run.sinks import Sinks, check_trackers
from jaxgpt.streams import SafeStream, one_line, visible
from parity_tests.helpers.environment import REPO

RECORD = {"train_loss": 2.0, "lr": 1e-3, "tokens_per_s": 1.2345e6, "mfu": 0.451, "n_skipped": 0}


def record(step, **more):
    return {"step": step, **RECORD, **more}


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.fixture
def warned(monkeypatch):
    """Warnings of the console, in a list."""
    found = []
    monkeypatch.setattr(consoles.console, "warn", found.append)
    return found


# metrics.jsonl


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_every_line_is_strict_json_and_reads_back_as_it_was(tmp_path, odd):
    """Faults: F24."""
    file = MetricsFile(tmp_path / "m", 0, print)
    file.write(record(1, grad_norm=odd))
    file.close()
    text = (tmp_path / "m").read_text()
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert strict["grad_norm"] is None and list(strict["non_finite"]) == ["grad_norm"]
    (read,) = read_metrics(tmp_path / "m")
    assert str(read) == str(record(1, grad_norm=odd))


def test_lines_of_older_versions_are_read(tmp_path):
    (tmp_path / "m").write_text('{"step": 1, "train_loss": NaN}\n')
    assert math.isnan(read_metrics(tmp_path / "m")[0]["train_loss"])


BAD = [b"", b"3", b"null", b'{"stdp": 3}', b'{"step": "3"}', b'{"step": 3, "tr', b"\xf3", b"[" * 100_000, b"9" * 5000,
       b'{"step": 3, "non_finite": {"a": []}}']  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_damaged_line_costs_no_other(tmp_path, bad):
    """Faults: F7, C89."""
    path, warned = tmp_path / "metrics.jsonl", []
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + bad + b'\n{"step": 4}\n{"step": 9}')
    file = MetricsFile(path, 4, warned.append)
    file.write(record(5))
    file.close()
    assert steps(path) == [1, 2, 4, 5]
    assert len(warned) == 1 and "line 3 damaged" in warned[0]
    assert (tmp_path / "metrics.jsonl.bad").read_bytes() == bad + b"\n"
    path.write_bytes(bad)
    assert read_metrics(path, warned.append) == [] and ("line 1 damaged" in warned[-1]) == bool(bad)


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "device"])
def test_what_is_no_file_is_renamed_and_not_written(tmp_path, kind):
    """Faults: F7, F17."""
    path, target, warned = tmp_path / "metrics.jsonl", tmp_path / "target", []
    target.write_text("mine")

    def put():
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(target)
        else:
            path.symlink_to("/dev/zero")

    put()
    file = MetricsFile(path, 0, warned.append)
    file.write(record(1))
    path.unlink()
    put()
    file.write(record(2))
    file.close()
    assert path.is_file() and not path.is_symlink() and target.read_text() == "mine"
    assert steps(path) == [1, 2]
    assert (tmp_path / "metrics.jsonl.bad1").lstat().st_mode != path.stat().st_mode
    path.unlink()
    put()
    if kind != "link":
        with pytest.raises(OSError, match=r"not a regular file|directory"):
            read_metrics(path)


def test_a_full_disk_is_reported_once_and_what_was_missed_is_written_later(tmp_path, monkeypatch):
    """A part of a line is taken back. Faults: F4, C88."""
    path, warned, write = tmp_path / "m", [], os.write
    file = MetricsFile(path, 0, warned.append)
    file.write(record(1))

    def fail(fd, line):
        write(fd, line[:5])
        monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        return 5

    monkeypatch.setattr(os, "write", fail)
    file.write(record(2))
    file.write(record(3))
    assert steps(path) == [1] and path.read_bytes().endswith(b"}\n")
    assert len(warned) == 1 and "No space left" in warned[0]
    monkeypatch.setattr(os, "write", write)
    file.write(record(4))
    file.close()
    assert steps(path) == [1, 2, 3, 4] and warned[1:] == [f"{path} can be written again"]


def test_memory_for_missed_records_is_bounded(tmp_path, monkeypatch):
    """Faults: C88."""
    monkeypatch.setattr(metrics, "MAX_WAITING", 3)
    warned = []
    file = MetricsFile(tmp_path / "gone" / "m", 0, warned.append)
    for step in range(1, 6):
        file.write(record(step))
    (tmp_path / "gone").mkdir()
    file.write(record(6))
    assert steps(tmp_path / "gone" / "m") == [4, 5, 6] and warned[1].endswith("3 records are lost")
    file.close()


def test_a_deleted_file_is_written_again(tmp_path):
    """Faults: F6, C89."""
    path, warned = tmp_path / "m", []
    file = MetricsFile(path, 0, warned.append)
    for step in (1, 2, 3):
        file.write(record(step))
        path.unlink()
    file.write(record(4))
    file.close()
    assert steps(path) == [1, 2, 3, 4] and len(warned) == 3


# the curve


@pytest.mark.parametrize(
    "losses",
    [[math.nan], [math.inf, 2.0], [2.0, -math.inf], ["x", None, 2.0], []],
    ids=["nan", "inf", "-inf", "odd values", "none"],
)
def test_the_curve_leaves_out_what_is_not_finite(tmp_path, losses, capsys):
    """Faults: F8."""
    records = [{"step": i, "train_loss": loss, "val_loss": loss} for i, loss in enumerate(losses)]
    fault = curve.draw_losses([*records, {"step": 9}], tmp_path / "loss.png")
    has_any = any(isinstance(loss, float) and math.isfinite(loss) for loss in losses)
    assert (fault == "") == has_any == (tmp_path / "loss.png").exists()
    assert "\x1b" not in capsys.readouterr().out


def test_a_plotting_library_that_fails_is_one_line(tmp_path, monkeypatch):
    """Faults: F8."""
    monkeypatch.setitem(sys.modules, "plotext", None)
    monkeypatch.setattr(curve, "import_pyplot", lambda: 1 / 0)
    fault = curve.draw_losses([{"step": 1, "train_loss": 2.0}], tmp_path / "loss.png")
    assert "loss.png was not drawn: ZeroDivisionError" in fault and "the plot was not drawn" in fault


def test_a_notebooks_backend_is_not_read(tmp_path):
    """Faults: C88."""
    env = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONPATH": str(REPO)}
    code = f"from jaxgpt.run.curve import *; draw_png([(1, 2.0)], [], Path({str(tmp_path / 'x.png')!r}))"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


# trackers


def fake_package(monkeypatch, name, **content):
    module = types.ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class FakeRun:
    """Like a run of Weights & Biases; with `fails`, its calls raise."""

    def __init__(self, calls, fails=()):
        self.calls, self.fails = calls, fails

    def init(self, **settings):
        self._do("init", settings)
        return self

    def log(self, record, step):
        self._do("log", step)

    def finish(self):
        self._do("finish", None)

    def _do(self, what, value):
        self.calls.append((what, value))
        if what in self.fails:
            raise OSError(f"{what} failed [/x]\nsecond line")


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_resumed_run_continues_in_the_same_run_of_the_tracker(tmp_path, monkeypatch, package):
    """Faults: C88."""
    calls = []
    run = FakeRun(calls)
    fake_package(monkeypatch, package, init=run.init, log=run.log, finish=run.finish)
    for first_step in (0, 3, 0):
        tracker = Sinks(tmp_path, {}, replace(LogConfig(), **{f"{package}_project": "p"}), first_step)
        tracker.write(record(first_step + 1, val_loss=math.nan))
        tracker.close()
    key = "id" if package == "wandb" else "name"
    first, resumed, other = [settings[key] for what, settings in calls if what == "init"]
    assert first == resumed != other and all(s["resume"] == "allow" for what, s in calls if what == "init")
    assert [step for what, step in calls if what == "log"] == [1, 4, 1]


@pytest.mark.parametrize("content", [None, "3", "[" * 9, '{"id": 7}', '{"id": "../x"}'])
def test_an_id_that_cannot_be_read_is_a_new_run_and_said(tmp_path, content, warned):
    if content is not None:
        (tmp_path / "trackers.json").write_text(content)
    assert sinks.choose_id(tmp_path / "trackers.json", 3).isalnum() and len(warned) == 1


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_reported_once(tmp_path, monkeypatch, fails, warned):
    """Faults: C88."""
    run = FakeRun([], fails)
    fake_package(monkeypatch, "wandb", init=run.init)
    tracker = Sinks(tmp_path, {}, LogConfig(wandb_project="p"), 0)
    for step in (1, 2):
        tracker.write(record(step))
    tracker.close()
    assert len(warned) == 1 and warned[0].startswith("Weights & Biases failed and is switched off: OSError")


def test_what_a_tracker_lacks_is_said_before_any_work(monkeypatch):
    """Faults: C88."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match=r"log.trackio_project=p needs trackio.*pip install"):
        check_trackers(LogConfig(trackio_project="p"))
    asked = []
    settings = types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))

    def login(**how):
        asked.append(how)
        return has_key

    fake_package(monkeypatch, "wandb", login=login, setup=lambda: settings)
    for has_key in (False, True):
        if has_key:
            check_trackers(LogConfig(wandb_project="p"))
        else:
            with pytest.raises(InputError, match=r"log.wandb_project=p needs a login.*WANDB_API_KEY"):
                check_trackers(LogConfig(wandb_project="p"))
    assert asked == [{"prompt": False, "verify": False}] * 2
    monkeypatch.setenv("WANDB_MODE", "offline")
    has_key = False
    check_trackers(LogConfig(wandb_project="p"))


def test_tensorboard_drops_what_a_resumed_run_logs_again(tmp_path):
    """A disk that is full cannot block it: events are written by the training thread. Faults: C88."""
    Event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    found = []
    before = threading.active_count()
    for first_step in (0, 2):
        tracker = Sinks(tmp_path, {}, LogConfig(tensorboard=True), first_step)
        for step in range(first_step + 1, first_step + 4):
            tracker.write(record(step))
        assert threading.active_count() == before
        tracker.close()
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    starts = [event.step for event in found if event.HasField("session_log")]
    losses = [e.step for e in found if e.HasField("summary") and e.summary.value[0].tag == "train_loss"]
    assert starts == [1, 3] and losses == [1, 2, 3, 3, 4, 5]


def test_the_real_wandb_continues_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for first_step in (0, 3):
        tracker = Sinks(tmp_path, {}, LogConfig(wandb_project="p"), first_step)
        tracker.write(record(first_step + 1))
        tracker.close()
    assert len({path.name.split("-")[3] for path in (tmp_path / "wandb").glob("offline-run-*")}) == 1


# the bar, and signs of life


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_bar_has_step_elapsed_time_and_eta_in_any_terminal(monkeypatch, width):
    """With MFU and 600,000 steps."""
    screen = io.StringIO()
    monkeypatch.setattr("jaxgpt.run.bar.console", PlainConsole(file=screen, force_terminal=True, width=width))
    progress = Progress(600_000, 123_000)
    with progress:
        progress._began_s -= 37_230
        progress.advance(123_456, metrics.describe_parts(record(123_456, val_loss=2.5, val_bits_per_byte=1.25)))
        line = progress.line(width - 1)
    assert len(line) < width
    for part in ("123456/600000", "10:20:30", "ETA 450d"):
        assert part in line
    for part in ("loss 2.0000", "MFU 45.1%"):
        assert part in line or width < 80
    assert line in screen.getvalue() and "…" not in screen.getvalue()


def test_clock():
    assert [clock(s) for s in (None, 0, 59.6, 3_723, 172_799, 360_000)] == [
        "-:--:--", "0:00:00", "0:01:00", "1:02:03", "47:59:59", "4d 04:00",
    ]  # fmt: skip


def test_silent_work_says_that_it_goes_on(monkeypatch, capsys):
    """Only the innermost; and on stderr, because stdout may be a result."""
    monkeypatch.setattr(consoles, "PULSE_S", 0.05)
    with working("outer"), working("inner [x]\x1b"):
        time.sleep(0.3)
    shown, errors = capsys.readouterr()
    assert not shown and errors.count("inner [x]\\x1b: 0 s") >= 2 and "outer" not in errors


def test_long_work_of_the_other_verbs_says_so_too(monkeypatch, capsys):
    monkeypatch.setattr(Bars, "LINE_EVERY_S", 0.05)
    with Bars() as bars:
        bars.bar("hash[b]ing\x1b")(1, 2, "1 of 2 MB")
        time.sleep(0.2)
    assert capsys.readouterr().err.startswith("hash[b]ing\\x1b: 1 of 2 MB (0 s)")


# what is printed


def test_text_from_outside_is_printed_as_it_is(monkeypatch):
    """No markup, no escapes, no emoji. Faults: F18, C109."""
    screen = io.StringIO()
    plain = PlainConsole(file=screen, force_terminal=True, width=60, color_system=None)
    plain.say("runs/a[/b][bold]x :smile: \x1b[2J\n\u202e" + "y" * 80)
    plain.print("two\nlines\x07\x9b")
    assert screen.getvalue() == "runs/a[/b][bold]x :smile: \\x1b[2J\\n\\u202e" + "y" * 80 + "\ntwo\nlines\\x07\\x9b\n"
    monkeypatch.setattr(consoles, "console", plain)
    consoles.print_facts("t[/b]", {"data": "[red]d\x1b"})
    assert "t[/b]" in screen.getvalue() and "[red]d\\x1b" in screen.getvalue()
    assert visible("é\n\t\x00") == "é\n\t\\x00" and one_line("a\nb") == "a\\nb"


def test_every_console_is_plain():
    """Faults: F18."""
    for root in ("jaxgpt", "torch_ref"):
        for path in (REPO / root).rglob("*.py"):
            assert path.name == "console.py" or "Console(" not in path.read_text().replace("PlainConsole(", ""), path
    assert isinstance(consoles.console, Console)


@pytest.mark.parametrize(
    ("prints", "where", "code"),
    [
        ("log", "closed", 3), ("log", "full", 3), ("log", "none", 3), ("log", "ascii", 3),
        ("result", "closed", 0), ("result", "full", 1), ("result", "none", 0), ("result", "ascii", 0),
        ("stream", "closed", 0), ("stream", "full", 1), ("stream", "ascii", 0),
    ],
)  # fmt: skip
def test_a_stdout_that_cannot_be_written_does_not_end_the_work(tmp_path, prints, where, code):
    """The exit code says what the work did. Faults: F5, C90."""
    program = f"""
import contextlib, os
from jaxgpt.errors import run_verb

def main(args):
    with open({str(tmp_path / "done")!r}, "w") as file, contextlib.suppress(OSError):
        os.write(1, b"a library prints")  # not into a file that took the number of a closed stdout
    for i in range(3):
        print("line \\u2501 \\x1b", i, flush=i < 2)
    os.rename(file.name, file.name + "!")
    return {3 if prints == "log" else 0}

run_verb(main, prints={prints!r})
"""
    env = os.environ | {"PYTHONPATH": str(REPO)} | ({"PYTHONIOENCODING": "ascii"} if where == "ascii" else {})
    read, write = os.pipe()
    os.close(read)
    stdout = {"closed": write, "full": os.open("/dev/full", os.O_WRONLY)}.get(where, subprocess.PIPE)
    command = [sys.executable, "-c", program]
    if where == "none":
        command = ["sh", "-c", 'exec "$0" "$@" <&- >&-', *command]
    done = subprocess.run(command, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "done!").exists() == (prints != "stream" or where == "ascii")
    assert all(path.stat().st_size == 0 for path in tmp_path.iterdir())
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.stderr.count("stdout cannot be written") == {
        ("log", "closed"): 1, ("log", "full"): 1, ("result", "closed"): 1, ("result", "full"): 2, ("stream", "full"): 1,
    }.get((prints, where), 0)  # fmt: skip


def test_a_log_on_a_full_disk_continues_when_there_is_room(capsys):
    """Faults: F5."""

    class Disk(io.StringIO):
        is_full = True

        def write(self, text):
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    stream = SafeStream(disk, "stdout")
    stream.write("a")
    disk.is_full = False
    stream.write("b")
    assert disk.getvalue() == "b" and "No space left" in capsys.readouterr().err
    assert Path(os.devnull).exists()
