"""nanochat's checkpoint files, of both eras: a run goes on here, and there again, as if it had never moved."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
import torch

from jaxgpt.compare import tolerances
from jaxgpt.compare.trajectories import to_arrays
from jaxgpt.config.schedule import hyper_at
from jaxgpt.convert.__main__ import main
from jaxgpt.convert.foreign import read_foreign, write_foreign
from jaxgpt.convert.runs import place_state, read_run, write_run
from jaxgpt.data.batch import Batch
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.training.step import make_step
from parity_tests.helpers.nanochat_original import BATCH_ROWS, SEQ_LEN, VOCAB, Original

pytestmark = pytest.mark.usefixtures("one_thread")
ERAS = ("2025", "2026")
MANY = {"2025": 8, "2026": 4}
"""Processes, some of which hold no matrix of a shape: 4 of 8, and 2 of 4."""


def batches(n, seed=0):
    return list(np.random.default_rng(seed).integers(0, VOCAB, (n, BATCH_ROWS, SEQ_LEN + 1)).astype(np.int32))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(era, processes) -> the original after 10 steps, and its files, with the prefix of torch.compile or of DDP."""
    made = {}
    for era in ERAS:
        for n_ranks, prefix in ((1, "_orig_mod."), (MANY[era], "module.")):
            original = Original(era, n_ranks)
            original.train(batches(10))
            made[era, n_ranks] = original, original.save(tmp_path_factory.mktemp("nanochat") / "d4", prefix)
    return made


def same(a, b):
    assert (a.step, a.config, a.leaves.keys()) == (b.step, b.config, b.leaves.keys())
    for path, leaf in a.leaves.items():
        assert (leaf.dtype, leaf.shape) == (b.leaves[path].dtype, b.leaves[path].shape), path
        assert leaf.tobytes() == b.leaves[path].tobytes(), path


def go_on(run, n, seed):
    """Steps from a checkpoint in jaxgpt. Returns losses and the run as it is then."""
    config, losses = run.config, []
    mesh = make_mesh(dataclasses.replace(config.mesh, data=1, platform="cpu"))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"), jax.set_mesh(mesh):
        step = make_step(config, mesh)
        state = place_state(run.leaves, step.state_shapes)
        for i, batch in enumerate(batches(n, seed), run.step):
            rows = Batch(batch.reshape(2, 2, SEQ_LEN + 1))
            state, metrics = step.train(state, rows, step.hyper(hyper_at(config, i)))
            losses.append(float(metrics["loss"]))
        return losses, dataclasses.replace(run, step=run.step + n, leaves=to_arrays(state))


@pytest.mark.parametrize("era", ERAS)
def test_a_run_moves_here_and_back(era, saved, tmp_path):
    """10 steps in nanochat on many processes, 30 here, 3 in nanochat on one; the other makes all 43."""
    assert main(["--from", str(saved[era, MANY[era]][1]), "--to", "jax", str(tmp_path / "run")]) == 0
    ours, moved = go_on(read_run(tmp_path / "run"), 30, seed=1)
    uninterrupted = copy.deepcopy(saved[era, 1][0])
    theirs = uninterrupted.train(batches(30, seed=1))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < tolerances.FP64
    assert abs(theirs[-1] - theirs[0]) > 0.05, "nothing was learned, so nothing was tested"

    write_run(moved, "jax", tmp_path, tmp_path / "later")
    assert main(["--from", str(tmp_path / "later"), "--to", "nanochat", str(tmp_path / "back")]) == 0
    back = Original(era, 1, seed=5).load(tmp_path / "back", 40)
    ours, theirs = back.train(batches(3, seed=2)), uninterrupted.train(batches(3, seed=2))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < tolerances.FP64
    for path, param in uninterrupted.params.items():
        assert (param - back.params[path]).abs().max() < tolerances.FP64, path


@pytest.mark.parametrize("era", ERAS)
def test_shards_join_to_what_one_process_has(era, saved):
    one, many = (read_foreign(saved[era, n][1]) for n in (1, MANY[era]))
    assert one and many and one.config == many.config and one.leaves.keys() == many.leaves.keys()
    for path, leaf in one.leaves.items():
        assert np.abs(np.float64(leaf) - many.leaves[path]).max() < 1e-12, path
    fields = ("mu", "nu", "momentum", *(["square"] if era == "2026" else []))
    for field in fields:
        held = [leaf for path, leaf in one.leaves.items() if path.startswith(f"opt_state.{field}.")]
        assert held and all(np.abs(leaf).max() > 0 for leaf in held)
    assert one.leaves["step"] == one.leaves["opt_state.count"] == 10 and one.leaves["n_skipped"] == 0


def tensors_in(value):
    """All tensors in a file's value, by their places."""
    if isinstance(value, torch.Tensor):
        return {"": value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {f"{key}.{place}": tensor for key, child in items for place, tensor in tensors_in(child).items()}


@pytest.mark.parametrize("weights_only", [False, True], ids=["with optimizer", "without"])
@pytest.mark.parametrize("n_ranks", [1, 2, 8])
@pytest.mark.parametrize("era", ERAS)
def test_in_out_and_in_again(era, n_ranks, weights_only, saved, tmp_path):
    """The run is the same bit for bit; what is written on as many processes as it was read from is the same file."""
    was = MANY[era] if n_ranks > 2 else 1
    original = saved[era, was][1]
    first = read_foreign(original)
    assert first
    n_ranks = was if n_ranks > 2 else n_ranks
    write_foreign("nanochat", tmp_path, first, None, n_ranks=n_ranks, weights_only=weights_only)
    names = sorted(file.name for file in tmp_path.iterdir())
    optim = [] if weights_only else [f"optim_000010_rank{rank}.pt" for rank in range(n_ranks)]
    assert names == sorted(["meta_000010.json", "model_000010.pt", *optim])
    again = read_foreign(tmp_path / "model_000010.pt")
    assert again
    if weights_only:
        assert not any(leaf.any() for path, leaf in again.leaves.items() if path.startswith("opt_state."))
        fresh = {path: leaf for path, leaf in first.leaves.items() if path.startswith("params.")}
        first, again = (dataclasses.replace(run, leaves=fresh, config=again.config) for run in (first, again))
        fresh.update({path: leaf for path, leaf in again.leaves.items() if path.startswith("params.")})
    same(first, again)
    for name in (["model_000010.pt"] if weights_only else ["model_000010.pt", *optim]) if n_ranks == was else []:
        theirs, ours = (torch.load(directory / name, weights_only=True) for directory in (original, tmp_path))
        theirs = {k.replace("_orig_mod.", "").replace("module.", ""): t for k, t in tensors_in(theirs).items()}
        ours = tensors_in(ours)
        assert ours.keys() == theirs.keys(), name
        assert all(t.dtype == ours[k].dtype and torch.equal(t, ours[k]) for k, t in theirs.items()), name
