"""Every command block of the README and of docs/ is run, in the order of its page, in an empty directory.

A block is a fence marked sh (or bash), console (`$ command`, and what it prints) or python. A fence without a mark
shows output, and no line of it may begin like a command. LEFT_OUT names what is not run, and why; SMALLER what a
command is given in the test, so that it takes seconds and no network. An `error:` in a console block must be the one
that is printed. A console block with ^C is interrupted by hand; test_resume does that.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from parity_tests.helpers.environment import REPO, environment

PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
MARKS = ("sh", "bash", "console", "python")
COMMAND = r"(\$ |sudo )?([A-Z_]+=\S+ )*(jaxgpt|python3?|torchrun|make|pip|source|git|docker|gcloud|sbatch|srun) "
"""How a line begins that a reader would type."""

LEFT_OUT = {
    r"make ": "builds the environment; the whole suite runs in it",
    r"source .*activate": "the tests' own environment stands for it",
    r"pip (install|wheel) ": "downloads packages; test_wheel installs the wheel",
    r"jaxgpt prepare shakespeare$": "needs the network, for GPT-2's vocabulary",
    r"jaxgpt (train|evaluate) .*gpt2\b": "needs the network, for GPT-2's weights",
    r".*--mesh.platform=gpu": "needs a card",
    r"jaxgpt bench ": "takes minutes; test_bench runs it",
    r"jaxgpt convert .*--to gguf": "needs a run of days, with GPT-2's vocabulary; test_gguf writes one",
}
"""Start of a command -> why it is not run."""

FEW = "--train.steps=4 --eval.tokens=2000 --optim.schedule.warmup_steps=0"
SMALLER = [
    (r"((jaxgpt |python -m torch_ref\.)train --config (?!nanochat).*)", rf"\1 {FEW} --model.n_layer=1"),
    (r"((jaxgpt |python -m torch_ref\.)train --config nanochat.*)", rf"\1 {FEW} --model.depth=1 --sample.every=0"),
    (r"(jaxgpt compare --config .*) --steps \d+(.*)", r"\1 --steps 2\2 --model.n_layer=1"),
    (r"(jaxgpt plan .*)", r"\1 --estimate"),  # by arithmetic, where no compiler is installed
    (r"(jaxgpt prepare shakespeare_char)", r"\1 --input book.txt --tokenizer char"),
    (r"(jaxgpt prepare crawl .*) --tokenizer gpt2", r"\1 --tokenizer byte"),
]
"""Command -> what runs in its place: fewer steps, and local text for what is downloaded."""


def blocks(page):
    """(mark, text) of each fence."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def why_left_out(command):
    return next((why for start, why in LEFT_OUT.items() if re.match(start, command)), "")


def make_smaller(command):
    for pattern, replacement in SMALLER:
        command = re.sub(f"^{pattern}$", replacement, command)
    return command


def without_comments(text):
    """One line for each command: continuations joined, comments taken off."""
    lines = re.sub(r"\\\n *", "", text).splitlines()
    return [re.sub(r"(^|\s+)#.*", "", line) for line in lines]


def read_block(mark, text):
    """The commands of a block, each with the error that it is to end with; empty: it ends well."""
    if mark != "console":
        return [(line, "") for line in without_comments(text) if line]
    found = []
    if "^C" in text:
        return found
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        typed, _, printed = part.partition("\n")
        error = re.search(r"^error: .*", printed, re.MULTILINE)
        found.append((*without_comments(typed), error[0] if error else ""))
    return found


def commands(page):
    return [command for mark, text in blocks(page) if mark in MARKS[:3] for command in read_block(mark, text)]


@pytest.fixture
def shell(tmp_path):
    """Runs a command in an empty directory in which `jaxgpt` and `python` are this checkout's."""
    (tmp_path / "bin").mkdir()
    for name, arguments in (("python", ""), ("jaxgpt", "-m jaxgpt")):
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        path.chmod(0o755)
    work = tmp_path / "work"
    (work / "crawl").mkdir(parents=True)
    text = "".join(f"ROMEO: {i} doves, and {i * 7 % 13} of them white.\n" for i in range(2000))
    (work / "book.txt").write_text(text)
    pq.write_table(pa.table({"text": text.splitlines()}), work / "crawl" / "a.parquet")
    variables = environment() | {"PYTHONPATH": str(REPO), "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def run(command):
        return subprocess.run(
            ["bash", "-c", command], cwd=work, env=variables, capture_output=True, text=True, timeout=300, check=False
        )

    return run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_work_in_order(page, shell):
    for typed, error in commands(page):
        if why_left_out(typed):
            continue
        command = typed if error else make_smaller(typed)
        done = shell(command)
        if error:
            assert (done.returncode, done.stderr.splitlines()[-1]) == (2, error), typed
        else:
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    python = "\n".join(text for mark, text in blocks(page) if mark == "python")
    if python:
        done = shell(f"python - <<'end of the page'\n{python}\nend of the page\n")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_is_in_a_marked_block(page):
    for mark, text in blocks(page):
        if mark not in MARKS:
            typed = [line for line in text.splitlines() if re.match(COMMAND, line)]
            assert not typed, f"mark the block as sh or console: {typed}"


def test_what_is_left_out_occurs():
    typed = [command for page in PAGES for command, _ in commands(page)]
    for start in LEFT_OUT:
        assert any(re.match(start, command) for command in typed), f"no page has a command that begins with {start}"
    for pattern, _ in SMALLER:
        assert any(re.match(pattern, command) for command in typed), f"no page has a command like {pattern}"


def test_blocks_are_read_as_a_shell_reads_them():
    lines = "# how\na '#x' \\\n    --c   # why\n\nX=1 d\n"
    assert read_block("sh", lines) == [("a '#x' --c", ""), ("X=1 d", "")]
    screen = "$ a  # why\nprinted\nerror: no; do\n$ b\n...\n"
    assert read_block("console", screen) == [("a", "error: no; do"), ("b", "")]
    assert make_smaller("jaxgpt train --config x").startswith(f"jaxgpt train --config x {FEW} ")
    assert why_left_out("make test") and not why_left_out("jaxgpt configs")


def test_where_pages_lie():
    assert all(Path(page).is_file() for page in PAGES) and len(PAGES) > 3
