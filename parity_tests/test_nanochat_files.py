"""nanochat's checkpoint files, of both eras: a run goes on here, and there again, as if it had never moved."""

import copy
import dataclasses
import json
import pickle
import shutil

import jax
import numpy as np
import pytest
import tiktoken
import torch

from jaxgpt.compare import tolerances
from jaxgpt.compare.trajectories import to_arrays
from jaxgpt.config import GPT2Config, load
from jaxgpt.config.schedule import hyper_at
from jaxgpt.convert.__main__ import main
from jaxgpt.convert.foreign import read_foreign, write_foreign
from jaxgpt.convert.runs import place_state, read_run, write_run
from jaxgpt.data.batch import Batch
from jaxgpt.data.text_batches import TextBatches
from jaxgpt.data.text_data import open_text
from jaxgpt.data.tiktoken_pickle import read_tiktoken
from jaxgpt.data.tokenizer import CHAT_SPECIALS, SPLIT_PATTERN
from jaxgpt.errors import InputError
from jaxgpt.formats.nanochat_settings import data_place, read_place
from jaxgpt.formats.pretrained import adapt, load_pretrained
from jaxgpt.inference.trained import open_trained
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.training.step import make_step
from parity_tests.helpers.nanochat_original import BATCH_ROWS, SEQ_LEN, VOCAB, Original
from parity_tests.helpers.text_directories import DELIMITER, read_marked, write_data

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
def test_a_run_moves_here_and_back(era, saved, tmp_path, capsys):
    """10 steps in nanochat on many processes, 30 here, 3 in nanochat on one; the other makes all 43."""
    assert main(["--from", str(saved[era, MANY[era]][1]), "--to", "jax", str(tmp_path / "run")]) == 0
    ours, moved = go_on(read_run(tmp_path / "run"), 30, seed=1)
    uninterrupted = copy.deepcopy(saved[era, 1][0])
    theirs = uninterrupted.train(batches(30, seed=1))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < tolerances.FP64
    assert abs(theirs[-1] - theirs[0]) > 0.05, "nothing was learned, so nothing was tested"

    write_run(moved, "jax", tmp_path, tmp_path / "later")
    assert main(["--from", str(tmp_path / "later"), "--to", "nanochat", str(tmp_path / "back")]) == 0
    flag = "--resume-from-step=40" if era == "2026" else "--resume_from_step=40"
    assert "scripts.base_train --run=dummy --depth=4 --max" in (shown := capsys.readouterr().out) and flag in shown
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


# The model alone


def small_tokenizer(directory, n_merges=0, pattern=SPLIT_PATTERN):
    """What nanochat's tok_train leaves: a pickled tiktoken.Encoding of bytes, merges and specials."""
    ranks = {bytes([i]): i for i in range(256)} | {bytes([97, 97 + i]): 256 + i for i in range(n_merges)}
    specials = {name: len(ranks) + i for i, name in enumerate(CHAT_SPECIALS)}
    encoding = tiktoken.Encoding("rustbpe", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    return encoding


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    """nanochat's base directory with a model of each era in float32 and bfloat16, and its tokenizer."""
    base = tmp_path_factory.mktemp("base")
    encoding = small_tokenizer(base / "tokenizer", n_merges=5)
    for era in ERAS:
        original = Original(era, 1, vocab_size=320 if era == "2026" else encoding.n_vocab)
        original.save(base / "base_checkpoints" / era)
        path = base / "base_checkpoints" / era / "model_000000.pt"
        state = {
            k: t.bfloat16() if "wte" in k or "value_embeds" in k else t.float()
            for k, t in torch.load(path, weights_only=True).items()
        }
        torch.save(state, path)
        meta = path.with_name("meta_000000.json")
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"model_config": original.model_config(270)}))
        (path.parent / "optim_000000_rank0.pt").unlink()
    return base, encoding


@pytest.mark.parametrize("era", ERAS)
def test_a_model_is_opened_with_its_tokenizer(era, base_dir, tmp_path):
    """bfloat16 arrives exactly, leaves as bfloat16, and starts a run; text is nanochat's tokens."""
    base, encoding = base_dir
    directory = base / "base_checkpoints" / era
    trained = open_trained(str(directory), platform="cpu")
    assert trained.tokenizer and trained.model.vocab_size == (320 if era == "2026" else 270)
    text = "aa ab ac 1234 \u00fc\n\n ad"
    assert trained.tokenizer.encode(text) == encoding.encode_ordinary(text)
    assert trained.tokenizer.specials["<|bos|>"] == encoding.encode_single_token("<|bos|>") == 261
    state = torch.load(directory / "model_000000.pt", weights_only=True)
    assert np.array_equal(trained.params["wte.weight"], state["transformer.wte.weight"].float().numpy())
    assert np.array_equal(trained.params["h.2.mlp.c_fc.weight"], state["transformer.h.2.mlp.c_fc.weight"].numpy().T)
    config, params = load_pretrained(str(directory / "model_000000.pt"))
    assert adapt(config, params, dataclasses.replace(config, seq_len=50)).keys() == params.keys()
    with pytest.raises(InputError, match=r"model.depth=5 but 4; set --model.depth=4"):
        adapt(config, params, dataclasses.replace(config, depth=5))
    with pytest.raises(InputError, match=r"has weights of model.family=nanochat, the run's is gpt2"):
        adapt(config, params, GPT2Config())

    assert main(["--from", str(directory), "--to", "nanochat", "--weights-only", str(tmp_path / "again")]) == 0
    again = torch.load(tmp_path / "again" / "model_000000.pt", weights_only=True)
    assert again.keys() == state.keys()
    assert all(t.dtype == again[k].dtype and torch.equal(t, again[k]) for k, t in state.items())
    loaded = pickle.loads((tmp_path / "again" / "tokenizer.pkl").read_bytes())  # as nanochat does
    assert loaded.encode_ordinary(text) == encoding.encode_ordinary(text) and loaded.n_vocab == encoding.n_vocab
    token_bytes = torch.load(tmp_path / "again" / "token_bytes.pt", weights_only=True)
    assert token_bytes.tolist() == [1] * 256 + [2] * 5 + [0] * 9
    own = open_trained(str(tmp_path / "again"), platform="cpu").tokenizer
    assert own and own.digest() == trained.tokenizer.digest()
    meta = json.loads((tmp_path / "again" / "meta_000000.json").read_text())
    assert meta["model_config"] == json.loads((directory / "meta_000000.json").read_text())["model_config"]
    assert main(["--from", str(directory), "--to", "jax", str(tmp_path / "run")]) == 0
    assert load(str(tmp_path / "run" / "config.py")).data.tokenizer == str(tmp_path / "run" / "tokenizer.json")
    run = open_trained(str(tmp_path / "run"), platform="cpu")
    assert run.tokenizer and run.tokenizer.digest() == trained.tokenizer.digest()


class Malice:
    def __reduce__(self):
        return open, ("executed", "w")


def test_tokenizers_that_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tokenizer.pkl"

    def refused(expected):
        with pytest.raises(InputError) as caught:
            read_tiktoken(path)
        assert expected in str(caught.value) and "\n" not in str(caught.value)

    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps(Malice(), protocol=protocol))
        refused("does more than build dicts")
    path.write_bytes(pickle.dumps(Malice))
    refused("it asks for")
    small_tokenizer(tmp_path, pattern=r"\w+|\W+")
    refused("cuts text by another pattern")
    whole = pickle.dumps(tiktoken.Encoding("x", pat_str=SPLIT_PATTERN, mergeable_ranks={b"a": 0}, special_tokens={}))
    path.write_bytes(whole)
    refused("no token is the single byte 0x00")
    path.write_bytes(whole[:-20])
    refused("is not a complete pickle")
    path.write_bytes(whole.replace(b"K\x00", b"K\x05"))
    refused("its ids are not those from 0 on")
    path.write_bytes(pickle.dumps({"a": 1}))
    refused("is not a pickled tiktoken.Encoding")
    assert not (tmp_path / "executed").exists()


# Its place in the data


def test_reading_resumes_at_the_row_group(saved, tmp_path, monkeypatch):
    """nanochat was in the fourth of five documents each: the next row begins with the sixteenth; and back."""
    read_marked(monkeypatch)
    texts = [f"document {i} has a number" for i in range(40)]
    data = open_text(str(write_data(tmp_path / "data", texts, texts, texts[:9])), "")
    run = read_foreign(saved["2025", 1][1])
    assert run
    assert data_place(run.about["cursors"], "2025") == {"pq_idx": 0, "rg_idx": 3}
    with TextBatches(data, SEQ_LEN, "stream", cursors=run.about["cursors"]) as reader:
        row = reader.rows(4, 0, 4)[0]
        assert bytes(row[1:].tolist()).decode() == texts[15][:SEQ_LEN] and row[0] == DELIMITER
        assert data_place(reader.cursors(), "2026") == {"pq_idx": 0, "rg_idx": 3, "epoch": 1}
    with pytest.raises(InputError, match=r"dataloader_state_dict=\{'pq_idx': -1\} is not pq_idx and rg_idx"):
        read_place({"dataloader_state_dict": {"pq_idx": -1}}, run.config, "meta")
    assert read_place({}, run.config, "meta") is None and data_place(None, "2026") is None


# What cannot be


def broken(saved, era, tmp_path, change):
    """A copy of the original's files, with one changed."""
    directory = tmp_path / "d4"
    shutil.copytree(saved[era, MANY[era]][1], directory)
    change(directory)
    with pytest.raises(InputError) as caught:
        read_foreign(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(name, change):
    def apply(directory):
        value = torch.load(directory / name, weights_only=True)
        change(value)
        torch.save(value, directory / name)

    return apply


def remove(name):
    return lambda directory: (directory / name).unlink()


def edit_meta(**changes):
    def apply(directory):
        path = directory / "meta_000010.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


@pytest.mark.parametrize(
    ("era", "change", "expected"),
    [
        ("2026", remove("optim_000010_rank1.pt"), "optim_000010_rank1.pt is missing, rank 3's is there"),
        ("2026", remove("optim_000010_rank3.pt"), "mu of lm_head.weight is (48, 32), this model has (64, 32)"),
        ("2026", remove("meta_000010.json"), "meta_000010.json cannot be read"),
        ("2026", lambda d: (d / "meta_000010.json").write_text("{"), "is not complete JSON"),
        ("2026", edit_meta(model_config=3), "has no model_config"),
        ("2026", edit_meta(step="x"), "step='x' is not a number of steps"),
        ("2026", edit_meta(total_batch_size="x"), "total_batch_size='x' is not a number"),
        ("2026", edit("model_000010.pt", lambda s: s.pop("module.smear_lambda")), "a nanochat between November 2025"),
        ("2026", edit("optim_000010_rank2.pt", lambda o: o["param_groups"].pop(0)), "has groups of"),
        ("2026", edit("optim_000010_rank0.pt", lambda o: o["state"][3].update(step=7)), "AdamW made 7 updates of"),
        ("2025", edit("optim_000010_rank2.pt", lambda o: o.pop()), "is no optimizer state of nanochat 2025"),
        ("2025", edit("optim_000010_rank5.pt", lambda o: o[0]["state"].clear()), "has no exp_avg of lm_head.weight"),
        (
            "2025",
            edit("optim_000010_rank1.pt", lambda o: o[0]["state"][1]["exp_avg"].fill_(float("nan"))),
            "mu of wte.weight is not finite",
        ),
    ],
)  # fmt: skip
def test_damaged_files_are_one_line(era, change, expected, saved, tmp_path):
    assert expected in broken(saved, era, tmp_path, change)


def test_what_nanochat_cannot_do_is_named(saved, tmp_path):
    """Mechanisms of the model always; settings of the training unless only weights are asked for."""
    run = read_foreign(saved["2026", 1][1])
    assert run

    def refused(run, expected, **options):
        with pytest.raises(InputError) as caught:
            write_foreign("nanochat", tmp_path / "x", run, None, **{"n_ranks": 1, "weights_only": False} | options)
        assert expected in str(caught.value) and "\n" not in str(caught.value)

    def changed(section, **values):
        part = dataclasses.replace(getattr(run.config, section), **values)
        return dataclasses.replace(run, config=dataclasses.replace(run.config, **{section: part}))

    refused(changed("model", qk_scale=1.0), "has no model.qk_scale=1.0 (it has 1.2)", weights_only=True)
    refused(changed("model", short_window=5), "has no model.short_window=5 (it has 24)")
    refused(changed("model", smear=False, softcap=30.0), "no model.softcap=30.0 (it has 15.0), no model.smear=False")
    refused(changed("optim", grad_clip=1.0), "cannot continue this run: it has no optim.grad_clip=1.0 (it has 0.0)")
    groups = tuple(dataclasses.replace(g, beta2=0.5) if g.name == "wte" else g for g in run.config.optim.groups)
    refused(changed("optim", groups=groups), "beta2=0.5 (it has 0.995); --weights-only")
    refused(run, "--ranks=3 does not divide the 64 rows of lm_head.weight", n_ranks=3)
    assert not (tmp_path / "x").exists()
    write_foreign("nanochat", tmp_path / "y", changed("optim", grad_clip=1.0), None, n_ranks=1, weights_only=True)


def test_arguments_of_one_form_are_refused_with_another(tmp_path):
    for arguments, expected in (
        (["--ranks=2", "--to=jax"], "--ranks=2 is for"),
        (["--weights-only", "--to=hf"], "is for"),
    ):
        with pytest.raises(InputError, match=expected):
            main(["--from", str(tmp_path), *arguments, str(tmp_path / "out")])
