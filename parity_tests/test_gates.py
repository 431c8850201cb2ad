"""What a row of the comparison measures, what stands apart, and what is not compared."""

import dataclasses

import numpy as np
import pytest

from jaxgpt.compare import gates
from jaxgpt.compare.tolerances import PARITY
from jaxgpt.compare.trajectories import Trajectory
from jaxgpt.errors import InputError


def test_two_models_are_not_compared():
    """Trajectories of different models, optimizers or lengths: named, not broadcast."""
    leaf = {"ln_f.bias": np.ones(3)}
    one = Trajectory("x", np.ones(3), leaf, [1.0, 2.0], [1.0, 2.0], leaf, leaf, {"mu.ln_f.bias": np.ones(3)})
    other = dataclasses.replace(one, name="y")
    assert all(row.figure == 0 for row in gates.compare(one, other, PARITY["float64"]))
    for field, value, message in (
        ("last", {}, r"two models: ln_f\.bias is None in x, \(3,\) in y"),
        (
            "opt_state",
            {"mu.ln_f.bias": np.ones((3, 1))},
            r"two optimizers: mu\.ln_f\.bias is \(3, 1\) in x, \(3,\) in y",
        ),
        ("losses", [1.0], "two lengths: x took 1 steps, y 2"),
    ):
        with pytest.raises(InputError, match=message):
            gates.compare(dataclasses.replace(one, **{field: value}), other, PARITY["float64"])


def test_nan_is_outside():
    row = gates.Row("loss, max", "step 1", float("nan"), 0.0, 1e-5)
    assert not row.is_inside
    tree = {"a": np.ones(3), "b": np.array([1.0, np.nan, 1.0])}
    worst, figure = gates.find_worst(tree, {"a": np.zeros(3), "b": np.ones(3)})
    assert worst == "b" and np.isnan(figure)


def test_key_biases_stand_apart():
    theirs = {"h.0.attn.c_attn.bias": np.arange(1.0, 10.0)}
    ours = {"h.0.attn.c_attn.bias": np.arange(1.0, 10.0) + np.array([0, 0, 0, 1, 1, 1, 0, 0, 0])}
    assert gates.find_worst(ours, theirs)[1] == 0
    assert gates.find_worst_key_bias(ours, theirs, theirs)[1] == pytest.approx(
        3**0.5 / np.linalg.norm(theirs["h.0.attn.c_attn.bias"])
    )


def test_lambdas_stand_apart():
    """Their gradients have a row of their own; their first moments are measured by their second ones."""
    theirs = {"smear_lambda": np.array([1e-9]), "wte.weight": np.ones(4)}
    ours = {"smear_lambda": np.array([3e-9]), "wte.weight": np.ones(4)}
    moments = {"mu.smear_lambda": theirs["smear_lambda"], "nu.smear_lambda": np.array([4.0])}
    a = Trajectory("x", np.ones(1), ours, [1.0], [1.0], ours, ours, moments | {"mu.smear_lambda": ours["smear_lambda"]})
    b = Trajectory("y", np.ones(1), theirs, [1.0], [1.0], theirs, theirs, moments)
    rows = {row.quantity: row for row in gates.compare(a, b, PARITY["float64"])}
    assert rows["gradients, step 1"].figure == 0
    assert rows["lambdas, gradients"].figure == pytest.approx(2)
    assert rows["optimizer state"].figure == pytest.approx(1e-9)
