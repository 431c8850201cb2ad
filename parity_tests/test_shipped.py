"""Shipped configs: found by name from any directory, listed with what they are, and as the README has them."""

import re
import subprocess
import sys

import pytest

from jaxgpt import configs
from jaxgpt.config import shipped
from jaxgpt.config.derive import derive
from jaxgpt.config.python_file import load
from jaxgpt.config.shipped import find_config, read_about, shipped_configs
from jaxgpt.errors import InputError
from parity_tests.helpers.environment import REPO

NAMES = sorted(path.stem for path in (REPO / "configs").glob("*.py"))
OTHER = "from jaxgpt.config import *\nconfig = Config(run=RunConfig(seed=99))\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_name_means_the_shipped_config_from_any_directory():
    assert load("quickstart").data.dir == "data/pydocs"
    assert list(shipped_configs()) == NAMES


@pytest.mark.parametrize("path", ["quickstart", "quickstart.py", "configs/quickstart.py"])
def test_a_file_of_the_same_name_is_meant_only_by_its_path(path, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / path).write_text(OTHER)
    assert load("quickstart").run.seed != 99
    assert load(f"./{path}").run.seed == load(path if path.endswith(".py") else f"./{path}").run.seed == 99


def test_what_is_no_name_is_a_path(tmp_path):
    (tmp_path / "mine").write_text(OTHER)
    assert load("mine").run.seed == 99
    assert str(find_config("sub/a100")) == "sub/a100"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("quikstart", "--config=quikstart does not exist; did you mean --config quickstart? shipped: a100, "),
        ("configs/a100.py", "--config=configs/a100.py does not exist; did you mean --config a100? shipped: "),
        ("zzz", "--config=zzz does not exist; give a Python file, or a name; shipped: a100, "),
    ],
)
def test_a_config_that_is_missing_is_answered_with_names(given, message):
    with pytest.raises(InputError) as error:
        load(given)
    assert str(error.value).startswith(message) and all(name in str(error.value) for name in NAMES)


def test_in_a_wheel_they_lie_inside_the_package(tmp_path, monkeypatch):
    """Beside an installed package is site-packages, where a folder `configs` may be anybody's."""
    for name in ("configs", "jaxgpt/shipped"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / f"{name[0]}.py").touch()
    (tmp_path / "jaxgpt/shipped/_common.py").touch()  # shared by configs, and none itself
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "jaxgpt")
    assert list(shipped_configs()) == ["j"]


def test_the_readme_has_each_config_with_its_own_words():
    """What, machine, loss and time of the table are lines of the docstrings."""
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("## What you get") : readme.index("## Concepts")]
    rows = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| `.*$", table, re.MULTILINE)]
    said = {name: tuple(cells) for name, *cells in rows}
    abouts = {name: read_about(path) for name, path in shipped_configs().items()}
    assert said == {name: (about.what, about.machine, about.loss, about.time) for name, about in abouts.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_says_machine_command_and_vocabulary(name):
    about, config = read_about(shipped_configs()[name]), load(name)
    assert about.what and about.machine and re.match(rf"jaxgpt (train|sft|rl|evaluate) --config {name}\b", about.run)
    needs_one = not config.model.complete(0).vocab_size
    assert bool(about.vocabulary) == needs_one
    assert derive(config, about.vocabulary).config.model.count_params().total > 0


def test_the_list_fits_80_columns_and_computes_sizes(capsys):
    assert configs.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split() for line in lines if line[:1] != " "}
    assert rows["quickstart"][1:3] == ["816K", "1.54M"] and rows["a100"][1:3] == ["186M", "3.71B"]
    assert set(NAMES) < set(rows)


def test_a_config_is_printed_and_copied_to_edit(tmp_path, capsys):
    source = (REPO / "configs" / "quickstart.py").read_text(encoding="utf-8")
    assert configs.main(["quickstart"]) == 0 and capsys.readouterr().out == source
    assert configs.main(["quickstart", "--write"]) == 0 and (tmp_path / "quickstart.py").read_text() == source
    assert configs.main(["quickstart", "--write", "sub"]) == 0
    assert "jaxgpt train --config ./sub" in capsys.readouterr().out
    (tmp_path / "sub").write_text("mine")
    for arguments, message in (
        (["quickstart", "--write", "sub"], "--write=sub exists; give another FILE"),
        (["quickstart", "--write", "no/x.py"], "--write=no/x.py cannot be written: No such file or directory"),
        (["quikstart"], "no shipped config quikstart; did you mean quickstart?"),
        (["--write"], "--write is given without a NAME"),
        (["--wrte"], "--wrte"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            configs.main(arguments)
    assert (tmp_path / "sub").read_text() == "mine"


def test_listing_loads_no_framework():
    script = "import sys, jaxgpt.configs; print(sorted({'jax', 'torch', 'flax', 'orbax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout == "[]\n"
