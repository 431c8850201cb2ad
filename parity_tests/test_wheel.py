"""A wheel in an empty directory: it holds the product and its configs, and the first commands of the README work.

The sources are copied, packed as an sdist, and the wheel is built from that. It is installed in a new environment,
which sees this one's packages, since downloading them takes minutes; it sees neither this jaxgpt nor the tests.
"""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from jaxgpt.extras import EXTRAS, pip_install
from parity_tests.helpers.environment import REPO, environment

SOURCES = ("configs", "docs", "jaxgpt", "parity_tests", "torch_ref")
FEW = ("--train.steps=20", "--eval.every=20", "--eval.tokens=2000", "--optim.schedule.warmup_steps=5")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command, cwd):
    """The command's standard output."""
    variables = environment() | {"PYTHONPATH": ""}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def python_files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.py")}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*REPO.glob("*.*"), REPO / "LICENSE", REPO / "Makefile"]:
        if path.is_file():
            shutil.copy(path, source)
    name = run(
        sys.executable, "-c", "from setuptools.build_meta import build_sdist as b; print('made', b('.'))", cwd=source
    )
    return source / re.findall(r"made (.*)", name)[0]


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", directory, sdist, cwd=directory)
    (path,) = directory.glob("jaxgpt-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin directory of a new environment with the wheel, and an empty directory to work in."""
    new = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", new, cwd=new)
    run(*PIP, "--python", new / "bin/python", "install", "--no-deps", "--no-index", wheel, cwd=new)
    (site,) = new.glob("lib/python3*/site-packages")
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(packages))  # .pth files in them, as of this jaxgpt, are not read
    return new / "bin", tmp_path_factory.mktemp("empty")


def test_the_wheel_holds_the_product_and_its_configs_and_no_tests(wheel):
    places = {"jaxgpt": "jaxgpt", "torch_ref": "torch_ref", "configs": "jaxgpt/shipped"}
    wanted = {f"{to}/{path}": text for name, to in places.items() for path, text in python_files(REPO / name).items()}
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
        assert {name: file.read(name) for name in names if name.endswith(".py")} == wanted
    page = {f"jaxgpt/serve/page/{path.name}" for path in (REPO / "jaxgpt/serve/page").iterdir()}
    assert set(names) - wanted.keys() == {"jaxgpt/py.typed", "torch_ref/py.typed", *page}


def test_the_sdist_holds_what_the_repository_has(sdist):
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for name in SOURCES:
        assert python_files(REPO / name).keys() <= {path.removeprefix(f"{name}/") for path in names}, name
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "docs/log.md", "setup.py"} <= names


@pytest.fixture(scope="module")
def trained(installed):
    """The same after the first two commands."""
    bin_directory, empty = installed
    run(bin_directory / "jaxgpt", "prepare", "pydocs", cwd=empty)
    shown = run(bin_directory / "jaxgpt", "train", "--config", "quickstart", *FEW, cwd=empty)
    assert "step 20 " in shown
    return bin_directory, empty


def test_the_wheel_is_imported_and_nothing_of_the_checkout(installed):
    bin_directory, empty = installed
    python = bin_directory / "python"
    where = run(python, "-c", "import jaxgpt, torch_ref; print(jaxgpt.__file__, torch_ref.__file__)", cwd=empty)
    assert all(bin_directory.parent in Path(path).parents for path in where.split())
    hidden = "import importlib.util as u; print(u.find_spec('parity_tests'), u.find_spec('configs'))"
    assert run(python, "-c", hidden, cwd=empty) == "None None\n"
    assert "quickstart" in run(python, "-m", "jaxgpt.configs", cwd=empty)


def test_what_was_trained_in_an_empty_directory_is_sampled(trained):
    bin_directory, empty = trained
    assert (empty / "runs/quickstart/checkpoints/20/manifest.json").is_file()
    arguments = ("--run", "runs/quickstart", "--prompt", "Return a ", "--max-tokens=20")
    assert "Return a " in run(bin_directory / "jaxgpt", "sample", *arguments, cwd=empty)


def test_a_model_is_loaded_in_an_empty_directory(trained):
    bin_directory, empty = trained
    source = "import jaxgpt; print(jaxgpt.load('runs/quickstart').generate('Return a ', max_tokens=20))"
    assert len(run(bin_directory / "python", "-c", source, cwd=empty).strip("\n")) >= 20


def test_extras_are_those_of_the_package():
    with open(REPO / "pyproject.toml", "rb") as file:
        declared = tomllib.load(file)["project"]["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        assert [package.partition(";")[0] for package in declared[extra]] == list(packages)
    assert pip_install("tracking", "wandb") == "pip install 'wandb>=0.19'"


def test_no_message_sends_the_user_to_a_registry_where_the_package_is_not():
    for package in ("jaxgpt", "torch_ref"):
        for path in (REPO / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert not re.search(r"\bjaxgpt\[|pip install -*\w* *jaxgpt\b", node.value), path
