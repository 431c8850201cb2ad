"""What the README's screens say is in the program, and its map names the rooms that exist."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")
SAID = [
    "stopped; checkpoint saved. Run the same command with --resume to continue",
    "finishing this step, then saving a checkpoint",
    "resuming from step ",
]


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
