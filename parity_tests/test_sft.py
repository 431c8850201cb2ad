"""Midtraining and SFT: a run on conversations starts from another's weights and moments, counts the assistant's tokens
alone, does not depend on microbatches or devices, agrees with PyTorch, and resumes bit for bit."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from jaxgpt import sft, train
from jaxgpt.compare import tolerances
from jaxgpt.compare.trajectories import draw_params, read_batches, run_jax, run_torch, to_arrays
from jaxgpt.config import (
    NANOCHAT_SFT_2025,
    ChatConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    GPT2Config,
    LogConfig,
    MeshConfig,
    NanochatConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    load,
    schedule,
    to_source,
)
from jaxgpt.config.steps import Plan
from jaxgpt.data.batch import Batch
from jaxgpt.data.chat_data import write_chat_manifest
from jaxgpt.data.conversations import Conversation, render
from jaxgpt.data.tokenizer import BPETokenizer, CharTokenizer
from jaxgpt.errors import EXIT_DONE, InputError
from jaxgpt.parallel.mesh import count_batch_devices, make_mesh
from jaxgpt.parallel.sharding import put_rows
from jaxgpt.prepare.__main__ import main as prepare
from jaxgpt.prepare.chat import SplitWriter
from jaxgpt.run.opening import open_run
from jaxgpt.tasks.mixtures import Sources
from jaxgpt.training.base_state import base_state
from jaxgpt.training.step import Evaluator, make_step
from jaxgpt.training.validation import evaluate_split
from parity_tests.helpers.chat_data import BYTES, say
from parity_tests.helpers.saved_runs import save_run
from parity_tests.helpers.train_runs import records

SEQ_LEN, N_ROWS = 48, 8
MODEL = NanochatConfig(era="2025", depth=1, n_embd=32, head_dim=16, seq_len=SEQ_LEN, window_pattern="SL")
COMPLETE = MODEL.complete(BYTES.vocab_size)
TALK = [say(f"What is {i} and {i % 7}?", f"{i} and {i % 7} is {i + i % 7}." + "!" * (i % 5)) for i in range(62)]


def write_chat(directory, conversations=tuple(TALK)):
    """A directory as `jaxgpt prepare chat` writes it; every fifth conversation is for validation."""
    directory.mkdir()
    with SplitWriter(directory) as writer:
        for i, conversation in enumerate(conversations):
            writer.add("train" if i % 5 else "val", Conversation.read(conversation))
    write_chat_manifest(directory, {"corpus": "talk", "n_left_out": 0, "splits": writer.describe()})
    return str(directory)


def make_config(place, **chat):
    settings: dict = {"base": str(place / "base"), **chat}
    return Config(
        run=RunConfig(dir=str(place / "run")),
        model=dataclasses.replace(MODEL, short_window=0),
        data=DataConfig(dir=str(place / "talk"), sampling="conversations"),
        chat=ChatConfig(**settings),
        train=TrainConfig(steps=6, batch_tokens=N_ROWS * SEQ_LEN, micro_batch_size=4, dtype="float32"),
        optim=NANOCHAT_SFT_2025,
        eval=EvalConfig(every=3, tokens=0),
        log=LogConfig(every=1),
        checkpoint=CheckpointConfig(every=3, keep=9),
        mesh=MeshConfig(data=1, platform="cpu"),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Conversations, and runs to start from: one that fits, with moments above zero, and one of characters."""
    place = tmp_path_factory.mktemp("sft")
    write_chat(place / "talk")
    chars = CharTokenizer("".join(sorted(set("".join(map(chr, range(32, 127))) + "\n"))))
    save_run(place / "base", COMPLETE, BYTES, steps=(1, 2), optim=NANOCHAT_SFT_2025)
    save_run(place / "chars", dataclasses.replace(COMPLETE, vocab_size=chars.vocab_size), chars)
    return place


# What a run starts from


def test_weights_and_moments_are_the_bases_and_fresh_moments_are_zero(place):
    run = open_run(make_config(place, base_step=1, optimizer="base"))
    assert run.base
    mesh = make_mesh(run.config.mesh)
    with jax.set_mesh(mesh):
        step = make_step(run.config, mesh)
        expected = {path: np.asarray(leaf) for path, leaf in step.init_params(1).items()}
        states = [
            base_state(run.base, dataclasses.replace(run.config.chat, optimizer=o), step) for o in ("base", "fresh")
        ]
    for state in states:
        assert int(state.step) == 0
        assert all(np.array_equal(state.params[path], value) for path, value in expected.items())
    warm, fresh = (to_arrays(state.opt_state) for state in states)
    assert warm.keys() == fresh.keys() and any(value.any() for value in warm.values())
    assert not any(value.any() for value in fresh.values())


def test_a_run_records_its_base(place):
    run = open_run(make_config(place))
    newest = json.loads((place / "base" / "checkpoints" / "2" / "manifest.json").read_text())
    assert run.about()["base"] == {"run": str(place / "base"), "step": 2, "sha256": newest["seal"]}
    assert run.tokenizer and run.tokenizer.digest() == BYTES.digest()
    assert vars(run.config.model)["short_window"] == COMPLETE.short_window


OTHER = BPETokenizer([*(bytes([i]) for i in range(256)), b"th"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chat.base": "gone"}, "chat.base=gone does not exist; name the directory of a run: --from RUN"),
        ({"chat.base": "talk"}, "chat.base=talk has no checkpoint; name the directory of a run"),
        ({"chat.base_step": 7}, "chat.base_step=7 is not among the checkpoints of chat.base=base: 2, 1"),
        ({"chat.base": ""}, "data.tokenizer is empty, and no base run gives one for the conversations in talk; name"),
        ({"chat.base": "chars"}, "the char tokenizer has no <|bos|>, <|user_start|>, "),
        ({"data.tokenizer": "other.json"}, "data.tokenizer=other.json has 266 ids (bpe), chat.base=base step 2 was t"),
        ({"model.window_pattern": "L"}, "model.window_pattern='L' differs from the model of chat.base=base step 2; "),
        ({"model.depth": 3}, "model.depth=3 differs from the model of chat.base=base step 2; set --model.depth=1"),
        ({"model.vocab_size": 512}, "model.vocab_size=512 differs from the model of chat.base=base step 2; set"),
        ({"data.dir": "base"}, "base/chat.json cannot be read: No such file or directory; `jaxgpt prepare chat"),
        ({"data.sampling": "random", "chat.base": ""}, "data.dir=talk holds conversations, data.sampling=random is "),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_does_not_fit_is_named_before_any_device(place, change, message, monkeypatch):
    monkeypatch.chdir(place)
    (place / "other.json").write_text(json.dumps(OTHER.to_json()))
    config = make_config(place, base="base")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir="talk"))
    for name, value in sorted(change.items()):
        section, field = name.split(".")
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{field: value})}
        )
    with pytest.raises(InputError) as error:
        open_run(config)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_context_that_is_too_short_for_every_answer_is_named(place):
    config = make_config(place)
    short = dataclasses.replace(config.model, seq_len=8)
    config = dataclasses.replace(config, model=short, train=dataclasses.replace(config.train, batch_tokens=64))
    run = open_run(config)
    with pytest.raises(InputError, match=r"13 conversations, cut to max_tokens=9, have no trained token; set a "):
        run.source.val_rows(run.config)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "quickstart", "--from", "x"], "data.sampling=random of --config=quickstart is not conversations"),
        (["--config", "sft_cpu"], "--from is missing; name the run to start from: --from RUN"),
        (["--config", "sft_cpu", "--from", "x", "--chat.base=y"], "--from=x and --chat.base are both given; keep one"),
    ],
)
def test_the_verb_wants_conversations_and_a_base(args, message):
    with pytest.raises(InputError, match=re.escape(message)):
        sft.to_train(args)


def test_the_verb_is_train_with_a_base():
    args = ["--config", "sft_cpu", "--from", "x", "--from-step=3", "--resume", "--resume-from", "2"]
    assert sft.to_train(args) == [
        "--config", "sft_cpu", "--chat.base=x", "--chat.base_step=3", "--resume", "--resume-from=2",
    ]  # fmt: skip


# What counts


def test_validation_counts_the_bytes_of_answers(place):
    """Of all conversations of val, however rows are packed: neither the user's text nor the end token."""
    run = open_run(make_config(place))
    rows, indices = run.source.val_rows(run.config)
    answers = [conversation["messages"][1]["content"] for conversation in TALK[::5]]
    n_bytes = sum(len(answer.encode()) for answer in answers)
    counting = Evaluator(lambda _, batch_BT, masks_BTC: masks_BTC.sum((0, 1)), make_mesh(MeshConfig(data=1)))
    result = evaluate_split(counting, {}, rows, indices, 5, BYTES.token_bytes())
    assert len(indices) % 5 and result.n_tokens == n_bytes + len(answers)  # the end tokens
    assert (result.loss, result.bits_per_byte) == (1, pytest.approx(1 / np.log(2)))


def test_steps_of_an_epoch_are_those_that_place_each_conversation(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = make_config(place)
    for packing, epochs in (("best_fit", 1), ("stream", 2), ("rows", 1)):
        open_ended = dataclasses.replace(
            config, chat=dataclasses.replace(config.chat, packing=packing),
            train=dataclasses.replace(config.train, steps=0), data=dataclasses.replace(config.data, epochs=epochs),
        )  # fmt: skip
        run = open_run(open_ended)
        n_steps, reader, plan = run.config.train.steps, run.source.reader(run.config), Plan(run.config, 1)
        placed = []
        for i in range(n_steps):
            reader.read(plan.at(i), 0, plan.n_rows[0])
            placed.append(reader.progress())  # pyright: ignore[reportAttributeAccessIssue]
        if packing == "rows":
            assert n_steps == 49 // N_ROWS and placed[-1] == 48 / 49
        else:
            assert placed[-1] >= epochs > placed[-2]
            monkeypatch.setattr("jaxgpt.data.epoch_counts.count_epoch", None)  # the second time it is known
            assert open_run(open_ended).config.train.steps == n_steps
            monkeypatch.undo()
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(("p", "scale"), [(0, 0.8), (0.5, 0.8), (0.75, 0.4), (1, 0)])
def test_rates_are_four_fifths_then_fall_to_zero(p, scale):
    config = load("sft_d12_2026")
    n_steps = 1000
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=n_steps))
    assert schedule.lr_scale_at(config, int(p * n_steps)) == pytest.approx(scale, abs=1e-12)


# The step


def masked_batch(place):
    """Eight rows of conversations; nothing counts in rows 2 and 3, and rows count differently."""
    run = open_run(make_config(place))
    plan = Plan(dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, micro_batch_size=8)), 1)
    batch = run.source.reader(run.config).read(plan.at(0), 0, 8)
    mask = batch.mask[0].copy()
    mask[2:4] = 0
    return batch.tokens[0], mask


def step_once(tokens, mask, *, n_micro, n_devices=1):
    """Loss, gradient norm and parameters after a step of plain gradient descent's sign: AdamW from zero moments."""
    config = Config(
        model=GPT2Config(seq_len=SEQ_LEN, n_layer=1, n_head=2, n_embd=16, vocab_size=320),
        train=TrainConfig(
            steps=2, batch_tokens=len(tokens) * SEQ_LEN, micro_batch_size=len(tokens) // n_micro // n_devices,
            dtype="float64",
        ),
        optim=OptimConfig(lr=1e-2, eps=1e-2),
        mesh=MeshConfig(data=n_devices, platform="cpu"),
    )  # fmt: skip
    mesh = make_mesh(config.mesh)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        step = make_step(config, mesh)
        state = step.init_state(step.init_params(0))
        shape = (n_micro, len(tokens) // n_micro, -1)
        assert Plan(config, count_batch_devices(mesh)).n_micro == (n_micro,)
        batch = put_rows(Batch(tokens.reshape(shape), mask.reshape(shape)), shape[1], mesh, axis=1)
        state, metrics = step.train(state, batch, step.hyper({"lr_scale": 1.0, "momentum": 0.95, "decay_scale": 1.0}))
        return float(metrics["loss"]), float(metrics["grad_norm"]), to_arrays(state.params)


def check_same(ours, theirs):
    assert ours[:2] == pytest.approx(theirs[:2], rel=1e-12)
    for path, value in theirs[2].items():
        np.testing.assert_allclose(ours[2][path], value, rtol=1e-9, atol=1e-12, err_msg=path)


@pytest.fixture(scope="module")
def whole(place):
    tokens, mask = masked_batch(place)
    return tokens, mask, step_once(tokens, mask, n_micro=1)


@pytest.mark.parametrize(("n_micro", "n_devices"), [(4, 1), (8, 1), (1, 8)], ids=lambda value: str(value))
def test_a_step_depends_on_no_microbatch_and_no_device(whole, n_micro, n_devices):
    """With 4 microbatches the second is masked whole."""
    tokens, mask, expected = whole
    check_same(step_once(tokens, mask, n_micro=n_micro, n_devices=n_devices), expected)


def test_rows_that_are_masked_whole_add_nothing(whole):
    tokens, mask, expected = whole
    kept = np.delete(np.arange(8), (2, 3))
    check_same(step_once(tokens[kept], mask[kept], n_micro=1), expected)


@pytest.mark.usefixtures("one_thread")
def test_a_hundred_steps_agree_with_pytorch(place):
    n_steps = 100
    config = make_config(place, base="")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, tokenizer=str(place / "bytes.json")),
        model=COMPLETE,
        train=dataclasses.replace(config.train, steps=n_steps),
    )
    (place / "bytes.json").write_text(json.dumps(BYTES.to_json()))
    config, batches = read_batches(config, n_steps, "float64")
    assert len({int(batch.mask.sum()) for batch in batches}) > 5
    params = draw_params(config)
    theirs = run_torch(config, params, batches)
    ours = run_jax(config, params, batches, known=theirs)
    assert np.abs(np.subtract(ours.losses, theirs.losses)).max() < tolerances.FP64
    for path, value in theirs.last.items():
        assert np.linalg.norm(ours.last[path] - value) <= tolerances.FP64 * np.linalg.norm(value), path


# A run


def test_a_resumed_run_is_the_same_to_the_last_bit(place, tmp_path, capsys):
    config = tmp_path / "talk.py"
    config.write_text(to_source(make_config(place, optimizer="base", init_lr_frac=0.5)))
    first, second = tmp_path / "first", tmp_path / "second"
    assert train.main([f"--config={config}", f"--run.dir={first}"]) == EXIT_DONE
    shutil.copytree(first, second)
    assert train.main([f"--config={config}", f"--run.dir={second}", "--resume-from=3"]) == EXIT_DONE
    shown = " ".join(capsys.readouterr().out.split())
    assert "49 conversations, 13 for validation" in shown and "trained tokens" in shown
    names = ("step", "train_loss", "grad_norm", "val_loss", "val_bits_per_byte")
    ours, theirs = ([{name: r.get(name) for name in names} for r in records(path)] for path in (second, first))
    assert ours == theirs and len(ours) == 6 and ours[-1]["val_bits_per_byte"] < ours[2]["val_bits_per_byte"]
    ends = [json.loads((path / "checkpoints" / "6" / "manifest.json").read_text())["about"] for path in (first, second)]
    assert ends[0]["cursors"] == ends[1]["cursors"] and ends[0]["base"] == ends[1]["base"]


def untimed(run):
    """A run's records without what a clock says."""
    timed = {"tokens_per_s", "mfu", "rollout_s"}
    return [{name: value for name, value in record.items() if name not in timed} for record in records(run)]


def check_inside_the_gate(ours, theirs):
    """Two runs' records: losses and gradient norms inside the gates of float32, every other figure equal."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            if name.endswith("loss") or name == "grad_norm":
                atol, rtol = (
                    (tolerances.FP32_GRAD, tolerances.FP32_GRAD) if name == "grad_norm" else (tolerances.FP32_LOSS, 0)
                )
                np.testing.assert_allclose(
                    one[name], value, rtol=rtol, atol=atol, err_msg=f"step {one['step']}, {name}"
                )
            elif not name.startswith("val_"):  # of the loss
                assert one[name] == value, (one["step"], name)


@pytest.fixture(scope="module")
def on_one(place):
    """A run of 24 steps on one device."""
    (place / "talk.py").write_text(to_source(make_config(place, optimizer="base")))
    run_on(place, 1, place / "on_1")
    return place / "on_1"


def run_on(place, n_devices, run):
    args = ["--train.steps=24", f"--mesh.data={n_devices}", f"--train.micro_batch_size={N_ROWS // n_devices}"]
    assert train.main([f"--config={place / 'talk.py'}", f"--run.dir={run}", *args]) == EXIT_DONE


@pytest.mark.slow
@pytest.mark.parametrize("n_devices", [2, 4, 8])
def test_a_run_is_that_of_one_device(place, on_one, tmp_path, n_devices):
    run_on(place, n_devices, tmp_path / "run")
    ours, theirs = (
        [
            {name: value for name, value in record.items() if name not in ("tokens_per_s", "mfu")}
            for record in records(run)
        ]
        for run in (tmp_path / "run", on_one)
    )
    check_inside_the_gate(ours, theirs)
    assert theirs[-1]["train_loss"] < theirs[0]["train_loss"]


# prepare


def read_lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_a_mixture_is_written_in_nanochats_order(tmp_path, capsys):
    lines = [json.dumps(conversation["messages"]) for conversation in TALK]
    (tmp_path / "own.jsonl").write_text("\n".join(lines) + "\n")
    problems = [{"question": f"{i}?", "answer": f"It is <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(40)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    inputs = [f"own={tmp_path}/own.jsonl", f"gsm8k={tmp_path}/gsm8k.jsonl"]
    args = ["mine", "--mixture", "own+gsm8k:9+own", "--out", str(tmp_path / "out"), "--input", *inputs]
    assert prepare(args) == EXIT_DONE
    assert "next: jaxgpt sft --config sft_cpu --from RUN --data.dir=" in capsys.readouterr().out
    sources = Sources(inputs={"own": [tmp_path / "own.jsonl"], "gsm8k": [tmp_path / "gsm8k.jsonl"]})
    expected = [render(one, BYTES)[0].tolist() for one in sources.mixture_of(["own", ("gsm8k", 9), "own"])]
    written = [
        [render(json.loads(line), BYTES)[0].tolist() for line in read_lines(tmp_path / "out" / f"{split}.jsonl")]
        for split in ("train", "val")
    ]
    rest = iter(expected)
    assert len(expected) == 2 * 62 + 9 == sum(map(len, written)) and all(ids in rest for ids in written[0])
    for wrong, message in (("own+gsm8k:x", "gsm8k:x asks for x rows"), ("own+nope", "task nope does not exist")):
        with pytest.raises(InputError, match=message):
            prepare(["other", "--mixture", wrong, "--out", str(tmp_path / "other"), "--input", *inputs])
