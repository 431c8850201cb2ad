"""A config file is executed: whatever it raises is one line with its place, and its siblings leave nothing behind."""

import os
import sys

import pytest

from jaxgpt.config import Config, load
from jaxgpt.errors import InputError, run_verb

RAISES = [
    (
        "import jaxgpt.config as c\nconfig = c.Confg()",
        "c.py:2: AttributeError: module 'jaxgpt.config' has no attribute",
    ),
    ("x = {}\n\nx['a']", "c.py:3: KeyError: 'a'"),
    ("1 / 0", "c.py:1: ZeroDivisionError: division by zero"),
    ("assert False", "c.py:1: AssertionError"),
    ("open('nosuch.json')", "c.py:1: FileNotFoundError: [Errno 2] No such file or directory: 'nosuch.json'"),
    ("def f(): f()\nf()", "c.py:1: RecursionError: "),
    ("raise SystemExit(0)", "c.py:1: SystemExit: 0"),
    ("import sys; sys.exit()", "c.py:1: SystemExit"),
    ("raise BaseException('a\\nb')", "c.py:1: BaseException: a b"),
    ("class E(Exception):\n    def __str__(self): raise E\nraise E", "c.py:3: E"),
    ("raise ValueError('x' * 10**6)", "c.py:1: ValueError: xxx"),
    ("\n\nx = (", "c.py:3: SyntaxError: '(' was never closed"),
    ("x = '\\0'\n\0", "SyntaxError: source code string cannot contain null bytes"),
    ("from jaxgpt.config import *\nconfig = Config(\n  optim=OptimConfig(lr=-1))", "c.py:3: optim.lr=-1.0 is negative"),
    ("from jaxgpt.config import *\nconfig = Config(model=dict(n_layer=1))", "write GPT2Config(...) or NanochatConfig"),
    ("from jaxgpt.config import *\nconfig = Config", "has no value named config of type jaxgpt.config.Config"),
    ("import beside", "beside.py:2 (imported at {path}:1): ZeroDivisionError"),
    ("from beside_broken import x", "beside_broken.py:1 (imported at {path}:1): SyntaxError"),
]


@pytest.mark.parametrize(("source", "message"), RAISES)
def test_whatever_a_config_raises_is_one_line_with_its_place(tmp_path, source, message):
    """Faults: F19, C7."""
    (tmp_path / "beside.py").write_text("x = 1\nx / 0\n")
    (tmp_path / "beside_broken.py").write_text("x = = 1\n")
    path = tmp_path / "c.py"
    path.write_text(source)
    with pytest.raises(InputError) as caught:
        load(path)
    assert message.format(path=path) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700 + 3 * len(str(path))


def test_ctrl_c_in_a_config_is_no_mistake_of_the_config(tmp_path):
    (tmp_path / "c.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "c.py")


def make_fifo(path):
    os.mkfifo(path)


FILES = [
    (make_fifo, "is not a regular file"),
    (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    (lambda path: path.mkdir(), "is not a regular file"),
    (lambda path: path.symlink_to(path), "is not a regular file"),
    (lambda path: path.write_bytes(b"#" * 2**20 + b"\n"), "has more than 1,048,576 bytes"),
    (lambda path: path.write_bytes("config = 'ü'".encode("latin-1")), "SyntaxError"),
    (lambda path: path.write_bytes(b"\x80\x04\x95"), "SyntaxError"),
    (lambda path: None, "does not exist"),
]


@pytest.mark.parametrize(("make", "message"), FILES)
def test_a_file_that_is_no_config_is_one_line(tmp_path, make, message):
    """Nothing is waited for and nothing without an end is read. Faults: C6, C7."""
    make(tmp_path / "c.py")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "c.py")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_too_long_for_the_system_is_one_line():
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        load("x" * 5000 + ".py")


def test_a_config_imports_files_beside_it_and_leaves_nothing(tmp_path):
    """Two directories with a file of one name; neither sees the other's, nor shadows Python's or the product's."""
    source = "import json, common, jaxgpt\nfrom jaxgpt.config import *\nconfig = Config(run=RunConfig(seed=common.N))\n"
    before = set(sys.modules), list(sys.path), list(sys.meta_path)
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        for name in ("json", "jaxgpt", "torch_ref"):
            (tmp_path / str(n) / f"{name}.py").write_text("1 / 0")
        (tmp_path / str(n) / "common.py").write_text(f"N = {n}")
        (tmp_path / str(n) / "c.py").write_text(source)
        assert load(tmp_path / str(n) / "c.py").run.seed == n
        (tmp_path / str(n) / "common.py").write_text(f"N = {n + 5}")  # of the same size, in the same second
        assert load(tmp_path / str(n) / "c.py").run.seed == n + 5
        assert not (tmp_path / str(n) / "__pycache__").exists()
    assert (set(sys.modules), list(sys.path), list(sys.meta_path)) == before


def test_a_config_that_leaves_ends_the_command_with_2(tmp_path, monkeypatch, capsys):
    """It would have been 0, and nothing trained. Faults: F19."""
    (tmp_path / "c.py").write_text("import sys\nsys.exit(0)")
    monkeypatch.setattr(sys, "argv", ["verb", str(tmp_path / "c.py")])
    with pytest.raises(SystemExit) as caught:
        run_verb(lambda args: isinstance(load(args[0]), Config))
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_home_directory_stands_for_the_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.py").write_text("from jaxgpt.config import *\nconfig = Config(data=DataConfig(dir='~/tokens'))")
    assert load("~/c.py").data.dir == f"{tmp_path}/tokens"
    with pytest.raises(InputError, match="~no_such_user has no home directory here"):
        load("~no_such_user/c.py")
