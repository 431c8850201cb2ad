"""RL: what answers earn, what their tokens weigh, a step that agrees with PyTorch and finite differences, and a tiny
model that learns, resumes bit for bit, and answers the same on any number of devices."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import rl, sft
from jaxgpt.chat.advantages import center, pass_at_k, weigh_tokens
from jaxgpt.chat.policy import describe_answers, pack
from jaxgpt.chat.rollouts import Question, Rollout, Writer, read_questions, reward_of, seed_of
from jaxgpt.compare import tolerances
from jaxgpt.compare.trajectories import draw_params, enter_jax, run_torch, settle, to_arrays
from jaxgpt.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    GPT2Config,
    MeshConfig,
    OptimConfig,
    RLConfig,
    TrainConfig,
    load,
    schedule,
)
from jaxgpt.data.batch import Batch
from jaxgpt.errors import EXIT_DONE, InputError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.row_cache import make_cache, make_state
from jaxgpt.models import Model, init_params
from jaxgpt.models.loss import cross_entropy
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.sharding import replicated
from jaxgpt.tasks.mixtures import RL_STAGES, Sources
from jaxgpt.tasks.sums import sums
from jaxgpt.training.step import loss_sum
from parity_tests import rl_seeds
from parity_tests.helpers.chat_data import BYTES, say
from parity_tests.helpers.environment import REPO, environment
from parity_tests.helpers.task_data import chat_file
from parity_tests.helpers.train_runs import records
from parity_tests.test_chat_tools import CASES, MASKS, Script
from parity_tests.test_sft import check_inside_the_gate, untimed, write_chat

SEQ_LEN, SAMPLES = 48, 4
AE, PS, PE, OS, OE = (
    BYTES.special_id(f"<|{name}|>")
    for name in ("assistant_end", "python_start", "python_end", "output_start", "output_end")
)

# Weights


def log_prob_loss(rewards, log_probs, pass_rows=0):
    """The loss of one question's answers, given the log-probabilities of their tokens."""
    n_tokens = max(map(len, log_probs))
    padded_ST = np.array([list(row) + [0.0] * (n_tokens - len(row)) for row in log_probs])
    masks_ST = np.array([[1] * len(row) + [0] * (n_tokens - len(row)) for row in log_probs])
    weights_QST = weigh_tokens(np.array([rewards]), masks_ST[None], pass_rows)
    return float((weights_QST[0] * -padded_ST).sum())


def test_the_example_of_four_in_both_normalizations():
    """Figures of chat.md: nanochat's passes of 2, and the whole group."""
    log_probs = [(-1, -2), (-1, -1, -1), (-2,), (-0.5,)]
    assert log_prob_loss([1, 0, 0, 0], log_probs, pass_rows=2) == pytest.approx(-0.00625, abs=1e-15)
    assert log_prob_loss([1, 0, 0, 0], log_probs) == pytest.approx(0.125, abs=1e-15)


def test_equal_rewards_weigh_nothing_and_questions_share_the_loss():
    masks_QST = np.ones((2, 3, 5), np.uint8)
    weights_QST = weigh_tokens(np.array([[0.1, 0.1, 0.1], [1, 0, 0]]), masks_QST)
    assert not weights_QST[0].any() and not center(np.array([[0.1] * 7])).any()
    np.testing.assert_allclose(weights_QST[1, :, 0], np.array([2, -1, -1]) / 3 / 15 / 2, rtol=1e-14)
    assert not weigh_tokens(np.array([[1.0, 0.0]]), np.zeros((1, 2, 3), np.uint8)).any()


def test_pass_at_k_is_the_share_with_a_right_one_among_the_first_k():
    is_right_QS = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], bool)
    assert pass_at_k(is_right_QS) == [0.25, 0.5, 0.5, 0.75]


# Questions and answers


def test_questions_have_prompts_and_numbers_and_long_ones_are_counted():
    found, n_left_out = read_questions([sums("train")[i] for i in range(20)] + [say("x" * 99, "#### 5")], BYTES, 50)
    user = sums("train")[0]["messages"][0]["content"]
    begin, end, answer = (BYTES.special_id(f"<|{name}|>") for name in ("user_start", "user_end", "assistant_start"))
    assert len(found) == 20 and n_left_out == 1
    assert found[0].prompt_ids == (BYTES.special_id("<|bos|>"), begin, *user.encode(), end, answer)
    a, b = map(int, re.findall(r"\d+", user))
    assert found[0].reference == str(a + b)
    assert [reward_of(found[0], Rollout([], [], text, True)) for text in (f"#### {a + b}", f"{a + b}", "#### 99")] == [
        1, 0, 0,
    ]  # fmt: skip
    with pytest.raises(InputError, match="conversation 1: the answer does not end with '#### number'"):
        read_questions([say("a", "#### 1"), say("b", "two")], BYTES, 50)
    with pytest.raises(InputError, match="all 2 questions have more than 4 tokens, which is "):
        read_questions([say("a", "#### 1"), say("b", "#### 2")], BYTES, 4)


def test_sums_are_disjoint_and_their_answers_right():
    train, test = (
        {task[i]["messages"][0]["content"] for i in range(len(task))} for task in map(sums, ("train", "test"))
    )
    assert (len(train), len(test)) == (800, 100) and not train & test
    task = sums("test")
    assert all(task.judge(task[i], task[i]["messages"][1]["content"][-1]["text"]) for i in range(40))


def test_gsm8k_is_asked_in_the_order_of_the_hub():
    """Its first rows are 3082, 2184, 5897, as nanochat reads them; no second shuffle as in a mixture."""
    path = chat_file("gsm8k/train.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    chain = Sources(inputs={"gsm8k": [path]}).chain_of([RL_STAGES["rl_gsm8k"][0]])
    asked = [chain[i]["messages"][0]["content"] for i in range(3)]
    assert len(chain) == 7_473 and asked == [rows[i]["question"] for i in (3082, 2184, 5897)]
    found, n_left_out = read_questions(chain, BYTES, 2048, 50)
    assert len(found) == 50 and not n_left_out and all(question.reference for question in found)


QUESTIONS = [Question((256, 257, 63 + i, 258, 259), str(i)) for i in range(3)]
ANSWERS = [
    [
        Rollout([PS, 49, PE, OS, 50, OE, 51, AE], [1, 1, 1, 0, 0, 0, 1, 1], "", True),
        Rollout([52, AE], [1, 1], "", True),
        Rollout([53, 54, 55], [1, 1, 1], "", False),
        Rollout([AE], [1], "", True),
    ]
    for _ in QUESTIONS
]
REWARDS = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]], float)


def test_the_model_s_tokens_and_its_end_token_are_trained_and_nothing_else():
    """The gradient of the hidden states is exactly zero where a target is prompt, tool output or padding."""
    batch = pack(QUESTIONS, ANSWERS, REWARDS, SEQ_LEN, AE)
    assert batch.tokens[0, 5:13].tolist() == ANSWERS[0][0].ids and set(batch.tokens[0, 13:].tolist()) == {AE}
    rng = np.random.default_rng(0)
    x_BTD, head_VD = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((12, SEQ_LEN, 8), (BYTES.vocab_size, 8))
    )
    loss = lambda x_BTD: cross_entropy(x_BTD, head_VD, batch.tokens[:, 1:], batch.mask)[0]  # noqa: E731
    has_gradient_BT = np.asarray(jax.jit(jax.grad(loss))(x_BTD)).any(axis=-1)
    expected_BT = np.zeros((12, SEQ_LEN), bool)
    for q in (0, 2):  # all answers to the second question earn the same
        for s, answer in enumerate(ANSWERS[q]):
            expected_BT[q * SAMPLES + s, 4 : 4 + len(answer.ids)] = answer.mask
    assert np.array_equal(has_gradient_BT, expected_BT)
    assert expected_BT[0, 4 + 7] and batch.tokens[0, 1 + 4 + 7] == AE
    means = describe_answers(REWARDS, ANSWERS)
    assert means == {"reward": 4 / 12, "answer_tokens": 14 / 4, "ended": 0.75, "signal": pytest.approx(2 / 3)}


# The step


def step_config():
    return Config(
        model=GPT2Config(seq_len=SEQ_LEN, n_layer=1, n_head=2, n_embd=16, vocab_size=BYTES.vocab_size),
        data=DataConfig(sampling="conversations"),
        rl=RLConfig(samples=SAMPLES, max_tokens=8),
        train=TrainConfig(steps=9, batch_tokens=12 * SEQ_LEN, micro_batch_size=4, dtype="float64"),
        optim=OptimConfig(lr=1e-2, weight_decay=0.1, grad_clip=0.0),
        checkpoint=CheckpointConfig(keep_best=False),
        mesh=MeshConfig(data=1, platform="cpu"),
    )


def step_batches(n_steps):
    """Random tokens and weights of both signs; the third step has nothing to learn."""
    rng = np.random.default_rng(1)
    batches = []
    for step in range(n_steps):
        rewards_QS = rng.integers(0, 2, (3, SAMPLES)).astype(float) * (step != 2)
        batch = pack(QUESTIONS, ANSWERS, rewards_QS, SEQ_LEN, AE)
        batches.append(Batch(batch.tokens.reshape(3, 4, -1), batch.mask.reshape(3, 4, -1)))
    return batches


@pytest.mark.usefixtures("one_thread")
def test_the_step_agrees_with_pytorch_and_nothing_moves_without_a_signal():
    """In the third step moments are above zero and weights decay, and not a bit changes."""
    config = settle(step_config(), 9, "float64")
    batches = step_batches(5)
    params = draw_params(config)
    theirs = run_torch(config, params, batches)
    states, losses, norms = [], [], []
    with enter_jax(config, params) as (step, placed):
        rates = step.hyper(schedule.hyper_at(config, 0))
        weight = 1e4 * np.sign(batches[0].mask.sum())  # so that all weights together are above 1
        heavy = Batch(batches[0].tokens, batches[0].mask * np.float32(weight))
        _, more = step.train(step.init_state(jax.tree.map(jnp.copy, placed)), heavy, rates)
        state = step.init_state(placed)
        for i, batch in enumerate(batches):
            state, metrics = step.train(state, batch, step.hyper(schedule.hyper_at(config, i)))
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
            states.append(to_arrays((state.params, state.opt_state)))
    assert np.abs(np.subtract(losses, theirs.losses)).max() < tolerances.FP64
    assert min(losses) < 0 < max(losses) and losses[2] == norms[2] == 0 < norms[1]
    assert float(more["loss"]) == pytest.approx(weight * losses[0], rel=1e-5), "a sum, which nobody divides"
    assert all(np.array_equal(states[2][path], value) for path, value in states[1].items())
    for path, value in theirs.last.items():
        assert np.linalg.norm(states[-1][f"0.{path}"] - value) <= tolerances.FP64 * np.linalg.norm(value), path
    still = run_torch(config, params, [batches[0], batches[2]])
    assert all(np.array_equal(still.last[path], value) for path, value in still.first.items())


def test_the_gradient_is_that_of_finite_differences():
    config = settle(step_config(), 1, "float64")
    batch = pack(QUESTIONS, ANSWERS, REWARDS, SEQ_LEN, AE)
    with jax.enable_x64(True):
        model = Model(config.model, dtype="float64")
        params = init_params(config.model, param_dtype=jnp.float64, seed=3)
        both = jax.jit(jax.value_and_grad(lambda params: loss_sum(config, model, params, *batch)[0]))
        rng = np.random.default_rng(5)
        direction = {path: rng.standard_normal(leaf.shape) for path, leaf in params.items()}
        slope = sum(float((grad * direction[path]).sum()) for path, grad in both(params)[1].items())
        ahead, behind = (
            both({path: leaf + h * direction[path] for path, leaf in params.items()})[0] for h in (1e-6, -1e-6)
        )
        assert abs(slope) > 1e-3
        assert float((ahead - behind) / 2e-6) == pytest.approx(slope, rel=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rl": RLConfig(top_k=3)}, "rl.top_k=3 without rl.samples; set --rl.samples=16"),
        ({"data": DataConfig()}, "rl.samples=4 needs conversations, data.sampling=random is not"),
        ({"rl": RLConfig(samples=4, max_tokens=48)}, "rl.max_tokens=48 leaves no room for a question in model.seq_len"),
        (
            {"rl": RLConfig(samples=5, max_tokens=8)},
            "train.batch_tokens=576 is not a multiple of rl.samples=5 x model.",
        ),
        (
            {"rl": RLConfig(samples=6, max_tokens=8, normalize="pass")},
            "train.micro_batch_size=4 does not divide rl.sam",
        ),
        (
            {"checkpoint": CheckpointConfig()},
            "checkpoint.keep_best=True keeps the lowest loss, which rl.samples=4 does",
        ),
        ({"optim": OptimConfig(grad_divisor=2)}, "optim.grad_divisor=2.0 is not for rl.samples=4; leave it out"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_sections_that_do_not_fit_are_named(change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        dataclasses.replace(step_config(), **change)


@pytest.mark.parametrize("field", ["samples=1", "samples=-1", "max_tokens=0", "temperature=0", "eval_samples=0"])
def test_values_out_of_range_are_named(field):
    name, value = field.split("=")
    with pytest.raises(InputError, match=rf"^rl\.{name}={value}\b.*; choose |is no RL"):
        RLConfig(**{name: int(value)})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("verb", "args", "message"),
    [
        (rl, ["--config", "sft_cpu", "--from", "x"], "rl.samples=0 of --config=sft_cpu is no RL; choose another"),
        (rl, ["--config", "rl_cpu"], "--from is missing; name the run to start from: --from RUN"),
        (sft, ["--config", "rl_cpu", "--from", "x"], "rl.samples=8 of --config=rl_cpu is RL; run it by jaxgpt rl"),
    ],
    ids=["no RL", "no base", "sft"],
)
def test_the_verb_wants_a_config_of_rl_and_a_base(verb, args, message):
    with pytest.raises(InputError, match=re.escape(message)):
        verb.to_train(args)


def test_the_verb_is_train_with_a_base():
    args = ["--config", "rl_cpu", "--from", "x", "--from-step=3", "--resume"]
    assert rl.to_train(args) == ["--config", "rl_cpu", "--chat.base=x", "--chat.base_step=3", "--resume"]


@pytest.mark.parametrize(("name", "n_questions"), [("rl_gsm8k", 16), ("rl_cpu", 8)])
def test_shipped_rates_fall_from_a_twentieth_to_zero(name, n_questions):
    config = load(name)
    assert config.step_questions == n_questions and config.stage == "rl"
    n_steps = config.train.steps
    for step in (0, 1, n_steps - 1):
        assert schedule.lr_scale_at(config, step) == pytest.approx(0.05 * (1 - step / n_steps), abs=1e-15)
        assert schedule.momentum_at(config, step) == 0.95
    assert not config.optim.weight_decay and not any(group.weight_decay for group in config.optim.groups)


# Rollouts


def test_forced_tokens_are_not_trained_and_the_end_token_is():
    """The tool answers between the model's tokens; the text has neither end token nor, where it was cut, its lack."""
    scripts = np.zeros((len(CASES), Script.config.seq_len), np.int32)
    for row, (said, _, _) in enumerate(CASES.values()):
        scripts[row, : len(said)] = said
    engine = Engine(Script.config, jnp.array(scripts), dtype="float32", n_valid=BYTES.vocab_size)
    model: Any = Script()
    engine.model = model
    writer = Writer(engine, BYTES, RLConfig(samples=2, max_tokens=32, temperature=1e-9), n_rows=3)
    names = [name for name in CASES if name != "cut"]  # its answer has other max_tokens
    asked = [Question((list(CASES).index(name),), "36") for name in names]
    for name, group in zip(names, writer.write(asked, [0] * len(asked), 2), strict=True):
        for answer in group:
            assert (list(answer.ids), list(answer.mask)) == (CASES[name][2], MASKS.get(name)) or name == "begun anew"
            assert answer.has_ended and answer.mask[-1] == 1
            assert answer.text == BYTES.decode(answer.ids[:-1])


def test_answers_depend_on_neither_rows_nor_devices():
    """Four devices share the rows: each holds its part of the cache."""
    config = GPT2Config(seq_len=32, n_layer=1, n_head=2, n_embd=16, vocab_size=BYTES.vocab_size)
    params = init_params(config, param_dtype=jnp.float32, seed=0)
    asked = [Question((256, 257, 65 + i, 258, 259), "1") for i in range(4)]
    settings = RLConfig(samples=2, max_tokens=12)

    def write(params, n_rows):
        engine = Engine(config, params, dtype="float32", n_valid=BYTES.vocab_size)
        groups = Writer(engine, BYTES, settings, n_rows).write(asked, [seed_of(1, 0, i) for i in range(4)], 2)
        return [list(answer.ids) for group in groups for answer in group]

    expected = write(params, 8)
    assert len({tuple(ids) for ids in expected}) == 8 and write(params, 3) == expected
    mesh = make_mesh(MeshConfig(data=4, platform="cpu"))
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, replicated(mesh))
        assert write(spread, 8) == expected
        cache = make_cache(Model(config, dtype="float32"), spread, n_positions=32)
        state = make_state((jnp.zeros((1, 265)), cache), n_rows=8)
    assert {leaf.sharding.shard_shape(leaf.shape)[0] for leaf in jax.tree.leaves(state)} == {2}


# Runs

TINY = dataclasses.replace(rl_seeds.MODEL, n_layer=1, n_embd=32, seq_len=16)


def tiny(config, n_rows):
    """One layer, rows of 16 tokens."""
    return dataclasses.replace(
        config,
        model=TINY,
        train=dataclasses.replace(config.train, batch_tokens=n_rows * 16, micro_batch_size=n_rows),
        optim=dataclasses.replace(config.optim, lr=1e-2),
        rl=dataclasses.replace(config.rl, max_tokens=9) if config.is_rl else config.rl,
        chat=dataclasses.replace(config.chat, init_lr_frac=0.3) if config.is_rl else config.chat,
        checkpoint=dataclasses.replace(config.checkpoint, every=6 if config.is_rl else 0),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model that answers half of its questions, and a run of RL from there."""
    place = tmp_path_factory.mktemp("rl")
    (place / "bytes.json").write_text(json.dumps(BYTES.to_json()))
    write_chat(place / "talk", [say(str(i % 10), "#### 5" if i // 10 % 2 else "no") for i in range(100)])
    write_chat(place / "sums", [say(str(i % 10), "#### 5") for i in range(50)])
    assert rl_seeds.run(place, tiny(rl_seeds.sft_config(place, 30), 20)) == EXIT_DONE
    assert rl_seeds.run(place, tiny(rl_seeds.rl_config(place, 1, 12), 64)) == EXIT_DONE
    return place


def test_a_tiny_model_learns_what_is_rewarded(place):
    """check 21 with three seeds and sums: python -m parity_tests.rl_seeds."""
    rewards = rl_seeds.rewards(place / "rl_1")
    assert len(rewards) == 12 and np.mean(rewards[-3:]) - np.mean(rewards[:3]) > 0.2
    found = records(place / "rl_1")
    shares = [[record[f"pass_at_{k}"] for k in range(1, 5)] for record in (found[0], found[-1])]
    assert found[0]["step"] == 0 and all(row == sorted(row) for row in shares) and shares[1][0] > shares[0][0]
    manifest = json.loads((place / "rl_1" / "checkpoints" / "12" / "manifest.json").read_text())
    assert manifest["about"]["base"]["run"] == str(place / "sft")
    history = [json.loads(line) for line in (place / "rl_1" / "history.jsonl").read_text().splitlines()]
    assert history[0]["stage"] == "rl"


def test_a_resumed_run_is_the_same_to_the_last_bit(place, tmp_path):
    shutil.copytree(place / "rl_1", tmp_path / "rl_1")
    args = [f"--run.dir={tmp_path / 'rl_1'}", "--resume-from=6"]
    assert rl_seeds.run(place, tiny(rl_seeds.rl_config(place, 1, 12), 64), *args) == EXIT_DONE
    ours, theirs = untimed(tmp_path / "rl_1"), untimed(place / "rl_1")
    assert ours == theirs and len(ours) == 13


KILLED = """
import os, runpy, signal, sys
from jaxgpt.inference.rows import Rows
step, n_left = Rows.step, int(sys.argv.pop(1))
def step_or_die(rows):
    global n_left
    n_left -= 1
    if n_left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(rows)
Rows.step = step_or_die
runpy.run_module("jaxgpt.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_tokens", [31, 84, 97])
def test_killed_within_rollouts_and_resumed_is_the_same_to_the_last_bit(place, tmp_path, n_tokens):
    """After so many tokens of each row, some 9 of which make a step: before the checkpoint of step 6, and after it.
    More random moments: python -m parity_tests.chaos --only kill --kinds rl."""
    run = tmp_path / "rl_1"
    args = [str(n_tokens), f"--config={place / 'rl_1.py'}", f"--run.dir={run}"]
    died = subprocess.run([sys.executable, "-c", KILLED, *args], env=environment(8), cwd=REPO, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert 0 < len(untimed(run)) < 13
    again = tiny(rl_seeds.rl_config(place, 1, 12), 64)
    assert rl_seeds.run(place, again, f"--run.dir={run}", "--auto-resume") == EXIT_DONE
    assert untimed(run) == untimed(place / "rl_1")


@pytest.mark.slow
@pytest.mark.parametrize("n_devices", [2, 4, 8])
def test_a_run_is_that_of_one_device(place, tmp_path, n_devices):
    """The answers are the same, and losses differ by rounding."""
    args = [f"--run.dir={tmp_path}", f"--mesh.data={n_devices}", f"--train.micro_batch_size={64 // n_devices}"]
    assert rl_seeds.run(place, tiny(rl_seeds.rl_config(place, 1, 12), 64), *args) == EXIT_DONE
    check_inside_the_gate(untimed(tmp_path), untimed(place / "rl_1"))
