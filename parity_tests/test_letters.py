"""Shape letters: the legend stands in README, and the math files keep to it, their einsums too."""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
MATH = [
    path
    for package in ("jaxgpt", "torch_ref")
    for pattern in ("models/*.py", "optim/*.py", "training/step.py", "inference/*.py")
    for path in sorted((REPO / package).glob(pattern))
]


def read_legend() -> dict[str, str]:
    """Letter -> what it counts."""
    text = (REPO / "README.md").read_text(encoding="utf-8")
    paragraph = text[text.index("**Shape letters.**") :].split("\n\n")[0]
    return dict(re.findall(r"\*\*([A-Z])\*\* ([^,.]+)", " ".join(paragraph.split())))


def letters_of(name: str) -> str:
    """The suffix of an array's name; empty for other names, constants among them."""
    found = re.fullmatch(r"[a-z]\w*?_([A-Z0-9]*[A-Z][A-Z0-9]*)", name)
    return found[1] if found else ""


def names_of(tree: ast.AST):
    """Every name that a file gives to something: variables and arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def find_faults(source: str, legend) -> list[str]:
    """Suffixes with unknown letters; einsums, and unpacked shapes, that contradict the names of their arrays."""
    tree = ast.parse(source)
    faults = [
        f"{name}: {letter} is not in the legend"
        for name in sorted(set(names_of(tree)))
        for letter in letters_of(name)
        if letter not in legend and not letter.isdigit()
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target = letters_of(node.targets[0].id)
        else:
            target = ""
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign) and isinstance(value, ast.Call):
            faults += check_einsum(value, target)
        elif isinstance(node, ast.Call):
            faults += check_einsum(node, "")
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            array = letters_of(ast.unparse(node.value).removesuffix(".shape")) if _is_shape(node.value) else ""
            if array and not any(isinstance(part, ast.Starred) for part in node.targets[0].elts):
                n_names = len(node.targets[0].elts)
                faults += [f"{ast.unparse(node)}: {n_names} sizes"] if n_names != len(array) else []
    return faults


def _is_shape(node) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "shape" and isinstance(node.value, ast.Name)


def check_einsum(call: ast.Call, target: str) -> list[str]:
    """Operands, and the name that the result gets, against the subscripts."""
    if not ast.unparse(call.func).endswith("einsum") or not isinstance(call.args[0], ast.Constant):
        return []
    inputs, _, output = str(call.args[0].value).partition("->")
    faults = []
    for subscripts, operand in zip(inputs.split(","), call.args[1:], strict=True):
        names = [letters_of(node.id) for node in ast.walk(operand) if isinstance(node, ast.Name)]
        if any(names) and subscripts not in names:
            faults.append(f"{ast.unparse(operand)} is {subscripts} in {ast.unparse(call)}")
    if target and target != output:
        faults.append(f"{target} is {output} in {ast.unparse(call)}")
    return faults


@pytest.mark.parametrize("path", MATH, ids=lambda path: str(path.relative_to(REPO)))
def test_suffixes_and_einsums_keep_to_the_legend(path):
    assert not find_faults(path.read_text(encoding="utf-8"), read_legend())


def test_every_letter_of_the_legend_is_used():
    used = {letter for path in MATH for name in names_of(ast.parse(path.read_text())) for letter in letters_of(name)}
    legend = read_legend()
    assert len(legend) >= 11 and not legend.keys() - used


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def f(x_BTZ): pass", "x_BTZ: Z is not in the legend"),
        ("y_BTV = jnp.einsum('BTD,VD->BTV', x_BTD, w_VF)", "w_VF is VD in"),
        ("y_BVT = jnp.einsum('BTD,VD->BTV', x_BTD, w_VD)", "BVT is BTV in"),
        ("a, b = x_BTD.shape", "2 sizes"),
    ],
)
def test_faults_are_found(source, fault):
    legend = dict.fromkeys("BTSDNKHFVLM")
    assert any(fault in found for found in find_faults(source, legend))
    assert not find_faults("n_rows, n = q_BT.shape\ny_BTV = jnp.einsum('BTD,VD->BTV', x_BTD.f(), w_VD)", legend)
