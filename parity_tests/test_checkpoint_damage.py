"""A damaged checkpoint is named and not read; the one before it is."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from jaxgpt.errors import InputError
from jaxgpt.run import manifest as manifests
from jaxgpt.run.checkpoints import choose_checkpoint
from jaxgpt.training.checkpoint import Checkpoints
from parity_tests.helpers.saved_states import (
    ABOUT,
    assert_is_one_line,
    flip_bit,
    list_tree,
    make_state,
    names_in,
    on_one_device,
    payload,
    restore_newest,
    write_steps,
)


def test_one_flipped_bit_is_found_in_any_file(tmp_path):
    """Faults: C55."""
    write_steps(tmp_path, 1, 2)
    files = [path for path in (tmp_path / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        flip_bit(file)
        step, warnings = restore_newest(tmp_path)
        assert step == 1, file
        assert len(warnings) == 1, file
        assert f"{tmp_path / '2'} is not a checkpoint: its " in warnings[0]
        assert file.name in warnings[0]
        file.write_bytes(content)
    assert restore_newest(tmp_path) == (2, [])


def edit_manifest(path: Path, **changes) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


DAMAGE = {
    "truncated": (lambda path: os.truncate(payload(path), 100), "holds 100 bytes, not "),
    "deleted": (lambda path: payload(path).unlink(), "is missing"),
    "broken manifest": (lambda path: (path / "manifest.json").write_text('{"step": 7'), "is not JSON"),
    "zeroed manifest": (lambda path: (path / "manifest.json").write_bytes(bytes(4096)), "is not JSON"),
    "empty manifest": (lambda path: (path / "manifest.json").write_text(""), "is not JSON"),
    "foreign manifest": (lambda path: (path / "manifest.json").write_text("[]"), "not one of ours"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "it has no manifest.json"),
    "edited manifest": (lambda path: edit_manifest(path, about={"lr": 1}), "changed after it was written"),
    "newer format": (lambda path: edit_manifest(path, format=2), "its format is 2, this version reads 1"),
    "empty directory": (lambda path: [shutil.rmtree(path), path.mkdir()], "it has no manifest.json"),
    "renamed": (lambda path: [shutil.rmtree(path), shutil.copytree(path.parent / "2", path)], "holds step 2"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_falls_back_to_the_step_before(tmp_path, kind):
    """Faults: C54, C56, C57, C58, C59, C64."""
    damage, reason = DAMAGE[kind]
    write_steps(tmp_path, 2, 7)
    damage(tmp_path / "7")
    step, warnings = restore_newest(tmp_path)
    assert step == 2
    assert len(warnings) == 1
    assert f"{tmp_path / '7'} is not a checkpoint: it" in warnings[0]
    assert reason in warnings[0]
    without_digests: list[str] = []
    chosen = choose_checkpoint(tmp_path, verify=False, warn=without_digests.append)
    assert chosen and chosen.step == 2 and without_digests == warnings


WRONG = {
    "step": [None, "2", True, -1, 2.0],
    "files": [None, [], {}, {"x": None}, {"x": {"bytes": "1", "sha256": ""}}, {"x": {"bytes": 1}}],
    "state": [None, [], {"params": "float32"}, {"params": ["float32", [-1]]}, {"params": ["float32"]}],
    "about": [None, [], "x", {"config": []}, {**ABOUT, "data_sha256": 5}, {**ABOUT, "cursors": []}],
    "val_loss": ["3.5", [], float("nan"), ...],
}
"""What a field cannot hold; None and ... leave it out."""


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in WRONG for value in WRONG[field]])
def test_a_right_seal_with_wrong_contents_falls_back(two_steps, field, value):
    """Faults: F13, C58."""
    path = two_steps / "2" / "manifest.json"
    before = path.read_text()
    manifest = json.loads(before)
    manifest[field] = value
    if value is ... or (value is None and field != "val_loss"):
        del manifest[field]
    manifest["seal"] = manifests.digest_manifest(manifest)
    path.write_text(json.dumps(manifest))
    warned = []
    chosen = choose_checkpoint(two_steps, warn=warned.append)
    path.write_text(before)
    assert chosen is not None and chosen.step == 1
    assert len(warned) == 1 and field in warned[0] and "\n" not in warned[0], warned


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    write_steps(directory, 1, 2)
    return directory


@pytest.mark.parametrize("kind", ["pipe", "device", "large", "deep", "pipe for a file"])
def test_what_is_no_file_is_not_waited_for(tmp_path, monkeypatch, kind):
    """Faults: F13, C58."""
    write_steps(tmp_path, 1, 2)
    path = tmp_path / "2" / "manifest.json"
    if kind == "pipe for a file":
        path = payload(tmp_path / "2")
    content = path.read_bytes()
    if kind == "large":
        monkeypatch.setattr(manifests, "MAX_BYTES", len(content) - 1)
        shutil.copy(path, tmp_path / "1" / "manifest.json")
        with pytest.raises(InputError, match="it has more than"):
            choose_checkpoint(tmp_path)
        return
    path.unlink()
    if "pipe" in kind:
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("[" * 10**6)
    step, warnings = restore_newest(tmp_path)
    assert step == 1 and len(warnings) == 1


def test_manifest_cannot_point_outside(tmp_path):
    write_steps(tmp_path, 2)
    manifest = json.loads((tmp_path / "2" / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": ""}
    edit_manifest(tmp_path / "2", files=manifest["files"], seal=manifests.digest_manifest(manifest))
    with pytest.raises(InputError, match=r"names the file '\.\./secret' outside of it"):
        restore_newest(tmp_path)


def test_damage_after_the_choice_is_one_line(tmp_path):
    """What no digest can see: orbax itself complains."""
    write_steps(tmp_path, 1)
    metadata = tmp_path / "1" / "_METADATA"
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        chosen = checkpoints.choose()
        assert chosen
        metadata.write_bytes(bytes(metadata.stat().st_size))
        with pytest.raises(InputError, match="1 cannot be read: ") as caught:
            checkpoints.restore(on_one_device(make_state(0)), chosen)
    assert_is_one_line(caught.value)


def test_without_digests_a_flipped_bit_is_not_seen(tmp_path):
    """What verify=False gives up."""
    write_steps(tmp_path, 1)
    flip_bit(payload(tmp_path / "1"))
    chosen = choose_checkpoint(tmp_path, verify=False)
    assert chosen and chosen.step == 1
    with pytest.raises(InputError, match="was changed after it was written"):
        choose_checkpoint(tmp_path)


def test_nothing_to_restore(tmp_path):
    """Faults: C53."""
    with Checkpoints(tmp_path / "none", read_only=True) as checkpoints:
        assert checkpoints.choose() is None
    (tmp_path / "9").write_text("a stray file")
    (tmp_path / "notes").mkdir()
    (tmp_path / "007").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.choose() is None


def test_none_that_verifies_is_an_error_that_names_each(tmp_path):
    write_steps(tmp_path, 1, 2)
    flip_bit(payload(tmp_path / "1"))
    (tmp_path / "2" / "manifest.json").unlink()
    before = list_tree(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(InputError) as caught:
            checkpoints.choose()
        assert f"{tmp_path / '1'} is not a checkpoint: its file" in str(caught.value)
        assert f"{tmp_path / '2'} is not a checkpoint: it has no manifest" in str(caught.value)
        assert_is_one_line(caught.value)
    assert list_tree(tmp_path) == before


def test_a_step_asked_for_must_verify(tmp_path):
    write_steps(tmp_path, 1, 2, 3)
    flip_bit(payload(tmp_path / "2"))
    assert restore_newest(tmp_path, step=1) == (1, [])
    with pytest.raises(InputError, match=r"2 is not a checkpoint: its file .* was changed"):
        restore_newest(tmp_path, step=2)
    with pytest.raises(InputError, match="5 is not a checkpoint: it has no manifest"):
        restore_newest(tmp_path, step=5)


def test_a_run_goes_on_from_an_older_step(tmp_path):
    """Newer steps are set aside, under names that are free, and their numbers can be saved again."""
    for _ in range(2):
        write_steps(tmp_path, *{1, 2, 3} - set(map(int, filter(str.isdigit, names_in(tmp_path)))))
        (tmp_path / "3" / "manifest.json").unlink()
        flip_bit(payload(tmp_path / "2"))
        warnings: list[str] = []
        with Checkpoints(tmp_path, warn=warnings.append) as checkpoints:
            chosen = checkpoints.choose()
            assert chosen and chosen.step == 1
            assert names_in(tmp_path) >= {"1", "2", "3"}
            checkpoints.restore(on_one_device(make_state(0)), chosen)
        aside = [line for line in warnings if "is renamed to" in line]
        assert len(aside) == 2
        assert "the run resumes from step 1" in aside[0]
    assert names_in(tmp_path) == {"1", "2.rejected", "3.rejected", "2.rejected1", "3.rejected1"}
    write_steps(tmp_path, 2)
    assert restore_newest(tmp_path) == (2, [])


def test_misfits_are_named(tmp_path):
    """Faults: C60, C61, C62."""

    def edit(change):
        wanted = on_one_device(make_state(0))
        change(wanted.params)
        return wanted

    def struct(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(jax.devices()[0]))

    write_steps(tmp_path, 1)
    cases = {
        r"params\.scale has shape \(16,\), not \(8,\)": lambda p: p.update(scale=struct((8,), jnp.float32)),
        r"params\.scale has dtype float32, not bfloat16": lambda p: p.update(scale=struct((16,), jnp.bfloat16)),
        r"params\.b is missing in it": lambda p: p.update(b=struct((), jnp.int32)),
        r"params\.scale is extra in it": lambda p: p.pop("scale"),
        r"params\.x4 is missing in it; and 3 more;": lambda p: p.update(
            {f"x{i}": struct((), jnp.int32) for i in range(8)}
        ),
    }
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        chosen = checkpoints.choose()
        assert chosen
        for message, change in cases.items():
            with pytest.raises(InputError, match=rf"{tmp_path}/1 does not fit: .*{message}") as caught:
                checkpoints.restore(edit(change), chosen)
            assert_is_one_line(caught.value)
