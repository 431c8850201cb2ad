"""Two trajectories, quantity by quantity, against the gates of tolerances.py.

What each quantity measures, which tensors stand apart, and, with --trace, the first place where two runs part.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from jaxgpt.compare.tolerances import Gate
from jaxgpt.compare.trajectories import Arrays, Trajectory
from jaxgpt.errors import InputError


@dataclass(frozen=True)
class Row:
    """One compared quantity. `limit` None: reported, not judged."""

    quantity: str
    worst: str
    figure: float
    floor: float
    limit: float | None

    @property
    def is_inside(self) -> bool:
        return self.limit is None or self.figure <= self.limit  # NaN is outside

    @property
    def margin(self) -> float:
        """How many times the gate's limit the figure is."""
        return self.figure / self.limit if self.limit else 0.0


def compare(ours: Trajectory, theirs: Trajectory, gates: dict[str, Gate]) -> list[Row]:
    """One row per quantity, `theirs` being the reference.

    Raises:
      InputError: the two are of different models or of different lengths.
    """
    refuse_other_run(ours, theirs)
    n = len(theirs.losses)
    loss = np.abs(np.subtract(ours.losses, theirs.losses))
    norm = np.abs(np.divide(ours.grad_norms, theirs.grad_norms) - 1)
    figures = {
        "logits": ("step 1", np.max(np.abs(ours.logits - theirs.logits))),
        "loss, max": (f"step {np.argmax(loss) + 1}", np.max(loss)),
        "loss, mean": (f"{n} steps", np.mean(loss)),
        "gradient norm": (f"step {np.argmax(norm) + 1}", np.max(norm)),
        "gradients, step 1": find_worst(_without_lambdas(ours.grads), _without_lambdas(theirs.grads)),
        "parameters, step 1": find_worst(ours.first, theirs.first),
        "parameters, last step": find_worst(ours.last, theirs.last),
        "optimizer state": find_worst(ours.opt_state, theirs.opt_state, lambda_scales(theirs.opt_state)),
        "lambdas, gradients": find_worst(_only_lambdas(ours.grads), _only_lambdas(theirs.grads)),
        "key biases, gradients": find_worst_key_bias(ours.grads, theirs.grads, theirs.grads),
        "key biases, last step": find_worst_key_bias(ours.last, theirs.last, theirs.last),
    }
    return [
        Row(name.replace("last step", f"step {n}"), worst, float(figure), gates[name].floor, gates[name].limit)
        for name, (worst, figure) in figures.items()
        if worst
    ]  # fmt: skip


def refuse_other_run(ours: Trajectory, theirs: Trajectory) -> None:
    a, b = ({path: leaf.shape for path, leaf in side.last.items()} for side in (ours, theirs))
    for path in sorted(a.keys() | b.keys()):
        if a.get(path) != b.get(path):
            raise InputError(f"two models: {path} is {a.get(path)} in {ours.name}, {b.get(path)} in {theirs.name}")
    a, b = ({path: leaf.shape for path, leaf in side.opt_state.items()} for side in (ours, theirs))
    for path in sorted(a.keys() | b.keys()):
        if a.get(path) != b.get(path):
            raise InputError(f"two optimizers: {path} is {a.get(path)} in {ours.name}, {b.get(path)} in {theirs.name}")
    if len(ours.losses) != len(theirs.losses):
        raise InputError(f"two lengths: {ours.name} took {len(ours.losses)} steps, {theirs.name} {len(theirs.losses)}")


def key_part(path: str, array: np.ndarray) -> slice | None:
    """Which part of this tensor is the key bias, whose true gradient is 0: softmax does not see it."""
    if not path.endswith("attn.c_attn.bias"):
        return None
    width = array.shape[0] // 3
    return slice(width, 2 * width)


def relative_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """L2 norm of the difference, relative to theirs; absolute where theirs is 0."""
    a, b = (np.asarray(array, np.float64) for array in (ours, theirs))
    size = np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / (size if size > 0 else 1.0))


def is_lambda(path: str) -> bool:
    """A factor on activations (nanochat, modded-nanogpt), whose gradient is a sum over them that nearly cancels."""
    return re.fullmatch(r"\w+_lambdas?", path) is not None


def _only_lambdas(arrays: Arrays) -> Arrays:
    return {path: array for path, array in arrays.items() if is_lambda(path)}


def _without_lambdas(arrays: Arrays) -> Arrays:
    return {path: array for path, array in arrays.items() if not is_lambda(path)}


def lambda_scales(opt_state: Arrays) -> dict[str, float]:
    """What the first moments of lambdas are measured by: their second moments' root, which divides them.

    A mean of such sums of both signs may be near 0 by chance.
    """
    means = [path for path in opt_state if path.startswith("mu.") and is_lambda(path.removeprefix("mu."))]
    return {path: float(np.linalg.norm(opt_state[f"nu.{path.removeprefix('mu.')}"] ** 0.5)) for path in means}


def _distance(path: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    part = key_part(path, theirs)
    if part is not None:
        ours, theirs = (np.delete(array, part) for array in (ours, theirs))
    return relative_distance(ours, theirs)


def find_worst(ours: Arrays, theirs: Arrays, scales: dict[str, float] | None = None) -> tuple[str, float]:
    """The tensor that differs most, and by how much, key biases left out. NaN counts as most. ("", 0) of no tensors.

    Args:
      scales: path -> what a difference is relative to, where it is not the tensor's own norm.
    """
    distances = {path: _distance(path, ours[path], theirs[path]) for path in theirs}
    for path, scale in (scales or {}).items():
        distances[path] = float(np.linalg.norm(ours[path] - theirs[path]) / (scale or 1.0))
    worst = max(distances, key=lambda path: np.nan_to_num(distances[path], nan=np.inf), default="")
    return worst, distances.get(worst, 0.0)


def find_worst_key_bias(ours: Arrays, theirs: Arrays, scale: Arrays) -> tuple[str, float]:
    """As `find_worst` for the key biases alone, relative to the tensor they are a part of. ("", 0) without any."""
    worst = ("", 0.0)
    for path, b in theirs.items():
        part = key_part(path, b)
        if part is not None:
            size = np.linalg.norm(np.asarray(scale[path], np.float64))
            distance = float(np.linalg.norm(np.asarray(ours[path] - b, np.float64)[part]) / (size or 1.0))
            worst = max(worst, (path, distance), key=lambda pair: pair[1])
    return worst


def trace(ours: Trajectory, theirs: Trajectory, gates: dict[str, Gate]) -> str:
    """The first place where two traced runs part, by how much; or "no difference".

    Layers first, forward and backward; then what only the whole has: gradients of the model's own call, the update
    of the first step, the losses.
    """
    refuse_other_run(ours, theirs)
    names = [name.removeprefix("backward: ") for name in theirs.places if name.startswith("backward: ")]
    paths = [name for name in names if name in theirs.grads]
    found: list[tuple[str, Callable[[], float], float | None]] = []
    for name in theirs.places:
        path = name.removeprefix("backward: ")
        limit = gates["lambdas, gradients" if is_lambda(path) else "trace, " + name.partition(":")[0]].limit
        found.append((name, lambda n=name, p=path: _distance(p, ours.places[n], theirs.places[n]), limit))
    for what, a, b, quantity in (
        ("gradient of the whole model", ours.grads, theirs.grads, "gradients, step 1"),
        ("update of step 1", ours.first, theirs.first, "parameters, step 1"),
    ):
        for path in paths:
            gate = gates["lambdas, gradients" if is_lambda(path) and a is ours.grads else quantity]
            found.append((f"{what}: {path}", lambda a=a, b=b, p=path: _distance(p, a[p], b[p]), gate.limit))
    for i, (a, b) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        found.append((f"loss of step {i + 1}", lambda a=a, b=b: abs(a - b), gates["loss, max"].limit))
    for name, measure, limit in found:
        distance = measure()
        if limit is not None and not distance <= limit:
            return f"{name} ({distance:.1e}, gate {limit:.0e})"
    return "no difference"


def find_loudest(rows: Iterable[Row]) -> Row | None:
    """The judged quantity that is outside of its gate by the largest factor; None where all are inside."""
    outside = [row for row in rows if not row.is_inside]
    return max(outside, key=lambda row: np.nan_to_num(row.margin, nan=np.inf), default=None)
