"""Letters: padded batches answer as one prompt at a time, known models score what they must, ChatCORE is its mean."""

import numpy as np
import pytest

from jaxgpt.chat.categorical import evaluate_categorical, letter_ids
from jaxgpt.chat.chat_core import BASELINES, ERA_TASKS, chat_core, chat_core_letters
from jaxgpt.chat.span_scores import SpanScorer
from jaxgpt.config import GPT2Config, MeshConfig
from jaxgpt.data.conversations import render_for_completion
from jaxgpt.errors import InputError
from jaxgpt.inference.language_model import LanguageModel
from jaxgpt.inference.trained import Trained
from jaxgpt.models import init_params
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.tasks.arc import arc
from jaxgpt.tasks.mixtures import CHAT_CORE
from jaxgpt.tasks.mmlu import mmlu
from parity_tests.helpers.chat_data import BYTES

MODEL = GPT2Config(seq_len=256, n_layer=2, n_head=2, n_embd=32, vocab_size=272)
WORDS = ("oak", "iron", "seven rivers", "a", "north of the mill")
LETTERS = ("A", "B", "C", "D", "E")


def row(i, order=None):
    """A question of ARC's form, with 3 to 5 choices; `order` permutes the texts under the same letters."""
    n = 3 + i % 3
    texts = [f"{word} {i}" for word in WORDS[:n]]
    key = i * 7 % n
    if order is not None:
        order = order[:n] if sorted(order[:n]) == list(range(n)) else list(range(n))[::-1]
        texts, key = [texts[j] for j in order], order.index(key)
    choices = {"label": list(LETTERS[:n]), "text": texts}
    return {"question": "Which? " * (1 + i % 9), "choices": choices, "answerKey": LETTERS[key]}


class Fixed:
    """Logits from a rule on the prompt's text."""

    max_tokens = 10_000

    def __init__(self, rule):
        self.rule = rule

    def next_logits(self, prompts, choices):
        texts = [BYTES.decode(prompt) for prompt in prompts]
        return [
            np.array([self.rule(text, chr(i)) for i in ids], float) for text, ids in zip(texts, choices, strict=True)
        ]


def choice_of(text, letter):
    """The choice that stands before a letter."""
    return next(line for line in text.splitlines() if line.endswith(f"={letter}"))[2:-2]


@pytest.fixture(scope="module")
def trained():
    params = {path: 5 * leaf if leaf.ndim == 2 else leaf for path, leaf in init_params(MODEL, seed=2).items()}
    return Trained(None, MODEL, params, BYTES, "float32", make_mesh(MeshConfig(data=1)), "random")


def test_a_padded_batch_answers_as_one_by_one(trained):
    task = arc("ARC-Easy", [row(i) for i in range(16)])
    scorer = SpanScorer(trained)
    result = evaluate_categorical(task, scorer, BYTES)
    model = LanguageModel(trained)
    for i, letter in enumerate(result.letters):
        prompt = render_for_completion(task[i], BYTES)
        logits_V = np.asarray(model.logits(prompt[-MODEL.seq_len :]))[-1]
        ids = letter_ids(task[i], BYTES)
        assert task[i]["letters"][int(np.argmax(logits_V[ids]))] == letter
        assert result.answers[i] == str(int(letter == task[i]["messages"][-1]["content"]))
    assert len(set(result.letters)) > 1
    assert result.n_cropped == sum(len(render_for_completion(task[i], BYTES)) > MODEL.seq_len for i in range(16))
    alone = evaluate_categorical(task, SpanScorer(trained, batch_tokens=1), BYTES, max_problems=5)
    assert alone.letters == result.letters[:5]


def test_permuted_choices_permute_the_answer():
    """For a model that judges a choice by its text."""
    rule = Fixed(lambda text, letter: len(choice_of(text, letter)) * 31 % 17)
    order = [2, 0, 1, 4, 3]
    tasks = [arc("ARC-Easy", [row(i, order=o) for i in range(30)]) for o in (None, order)]
    results = [evaluate_categorical(task, rule, BYTES) for task in tasks]
    for i in range(30):
        texts = [
            choice_of(task[i]["messages"][0]["content"], r.letters[i]) for task, r in zip(tasks, results, strict=True)
        ]
        assert texts[0] == texts[1]
    assert results[0].answers == results[1].answers and results[0].letters != results[1].letters


def test_a_model_that_knows_the_key_and_a_constant_one():
    rows = [row(i) for i in range(60)]
    task = arc("ARC-Challenge", rows)
    keys = {task[i]["messages"][0]["content"]: task[i]["messages"][-1]["content"] for i in range(60)}
    knows = Fixed(lambda text, letter: max(letter == key for question, key in keys.items() if question in text))
    assert evaluate_categorical(task, knows, BYTES).accuracy == 1.0
    told = []
    constant = evaluate_categorical(
        task, Fixed(lambda text, letter: letter == "B"), BYTES, on_progress=lambda *n: told.append(n)
    )
    assert constant.accuracy == sum(r["answerKey"] == "B" for r in rows) / 60 and told == [(60, 60)]
    first = evaluate_categorical(task, Fixed(lambda text, letter: 0), BYTES)
    assert set(first.letters) == {"A"}  # the first of equal ones


def test_a_letter_has_to_be_one_token():
    question = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "s"}
    problem = dict(mmlu([question])[0])
    assert letter_ids(problem, BYTES) == [65, 66, 67, 68]
    problem["letters"] = ("A", "BB")
    with pytest.raises(InputError, match="the letter 'BB' is 2 tokens"):
        letter_ids(problem, BYTES)
    with pytest.raises(InputError, match="ARC-Easy has no problem"):
        evaluate_categorical(arc("ARC-Easy", []), Fixed(lambda text, letter: 0), BYTES)


def test_chat_core():
    names: list[str] = [*ERA_TASKS["2026"]]
    five = dict(zip(names, (0.25, 0.25, 0.25, 0, 0), strict=True))
    assert chat_core(five, "2026") == 0 and chat_core(five, "2025") is None and chat_core_letters(five) == 0
    assert chat_core(dict.fromkeys(BASELINES, 1.0), "2025") == chat_core(dict.fromkeys(names, 1.0), "2026") == 1
    published = dict(zip(names, (0.3876, 0.2807, 0.3151, 0.0455, 0.0854), strict=True))  # nanochat's d20 after SFT
    assert chat_core(published, "2026") == pytest.approx(0.0884, abs=1e-4)
    published |= {"ARC-Easy": 0.4684, "ARC-Challenge": 0.3362, "MMLU": 0.3314, "GSM8K": 0.0697, "HumanEval": 0.0915}
    assert chat_core(published | {"SpellingBee": 1.0}, "2025") == pytest.approx(0.2793, abs=1e-4)
    assert list(BASELINES) == list(CHAT_CORE)
    assert arc("ARC-Easy", []).baseline == BASELINES["ARC-Easy"]
