"""Hosts that differ train nothing, and one that dies ends the others with a line."""

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxgpt.config import Config, DataConfig, GPT2Config, OptimConfig, TrainConfig
from jaxgpt.errors import InputError
from jaxgpt.run import agreement
from jaxgpt.run.agreement import check_agreement, facts
from jaxgpt.run.opening import open_run
from parity_tests.helpers.environment import REPO, environment
from parity_tests.helpers.train_runs import TEXT, start, write_text


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return Config(
        data=DataConfig(dir=str(write_text(tmp_path_factory.mktemp("data"), TEXT))),
        model=GPT2Config(seq_len=16, n_layer=1, n_head=1, n_embd=16),
        train=TrainConfig(steps=4, batch_tokens=128, micro_batch_size=4, dtype="float32"),
    )


def refuse(*sides):
    """What each process says of these facts: all the same."""
    texts = []
    for side in sides:
        check_agreement(side, lambda text: texts.append(text) or [text])
    said = set()
    for side in sides:
        with pytest.raises(InputError) as caught:
            check_agreement(side, lambda text: texts)
        said.add(str(caught.value))
    (message,) = said
    assert "\n" not in message
    return message


def facts_of(config, *, resume=False):
    return facts(open_run(config), {"resume": resume}, ("jax",))


def test_hosts_with_other_settings_are_refused(config):
    """Faults: F2, C86."""
    ours, theirs = facts_of(config), facts_of(dataclasses.replace(config, optim=OptimConfig(lr=0.02)))
    message = refuse(ours, ours, theirs)
    assert "hosts differ: optim.lr is 0.0006 on process 0 (" in message
    assert "and 0.02 on process 2 (" in message
    assert "--resume is False on process 0" in refuse(ours, facts_of(config, resume=True))


def test_hosts_with_other_data_or_code_are_refused(config, tmp_path, monkeypatch):
    """Faults: F2, C86."""
    other = write_text(tmp_path, TEXT.replace("green", "olive"))
    ours, theirs = facts_of(config), facts_of(dataclasses.replace(config, data=DataConfig(dir=str(other))))
    assert "hosts differ: the data in data.dir is " in refuse(ours, theirs)
    assert "the tokenizer" in {name for name in ours if ours[name] != theirs[name]}
    monkeypatch.setattr(agreement, "hash_code", lambda: "another")
    assert "hosts differ: jaxgpt's sources is " in refuse(ours, facts_of(config))


def test_hosts_may_have_their_own_places(config, tmp_path):
    """The same content at another path, and a run directory of its own."""
    moved = write_text(tmp_path, TEXT)
    theirs = dataclasses.replace(
        config,
        data=DataConfig(dir=str(moved)),
        run=dataclasses.replace(config.run, dir="/elsewhere"),
        hosts=dataclasses.replace(config.hosts, coordinator="h:1", count=2, index=1),
    )
    texts = [json.dumps({"host": "h", "facts": facts_of(one)}) for one in (config, theirs)]
    check_agreement(facts_of(config), lambda text: texts)


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_two_processes_with_other_learning_rates_train_nothing(config, tmp_path):
    """On the command line, both exit with 2 and one line. Faults: F2, C86."""
    from jaxgpt.config import to_source

    (tmp_path / "c.py").write_text(to_source(config))
    together = [f"--hosts.coordinator={free_address()}", "--hosts.count=2", "--mesh.data=2"]
    processes = [
        start(tmp_path / "c.py", tmp_path / "run", *together, f"--hosts.index={i}", f"--optim.lr={lr}")
        for i, lr in enumerate((0.01, 0.02))
    ]
    shown = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], shown
    for text in shown:
        assert text.startswith("error: hosts differ: optim.lr is 0.01 on process 0 (") and text.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_two_processes_of_torch_with_other_seeds_train_nothing(config, tmp_path):
    """As torchrun starts them. Faults: F2, C86."""
    from jaxgpt.config import to_source

    (tmp_path / "c.py").write_text(to_source(config))
    host, port = free_address().split(":")
    command = [sys.executable, "-m", "torch_ref.train", f"--config={tmp_path / 'c.py'}", f"--run.dir={tmp_path / 'r'}"]
    processes = [
        subprocess.Popen(
            [*command, f"--run.seed={rank}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPO,
            env=environment()
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": host, "MASTER_PORT": port},
        )
        for rank in range(2)
    ]  # fmt: skip
    shown = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], shown
    assert all("error: hosts differ: run.seed is 0 on process 0 (" in text for text in shown), shown
    assert not (tmp_path / "r").exists()


PEER = """
import sys
from jaxgpt.config import HostsConfig
from jaxgpt.errors import InputError, run_verb
from jaxgpt.parallel.peers import with_peers
from jaxgpt.parallel.texts import gather_texts
config = HostsConfig(coordinator=sys.argv[1], count=2, index=int(sys.argv[2]), timeout_s=4)
def main(args):
    with with_peers(config, "cpu"):
        for n in range(10**6):
            gather_texts(str(n))
            if n == 3:
                print("together", flush=True)
            if n == 20 and sys.argv[3] == "fails" and config.index == 0:
                raise InputError("run.dir=x is in use")
    return 0
run_verb(main)
"""


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", "failed: process 1 on "),
        ("stopped", "gave no sign of life for 4 s; the last checkpoint is intact; start all processes again"),
        ("fails", "failed: process 0 ended: run.dir=x is in use; the last checkpoint is intact"),
    ],
)
def test_a_dead_peer_ends_the_others_with_a_line(how, message):
    """Killed, hanging, or refused by itself: within hosts.timeout_s and a little, and not with 0. Faults: F2, C85."""
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PEER, address, str(i), how],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPO, env=environment(),
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert any(line == "together\n" for line in process.stdout)
        if how != "fails":
            processes[1].send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        began = time.monotonic()
        survivor = processes[1 if how == "fails" else 0]
        shown = survivor.communicate(timeout=60)[0]
        assert survivor.returncode == 1 and message in shown and "Traceback" not in shown, shown
        assert time.monotonic() - began < 40
    finally:
        for process in processes:
            process.kill()
            process.communicate()
