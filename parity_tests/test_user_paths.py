"""`~` is the home directory in every path that a user can give: no shell replaces it in --run.dir=~/x."""

import os

import pytest

from jaxgpt import evaluate, sample, train_tokenizer
from jaxgpt.bench import __main__ as bench
from jaxgpt.compare import __main__ as compare
from jaxgpt.config import DataConfig, RunConfig, TrainConfig
from jaxgpt.config.command_line import parse_args
from jaxgpt.convert import __main__ as convert
from jaxgpt.errors import InputError
from jaxgpt.files import user_path
from jaxgpt.plan import __main__ as plan
from jaxgpt.prepare import __main__ as prepare


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home directory, and a working directory in which no directory named ~ may appear."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "home"
    assert not os.path.lexists(tmp_path / "~")


def test_settings(home):
    """Faults: C13."""
    assert RunConfig(dir="~/r").dir == f"{home}/r"
    data, train = DataConfig(dir="~", tokenizer="~/t.json"), TrainConfig(init_from="~/gpt2")
    assert (data.dir, data.tokenizer, train.init_from) == (f"{home}", f"{home}/t.json", f"{home}/gpt2")
    assert TrainConfig(init_from="gpt2").init_from == "gpt2"
    home.mkdir()
    (home / "c.py").write_text("from jaxgpt.config import *\nconfig = Config()")
    config = parse_args(["--config=~/c.py", "--run.dir=~/r"])
    assert config.run.dir == f"{home}/r"


def test_arguments_of_the_verbs(home):
    given = sample.read_arguments(["--run", "~/r", "--data=~/d", "--prompt-file=~/p"])
    assert (given.run, given.data, given.prompt_file) == (f"{home}/r", f"{home}/d", f"{home}/p")
    assert evaluate.read_arguments(["--model=~/m", "--data=~/d"]).model == f"{home}/m"
    assert plan.PARSER.read(["--png=~/x.png"]).png == f"{home}/x.png"
    assert bench.PARSER.read(["--config=c.py", "--json=~/b.json"]).json == home / "b.json"
    assert compare.PARSER.read(["--out=~/o"]).out == home / "o"


@pytest.mark.parametrize(
    ("main", "args"),
    [
        (sample.main, ["--run=r", "--prompt=@~/nowhere.txt"]),
        (convert.main, ["--from=~/nowhere", "--to=torch", "out"]),
        (train_tokenizer.main, ["--data=~/nowhere"]),
        (prepare.main, ["x", "--input=~/nowhere.txt", "--out=out"]),
    ],
)
def test_messages_name_the_whole_path(home, main, args):
    with pytest.raises(InputError, match=f"{home}/nowhere"):
        main(args)


def test_a_path_that_cannot_be_meant_is_refused():
    for text, message in (("a\nb", "control character"), ("a\0", "control character"), ("~no_such_user/x", "no home")):
        with pytest.raises(InputError, match=message):
            user_path(text)
    assert user_path("a ~/b[c]") == "a ~/b[c]"
