"""The modded family against figures measured on the original programs: forward, losses, gradients, evaluation."""

import functools

import jax
import numpy as np
import pytest

from parity_tests.helpers import modded_digests as digests
from parity_tests.helpers.modded_cases import (
    MTP_WEIGHTS,
    forward,
    packed_tokens,
    params_of,
    record,
    record_layers,
    run,
    track3,
    track3_tokens,
    weigh_targets,
    weighted_loss,
    with_windows,
)
from parity_tests.helpers.modded_layout import original_shapes, to_original

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMEWORKS = pytest.mark.parametrize("framework", ["jax", "torch"])
FORWARD, GRADIENT = 1e-11, 1e-10
"""Relative; the figures have 15 digits."""


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


close = functools.partial(np.testing.assert_allclose, rtol=FORWARD)


@functools.cache
def run_record(framework, name, dtype="float64"):
    tokens = packed_tokens()
    weights = weigh_targets(MTP_WEIGHTS, 96) if name == "62" else None
    return run(
        framework, record(name), params_of(name), tokens[:, :-1], tokens[:, 1:], target_weights=weights, dtype=dtype
    )


def sums_and_norms(arrays):
    return [(a.sum(), np.linalg.norm(a)) for a in arrays]


def norms(grads):
    return {name: np.linalg.norm(grad) for name, grad in grads.items()}


def close_by_name(found, wanted, rtol):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, err_msg=name)


def test_tokens_are_the_digests():
    tokens = packed_tokens()
    assert tokens[0, :8].tolist() == [255, 159, 174, 228, 147, 197, 212, 57] and tokens.sum() == 13537
    assert track3_tokens(4)[0].sum() == 35320


@FRAMEWORKS
def test_record_62_layer_by_layer(framework, monkeypatch):
    config, tokens = record("62"), packed_tokens()
    seen = record_layers(framework, config, params_of("62"), tokens[:, :-1], monkeypatch)
    close(sums_and_norms(seen["inputs"][:1]), [(37.6641831324298, 45.7347264379735)])
    close(sums_and_norms(seen["outputs"]), digests.LADDER_62)
    close(sums_and_norms(seen["attention"]), list(digests.ATTENTION_62.values()))


@FRAMEWORKS
def test_record_46_layer_by_layer(framework, monkeypatch):
    seen = record_layers(framework, record("46"), params_of("46"), packed_tokens()[:, :-1], monkeypatch)
    close(sums_and_norms(seen["outputs"]), digests.LADDER_46)


@FRAMEWORKS
def test_record_62_logits_and_losses(framework):
    found = run_record(framework, "62")
    logits = found["logits"][0]
    close([logits.sum(), np.linalg.norm(logits)], [-242.092521733148, 448.988728381518])
    close([logits[0, 0], logits[95, 255], logits[50, 100]], [4.59256045772252, -4.19211807810471, 2.24578914474419])
    close(found["row_losses"][list(digests.ROW_LOSSES_62)], list(digests.ROW_LOSSES_62.values()))
    close(found["loss"], 1115.05117635424)


@FRAMEWORKS
def test_record_62_gradients(framework):
    """By the original's tensors; what no layer reads has none: layer 6's lambdas, the twelfth MLP."""
    grads = run_record(framework, "62")["grads"]
    close_by_name(norms(grads), digests.GRADIENTS_62, GRADIENT)
    np.testing.assert_allclose(grads["scalars"], digests.SCALARS_62, rtol=GRADIENT)
    np.testing.assert_allclose(grads["x0_lambdas"], digests.X0_LAMBDAS_62, rtol=GRADIENT)
    assert not grads["scalars"][23:25].any() and not grads["mlp_bank"][11].any()
    banks = grads["attn_bank"].reshape(10, 4, 96, 96)
    by_row = {
        0: (10.4905322442163, 10.2502103293118, 26.3564870906418, 31.2399297219773),
        3: (2.51437075329792, 2.36513017559422, 13.0807437418104, 12.6650078809893),
        9: (3.58439914005889, 3.49960590123825, 17.4733065702403, 22.7839227209809),
    }
    for row, wanted in by_row.items():
        np.testing.assert_allclose(np.linalg.norm(banks[row], axis=(1, 2)), wanted, rtol=GRADIENT)
    mlp = [np.linalg.norm(grads["mlp_bank"][i]) for i in ((0, 0), (0, 1), (10, 0))]
    np.testing.assert_allclose(mlp, [344.954363040877, 297.388350302582, 303.382082105607], rtol=GRADIENT)


@FRAMEWORKS
@pytest.mark.parametrize(
    ("name", "short", "long", "yarn", "wanted"),
    [
        ("62", 1, 3, (), 6.86660428603744),
        ("62", 2, 6, (), 6.89019804888202),
        ("62", 2, 6, ((3, 6),), 6.8736751159745),
        ("46", 1, 3, (), 9.4731244269915),
        ("46", 2, 6, ((3, 6),), 9.4716819474049),
    ],
    ids=["62", "62 wider", "62 wider, YaRN", "46", "46 wider, YaRN"],
)
def test_evaluation(framework, name, short, long, yarn, wanted):
    """The mean loss of the next token alone, with other windows than in training, before and after YaRN."""
    tokens, config = packed_tokens(), with_windows(record(name), short, long, yarn)
    logits = forward(framework, config, params_of(name), tokens[:, :-1])
    close(weighted_loss(config, logits, tokens[:, 1:], np.eye(96)) / 96, wanted)


@FRAMEWORKS
def test_record_46(framework):
    found = run_record(framework, "46")
    logits = found["logits"][0]
    close([logits.sum(), np.linalg.norm(logits)], [-272.013908240791, 458.178876118151])
    close([logits[0, 0], logits[-1, -1]], [-0.561235783701172, -4.53243267310568])
    close(found["row_losses"][0, list(digests.ROW_LOSSES_46)], list(digests.ROW_LOSSES_46.values()))
    close(found["loss"], 909.419944991184)
    close_by_name(norms(found["grads"]), digests.GRADIENTS_46, GRADIENT)


@FRAMEWORKS
def test_track3(framework):
    """The first microbatch's logits and loss, and the gradients of both of the first step's."""
    first = run(framework, track3(), params_of("track3"), *track3_tokens(2))
    logits = first["logits"]
    wanted = [1062.38758576601, 116.154051286396, -0.690013222345205, 0.258222834491419]
    np.testing.assert_allclose([logits.sum(), np.linalg.norm(logits), logits[0, 0, 0], logits[-1, -1, -1]], wanted,
                               rtol=1e-12)  # fmt: skip
    np.testing.assert_allclose(first["loss"], 407.337386622961, rtol=1e-12)
    both = run(framework, track3(), params_of("track3"), *track3_tokens(4))
    np.testing.assert_allclose(both["loss"], 825.889195138906, rtol=1e-12)
    close_by_name(norms(both["grads"]), digests.GRADIENTS_TRACK3, FORWARD)


@pytest.mark.slow
@FRAMEWORKS
def test_record_62_in_bfloat16(framework):
    """The types of a real run: the originals' own gave 1115.40, and gradients within 2.5 %."""
    found = run_record(framework, "62", "bfloat16")
    np.testing.assert_allclose(found["loss"], 1115.05117635424, rtol=2e-3)
    close_by_name(norms(found["grads"]), digests.GRADIENTS_62, 0.05)


@pytest.mark.parametrize("name", ["62", "46", "track3"])
def test_layout_there_and_back(name):
    config = track3() if name == "track3" else record(name)
    tensors = to_original(config, params_of(name))
    assert {k: t.shape for k, t in tensors.items()} == original_shapes(config)
    assert sum(np.count_nonzero(t) for t in tensors.values()) == sum(p.size for p in params_of(name).values())
