"""Writes docs/reliability.md: every fault of the catalogue, and the tests that cover it, read from their docstrings.

python -m parity_tests.reliability            the page, on standard output
python -m parity_tests.reliability --write    to docs/reliability.md
"""

import ast
import re
import sys
from pathlib import Path

from jaxgpt.files import write_atomically
from parity_tests.catalogue import FOUND, NO_TEST, SECTIONS

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "reliability.md"
MARKER = re.compile(r"Faults: ((?:[CF]\d+(?:, )?)+)\.")
BEGIN = "<!-- written by python -m parity_tests.reliability --write -->"
"""What stands above this line in the page is written by hand and kept."""


def find_tests(directory: Path = HERE) -> dict[str, list[str]]:
    """C or F number -> the tests whose docstring, or whose module's, has it: test_files::test_lock."""
    found: dict[str, list[str]] = {}
    for path in sorted(directory.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        for node in [tree, *tests]:
            name = path.stem if isinstance(node, ast.Module) else f"{path.stem}::{node.name}"
            for marker in MARKER.findall(ast.get_docstring(node) or ""):
                for number in marker.split(", "):
                    found.setdefault(number, []).append(name)
    return found


def write_tables(tests: dict[str, list[str]]) -> str:
    """The page below its hand-written part."""
    lines = [BEGIN, ""]
    for title, entries in SECTIONS.items():
        lines += [f"## {title}", "", "| | fault | test |", "|--:|---|---|"]
        lines += [f"| C{n} | {what} | {cite(f'C{n}', tests, NO_TEST.get(n, ''))} |" for n, what in entries.items()]
        lines += [""]
    lines += ["## Found by injection in an earlier version", "", "| | fault | test |", "|--:|---|---|"]
    lines += [f"| F{number} | {what} | {cite(f'F{number}', tests, '')} |" for number, what in FOUND.items()]
    return "\n".join(lines) + "\n"


def cite(number: str, tests: dict[str, list[str]], reason: str) -> str:
    return ", ".join(f"`{name}`" for name in tests.get(number, [])) or reason


def list_gaps(tests: dict[str, list[str]]) -> list[str]:
    """Faults with neither a test nor a reason, and markers that name no fault."""
    known = {f"C{number}" for entries in SECTIONS.values() for number in entries} | {f"F{number}" for number in FOUND}
    covered = tests.keys() | {f"C{number}" for number in NO_TEST}
    return sorted(known - covered) + sorted(f"{number} is no fault" for number in tests.keys() - known)


def main(args: list[str]) -> int:
    tests = find_tests()
    page = PAGE.read_text(encoding="utf-8").partition(BEGIN)[0] if PAGE.exists() else ""
    page += write_tables(tests)
    if args == ["--write"]:
        write_atomically(PAGE, page)
    elif args:
        print(__doc__, file=sys.stderr)
        return 2
    else:
        print(page, end="")
    for gap in list_gaps(tests):
        print(f"no test and no reason: {gap}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
