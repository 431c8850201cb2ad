"""Wrong readings of modded-nanogpt's record 62: each gives the figures that its mistake has in the originals' digests.

So the digests catch each mistake, and the place where it would be made is the place that this test changes.
"""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from parity_tests.helpers.modded_cases import (
    DOCUMENTS,
    MODULES,
    MTP_WEIGHTS,
    forward,
    packed_tokens,
    params_of,
    record,
    weigh_targets,
    weighted_loss,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LOSS, NORM = 1115.05117635424, 448.988728381518
"""As it should be read."""
CAUGHT = 1e-8
"""Relative change that the digests' gates, 1e-11, see with ease."""


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Reading:
    """A wrong reading in the making.

    Attributes:
      config: of the model.
      target_weights: of the loss, [T, T].
    """

    def __init__(self, framework, monkeypatch):
        self.framework, self.module, self.monkeypatch = framework, MODULES[framework], monkeypatch
        self.call = {"jax": "__call__", "torch": "forward"}[framework]
        self.config, self.target_weights = record("62"), weigh_targets(MTP_WEIGHTS, 96)

    def change(self, **fields):
        self.config = dataclasses.replace(self.config, **fields)

    def wrap(self, owner, name, wrapper):
        """wrapper(original, *arguments) takes the place of a function or method."""
        original = getattr(owner, name)
        self.monkeypatch.setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))


def neighbours(reading):
    def regroup(x):  # rows of (j, j + 3) to rows of (2 j, 2 j + 1)
        heads = x.reshape(1, 96, 6, 16)
        return heads.reshape(1, 96, 3, 2, 16).swapaxes(2, 3).reshape(1, 192, 3, 16)

    def attend(original, q, k, v, begin, **settings):
        if q.shape[1] == 96:
            return original(q, k, v, begin, **settings)
        y = original(regroup(q), regroup(k), regroup(v), begin, **settings)
        return y.reshape(1, 96, 2, 3, 16).swapaxes(2, 3).reshape(1, 192, 3, 16)

    reading.wrap(reading.module, "packed_attention", attend)


def phase_by_row(reading):
    def tables(original, positions, *args):
        return original(positions[..., np.array([0, 0, 0, 1, 1, 1])] if positions.shape[-1] == 6 else positions, *args)

    reading.wrap(reading.module, "rotary_tables", tables)


def first_token_in_hash(reading):
    reading.wrap(reading.module, "bigram_ids", lambda original, x, before, t, n: original(x, before, t + (t > 0), n))


def narrow_window(reading):
    reading.wrap(
        reading.module, "packed_attention",
        lambda original, *args, window, **settings: original(*args, window=window - 1, **settings),
    )  # fmt: skip


def wide_pairs(reading):
    def attend(original, q, *args, window, **settings):
        return original(q, *args, window=2 * window - 1 if q.shape[1] == 192 else window, **settings)

    reading.wrap(reading.module, "packed_attention", attend)


def offset_within_documents(reading):
    def offset(original, k):
        shifted = original(k)
        pieces = [
            part
            for start, end in zip(DOCUMENTS, (*DOCUMENTS[1:], 96), strict=True)
            for part in (k[:, start : start + 1], shifted[:, start + 1 : end])
        ]
        return jax.numpy.concatenate(pieces, 1) if reading.framework == "jax" else torch.cat(pieces, 1)

    reading.wrap(reading.module, "offset_keys", offset)


def offset_of_rotated(reading):
    swap = np.concatenate([np.arange(8, 16), np.arange(8)])
    reading.wrap(reading.module, "offset_keys", lambda original, k: original(k[..., swap])[..., swap])


def other_sign(reading):
    def tables(original, *args):
        cos, sin = original(*args)
        return cos, -sin

    reading.wrap(reading.module, "rotary_tables", tables)


def smear_of_norm(reading):
    seen = []

    def gate(original, module, x):
        seen.append(module)
        return original(module, reading.module.rms_norm(x, eps=2**-23) if len(seen) == 1 else x)

    reading.wrap(reading.module, "gate", gate)


def skip_after_mix(reading):
    held = []

    def skip(original, model, x, x0, kept):
        held.append((original, x0, kept))
        return x

    def mix(original, model, *args):
        x = original(model, *args)
        if not held:
            return x
        skip, x0, kept = held.pop()
        return skip(model, x, x0, kept)

    reading.wrap(reading.module.Modded, "skip", skip)
    reading.wrap(reading.module.Modded, "mix", mix)


def gates_of_stream(reading):
    streams = []

    def block(original, module, x, *args):
        streams.append(x)
        return original(module, x, *args)

    def gate(original, module, x):
        return original(module, streams[-1] if 6 in tuple(module.weight.shape) else x)

    reading.wrap(reading.module.Block, reading.call, block)
    reading.wrap(reading.module, "gate", gate)


def epsilon(value):
    return lambda reading: reading.monkeypatch.setattr(reading.module, "RMS_EPS", value)


def targets_within_documents(reading):
    document = np.searchsorted(DOCUMENTS, np.arange(97), side="right")
    reading.target_weights = weigh_targets(MTP_WEIGHTS, 96, document[:96, None] == document[None, :96])


READINGS = {
    "head pairs (2j, 2j+1)": (neighbours, 1116.78309730073, 447.997433125442),
    "phase by row slot": (phase_by_row, 1115.26373981130, 448.988353525632),
    "second hash from the real first token": (first_token_in_hash, 1116.99282858823, 449.019259253129),
    "window of w keys": (narrow_window, 1118.19561755438, 449.077054605144),
    "paired window 2w": (wide_pairs, 1117.68323266, 448.721714812601),
    "key offset stopped at documents": (offset_within_documents, 1114.80300132745, 448.991069547411),
    "key offset of the rotated channels": (offset_of_rotated, 1114.69047099884, 448.959944831774),
    "no key offset": (lambda reading: reading.change(key_offset=False), 1114.13004108410, 449.012119391155),
    "rotation of the other sign": (other_sign, 1114.61068040701, 448.947683908445),
    "smear gate on the normed embedding": (smear_of_norm, 1121.06326287820, 449.481445052431),
    "skip after the lambdas": (skip_after_mix, 1114.65120738516, 449.497103260252),
    "gates from x": (gates_of_stream, 1115.97733879177, 448.887274662539),
    "value tables 0, 1 on layers 0, 1": (
        lambda reading: reading.change(value_embeds="01------012"), 1114.69707746272, 449.171432749070,
    ),
    "epsilon 0": (epsilon(0.0), 1115.05122131333, 448.988740582607),
    "epsilon 1e-5": (epsilon(1e-5), 1115.04744995297, 448.987717056675),
    "targets stopped at documents": (targets_within_documents, 1092.17945755537, NORM),
    "softcap 15 tanh(z / 15)": (
        lambda reading: reading.change(softcap="tanh", softcap_scale=15.0), 1391.56370962467, NORM,
    ),
}  # fmt: skip
"""Mistake -> how it is made, loss sum and norm of the logits that it gives."""


def run_reading(framework, name, monkeypatch):
    reading = Reading(framework, monkeypatch)
    if name:
        READINGS[name][0](reading)
    tokens = packed_tokens()
    logits = forward(framework, reading.config, params_of("62"), tokens[:, :-1])
    return weighted_loss(reading.config, logits, tokens[:, 1:], reading.target_weights), np.linalg.norm(logits)


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("name", READINGS)
def test_a_wrong_reading_gives_its_own_figures(framework, name, monkeypatch):
    loss, norm = run_reading(framework, name, monkeypatch)
    np.testing.assert_allclose(np.array([loss, norm]), READINGS[name][1:], rtol=1e-11)
    assert max(abs(loss / LOSS - 1), abs(norm / NORM - 1)) > CAUGHT


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_half_split_rotary_is_seen(framework, monkeypatch):
    """The originals' figures are of a rotation across paired heads, which has no place here."""
    monkeypatch.setitem(READINGS, "halves", (lambda reading: reading.change(rotary="halves"), 0, 0))
    loss, norm = run_reading(framework, "halves", monkeypatch)
    assert abs(loss / LOSS - 1) > 1e-5 and abs(norm / NORM - 1) > 1e-5


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_right_reading(framework, monkeypatch):
    np.testing.assert_allclose(np.array(run_reading(framework, None, monkeypatch)), [LOSS, NORM], rtol=1e-11)
