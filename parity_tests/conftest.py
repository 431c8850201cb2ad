"""Eight simulated devices for every test, and no accelerator unless JAX_PLATFORMS names one.

Compiling is most of the suite's time. LLVM's optimisation is off: it changes speed, not what is computed. And all
processes of one run of the suite, pytest's workers and what tests start, share a cache of compiled programs;
JAX_COMPILATION_CACHE_DIR names one that outlives the run.
"""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from parity_tests.helpers.environment import FAST_COMPILE

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FAST_COMPILE}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")  # as make_mesh does
os.environ.setdefault("PJRT_NPROC", "16")  # as make_mesh does for 8 simulated devices: tests also open them without it
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else this is a worker, or the user names one
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxgpt-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background; what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

FAST = {
    "batches", "calculator", "census", "chat_batches", "command", "config", "content", "conversations", "core",
    "cursors",
    "documents", "downloads", "fit", "gates",
    "hardware", "history", "hub", "hugging_face_tokenizer", "inputs",
    "layout", "letters", "mirror",
    "packing", "pages", "plan", "prepare", "prepare_chat", "report", "sandbox", "schedule", "serve_api", "shards",
    "shipped",
    "spelling", "stores", "task_files", "tasks", "text_batches", "text_shards", "tokenizer", "train_tokenizer",
}  # fmt: skip
"""Test files that compile nothing: `make test-fast`."""
assert all((Path(__file__).parent / f"test_{name}.py").is_file() for name in FAST), "FAST names a file that is gone"


def pytest_ignore_collect(collection_path, config):
    """With -m fast other files are not even imported."""
    name = collection_path.stem.removeprefix("test_")
    return True if config.option.markexpr == "fast" and collection_path.suffix == ".py" and name not in FAST else None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in FAST:
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="module")
def one_thread():
    """torch with one thread: small models lose by more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TEST_DATA = Path(os.environ.get("JAXGPT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """In an empty directory, with a wide screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def gpt2_vocabulary(monkeypatch):
    cache = TEST_DATA / "tiktoken_cache"
    if not cache.is_dir():
        pytest.skip(f"no GPT-2 vocabulary in {cache}; JAXGPT_TEST_DATA names the directory that holds it")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))


@pytest.fixture
def shakespeare() -> Path:
    path = TEST_DATA / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"no {path}; JAXGPT_TEST_DATA names the directory that holds it")
    return path


@pytest.fixture
def marked(monkeypatch):
    """A tokenizer.json of {"kind": "marked"} is read as `MarkedBytes`."""
    from parity_tests.helpers.text_directories import read_marked

    read_marked(monkeypatch)
