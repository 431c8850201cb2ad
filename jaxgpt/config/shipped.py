"""The configs that come with the program, found by name from any directory.

They are the files of `configs/`. In a checkout they are read there; a wheel carries them inside the package (setup.py).

What `--config` means: the name of a shipped config, such as quickstart, means that config, also where the current
directory has a file or a configs/quickstart.py of its own. Any other value is a path: quickstart.py, ./quickstart.
"""

import ast
import difflib
import re
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped_directory() -> Path:
    """Where the shipped configs are: in the package of a wheel, else beside the package of a checkout."""
    inside = PACKAGE / "shipped"
    return inside if inside.is_dir() else PACKAGE.with_name("configs")


def shipped_configs() -> dict[str, Path]:
    """Name -> file, in the order of names. Files whose name begins with _ are what configs share."""
    return {path.stem: path for path in sorted(shipped_directory().glob("[!_]*.py"))}


def find_config(text: str) -> Path:
    """The file that `--config` means. Whether it exists is not checked."""
    return shipped_configs().get(text, Path(text))


def suggest(text: str) -> str:
    """What to write instead of a config that does not exist, for an error message."""
    names = list(shipped_configs())
    near = difflib.get_close_matches(Path(text).stem, names, n=1)
    guess = f"did you mean --config {near[0]}? " if near else "give a Python file, or a name; "
    return f"{guess}shipped: {', '.join(names)}"


@dataclass(frozen=True)
class About:
    """What the docstring of a shipped config says of it.

    Attributes:
      what: it trains; the first line, without its full stop.
      machine, loss, time: `Machine: ...`, `Loss: ...`, `Time: ...`; empty where nothing was measured.
      vocabulary: `Vocabulary: ...`, the ids of its data's tokenizer; 0 where the config itself says how many.
      run: `Run: ...`, the command.
    """

    what: str
    machine: str
    loss: str
    time: str
    vocabulary: int
    run: str


def read_about(path: Path) -> About:
    """Reads the docstring; the file is parsed, not executed."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    said = dict(re.findall(r"^(Machine|Loss|Time|Vocabulary|Run): (.*)$", text, re.MULTILINE))
    return About(
        what=text.partition("\n")[0].removesuffix("."),
        machine=said.get("Machine", ""),
        loss=said.get("Loss", ""),
        time=said.get("Time", ""),
        vocabulary=int(said.get("Vocabulary", 0)),
        run=said.get("Run", ""),
    )
