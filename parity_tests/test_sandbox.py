"""The sandbox: right programs pass, and what an attacker would try fails in time and leaves nothing behind."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from jaxgpt.errors import Failure, InputError
from jaxgpt.tasks import humaneval, sandbox
from jaxgpt.tasks.sandbox import Limits, run_python
from parity_tests.helpers.task_data import chat_rows

REPO = Path(__file__).parents[1]
N_SAMPLE = 20
"""Of HumanEval's 164 programs."""


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Where this machine can confine a program at all; afterwards no file and no process is left of it.

    Returns a function: ids of the processes that are inside.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("programs are confined on Linux only")
    if missing := run_python("", allow_unconfined=True).missing:
        pytest.skip(f"this kernel does not confine programs: {missing}")
    place, child = tmp_path / "temporary", tmp_path / "sandbox_child.py"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    shutil.copy(sandbox._CHILD, child)  # its path tells this test's processes from those of tests beside it
    monkeypatch.setattr(sandbox, "_CHILD", child)

    def ids() -> set[int]:
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(child).encode() in path.read_bytes().split(b"\0"):
                    found.add(int(path.parent.name))
        return found

    yield ids
    assert list(place.iterdir()) == []
    wait_until(lambda: not ids(), 2.0)  # a process that was killed is gone a moment later


def lose(head: str) -> None:
    """As on a machine whose kernel lacks one protection: its step, which begins with `def <head>`, raises."""
    text = sandbox._CHILD.read_text()
    assert f"def {head}" in text
    sandbox._CHILD.write_text(text.replace(f"def {head}", f"def {head}\n    raise OSError('none')"))


def test_a_program_runs_and_its_output_is_returned():
    run = run_python(
        "import hashlib, threading, typing\nt = threading.Thread(target=print, args=('é',))\nt.start()\nt.join()"
    )
    assert run.is_good and run.stdout == "é\n" and run.ended == "done" and run.missing == {}
    assert run_python("open('x', 'w').write('y'); assert open('x').read() == 'y'; import os; os.remove('x')").is_good
    assert run_python("import os; assert not os.environ").is_good
    failed = run_python("assert 1 == 2, 'no'")
    assert not failed.is_good and failed.error == "AssertionError: no" and failed.ended == "error"


ATTACKS = {
    "endless_loop": ("while True: pass", "time"),
    "sleep": ("import time; time.sleep(60)", "time"),
    "gigabyte": ("x = bytearray(1 << 30)", "memory"),
    "fork_bomb": ("import os\nwhile True: os.fork()", "PermissionError"),
    "outlives_parent": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    import time; time.sleep(60)", "PermissionError",
    ),
    "subprocess": ("import subprocess; subprocess.run(['sleep', '60'])", "PermissionError"),
    "exec": ("import os; os.execv('/bin/true', ['true'])", "PermissionError"),
    "spawned_by_libc": ("import ctypes; assert ctypes.CDLL(None).system(b'true') == 0", "AssertionError"),
    "output": ("print('x' * 100_000_000)", "OSError"),
    "stderr": ("import sys\nwhile True: sys.stderr.write('x' * 100_000)", "error"),
    "disk": ("i = 0\nwhile True:\n    i += 1\n    open(f'{i}', 'wb').write(bytes(1 << 20))", "disk"),
    "many_files": ("i = 0\nwhile True:\n    i += 1\n    open(f'{i}', 'w').close()", "disk"),
    "nested_directories": ("import os\nos.mkdir('x')", "PermissionError"),
    "environment": ("import os; os.environ['HOME']", "KeyError"),
    "environment_of_parent": ("import os; open(f'/proc/{os.getppid()}/environ')", "PermissionError"),
    "stdin": ("input()", "EOFError"),
    "signal_parent": ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
    "signal_parent_by_libc": ("import ctypes, os\nctypes.CDLL(None).kill(os.getppid(), 9)\n1 / 0", "ZeroDivisionError"),
    "limit_parent": (
        "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))", "PermissionError",
    ),
    "socket": ("import socket; socket.socket()", "PermissionError"),
    "lift_limit": ("import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))", "error"),
    "exit_early": ("import os; os._exit(0)", "exit"),
    "sys_exit": ("raise SystemExit", "exit"),
    "crash": ("import ctypes; ctypes.string_at(0)", "signal 11"),
    "surrogate": ("'\ud800'", "SyntaxError"),
    "null": ("x = '\0'", "error"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails_in_time(attack):
    code, ended = ATTACKS[attack]
    limits = Limits(wall_s=1.0) if ended == "time" else Limits()
    began = time.monotonic()
    run = run_python(code, limits)
    assert not run.is_good
    assert ended == run.ended or run.error.startswith(ended), (run.ended, run.error)
    assert time.monotonic() - began < 20
    assert len(run.stdout) <= 16 << 10 >= len(run.stderr)


def test_files_outside_are_neither_read_nor_written_nor_changed(tmp_path):
    outside = tmp_path / "secret"
    outside.write_text("token")
    outside.chmod(0o600)
    for action in (
        "open(p)", "open(p, 'w')", "open(p, 'a')", "os.truncate(p, 0)", "os.remove(p)", "os.rename(p, p + '2')",
        "os.rename(p, 'mine')", "os.link(p, 'mine')", "os.symlink(p, 'mine')", "os.chmod(p, 0o777)",
        "os.utime(p, (1, 1))", "open(p + '2', 'w')", "os.listdir(os.path.dirname(p))", "os.mkfifo(p + '2')",
        "os.chown(p, 1, 1)", "os.setxattr(p, 'user.a', b'1')",
    ):  # fmt: skip
        before = outside.stat()
        run = run_python(f"import os\np = {str(outside)!r}\n{action}")
        assert any(word in run.error for word in ("denied", "not permitted", "cross-device")), (action, run.error)
        assert outside.stat().st_mtime == before.st_mtime and outside.stat().st_mode == before.st_mode, action
        assert outside.read_text() == "token" and not Path(f"{outside}2").exists()


def test_without_the_filter_of_system_calls_the_network_and_children_still_end():
    lose("filter_syscalls() -> None:")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.05)
        send = f"s.sendto(b'x', {server.getsockname()!r})"
        code = f"import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n{send}"
        run = run_python(code, allow_unconfined=True)
        assert "unreachable" in run.error and list(run.missing) == ["system calls"]
        with pytest.raises(TimeoutError):
            server.recv(1)
    child = "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nprint('parent ends')"
    assert run_python(child, allow_unconfined=True).stdout == "parent ends\n"


def test_programs_run_in_several_threads_at_once():
    runs = {}
    threads = [threading.Thread(target=lambda i=i: runs.update({i: run_python(f"print({i})")})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {i: run.stdout for i, run in runs.items()} == {i: f"{i}\n" for i in range(4)}


def test_the_program_ends_when_its_caller_is_killed(tmp_path, inside):
    script = (
        f"from pathlib import Path; from jaxgpt.tasks import sandbox; sandbox._CHILD = Path({str(sandbox._CHILD)!r})\n"
        "sandbox.run_python('while True: open(\\'x\\', \\'w\\').close()', sandbox.Limits(wall_s=30))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO), "TMPDIR": str(tmp_path)}
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=REPO, env=environment)
    try:
        wait_until(lambda: list(tmp_path.glob("jaxgpt-sandbox-*/x")))
        assert len(inside()) == 1
    finally:
        caller.send_signal(signal.SIGKILL)
        caller.wait()
    wait_until(lambda: not inside())


def wait_until(is_so, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_where_namespaces_are_forbidden_there_are_still_no_sockets():
    lose("leave_network() -> None:")
    assert run_python("print(1)").is_good
    assert run_python("import socket; socket.socket(socket.AF_UNIX)").error.startswith("PermissionError")


def test_a_machine_without_a_protection_runs_nothing_unless_allowed(tmp_path):
    lose("confine_files(directory: str) -> None:")
    mark = tmp_path / "mark"
    with pytest.raises(Failure, match=r"cannot confine a program \(files: none\), so none was run"):
        run_python(f"open({str(mark)!r}, 'w')")
    assert not mark.exists()
    run = run_python("print(1)", allow_unconfined=True)
    assert run.is_good and run.missing == {"files": "none"}


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(InputError, match="wall_s=0 is not above 0"):
        Limits(wall_s=0)


@pytest.mark.parametrize("answer", ["reference", "fenced", "return_none", "body"])
def test_humaneval_is_judged_by_running(answer):
    """nanochat: references 164 of 164, in fences 20 of 20, the body alone or "return None" none."""
    rows = chat_rows("humaneval/HumanEval.jsonl.gz")
    task = humaneval.humaneval(rows, Limits(wall_s=20.0))
    n_good = 0
    for i in range(N_SAMPLE if answer != "body" else 5):
        conversation = task[i]
        prompt, reference = (message["content"] for message in conversation["messages"])
        text = {
            "reference": reference,
            "fenced": f"Here:\n```python\n{reference}\n```\nDone.",
            "return_none": f"{prompt}\n    return None\n",
            "body": reference.removeprefix(prompt),
        }[answer]
        n_good += task.judge(conversation, text)
    assert n_good == (N_SAMPLE if answer in ("reference", "fenced") else 0)
