"""Pages of docs/ and what they name: links, files, shell blocks, the Dockerfile, flags, extras and configs."""

import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from jaxgpt.config import Config, GPT2Config, nanochat_2025, to_dict
from jaxgpt.config.hardware import DEVICES
from jaxgpt.plan.topology import parse_topology
from parity_tests.helpers.environment import REPO

PAGES = ["README", "gpu", "multi_gpu", "slurm", "tpu", "docker", "notebooks", "serving"]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
DOCKERFILE = (REPO / "docker" / "Dockerfile").read_text()


@cache
def read(page: str) -> str:
    return (REPO / "docs" / f"{page}.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    return re.findall(r"^```(?:bash|console)\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", read(page))
    assert links or page == "README"
    assert [link for link in links if "://" not in link and not (REPO / "docs" / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_shell_blocks_are_shell(page):
    for block in blocks(page):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stderr, block)


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_configs_extras_and_devices_that_exist(page):
    text = read(page)
    configs = {path.stem for path in (REPO / "configs").glob("*.py")}
    assert set(re.findall(r"--config[ =](\w+)", text)) <= configs
    extras = {name for group in re.findall(r"'(?:jaxgpt|\.)\[([\w,-]+)\]'", text) for name in group.split(",")}
    later = {"gcs", "s3"}  # of the object stores
    assert extras - later <= set(PROJECT["optional-dependencies"])
    for device in re.findall(r"--device ([\w-]+)", text):
        parse_topology(device)


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_settings_that_exist(page):
    families = (GPT2Config(), nanochat_2025(depth=2, seq_len=64, batch_tokens=64, micro_batch_size=1).model)
    known = to_dict(Config())
    known["model"] = {name for family in families for name in vars(family)}
    named = re.findall(r"--(\w+)\.(\w+)", read(page))
    assert [f"{section}.{field}" for section, field in named if field not in known.get(section, ())] == []


def test_a_page_exists_for_every_device_family_in_the_table():
    assert {"rtx4090", "a100-40gb", "h100", "v6e"} <= {device.name for device in DEVICES}


@pytest.mark.parametrize("name", ["train.sbatch", "tpu_spot.sh"])
def test_scripts_are_shell(name):
    done = subprocess.run(["bash", "-n", str(REPO / "scripts" / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_is_built_from_files_that_exist_and_are_needed():
    ignored = (REPO / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored and "COPY . .\n" in DOCKERFILE
    named = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "jaxgpt", "torch_ref", "configs"}
    optional = {"setup.py"}
    assert kept - optional == named
    assert all((REPO / name).exists() for name in named)


def test_the_image_has_a_python_that_the_package_accepts():
    version = re.search(r"^ARG PYTHON=(\d+)\.(\d+)$", DOCKERFILE, re.MULTILINE)
    oldest = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["requires-python"])
    assert version and oldest
    assert tuple(map(int, version.groups())) >= tuple(map(int, oldest.groups()))
    assert f"Python :: {'.'.join(version.groups())}" in " ".join(PROJECT["classifiers"])


def test_the_image_is_no_root_and_runs_the_command_itself():
    """The last USER is not root, and ENTRYPOINT is a list: with a shell between, signals would not arrive."""
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1] == "${UID}"
    assert 'ENTRYPOINT ["jaxgpt"]' in DOCKERFILE


def test_build_arguments_of_the_pages_are_those_of_the_dockerfile():
    declared = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    used = {name for block in blocks("docker") for name in re.findall(r"--build-arg (\w+)=", block)}
    assert used and used <= declared


def test_every_run_line_of_the_dockerfile_is_shell():
    lines = re.sub(r"\\\n", " ", DOCKERFILE).splitlines()
    runs = [re.sub(r"^RUN (--mount=\S+ )?", "", line) for line in lines if line.startswith("RUN ")]
    assert len(runs) == 2
    for run in runs:
        assert subprocess.run(["sh", "-nc", run], capture_output=True, check=False).returncode == 0


def test_readme_links_to_the_pages():
    assert "(docs/README.md)" in Path(REPO / "README.md").read_text(encoding="utf-8")
