"""The scripts for SLURM and spot TPUs: a run that is preempted goes back into the queue and ends as if it had not."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from jaxgpt import train
from jaxgpt.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    GPT2Config,
    LogConfig,
    TrainConfig,
    to_source,
)
from parity_tests.helpers.environment import REPO, environment
from parity_tests.helpers.fake_clusters import JAXGPT, SRUN, write_gcloud, write_programs
from parity_tests.helpers.train_runs import TEXT, losses, wait_for_step, write_text

FIRST_PORT = 61440
"""JAX takes port FIRST_PORT + job id % 4096 for the processes of a job."""


def free_job_id() -> int:
    for job_id in range(os.getpid() % 4096, 4096):
        with socket.socket() as listener:
            if listener.connect_ex(("127.0.0.1", FIRST_PORT + job_id)):
                return job_id
    raise AssertionError("no free port")


def start_job(directory: Path, programs: Path, *args: str, **variables: str) -> subprocess.Popen:
    """The batch script, as slurmd starts it: in the directory of submission, with the job's variables."""
    activate = directory / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True, exist_ok=True)
    activate.write_text(f"PATH={programs}:$PATH\n")
    return subprocess.Popen(
        ["bash", str(REPO / "scripts" / "train.sbatch"), *args],
        cwd=directory, env=environment() | variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_job_that_is_stopped_resumes_and_ends_as_one_process_does(tmp_path):
    """Two processes that srun started; the signal reaches them and the shell. Faults: F11."""
    config = Config(
        data=DataConfig(dir=str(write_text(tmp_path, TEXT))),
        model=GPT2Config(seq_len=16, n_layer=1, n_head=1, n_embd=16),
        train=TrainConfig(steps=24, batch_tokens=128, micro_batch_size=4, dtype="float32"),
        eval=EvalConfig(every=0, tokens=256),
        log=LogConfig(every=1),
        checkpoint=CheckpointConfig(every=0),
    )
    (tmp_path / "c.py").write_text(to_source(config))
    echo = '#!/bin/sh\necho "$@" >> '
    programs = write_programs(
        tmp_path, jaxgpt=JAXGPT, srun=SRUN, squeue="#!/bin/sh\necho RUNNING\n", scontrol=f"{echo}{tmp_path}/requeued\n"
    )
    args = (f"--config={tmp_path}/c.py", f"--run.dir={tmp_path}/run", "--mesh.data=2")
    slurm = {"SLURM_JOB_ID": str(free_job_id()), "SLURM_NTASKS": "2"}

    first = start_job(tmp_path, programs, *args, **slurm)
    wait_for_step(first, tmp_path / "run", 3)
    for pid in [*map(int, (tmp_path / "tasks").read_text().split()), first.pid]:
        os.kill(pid, signal.SIGTERM)
    shown = first.communicate(timeout=120)[0]
    assert first.returncode == 75 and "stopped; checkpoint saved" in shown, shown
    assert (tmp_path / "requeued").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"

    second = start_job(tmp_path, programs, *args, **slurm)
    shown = second.communicate(timeout=120)[0]
    assert second.returncode == 0 and "resuming from step " in shown, shown
    assert (tmp_path / "requeued").read_text().count("\n") == 1

    assert train.main([args[0], f"--run.dir={tmp_path}/alone", "--mesh.data=2"]) == 0
    ours, alone = losses(tmp_path / "run"), losses(tmp_path / "alone")
    assert len(ours) == 24 and ours.keys() == alone.keys()
    assert [ours[step][0] for step in ours] == pytest.approx([alone[step][0] for step in ours], rel=1e-6)


@pytest.mark.parametrize(
    ("code", "state", "is_requeued"),
    [(75, "RUNNING", True), (75, "COMPLETING", False), (0, "RUNNING", False), (2, "RUNNING", False)],
    ids=["stopped", "cancelled", "done", "bad_input"],
)
def test_only_a_job_near_its_time_limit_is_requeued(tmp_path, code, state, is_requeued):
    """scontrol would also requeue a job that its owner has cancelled: seen with SLURM 22.05."""
    programs = write_programs(
        tmp_path, srun=f"#!/bin/sh\nexit {code}\n", squeue=f"#!/bin/sh\necho {state}\n", scontrol="#!/bin/sh\necho $@\n"
    )
    job = start_job(tmp_path, programs, SLURM_JOB_ID="7")
    assert job.communicate(timeout=60)[0] == ("requeue 7\n" if is_requeued else "")
    assert job.returncode == code


def run_spot(tmp_path, describe, train) -> tuple[int, list[list[str]]]:
    programs = write_gcloud(tmp_path, describe, train)
    where = {"ZONE": "us-east5-b", "TYPE": "v6e-16", "RUNTIME": "v2-alpha-tpuv6e", "POLL_S": "0"}
    done = subprocess.run(
        ["bash", str(REPO / "scripts" / "tpu_spot.sh"), "--config", "nanochat_d12", "--run.name=a b"],
        cwd=REPO, env=environment() | where | {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    plan = json.loads((programs / "plan.json").read_text())
    assert plan["describe"] == plan["train"] == [], (done.stderr, plan)
    return done.returncode, plan["calls"]


def test_a_spot_tpu_is_requested_again_when_it_is_preempted(tmp_path):
    """Queued, active, preempted while training (ssh fails), requested again, a host that failed once, done."""
    states = ["", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED"]
    states += ["SUSPENDED", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE"]
    code, calls = run_spot(tmp_path, states, [255, 1, 0])
    assert code == 0
    assert [call[0] for call in calls if "describe" not in call[0]] == [
        "queued-resources create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh",
        "queued-resources delete",
        "queued-resources create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh",
        "queued-resources delete",
    ]  # fmt: skip
    train = next(call for call in calls if "--auto-resume" in call[-1])
    assert "--worker=all" in train
    assert train[-1].endswith("jaxgpt train --config nanochat_d12 --run.name=a\\ b --auto-resume")
    assert all("--spot" in call for call in calls if call[0].endswith("create"))


@pytest.mark.parametrize("code", [2, 3])
def test_a_spot_tpu_is_given_back_where_training_again_would_change_nothing(tmp_path, code):
    """Bad input, and divergence."""
    ended, calls = run_spot(tmp_path, ["", "ACTIVE", "ACTIVE", "ACTIVE"], [code])
    assert ended == code
    assert calls[-1][0] == "queued-resources delete"


def test_the_scripts_say_what_they_miss():
    done = subprocess.run(["bash", str(REPO / "scripts" / "tpu_spot.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "set ZONE, such as us-east5-b" in done.stderr
