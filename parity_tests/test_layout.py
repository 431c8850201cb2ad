"""The rooms of jaxgpt, read off the sources: who may import whom, which rooms know no framework, no circles."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]

FLOORS = (
    ("errors", "extras", "files", "mirror", "signals", "stores", "streams"),
    ("config",),
    ("data", "parallel"),
    ("run", "models", "optim"),
    ("training", "formats", "prepare", "tasks", "report"),
    ("inference", "plan"),
    ("chat",),
    ("bench", "compare"),
    ("convert", "serve"),
)
"""A room imports only itself and rooms on lower floors. Above all of them stand the verbs, which nobody imports."""

WITH_JAX = (
    "parallel", "models", "optim", "training", "formats", "inference", "plan", "chat", "bench", "compare", "convert",
    "serve",
)  # fmt: skip
MIRRORED = ("parallel", "models", "optim", "training")
"""Rooms that torch_ref has too; of jaxgpt it imports the rooms without JAX."""
FLOOR_OF = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
N_LINES = 450
"""Past this a file holds a second noun."""


def modules(package):
    """Dotted name -> source, of all files of a package."""
    found = {}
    for path in sorted((package).rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def imports(source, known):
    """Modules of the package that a source imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module} if node.module in known else set()
    return found


def room_of(name):
    """The room of a module; empty for the package itself and for a verb."""
    parts = name.split(".")
    is_verb = parts[-1] == "__main__" or (len(parts) == 2 and parts[1] not in FLOOR_OF)
    return "" if len(parts) == 1 or is_verb else parts[1]


def find_faults(package):
    """Imports of a package that are against the rules, in words."""
    sources = modules(package)
    faults, used = [], {}
    for name, source in sources.items():
        used[name] = {module for module in imports(source, sources) if module in sources and module != package.name}
        for module in used[name]:
            room, theirs = room_of(name), room_of(module)
            if not theirs:
                faults.append(f"{name} imports the verb {module}")
            elif room and room != theirs and FLOOR_OF[theirs] >= FLOOR_OF[room] and FLOOR_OF[room]:
                faults.append(f"{name} (floor {FLOOR_OF[room]}) imports {module} (floor {FLOOR_OF[theirs]})")
    return faults + find_circles(used)


def find_circles(used):
    """Circles of imports. A package's __init__ gathers its modules; it is no part of a circle with them."""
    state, faults = {}, []

    def visit(name, path):
        state[name] = "open"
        for module in sorted(used[name]):
            if name.startswith(f"{module}."):
                continue
            if state.get(module) == "open":
                faults.append("circle: " + " -> ".join([*path[path.index(module) :], module]))
            elif module not in state:
                visit(module, [*path, module])
        state[name] = "done"

    for name in sorted(used):
        if name not in state:
            visit(name, [name])
    return faults


@pytest.mark.parametrize("package", ["jaxgpt", "torch_ref", "parity_tests"])
def test_rooms_import_downwards_and_nothing_in_circles(package):
    root = REPO / package
    if package == "jaxgpt":
        assert find_faults(root) == []
    else:
        sources = modules(root)
        used = {n: {m for m in imports(s, sources) if m in sources and m != package} for n, s in sources.items()}
        assert find_circles(used) == []


def test_every_folder_is_a_room_on_a_floor():
    folders = {path.parent.name for path in (REPO / "jaxgpt").glob("*/__init__.py")}
    assert folders == FLOOR_OF.keys() - set(FLOORS[0])


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"data/x.py": "from jaxgpt.training import step", "training/step.py": ""}, "data.x (floor 2) imports"),
        ({"data/x.py": "from jaxgpt.parallel.mesh import m", "parallel/mesh.py": "m = 1"}, "(floor 2) imports"),
        ({"run/a.py": "from jaxgpt.run import b", "run/b.py": "def f():\n    import jaxgpt.run.a"}, "circle: "),
        ({"run/a.py": "from jaxgpt.train import main", "train.py": ""}, "imports the verb jaxgpt.train"),
        ({"run/a.py": "from jaxgpt.plan.__main__ import m", "plan/__main__.py": ""}, "imports the verb jaxgpt.plan"),
    ],
)
def test_what_is_against_the_rules_is_found(tmp_path, files, fault):
    for name, text in files.items():
        path = tmp_path / "jaxgpt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    assert any(fault in found for found in find_faults(tmp_path / "jaxgpt"))


def test_rooms_without_jax_load_no_framework():
    """In a fresh interpreter: what the sources do not show, a dependency could still do."""
    names = [name for name in modules(REPO / "jaxgpt") if room_of(name) and room_of(name) not in WITH_JAX]
    assert len(names) > 20
    script = f"import sys, {', '.join(names)}; print(sorted({{'jax', 'torch', 'flax', 'orbax'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout == "[]\n"


IN_TORCH = r"jaxgpt\.bench\.\w*torch\w*"
"""Programs that the benchmark starts in processes of their own."""


def test_no_file_of_jaxgpt_needs_torch_to_be_imported():
    for name, source in modules(REPO / "jaxgpt").items():
        if re.fullmatch(IN_TORCH, name):
            continue
        top = ast.Module([node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not {used.split(".")[0] for used in imports(ast.unparse(top), ())} & {"torch", "torch_ref"}, name


def test_torch_ref_mirrors_the_math_and_imports_only_rooms_without_jax():
    rooms = {path.parent.name for path in (REPO / "torch_ref").glob("*/__init__.py")}
    assert rooms == set(MIRRORED)
    known = modules(REPO / "jaxgpt")
    for name, source in modules(REPO / "torch_ref").items():
        used = imports(source, known)
        assert not {module.split(".")[0] for module in used} & {"jax", "flax", "optax", "orbax"}, name
        theirs = {room_of(module) for module in used if module in known}
        assert not theirs & set(WITH_JAX), f"{name} imports rooms of JAX"


def test_files_stay_readable():
    long = {
        name: source.count("\n")
        for package in ("jaxgpt", "torch_ref")
        for name, source in modules(REPO / package).items()
        if source.count("\n") > N_LINES
    }
    assert not long
