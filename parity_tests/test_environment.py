"""What the environment says wrongly is one line that names the variable, before anything is trained."""

import http.server
import subprocess
import sys
import threading
import time

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from jaxgpt.config import Config, MeshConfig
from jaxgpt.errors import InputError, explain_variables
from jaxgpt.parallel.hosts import start_hosts
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.xla_flags import check_xla_flags
from parity_tests.helpers.environment import REPO, environment


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two' in the environment is not a number"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID='-1' in the environment is not a number"),
        ({"JAX_NUM_PROCESSES": "2"}, "hosts.count=2 needs hosts.coordinator=HOST:PORT of process 0"),
        ({"JAX_PROCESS_ID": "1"}, "hosts.index=1 needs hosts.coordinator=HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "hosts.coordinator=h:1 needs hosts.count and hosts.index below it"),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "they are 2 and 2",
        ),
        ({"SLURM_NTASKS": "many"}, "SLURM_NTASKS='many' in the environment is not a number"),
        ({"OMPI_COMM_WORLD_SIZE": "3x"}, "OMPI_COMM_WORLD_SIZE='3x' in the environment is not a number"),
    ],
)
def test_a_wrong_environment_is_one_line(variables, message, monkeypatch):
    """Faults: C17."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        start_hosts(Config().hosts, "")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_allocation_without_srun_runs_alone_and_says_so(monkeypatch, capsys):
    """Faults: C17."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    start_hosts(Config().hosts, "")
    assert "SLURM allocated 2 tasks, but srun did not start this process" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'cuda': why\nmore"), AssertionError()])
def test_a_platform_that_is_not_here(error, monkeypatch):
    """Named as it was asked for: by the setting or by the variable. Faults: C15, C17."""

    def devices(platform):
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for config, name in ((MeshConfig(), "JAX_PLATFORMS=cuda"), (MeshConfig(platform="tpu"), "mesh.platform=tpu")):
        with pytest.raises(InputError) as caught:
            make_mesh(config)
        assert str(caught.value).startswith(f"{name} is not available: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--xla_no_such_flag=1", "XLA_FLAGS=--xla_no_such_flag=1 in the environment is no flag of this XLA"),
        ("--xla_dump_to=/tmp --xla_gpu_no_such", "XLA_FLAGS=--xla_gpu_no_such in the environment is no flag"),
        ("nowhere", "XLA_FLAGS=nowhere in the environment is neither a flag nor a file"),
    ],
)
def test_an_unknown_flag_of_xla(flags, message):
    """XLA itself would end the process. Faults: C17."""
    with pytest.raises(InputError) as caught:
        check_xla_flags(flags)
    assert message in str(caught.value)


def test_known_flags_of_xla_are_accepted():
    check_xla_flags("")
    check_xla_flags("--xla_gpu_deterministic_ops=true --xla_backend_optimization_level=0")


@pytest.mark.parametrize(("name", "value"), [("JAX_ENABLE_X64", "maybe"), ("JAX_NUM_CPU_DEVICES", "two")])
def test_a_variable_at_which_jax_cannot_be_imported(name, value):
    """Faults: C17."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxgpt.evaluate", "--run", "x"],
        capture_output=True, text=True, cwd=REPO, env=environment() | {name: value}, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: {name}={value}: ")


def test_other_exceptions_at_import_go_to_the_hook_of_signals(monkeypatch):
    """It knows that a signal ended the command, whatever a library made of that: exit code 130, not 1. Faults: F9."""
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *found: seen.append(found))
    explain_variables()
    error = RuntimeError("a library's")
    sys.excepthook(RuntimeError, error, None)
    assert seen == [(RuntimeError, error, None)]


def test_an_interruption_that_a_library_turns_into_an_error_keeps_its_exit_code():
    """Faults: F9."""
    code = """
import sys
sys.argv[:1] = ["-m"]  # as while the interpreter looks for the module to run
sys.orig_argv[1:] = ["-m", "jaxgpt.evaluate"]
import os, signal, jaxgpt
from jaxgpt import signals
signals.enter(signals.RUNNING)
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True: pass
except BaseException as error:
    raise RuntimeError("a library's") from error
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=False)
    assert (done.returncode, done.stderr) == (130, "SIGINT: interrupted\n")


@pytest.fixture
def metadata(monkeypatch):
    """Google Cloud's metadata server on a machine with a TPU: a dict of attributes to fill in."""
    attributes: dict[str, str] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = attributes.get(self.path.rpartition("/")[2])
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield attributes
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` is called with, and JAX told to use a TPU."""
    calls: list[tuple] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **more: calls.append(args))
    before = jax.config.values["jax_platforms"]
    yield calls
    jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
    ("endpoints", "platform", "n_joined"),
    [("10.0.0.1,10.0.0.2", "tpu", 1), ("10.0.0.1", "tpu", 0), ("10.0.0.1,10.0.0.2", "cpu", 0)],
    ids=["pod", "one_host", "pod_on_cpu"],
)
def test_the_hosts_of_a_pod_join_without_a_setting(endpoints, platform, n_joined, metadata, joined):
    """Only the metadata server knows that there are several: no variable says so. Faults: C17."""
    metadata |= {"agent-worker-number": "1", "worker-network-endpoints": endpoints, "tpu-env": ""}
    start_hosts(Config().hosts, platform)
    assert joined == [(None, None, None)] * n_joined


def test_a_pod_whose_metadata_server_is_gone_is_one_line(metadata, joined, monkeypatch):
    """Faults: C17."""
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    with pytest.raises(InputError, match="the metadata server does not say how many hosts this TPU has") as caught:
        start_hosts(Config().hosts, "tpu")
    assert "\n" not in str(caught.value) and not joined
