"""The rooms of the repository, read off the sources: floors, framework-free modules, verbs that nobody imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]

FLOORS = (
    ("errors", "hardware", "progress", "census", "malloc", "splash"),
    ("model_config", "optim_config", "turns", "topology"),
    ("config", "param_groups", "log", "tokenizer", "evaluation", "run_lock", "sealed", "data.pydocs"),
    ("bpe", "run_dir", "stop_signal", "command_line", "schedule", "flops", "data.manifest"),
    ("derive", "meter", "benchmarks", "roofline", "data.shards"),
    ("data.batches", "data.corpora", "data.shard_writer", "data.text_data", "attention", "sharding"),
    ("data.encode", "data.documents", "data.text_shards", "layers"),
    ("data.destination", "data.packing", "smoke", "loss"),
    ("data.cursors",),
    ("data.text_batches",),
    ("data.sources",),
    ("header",),
    ("models.gpt2", "models.nanochat", "hotspots"),
    ("models",),
    ("optim", "weights", "engine"),
    ("step", "checkpoint"),
    ("programs",),
    ("validation", "trained", "workload", "footprint"),
    ("compiles", "estimate"),
    ("outlook",),
    ("fit", "memory_page"),
    ("memory",),
    ("prepare", "train_tokenizer", "train", "sample", "evaluate", "bench", "plan"),
)
"""A module imports only from floors before its own. The last floor holds the verbs."""

WITH_JAX = ("splash", "attention", "sharding", "layers", "loss")
FRAMEWORK_FREE = tuple(name for floor in FLOORS[:12] for name in floor if name not in WITH_JAX)
"""What torch_ref may import, and what must import neither framework."""


def module_name(path, root):
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """Names of modules imported anywhere in a file, at the top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = {module_name(path, REPO / "jaxgpt"): path for path in (REPO / "jaxgpt").rglob("*.py")}
FILES = {name: path for name, path in FILES.items() if name not in ("__init__", "data")}


def test_every_module_has_a_floor():
    assert set(FILES) == {name for floor in FLOORS for name in floor}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_only_from_floors_below(name):
    floor_of = {module: i for i, floor in enumerate(FLOORS) for module in floor}
    imported = {used.removeprefix("jaxgpt.") for used in imports(FILES[name]) if used.startswith("jaxgpt.")}
    upward = {used for used in imported & set(floor_of) if floor_of[used] >= floor_of[name]}
    assert not upward, f"{name} is on floor {floor_of[name]}"


def test_framework_free_modules_load_neither_framework():
    """In a fresh interpreter: what the sources do not show, a dependency could still do."""
    names = ", ".join(f"jaxgpt.{name}" for name in FRAMEWORK_FREE)
    script = f"import sys, {names}; print(sorted({{'jax', 'torch', 'flax', 'orbax'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout == "[]\n"


def test_nothing_but_torch_ref_and_tests_needs_torch():
    for name, path in FILES.items():
        top = {used.split(".")[0] for node in ast.parse(path.read_text()).body for used in _names(node)}
        assert "torch" not in top and "torch_ref" not in top, name


def _names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) else []


def test_torch_ref_imports_only_framework_free_modules():
    allowed = {f"jaxgpt.{name}" for name in FRAMEWORK_FREE}
    for path in (REPO / "torch_ref").rglob("*.py"):
        used = {name for name in imports(path) if name.startswith("jaxgpt.")}
        modules = {name for name in used if name.removeprefix("jaxgpt.") in FILES}
        assert modules <= allowed, path
        assert not any(name.split(".")[0] in ("jax", "flax", "optax", "orbax") for name in imports(path)), path


def test_files_stay_readable():
    """Past this a file holds a second noun."""
    for path in [*(REPO / "jaxgpt").rglob("*.py"), *(REPO / "torch_ref").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 520, path
