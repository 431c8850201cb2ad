"""Every command block of the README and of docs/ is run, in the order of its page, in an empty directory.

A block is a fence marked sh, bash, console or python. In a console block with lines that begin with `$ `, the other
lines are what is printed, and an `error:` among them is compared; one with ^C is interrupted by hand, which test_resume
does. A fence without a mark shows output, and no line of it may begin like a command. NOT_HERE names the commands that
are not run, and why; SMALLER what a command is given in the test, so that it needs seconds and no network.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from parity_tests.helpers.environment import REPO, environment

PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
SHELLS = ("sh", "bash", "console")
COMMAND = r"(\$ |sudo )?([A-Z_]+=\S+ )*(jaxgpt|python3?|torchrun|make|pip|source|git|docker|gcloud|sbatch|srun) "
"""How a line begins that a reader would type."""

NOT_HERE = {
    r"(python3? -m venv|source|deactivate|make) ?": "the tests' own environment stands for it",
    r"pip3? (install|wheel) ": "downloads packages; test_wheel installs the wheel",
    r"(git|docker|gcloud|ssh|scp|sbatch|srun|squeue|nvidia-smi|scripts/\S+|cd jaxgpt) ": "is for another machine",
    r"([A-Z_]+=\S+ )*scripts/\w+\.sh": "takes minutes or a card; test_pipelines, and python -m parity_tests.pipelines",
    r"(wandb|tmux|tail|grep) ": "is typed on a terminal, for a run of hours",
    r"jaxgpt (sft|rl) --config|jaxgpt evaluate .*--tasks |jaxgpt report ": "python -m parity_tests.pipelines runs it",
    r".*--mesh.platform=gpu": "needs a card",
    r".*(s3|gs)://": "needs a bucket; test_remote_runs and store_kills have one of their own",
    r"jaxgpt (train --config|sample --run) (runs/)?modded_cpu": "compiles for a minute; test_modded_training trains it",
    r"\\$run --hosts": "test_train trains in two processes",
    r"jaxgpt (prepare chat|sft|chat) ": "needs a chat model; test_sft, test_chat_terminal have small ones",
    r"jaxgpt sample .*--draft ": "needs a second run; test_chat_terminal and test_speculative draft",
    r"(jaxgpt serve|curl) ": "serves until it is stopped; test_serve_api, test_serve_model ask it",
    r"jaxgpt bench ": "takes minutes; test_bench runs it",
    r"jaxgpt train --config \w+ --smoke$": "test_recipes runs it",
    r"jaxgpt prepare (shakespeare$|fineweb-edu|climbmix|openwebtext)": "needs the network, for text or a vocabulary",
    r"jaxgpt train_tokenizer --data data/(fineweb-edu|climbmix)": "needs that text",
    r".*jaxgpt train (?!.*--smoke)--config (a100|gpt2_124m|nanochat_d|rtx4090|speedrun)": "needs that text and a card",
    r"jaxgpt (train|evaluate) .*\bgpt2\b": "needs the network, for GPT-2's weights",
    r"jaxgpt (train --config|sample --run) (runs/)?shakespeare_char\b": "is for a card; shakespeare_char_cpu is run",
    r"jaxgpt convert .*--push ": "needs the network, and a login; test_push uploads to a local server",
    r"jaxgpt convert .*--to (gguf|nanogpt) ": "needs GPT-2's vocabulary; test_gguf, test_nanogpt_files write them",
    r"jaxgpt convert --from d20 ": "needs a checkpoint of nanochat; test_nanochat_files reads some",
}
"""Start of a command -> why it is not run."""

PYTHON_ELSEWHERE = {"library.md": "test_library_pages.py"}
"""Pages whose Python is run by a test of its own."""

FEW = "--train.steps=4 --eval.tokens=2000 --optim.schedule.warmup_steps=0"
SMALLER = [
    (r"([^\"]*jaxgpt train .*) --train.steps=\d+(.*)", r"\1\2"),
    (r"([^\"]*(jaxgpt |torch_ref\.)train --config (?!nanochat|.*--smoke).*)", rf"\1 {FEW} --model.n_layer=1"),
    (r"([^\"]*jaxgpt train --config nanochat.*)", rf"\1 {FEW} --model.depth=1 --sample.every=0"),
    (r"(jaxgpt compare --config .*) --steps \d+(.*)", r"\1 --steps 2\2 --model.n_layer=1"),
    (r"(jaxgpt plan .*)", r"\1 --estimate"),  # by arithmetic, where no compiler is installed
    (r"(jaxgpt prepare shakespeare_char)", r"\1 --input book.txt --tokenizer char"),
    (r"(jaxgpt prepare crawl .*) --tokenizer gpt2", r"\1 --tokenizer byte"),
]
"""Command -> what runs in its place: fewer steps, and local text for what is downloaded."""


def blocks(page):
    """(mark, text) of each fence."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def why_not_here(command):
    return next((why for start, why in NOT_HERE.items() if re.match(start, command)), "")


def make_smaller(command):
    for pattern, replacement in SMALLER:
        command = re.sub(f"^{pattern}$", replacement, command)
    return command


def split_commands(text):
    """One entry for each command: continuations joined, comments taken off, quotes over several lines kept together."""
    found, pending = [], ""
    for line in re.sub(r"\\\n *", "", text).splitlines():
        pending = re.sub(r"(^|\s+)#.*", "", f"{pending}\n{line}" if pending else line)
        try:
            shlex.split(pending)
        except ValueError:  # a quote is open
            continue
        found += [pending] if pending else []
        pending = ""
    return found


def read_block(mark, text):
    """The commands of a block, each with the error that it is to end with; empty: it ends well."""
    if mark != "console" or not re.search(r"^\$ ", text, re.MULTILINE):
        return [(command, "") for command in split_commands(text)]
    found = []
    for part in [] if "^C" in text else re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        typed, _, printed = part.partition("\n")
        error = re.search(r"^error: .*", printed, re.MULTILINE)
        found.append((*split_commands(typed), error[0] if error else ""))
    return found


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
            ["bash", "-c", command], cwd=work, env=variables, capture_output=True, text=True, timeout=600, check=False
        )

    return run


def run_block(shell, commands):
    """Runs what can be run here: as one script, in which a line may start a process for the next."""
    script = ["set -eE; trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR"]
    for command, error in commands:
        if error:
            done = shell(command)
            assert (done.returncode, done.stderr.splitlines()[-1]) == (2, error), command
        elif not why_not_here(command):
            script.append(make_smaller(command))
    if len(script) > 1:
        done = shell("\n".join(script))
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


SLOW = ("multi_gpu",)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page.stem in SLOW else page for page in PAGES],
    ids=lambda page: page.stem,
)
def test_the_commands_of_a_page_work_in_order(page, shell):
    for mark, text in blocks(page):
        if mark in SHELLS:
            run_block(shell, read_block(mark, text))
    python = "\n".join(text for mark, text in blocks(page) if mark == "python")
    if page.name in PYTHON_ELSEWHERE:
        assert (REPO / "parity_tests" / PYTHON_ELSEWHERE[page.name]).is_file()
    elif python:
        done = shell(f"python - <<'end of the page'\n{python}\nend of the page\n")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_is_in_a_marked_block(page):
    for mark, text in blocks(page):
        if mark not in (*SHELLS, "python"):
            typed = [line for line in text.splitlines() if re.match(COMMAND, line)]
            assert not typed, f"mark the block as sh or console: {typed}"


def test_blocks_are_read_as_a_shell_reads_them():
    lines = "# how\na '#x' \\\n    --c   # why\n\nX=1 d\n"
    assert read_block("sh", lines) == [("a '#x' --c", ""), ("X=1 d", "")]
    screen = "$ a  # why\nprinted\nerror: no; do\n$ b\n...\n"
    assert read_block("console", screen) == [("a", "error: no; do"), ("b", "")]
    assert make_smaller("jaxgpt train --config x").startswith(f"jaxgpt train --config x {FEW} ")
    assert read_block("console", "a 'b\nc'  # no\nd\n") == [("a 'b\nc'", ""), ("d", "")]
    assert why_not_here("make test") and not why_not_here("jaxgpt configs")


def test_where_pages_lie():
    assert all(Path(page).is_file() for page in PAGES) and len(PAGES) > 3
