"""The command jaxgpt: its verbs, their help, and what is said of a mistake, before anything heavy is imported."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jaxgpt.__main__ import VERBS, answer
from jaxgpt.config import Config, load
from jaxgpt.config.command_line import field_paths
from jaxgpt.config.help import describe, field_docs
from jaxgpt.config.parser import Parser
from jaxgpt.errors import GARBAGE_THRESHOLD, InputError
from parity_tests.helpers.environment import REPO, environment

HEAVY = ("jax", "jaxlib", "torch", "flax", "orbax", "optax", "matplotlib", "pyarrow", "tensorstore", "transformers")
LINES, COLUMNS = 24, 80
QUICKSTART = f"--config={REPO}/configs/quickstart.py"
MISTAKES = {
    ("train", "--resum"): "--resum is no flag of train; did you mean --resume?",
    ("train", "--n_layer=3"): "no config field n_layer; did you mean model.n_layer?",
    ("train", "--trian.steps=3"): "no config field trian.steps; did you mean train.steps?",
    ("train", QUICKSTART, "--train.steps=abc"): "train.steps=abc is not an int",
    ("train", QUICKSTART, "--optim.lr=-1"): "optim.lr=-1.0 is negative; choose 0 or more",
    ("train", QUICKSTART, "--resume-from"): "--resume-from needs a value, such as --resume-from STEP",
    ("train", "--help", "lr"): "--help lr: no such section or setting; did you mean --help optim.lr?",
    ("train", "--help", "opitm"): "--help opitm: no such section or setting; did you mean --help optim?",
    ("prepare", "pydocs", "--tokeniser=gpt2"): "--tokeniser is no flag of prepare; did you mean --tokenizer?",
    ("train-tokenizer", "--vocab=300"): "--vocab is no flag of train_tokenizer; did you mean --vocab-size?",
    ("sample", "--promt", "x"): "--promt is no flag of sample; did you mean --prompt?",
    ("sample", "--run=r", "-prompt", "x"): "-prompt is no flag of sample; did you mean --prompt?",
    ("sample", "--run=r", "--draft=d", "--samples=2"): "--samples=2 is above 1, and --draft is for one text; keep one",
    ("sample", "--help", "optim"): "--help optim: jaxgpt sample has no sections; --help all shows everything",
    ("chat", "--run=r", "-q", "x"): "-q is no flag of chat; jaxgpt chat --help lists them",
    ("chat", "--run=r", "--top-p=2"): "top_p=2.0 is outside (0, 1]; 1 keeps all tokens",
    ("serve", "--run=r", "--prot=80"): "--prot is no flag of serve; did you mean --port?",
    ("serve", "--run=r", "--port=70000"): "--port=70000 is not from 0 to 65535; choose one that is",
    ("evaluate", "--run=r", "--splt=val"): "--splt is no flag of evaluate; did you mean --split?",
    ("report", "runs/x", "--prize=3"): "--prize is no flag of report; did you mean --price?",
    ("convert", "--form=x"): "--form is no flag of convert; did you mean --from?",
    ("plan", QUICKSTART, "--devcie=h100"): "--devcie is no flag of plan; did you mean --device?",
    ("plan", QUICKSTART, "--device=h1000"): "--device=h1000 is not known; ",
    ("bench", QUICKSTART, "--round=3"): "--round is no flag of bench; did you mean --rounds?",
    ("bench", "serve", "--run=r", "--client=3"): "--client is no flag of serve; did you mean --clients?",
    ("compare", "--setps=3"): "--setps is no flag of compare; did you mean --steps?",
    ("tarin",): "tarin is no verb of jaxgpt; did you mean jaxgpt train?",
    ("xyz",): "xyz is no verb of jaxgpt; verbs: train, ",
}
SCRIPT = """
import contextlib, importlib.abc, io, json, runpy, sys
commands, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2])
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in heavy, name + " is imported"
sys.meta_path.insert(0, Refuse())
from jaxgpt.__main__ import main
said = []
for command in commands:
    out, errors, code = io.StringIO(), io.StringIO(), None
    sys.argv = ["jaxgpt", *command]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            if command[:1] == ["torch_ref.train"]:
                del sys.argv[0]
                runpy.run_module(command[0], run_name="__main__")
            else:
                main()
        except SystemExit as end:
            code = end.code
    said.append([code, out.getvalue(), errors.getvalue()])
print(json.dumps(said))
"""


def verbs():
    """The verbs whose modules are there."""
    return [verb for verb in VERBS if any((REPO / "jaxgpt").glob(f"{verb}.py")) or (REPO / "jaxgpt" / verb).is_dir()]


def say(commands):
    """Exit code, stdout and stderr of each command, in a process in which nothing heavy can be imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands), json.dumps(HEAVY)],
        cwd=REPO, env=environment() | {"COLUMNS": "80"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


# Verbs


def test_every_verb_is_in_the_table():
    package = REPO / "jaxgpt"
    files = [path.stem for path in package.glob("*.py") if "\n    run_verb(main" in path.read_text(encoding="utf-8")]
    rooms = [path.parent.name for path in package.glob("*/__main__.py")]
    assert {*files, *rooms} == {*VERBS}


def test_the_script_is_the_one_that_pip_makes():
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"jaxgpt": "jaxgpt.__main__:main"}
    assert not any("tyro" in line for line in project["dependencies"])


def test_messages_name_the_command():
    for path in (REPO / "jaxgpt").rglob("*.py"):
        found = re.search(rf"python -m jaxgpt\.({'|'.join(VERBS)})\b(?!\.)", path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found}"


def test_the_version_is_said(capsys):
    assert answer(["--version"]) == 0
    assert re.fullmatch(r"jaxgpt \d+\.\d+\.\d+\n", capsys.readouterr().out)


# Help and mistakes


def test_short_help_fits_a_screen_and_imports_nothing_heavy():
    commands = [["--help"], [], *([verb, "--help"] for verb in verbs()), ["torch_ref.train", "--help"]]
    for command, (code, out, errors) in zip(commands, say(commands), strict=True):
        lines = out.splitlines()
        assert (code, errors) == (0, ""), command
        assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS, command
        name = "python -m torch_ref.train" if "torch_ref.train" in command else " ".join(["jaxgpt", *command[:-1]])
        assert f"usage: {name} " in out and "example: " in out, command
        if command[0:1] == ["train"]:
            assert all(f"  {section} " in out for section in field_docs(Config))


def test_a_mistake_is_answered_with_what_was_meant_and_imports_nothing_heavy():
    said = say([list(command) for command in MISTAKES])
    for (command, message), (code, out, errors) in zip(MISTAKES.items(), said, strict=True):
        assert (code, out) == (2, ""), command
        assert errors.startswith(f"error: {message}") and errors.count("\n") == 1, (command, errors)


@pytest.mark.parametrize("command", [["train", "--help"], ["train", "--resum"], ["plan", QUICKSTART, "--help=all"]])
def test_an_answer_takes_less_than_a_second(command):
    """Of processor time: what else runs here does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "jaxgpt", *command], cwd=REPO, env=environment(), capture_output=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, 2)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("name", ["quickstart", "nanochat_cpu"])
def test_help_explains_every_setting_with_the_value_of_the_config(name):
    config = load(REPO / "configs" / f"{name}.py")
    parser = Parser("jaxgpt x", "Does it.\n\nAt length.", "[flags]", "--y", takes_config=True)
    shown = parser.help_on("all", [f"--config={REPO}/configs/{name}.py", "--optim.lr=0.125"])
    fields = [path for path in field_paths() if not path.startswith("model.")] + field_paths(
        type(config.model), "model."
    )
    for path in fields:
        entry = re.search(rf"^  (--)?{re.escape(path)} .*\n(      \(.*\)\n)?(      (?P<text>.*)\n)", f"{shown}\n", re.M)
        assert entry and len(entry["text"]) > 5, path
    assert "--optim.lr FLOAT  (0.125)" in shown and "At length." in shown
    assert f"--model.seq_len INT  ({config.model.seq_len})" in shown


def test_help_on_a_section_a_nested_one_and_a_setting():
    optim, muon = (describe(topic, Config(), 80) for topic in ("optim", "optim.muon"))
    assert "--optim.algorithm adamw|muon  ('adamw')\n      adamw: nanoGPT's." in optim
    assert "--optim.muon.nesterov true|false  (true)" in muon and "--optim.muon" not in optim.replace("--help", "")
    assert describe("log.every", Config(), 80).startswith("  --log.every INT  (10)\n      Steps between records")
    assert max(map(len, optim.splitlines())) <= 80
    with pytest.raises(InputError, match=r"--help model\.depth: no setting of gpt2; give --config of a nanochat model"):
        describe("model.depth", Config(), 80)


# The parser


@pytest.fixture
def parser():
    made = Parser("jaxgpt x", "Does it.", "[flags]", "--y", takes_config=True)
    made.add_argument("part", nargs="?", default="all")
    made.add_argument("--allow-change", action="store_true")
    made.add_argument("--step", type=int)
    made.add_argument("--name", action="append")
    return made


def test_flags_and_settings_are_told_apart(parser):
    given = parser.read(
        ["--optim.lr", "3", "--allow_change", "x y", "--config", "c.py", "--step=4", "--run.dir=a b", "--log.every"]
    )
    assert given.settings == ["--optim.lr", "3", "--config", "c.py", "--run.dir=a b", "--log.every"]
    assert (given.config, given.allow_change, given.step, given.part) == ("c.py", True, 4, "x y")
    assert parser.read(["--name=a", "--name", "--- b"]).name == ["a", "--- b"]
    assert parser.read(["--", "--step"]).part == "--step"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--step=1", "--step", "2"], "--step is given twice; keep one"),
        (["--config=a", "--config=b"], "--config is given twice; keep one"),
        (["--step=x"], "--step=x is not an int; write a whole number"),
        (["--step"], "--step needs a value, such as --step STEP"),
        (["a", "b"], "unexpected argument b; settings are written --section.field=value"),
        (["--qqqq"], "--qqqq is no flag of x; jaxgpt x --help lists them"),
        (["--allow-change=3"], "argument --allow-change: ignored explicit argument '3'; jaxgpt x --help lists"),
    ],
)
def test_what_the_parser_refuses(parser, args, message):
    with pytest.raises(InputError) as caught:
        parser.read(args)
    assert message in str(caught.value)


# Signals


def start(how, module, directory):
    """A training that hangs while it imports a module."""
    (directory / f"{module}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(90)")
    script = directory / "jaxgpt"
    script.write_text("import sys\nfrom jaxgpt.__main__ import main\nsys.exit(main())")
    called = {"script": [str(script), "train"], "package": ["-m", "jaxgpt", "train"], "verb": ["-m", "jaxgpt.train"]}
    return subprocess.Popen(
        [sys.executable, *called[how], QUICKSTART], cwd=directory, env=environment() | {"PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("module", ["difflib", "jax"])
@pytest.mark.parametrize("how", ["script", "package", "verb"])
def test_a_signal_during_imports_is_one_line(how, module, tmp_path):
    """The first module is imported before the command line is read, the second after it. Faults: F9."""
    process = start(how, module, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "SIGINT: interrupted\n")


def test_garbage_is_searched_for_less_often_while_jax_is_imported(tmp_path):
    (tmp_path / "jax.py").write_text("import gc, sys\nprint(gc.get_threshold()[0])\nsys.exit(0)")
    done = subprocess.run(
        [sys.executable, "-m", "jaxgpt", "train", QUICKSTART], cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{GARBAGE_THRESHOLD}\n", "")


def test_a_run_of_the_command_is_the_run_of_the_module(tmp_path):
    """A verb that works and one that fails: output and exit codes by both ways."""
    place = {"cwd": tmp_path, "env": environment() | {"PYTHONPATH": str(REPO)}}
    (tmp_path / "book.txt").write_text("One two three four five six seven.\n" * 99)
    prepare = ["x", "--input", "book.txt"]
    outcomes = []
    for out, called in (("a", ["jaxgpt", "prepare"]), ("b", ["jaxgpt.prepare"])):
        for arguments in ([*prepare, "--out", out], [*prepare, "--out", out, "--val-fraction=2"]):
            done = subprocess.run(
                [sys.executable, "-m", *called, *arguments], **place, capture_output=True, text=True, check=False
            )
            outcomes.append((done.returncode, done.stderr))
    assert outcomes[:2] == outcomes[2:] and [code for code, _ in outcomes[:2]] == [0, 2]
    shards = [sorted(os.listdir(tmp_path / out)) for out in ("a", "b")]
    assert shards[0] == shards[1] and Path(tmp_path, "a", shards[0][-1]).is_file()
