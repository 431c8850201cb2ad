"""README's screens are the program's own words, and its map names the rooms that exist."""

import re
import shlex
from pathlib import Path

import pytest

from jaxgpt import train
from jaxgpt.errors import InputError

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")
REFUSED = re.findall(r"^\$ python -m jaxgpt\.train (.*)\nerror: (.*)$", README, re.MULTILINE)
SAID = [
    "stopped; checkpoint saved. Run the same command with --resume to continue",
    "finishing this step, then saving a checkpoint",
    "resuming from step ",
]


def test_there_are_screens_to_check():
    assert len(REFUSED) == 2


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_an_error_is_the_one_that_is_printed(arguments, message, monkeypatch):
    monkeypatch.chdir(REPO)
    with pytest.raises(InputError) as error:
        train.main(shlex.split(arguments))
    assert str(error.value) == message


@pytest.mark.parametrize("text", SAID)
def test_what_a_run_says_is_in_the_program(text):
    sources = " ".join(path.read_text(encoding="utf-8") for path in (REPO / "jaxgpt").rglob("*.py"))
    words = re.sub(r'"\s+f?"', "", sources)
    assert text in README
    assert all(part in words for part in text.split("; ")), text


def test_the_map_names_every_room():
    rooms = {path.parent.name for path in (REPO / "jaxgpt").glob("*/__init__.py")}
    drawn = set(re.findall(r"^  (\w+)/ ", README[README.index("## Map") :], re.MULTILINE))
    assert drawn == rooms
