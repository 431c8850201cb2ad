"""The pipelines in scripts/: one that is stopped in the middle of a stage continues there, and what is missing is said.

The base run is trained by jaxgpt itself, a smaller one; other commands a stand-in only writes down.
`python -m parity_tests.pipelines` runs all scripts and all stages as they are.
"""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from parity_tests.helpers.environment import REPO, environment
from parity_tests.helpers.train_runs import records, wait_for_step

SCRIPTS = ("chat_cpu", "single_a100", "speedrun_8xh100", "speedrun_rtx4090")
JAXGPT = f"""#!/bin/sh
echo "$*" >> calls
[ "$1" = train ] || exit ${{FAKE_CODE:-0}}
shift
set -- --config quickstart --smoke --run.dir=runs/smoke/rtx4090_d20 --auto-resume
exec {sys.executable} -c "
import runpy, sys, time
from jaxgpt.run.meter import Meter
push = Meter.push
def slow(*args):
    time.sleep(float('${{SLOW_S:-0}}'))
    return push(*args)
Meter.push = slow
sys.argv[1:] = '$*'.split()
runpy.run_module('jaxgpt.train', run_name='__main__', alter_sys=True)
"
"""


@pytest.fixture
def here(tmp_path):
    """A directory to start scripts in, with a stand-in for jaxgpt."""
    (tmp_path / "jaxgpt").write_text(JAXGPT)
    (tmp_path / "jaxgpt").chmod(0o755)
    return tmp_path


def start(here, script, **variables):
    given = {"JAXGPT": str(here / "jaxgpt"), "PYTHON": sys.executable, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(
        ["bash", str(REPO / "scripts" / f"{script}.sh")], cwd=here, env=environment() | given | variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def end(process, code=0):
    shown = process.communicate(timeout=120)[0]
    assert process.returncode == code, shown
    return [line[21:] for line in shown.splitlines() if line[:2] == "20" and line[19:21] == "  "], shown


def test_a_pipeline_that_is_stopped_continues_where_it_was(here):
    """SIGTERM to the script alone, as `kill` and `docker stop` send it, while the base run trains."""
    first = start(here, "speedrun_rtx4090", SMOKE="1", SLOW_S="0.5")
    run = here / "runs" / "smoke" / "rtx4090_d20"
    wait_for_step(first, run, 1)
    first.send_signal(signal.SIGTERM)
    lines, shown = end(first, 75)
    assert lines[-1] == "base: stopped; run the same command to continue" and "checkpoint saved" in shown
    stopped_at = records(run)[-1]["step"]
    assert stopped_at < 6

    lines, shown = end(start(here, "speedrun_rtx4090", SMOKE="1"))
    assert f"resuming from step {stopped_at}" in shown and records(run)[-1]["step"] == 6
    ends = [line for line in lines if ": done" in line]
    assert [line.partition(":")[0] for line in ends] == [
        "data", "tokenizer", "base", "mid", "sft", "evaluation", "report",
    ]  # fmt: skip
    assert ends[0] == "data: done before" and ends[2].startswith("base: done in 0 h 0 min ")
    assert f"step 6, train_loss {records(run)[-1]['train_loss']:.6g}" in ends[2]
    log = (here / "pipelines" / "speedrun_rtx4090" / "log.txt").read_text()
    assert shown in log and log.count("base: done in") == 1

    called = (here / "calls").read_text().splitlines()
    (here / "calls").unlink()
    verbs = [call.split()[0] for call in called]
    assert verbs == [
        "prepare", "prepare", "train_tokenizer", "train", "train", "sft", "sft", "evaluate", "evaluate", "report",
    ]  # fmt: skip
    assert "sft --config rtx4090_d20_sft --from=runs/smoke/rtx4090_d20_mid --smoke" in called[6]
    end(start(here, "speedrun_rtx4090", SMOKE="1"))
    assert not (here / "calls").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_missing_is_said_first(here, script):
    """A disk of no size, a file that is not there, a login; and then nothing has been started."""
    (here / "bin").mkdir()
    fake_df = here / "bin" / "df"
    fake_df.write_text("#!/bin/sh\necho head\necho x 1 1 2097152 1 /\n")
    fake_df.chmod(0o755)
    path = {"PATH": f"{here}/bin:{os.environ['PATH']}"}
    assert "has 2 GB free, the pipeline needs " in end(start(here, script, **path), 2)[1]
    fake_df.unlink()
    shown = end(start(here, script, SMOKE="1", CONVERSATIONS="nothing.jsonl"), 2)[1]
    assert "error: CONVERSATIONS=nothing.jsonl is no file" in shown
    assert not (here / "calls").exists()


def test_a_script_ends_after_its_last_line_is_in_the_log(here):
    """What is printed goes through tee, here a slow one."""
    (here / "bin").mkdir()
    slow_tee = here / "bin" / "tee"
    slow_tee.write_text(f'#!/bin/sh\nsleep 1\nexec {shutil.which("tee")} "$@"\n')
    slow_tee.chmod(0o755)
    path = {"PATH": f"{here}/bin:{os.environ['PATH']}"}
    process = start(here, "chat_cpu", SMOKE="1", CONVERSATIONS="nothing.jsonl", **path)
    assert process.wait(timeout=120) == 2
    log = here / "pipelines" / "chat_cpu" / "log.txt"
    assert log.is_file() and log.read_text().endswith("give JSON lines, or leave it out\n")
    process.communicate()


def test_a_login_that_is_missing_and_a_stage_that_fails_are_said(here):
    (here / "wandb.py").write_text("def login(**_): return False\ndef setup(): raise ValueError('no key')\n")
    shown = end(start(here, "chat_cpu", SMOKE="1", WANDB_RUN="mine", PYTHONPATH=f"{here}:{REPO}"), 2)[1]
    assert "log.wandb_project=mine: no key" in shown and "WANDB_RUN=mine cannot be logged to" in shown
    assert not (here / "calls").exists()
    lines, _ = end(start(here, "chat_cpu", SMOKE="1", FAKE_CODE="3"), 3)
    assert lines[-1].startswith("data: diverged")


def test_settings_of_the_4090_reach_the_runs(here):
    """DEVICE_BS, SEQ_LEN, NPROC_PER_NODE and their defaults, of a run that is not in small: plan is asked first."""
    for data in ("fineweb-edu", "mid_2025", "sft_2025", "eval_bundle"):
        (here / "data" / data).mkdir(parents=True)
    (here / "jaxgpt").write_text("#!/bin/sh\necho \"$*\" >> calls\necho ' verdict  fits'\n[ $1 != sft ] || exit 9\n")
    (here / "bin").mkdir()
    (here / "bin" / "df").write_text("#!/bin/sh\necho head\necho x 1 1 209715200 1 /\n")
    (here / "bin" / "curl").write_text("#!/bin/sh\n")
    (here / "bin" / "unzip-python").write_text(f'#!/bin/sh\n[ "$1" != -m ] || exit 0\nexec {sys.executable} "$@"\n')
    for program in (here / "bin").iterdir():
        program.chmod(0o755)
    path = {"PATH": f"{here}/bin:{os.environ['PATH']}", "PYTHON": str(here / "bin" / "unzip-python")}
    for given, rows, context, cards in (({}, 4, 1024, 1), ({"DEVICE_BS": "2", "SEQ_LEN": "512"}, 2, 512, 1)):
        shutil.rmtree(here / "pipelines", ignore_errors=True)
        (here / "calls").unlink(missing_ok=True)
        assert "mid: failed with exit code 9" in end(start(here, "speedrun_rtx4090", **path, **given), 9)[0][-1]
        calls = (here / "calls").read_text().splitlines()
        settings = f"--train.micro_batch_size={rows} --model.seq_len={context} --mesh.data={cards}"
        assert calls[0].startswith(f"plan --config rtx4090_d20 --device rtx4090x{cards} --estimate {settings}")
        assert [call.split()[0] for call in calls[:4]] == ["plan", "plan", "plan", "prepare"]
        (mid,) = [call for call in calls if call.startswith("sft ")]
        assert mid == f"sft --config rtx4090_d20_mid --from=runs/rtx4090_d20 {settings} --auto-resume"
