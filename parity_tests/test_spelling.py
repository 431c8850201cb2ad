"""Spelling: nanochat's words, answers that are right, and a test that was not trained on. And the stages' mixtures."""

import json
import random
from pathlib import Path

import pytest

from jaxgpt.errors import InputError
from jaxgpt.tasks import gsm8k, mixtures, spelling
from jaxgpt.tasks.calculator import FORBIDDEN
from jaxgpt.tasks.mixtures import MIXTURES, Sources
from jaxgpt.tasks.task import Mixture
from parity_tests.helpers.task_data import chat_file, words_file


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    found = spelling.read_words(words_file(tmp_path_factory.mktemp("words")))
    assert len(found) == 370_099
    return found


def question(conversation) -> str:
    return conversation["messages"][0]["content"]


def answer(conversation) -> str:
    parts = conversation["messages"][1]["content"]
    return parts if isinstance(parts, str) else "".join(part["text"] for part in parts)


def test_words_are_nanochats(words):
    bee, simple = spelling.spelling_bee(words, 3, "train"), spelling.simple_spelling(words, 2, "train")
    for i, word in enumerate(["nonclastic", "cottonize", "beaune"]):
        assert word in question(bee[i]) and f"\n{word}:{','.join(word)}\n" in answer(bee[i])
    assert [answer(simple[i]) for i in range(2)] == [
        f"{word}:{','.join(word)}" for word in ("wombats", "undangerously")
    ]
    assert question(simple[0]) == "Spell the word: wombats"


def test_the_test_is_none_of_the_training_examples(words):
    """nanochat's seeds -(i + 1) were those of training examples, since the sign is ignored."""
    assert random.Random(-3).random() == random.Random(3).random()
    train = spelling.spelling_bee(words, 1_000, "train")
    test = spelling.spelling_bee(words, 256, "test")
    assert not {question(train[i]) for i in range(1_000)} & {question(test[i]) for i in range(256)}
    seeds = spelling.Examples(spelling.FIRST_SEED["test"], "train")
    assert seeds[-1] < spelling.Examples(1, "test")[0]
    with pytest.raises(InputError, match="where the test begins"):
        spelling.Examples(len(seeds) + 1, "train")
    with pytest.raises(InputError, match="size=0"):
        spelling.Examples(0, "test")


def test_every_answer_counts_right_and_calls_what_counts_right(words):
    task = spelling.spelling_bee(words, 500, "test")
    n_refused = 0
    for i in range(500):
        conversation = task[i]
        parts = conversation["messages"][1]["content"]
        call = next(part["text"] for part in parts if part["type"] == "python")
        word, letter = call[1:-2].split("'.count('")
        count = str(sum(a == letter for a in word))
        outputs = [part["text"] for part in parts if part["type"] == "python_output"]
        assert outputs in ([count], []) and gsm8k.find_number(answer(conversation)) == count
        n_refused += not outputs
        assert answer(conversation).count(" hit!") == int(count)
        assert task.judge(conversation, f"#### {count}") and not task.judge(conversation, f"#### {int(count) + 1}")
    assert n_refused < 10


def test_the_calculator_refuses_as_many_words_as_nanochats(words):
    assert sum(any(part in word for part in FORBIDDEN) for word in words) == 806
    for word in ("profile", "director"):
        assert [part["type"] for part in spelling.count_letter(word, "i")] == ["text", "text", "python", "text"]


def test_the_answer_numbers_letters_without_spaces():
    assert answer({"messages": [{}, {"content": spelling.count_letter("aba", "a")}]}).splitlines()[1:8] == [
        "aba:a,b,a", "", "Now I go through them and look for 'a':", "1:a hit! count=1", "2:b", "3:a hit! count=2", "",
    ]  # fmt: skip


def test_questions_are_51_in_seven_languages_and_hold_word_and_letter():
    assert len(set(spelling.QUESTIONS)) == len(spelling.QUESTIONS) == 51
    assert all(text.count("{word}") == text.count("{letter}") == 1 for text in spelling.QUESTIONS)
    n_latin = [all(ord(character) < 0x2000 for character in text) for text in spelling.QUESTIONS]
    assert sum(n_latin) == 40 and sum(n_latin[:30]) == 30


def test_words_that_cannot_be_are_named(tmp_path):
    path = tmp_path / "words.txt"
    for content, fault in {b"abc\nTea\n": "'Tea' is not a word", b"": "has no word", b"\xff": "cannot be read"}.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=fault):
            spelling.read_words(path)


def test_words_are_fetched_once_and_only_if_they_are_words(tmp_path, monkeypatch):
    asked = []

    def download(url, path, *, check, **_):
        asked.append(url)
        path.write_text("tea\r\npot\r\n" if len(asked) > 1 else "<html>")
        try:
            check(path)
        except InputError:
            path.unlink()
            raise

    monkeypatch.setattr(spelling, "download", download)
    with pytest.raises(InputError, match="not a word"):
        spelling.fetch_words(tmp_path / "x")
    assert spelling.fetch_words(tmp_path / "x") == spelling.fetch_words(tmp_path / "x") == ["tea", "pot"]
    assert asked == [spelling.WORDS_URL] * 2


# Mixtures


class _Length:
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index, /):
        raise AssertionError


def lengths(stage: str, n_own: int = 996) -> list[int]:
    found = []
    for part in MIXTURES[stage]:
        name, n_rows = (part, 0) if isinstance(part, str) else part
        found.append(n_rows or (n_own if name == mixtures.OWN else mixtures.HUB_TASKS[name].n_rows))
    return found


def test_stages_have_nanochats_rows():
    assert {stage: sum(lengths(stage)) for stage in MIXTURES if not stage.startswith("chat_cpu")} == {
        "mid_2025": 849_648, "mid_2025_val": 29_849, "sft_2025": 22_439, "sft_2025_val": 24_229,
        "sft_2026_spelling": 1_071_751, "sft_2026": 789_759, "sft_2026_val": 29_849,
    }  # fmt: skip


def test_the_mixture_of_2026_starts_as_nanochats():
    mixture = Mixture([_Length(n) for n in lengths("sft_2026")])
    pairs = [(1, 47400), (2, 57331), (0, 109143), (0, 184066), (2, 9663), (3, 73170)]
    assert [mixture.pair(i) for i in range(6)] == pairs


def test_a_stage_is_made_of_local_copies(tmp_path, monkeypatch, capsys):
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps([{"role": "user", "content": "who"}, {"role": "assistant", "content": "me"}]) + "\n")
    (tmp_path / "words.txt").write_text("tea\npot\n")
    gsm8k_file = Path(chat_file("gsm8k/train.jsonl"))
    sources = Sources(tmp_path, {"own": [own], "words": [tmp_path / "words.txt"], "gsm8k": [gsm8k_file]})
    parts = ("gsm8k", "own", "own", ("spelling-bee", 4), ("simple-spelling", 3), ("gsm8k", 10))
    monkeypatch.setitem(MIXTURES, "small", parts)
    mixture = sources.mixture("small")
    assert [len(task) for task in mixture.tasks] == [7_473, 1, 1, 4, 3, 10] and capsys.readouterr().err == ""
    texts = [question(mixture[i]) for i in range(len(mixture))]
    assert texts.count("who") == 2 and len(texts) == 7_492
    assert len(sources.task("spelling-bee-test")) == 256


def test_what_a_stage_lacks_is_named(tmp_path):
    with pytest.raises(InputError, match="own conversations are part of this stage"):
        Sources(tmp_path).task("own")
    with pytest.raises(InputError, match="mixture sft does not exist; choose one of mid_2025"):
        Sources(tmp_path).mixture("sft")
    with pytest.raises(InputError, match="task gsm does not exist"):
        Sources(tmp_path).task("gsm")
    with pytest.raises(InputError, match="input gsm is not a task"):
        Sources(tmp_path, {"gsm": []})
    with pytest.raises(InputError, match="input words has 0 files"):
        Sources(tmp_path, {"words": []}).task("spelling-bee")
