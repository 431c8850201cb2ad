"""The table of devices, and the names under which topologies are asked for."""

import pytest

from jaxgpt.config.hardware import DEVICES, GIB, GpuDescription, find_device, largest_fraction, usable_bytes
from jaxgpt.errors import InputError
from jaxgpt.plan.topology import parse_topology, target_config

BY_NAME = {device.name: device for device in DEVICES}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA RTX A1000", None),
        ("cpu", None),
    ],
)
def test_a_device_is_found_by_what_jax_calls_it(kind, name):
    found = find_device(kind)
    assert (found.name if found else None) == name


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_specifications_are_of_one_card(device):
    """Within factors that a slip of a digit or of a unit would break."""
    assert 0.85 * device.memory_bytes < device.visible_bytes <= 1.07 * device.memory_bytes
    assert 200e9 < device.bandwidth_bytes_s < 10e12 and 10e9 < device.link_bytes_s < device.bandwidth_bytes_s
    assert max(device.peak_flops.values()) / device.bandwidth_bytes_s < 600, "FLOPs per byte"
    if isinstance(device.compiler, GpuDescription):
        gpu = device.compiler
        assert find_device(gpu.title) is device
        by_clock = 2 * gpu.n_cores * gpu.fpus_per_core * gpu.clock_ghz * 1e9
        assert by_clock == pytest.approx(device.peak_flops["float32"], rel=0.12)


def test_usable_memory_is_what_jax_takes_and_never_the_reserve(monkeypatch):
    card = BY_NAME["rtx4090"]
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert usable_bytes(card) == int(0.75 * card.visible_bytes)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert usable_bytes(card) == int(0.5 * card.visible_bytes)
    assert usable_bytes(card, 1.0) == card.visible_bytes - 1.25 * GIB
    best = largest_fraction(card)
    assert usable_bytes(card, best) == int(best * card.visible_bytes) and usable_bytes(card, best + 0.01) < int(
        (best + 0.01) * card.visible_bytes
    )
    assert usable_bytes(BY_NAME["v5e"]) == int(15.75 * GIB)


@pytest.mark.parametrize(
    ("name", "device", "count", "shape"),
    [
        ("a100-40gb", "a100-40gb", 1, "1x1x1"),
        ("a100-80gbx8", "a100-80gb", 8, "1x1x8"),
        ("h100x64", "h100", 64, "1x8x8"),
        ("v5e-256", "v5e", 256, "16x16"),
        ("v5p-8", "v5p", 4, "2x2x1"),
        ("v5px8", "v5p", 8, "2x2x2"),
        ("v4:2x2x4", "v4", 16, "2x2x4"),
    ],
)
def test_topology_names(name, device, count, shape):
    topology = parse_topology(name)
    assert (topology.device.name, topology.n_devices, topology.shape) == (device, count, shape)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("a200", "not known; write one of"),
        ("h100x0", "not a number of cards"),
        ("h100-8", "write h100x8"),
        ("h100x9", "do not fill hosts"),
        ("v5e-3", "slices: v5ex1"),
        ("v5p-6", "not a slice of v5p"),
        ("v5p:3x3x3", "slices: 1x1x1"),
    ],
)
def test_a_wrong_topology_is_one_line(name, part):
    with pytest.raises(InputError, match=part) as error:
        parse_topology(name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_the_compiler_is_told_of_the_card_that_was_asked_for():
    card = BY_NAME["a100-40gb"]
    assert isinstance(card.compiler, GpuDescription)
    text = target_config(card.compiler, card, (9, 28, 0))
    assert "core_count: 108" in text and "major: 8 minor: 0" in text and f"{card.visible_bytes}" in text
    assert text.count("{") == text.count("}")
