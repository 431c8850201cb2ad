"""torch_ref mirrors jaxgpt: same names, same arguments, same order, read off the sources."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
FILES = {str(path.relative_to(REPO / "torch_ref")): path for path in sorted((REPO / "torch_ref").rglob("*.py"))}
NAMESAKES = sorted(name for name in FILES if (REPO / "jaxgpt" / name).exists() and not name.endswith("__init__.py"))

RENAMED = {"__call__": "forward", "weight_IO": "weight_OI", "param_IO": "param_OI", "direction_IO": "direction_OI",
           "x_LIO": "x_LOI", "_xla": "_math"}  # fmt: skip
"""jaxgpt's name -> torch_ref's: torch.nn's word for the call; letters of transposed weights; the plain attention."""

EXCEPTIONS = {
    ("models/loss.py", "_summed_loss_backward"): "autograd.Function has no nondiff_argnums, which put chunk_len first",
    ("parallel/mesh.py", "make_mesh"): "a process has one device; there is no list to choose from",
    ("parallel/sharding.py", "put_rows"): "a process's tensors are its own rows; there is no global array",
}
"""(file, function) -> why its arguments differ."""

ADDED = {
    ("training/step.py", "make_step"): ["is_compiled"],
    ("training/step.py", "train_step"): ["loss_sum"],
    ("training/step.py", "eval_step"): ["row_losses"],
}
"""(file, function) -> keywords that torch_ref adds at the end: what jax.jit does around a function, it does inside."""


def definitions(path):
    """Functions, classes and their methods as dotted name -> arguments, in the order of the file."""
    found = {}

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.FunctionDef):
                a = node.args
                found[prefix + RENAMED.get(node.name, node.name)] = [
                    RENAMED.get(arg.arg, arg.arg) for arg in [*a.posonlyargs, *a.args, *a.kwonlyargs]
                ]
            elif isinstance(node, ast.ClassDef):
                found[prefix + node.name] = []
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(path.read_text()).body, "")
    return found


def pair(name):
    return definitions(REPO / "jaxgpt" / name), definitions(REPO / "torch_ref" / name)


def test_there_is_a_mirror():
    assert set(NAMESAKES) >= {
        "models/attention.py", "models/layers.py", "models/loss.py", "models/gpt2.py", "models/nanochat.py",
        "optim/optimizer.py", "optim/muon.py", "optim/adam.py", "optim/adamw.py", "optim/orthogonalize.py",
        "optim/normuon.py", "optim/clip.py", "optim/tied.py", "training/step.py", "training/checkpoint.py", "train.py",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMESAKES)
def test_common_functions_take_the_same_arguments(name):
    ours, theirs = pair(name)
    differing = {
        f: (ours[f], theirs[f]) for f in ours if f in theirs and ours[f] != theirs[f] and (name, f) not in EXCEPTIONS
    }
    differing = {f: (a, b) for f, (a, b) in differing.items() if a + ADDED.get((name, f), []) != b}
    assert not differing


@pytest.mark.parametrize("name", NAMESAKES)
def test_common_definitions_stand_in_the_same_order(name):
    ours, theirs = pair(name)
    assert [f for f in ours if f in theirs] == [f for f in theirs if f in ours]


@pytest.mark.parametrize(
    "name",
    [
        "models/attention.py",
        "models/layers.py",
        "models/loss.py",
        "optim/optimizer.py",
        "optim/muon.py",
        "optim/adam.py",
        "optim/adamw.py",
        "optim/orthogonalize.py",
        "optim/normuon.py",
        "optim/tied.py",
        "optim/clip.py",
        "training/step.py",
        "models/gpt2.py",
    ],
)
def test_most_of_the_math_is_common(name):
    """A mirror in which little has its name is none."""
    ours, theirs = pair(name)
    assert len(ours.keys() & theirs.keys()) >= 0.6 * len(ours)


def test_exceptions_are_needed():
    for name, function in [*EXCEPTIONS, *ADDED]:
        ours, theirs = pair(name)
        assert ours[function] != theirs[function], f"{name} {function} is no exception any more"


def test_a_swapped_argument_is_seen(tmp_path):
    """The reader itself: names, arguments with keyword-only ones, order, renamed letters."""
    path = tmp_path / "x.py"
    path.write_text("def b(x_LIO, *, steps): ...\nclass A:\n    def __call__(self, y): ...\ndef a(p, q): ...\n")
    assert list(definitions(path).items()) == [
        ("b", ["x_LOI", "steps"]), ("A", []), ("A.forward", ["self", "y"]), ("a", ["p", "q"]),
    ]  # fmt: skip
